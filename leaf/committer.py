"""Group commit: unsynced batches and one fsync for everything that all shards want written.

A single task: take what has gathered, write it in batches that leave the event loop its turns, flush on a thread, report;
meanwhile the next group gathers. A write or flush that fails ends it for good: nobody knows what the disk holds after a failed
fsync, so it is never tried again.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import structlog

from kvshard.clock import Clock
from leaf.engine import Engine, StorageError
from leaf.layout import Changes

GROUP_MAX_BYTES: Final = 8 * 1024 * 1024
"""Rows that share a flush. Larger changes make a group alone."""

BATCH_MAX_BYTES: Final = 1024 * 1024
BATCH_MAX_ROWS: Final = 4_096
"""Of one batch: its write holds the event loop, for about 2 ms at either bound. Larger changes make a batch alone."""

QUEUE_MAX_BYTES: Final = 128 * 1024 * 1024
"""Rows that wait; beyond it writers are refused. Four of the largest batches: about a second of a slow disk."""

_log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Work:
    """mark: (owner, ticket) and entries, the log entries among the changes; else done is awaited, or nobody waits."""

    changes: Changes
    mark: tuple[int, int] | None = None
    entries: int = 0
    done: asyncio.Future[None] | None = None


@dataclass(slots=True)
class _Group:
    works: list[_Work] = field(default_factory=list)
    bytes: int = 0


class Committer:
    """Makes changes durable, in the order in which they were given; those given together survive a crash together.

    on_durable gets {owner: highest ticket that is durable} after each flush, on the event loop. on_failed gets the reason,
    once. on_group, for metrics, gets (log entries, seconds of the flush).
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        on_durable: Callable[[dict[int, int]], None],
        on_failed: Callable[[str], None],
        on_group: Callable[[int, float], None] = lambda entries, seconds: None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._on_durable = on_durable
        self._on_failed = on_failed
        self._on_group = on_group
        self._waiting: list[_Work] = []
        self._wake = asyncio.Event()
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="fsync")
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False
        self.queued_bytes = 0
        self.failure: str | None = None

    def __repr__(self) -> str:
        return f"Committer(waiting={len(self._waiting)}, queued_bytes={self.queued_bytes}, failure={self.failure!r})"

    @property
    def is_full(self) -> bool:
        """No more should be appended for now."""
        return self.queued_bytes >= QUEUE_MAX_BYTES

    def start(self) -> None:
        """Begin to commit."""
        self._task = asyncio.create_task(self._run(), name="committer")

    def append(self, owner: int, ticket: int, changes: Changes, entries: int = 0) -> None:
        """Make changes durable; reported to on_durable by the ticket, which grows for an owner.

        entries: log entries among them, for metrics. Ignored after a failure, which on_failed reported.
        """
        if self.failure is None:
            self._add(_Work(changes, (owner, ticket), entries))

    async def make_durable(self, changes: Changes) -> None:
        """Make changes durable and return when they are. Raises StorageError."""
        if self.failure is not None:
            raise StorageError(self.failure)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._add(_Work(changes, done=done))
        await done

    async def persist(self, key: bytes, value: bytes) -> None:
        """Make one row durable. Raises StorageError."""
        changes = Changes()
        changes.put(key, value)
        await self.make_durable(changes)

    def sync_soon(self) -> None:
        """Have the next flush come now: what others wrote to the engine unsynced becomes durable with it."""
        if self.failure is None:
            self._add(_Work(Changes()))

    def fail(self, reason: str) -> None:
        """Stop for good: the storage cannot be trusted any more."""
        if self.failure is not None:
            return
        self.failure = reason
        _log.error("storage failed, no more writes are taken", reason=reason)
        self._reject(self._waiting, reason)
        self._waiting = []
        self.queued_bytes = 0
        self._wake.set()
        self._on_failed(reason)

    async def close(self) -> None:
        """Commit what waits, then stop."""
        self._is_closing = True
        self._wake.set()
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)
        self._executor.shutdown(wait=True)

    def _add(self, work: _Work) -> None:
        self._waiting.append(work)
        self.queued_bytes += work.changes.bytes
        self._wake.set()

    async def _run(self) -> None:
        while self.failure is None:
            # Waking takes one pass of the loop: what all the handlers of this pass append is in the group.
            await self._wake.wait()
            self._wake.clear()
            while self._waiting and self.failure is None:
                await self._commit(self._take())
            if self._is_closing:
                return

    def _take(self) -> _Group:
        group = _Group()
        for work in self._waiting:
            if group.works and group.bytes + work.changes.bytes > GROUP_MAX_BYTES:
                break
            group.works.append(work)
            group.bytes += work.changes.bytes
        del self._waiting[: len(group.works)]
        return group

    async def _commit(self, group: _Group) -> None:
        try:
            await self._write(group.works)
            loop = asyncio.get_running_loop()
            seconds = await loop.run_in_executor(self._executor, self._flush)
        except StorageError as error:
            self._reject(group.works, str(error))
            self.fail(str(error))
            return
        if self.failure is None:
            self.queued_bytes -= group.bytes
            self._report(group, seconds)
        else:
            self._reject(group.works, self.failure)

    async def _write(self, works: Sequence[_Work]) -> None:
        batch, rows, size = self._engine.new_batch(), 0, 0
        for work in works:
            changes = work.changes
            if rows and (rows + len(changes) > BATCH_MAX_ROWS or size + changes.bytes > BATCH_MAX_BYTES):
                self._engine.write(batch)
                await asyncio.sleep(0)
                batch, rows, size = self._engine.new_batch(), 0, 0
            changes.write_to(batch)
            rows += len(changes)
            size += changes.bytes
        self._engine.write(batch)

    def _flush(self) -> float:
        started = self._clock.monotonic()
        self._engine.flush_wal()
        return self._clock.monotonic() - started

    def _report(self, group: _Group, seconds: float) -> None:
        durable: dict[int, int] = {}
        entries = 0
        for work in group.works:
            if work.mark is not None:
                owner, ticket = work.mark
                durable[owner] = ticket
                entries += work.entries
            elif work.done is not None and not work.done.done():
                work.done.set_result(None)
        self._on_group(entries, seconds)
        try:
            if durable:
                self._on_durable(durable)
        except Exception as error:  # A defect, or state that cannot be read: going on would acknowledge what is not applied.
            _log.exception("applying committed entries failed")
            self.fail(f"{type(error).__name__}: {error}")

    @staticmethod
    def _reject(works: Sequence[_Work], reason: str) -> None:
        for work in works:
            if work.done is not None and not work.done.done():
                work.done.set_exception(StorageError(reason))
