"""A coordinator in memory, its clock and faults in the hands of the test; it passes the conformance suite of the real ones."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Sequence

from kvshard.clock import Clock, SystemClock
from kvshard.coordination.base import (
    ABSENT,
    Compare,
    Coordinator,
    CoordinatorUnavailable,
    Delete,
    Event,
    HistoryCompacted,
    KeyValue,
    LeaseExpired,
    Put,
    Snapshot,
    TxnResult,
    check_txn,
)

EXPIRY_POLL_S = 0.005
"""How often a waiting watch looks for ended leases: the clock may be one that the test sets."""


@dataclasses.dataclass
class MemoryLease:
    ttl_ms: int
    expires_at_ms: int


class MemoryStore:
    """What several handles share: keys, history and leases."""

    def __init__(self, clock: Clock | None = None, history_revisions: int = 10_000) -> None:
        self.clock: Clock = clock or SystemClock()
        self.history_revisions = history_revisions
        self.revision = 0
        self.compacted = 0
        self.items: dict[str, KeyValue] = {}
        self.lease_of: dict[str, int] = {}
        self.leases: dict[int, MemoryLease] = {}
        self.last_lease = 0
        self.history: list[Event] = []
        self.changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"MemoryStore(revision={self.revision}, keys={sorted(self.items)}, leases={sorted(self.leases)})"

    def commit(self, writes: Sequence[Put | Delete]) -> None:
        """Make writes as one revision; deleting only what is absent changes nothing."""
        effective = [write for write in writes if isinstance(write, Put) or write.key in self.items]
        if not effective:
            return
        self.revision += 1
        for write in effective:
            self.lease_of.pop(write.key, None)
            if isinstance(write, Put):
                self.items[write.key] = KeyValue(write.key, write.value, self.revision)
                if write.lease is not None:
                    self.lease_of[write.key] = write.lease
                self.history.append(Event(write.key, write.value, self.revision))
            else:
                del self.items[write.key]
                self.history.append(Event(write.key, None, self.revision))
        self.compact(self.revision - self.history_revisions)
        self.changed.set()
        self.changed = asyncio.Event()

    def compact(self, through: int) -> None:
        """Forget the changes through a revision."""
        if through > self.compacted:
            self.compacted = through
            self.history = [event for event in self.history if event.revision > through]

    def end_lease(self, lease: int) -> None:
        """End a lease and delete its keys."""
        if self.leases.pop(lease, None) is not None:
            self.commit([Delete(key) for key in sorted(key for key, owner in self.lease_of.items() if owner == lease)])

    def collect(self) -> None:
        """End the leases whose time is over."""
        now = self.clock.wall_ms()
        for lease in [lease for lease, state in self.leases.items() if state.expires_at_ms <= now]:
            self.end_lease(lease)


class MemoryCoordinator(Coordinator):
    """A handle on a MemoryStore. Faults, each for the next so many calls of this handle:

    refuse: CoordinatorUnavailable, nothing happens. lose_answers: a txn takes effect, then CoordinatorUnavailable.
    break_watches(): every waiting watch of this handle raises CoordinatorUnavailable.
    """

    def __init__(self, store: MemoryStore | None = None, *, clock: Clock | None = None) -> None:
        self.store = store or MemoryStore(clock)
        self.refuse = 0
        self.lose_answers = 0
        self.calls: list[str] = []
        self._is_closed = False
        self._watch_breaks = 0
        self._awaited: tuple[str, asyncio.Future[None]] | None = None

    def __repr__(self) -> str:
        return f"MemoryCoordinator({self.store!r}, refuse={self.refuse}, lose_answers={self.lose_answers})"

    def handle(self) -> "MemoryCoordinator":
        """Another handle on the same store, as another process would have."""
        return MemoryCoordinator(self.store)

    def break_watches(self) -> None:
        self._watch_breaks += 1
        self.store.changed.set()
        self.store.changed = asyncio.Event()

    async def called(self, name: str) -> None:
        """Wait for the next call of a method."""
        self._awaited = (name, asyncio.get_running_loop().create_future())
        await self._awaited[1]

    async def get(self, key: str) -> KeyValue | None:
        await self._enter("get")
        return self.store.items.get(key)

    async def get_prefix(self, prefix: str) -> Snapshot:
        await self._enter("get_prefix")
        found = tuple(item for key, item in sorted(self.store.items.items()) if key.startswith(prefix))
        return Snapshot(self.store.revision, found)

    async def txn(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> TxnResult:
        check_txn(compares, writes)
        await self._enter("txn")
        items = self.store.items
        has_succeeded = all((items[c.key].revision if c.key in items else ABSENT) == c.revision for c in compares)
        if has_succeeded:
            for write in writes:
                if isinstance(write, Put) and write.lease is not None and write.lease not in self.store.leases:
                    raise LeaseExpired(f"lease {write.lease} has ended")
            self.store.commit(writes)
        if self.lose_answers:
            self.lose_answers -= 1
            raise CoordinatorUnavailable("the answer was lost")
        return TxnResult(has_succeeded, self.store.revision)

    async def watch(self, prefix: str, after_revision: int) -> AsyncIterator[list[Event]]:
        breaks = self._watch_breaks
        while True:
            if self._is_closed or breaks != self._watch_breaks:
                raise CoordinatorUnavailable("the watch was broken")
            self.store.collect()
            changed = self.store.changed
            if after_revision < self.store.compacted:
                raise HistoryCompacted(f"changes after {after_revision} are gone, through {self.store.compacted}")
            events = [e for e in self.store.history if e.revision > after_revision and e.key.startswith(prefix)]
            after_revision = max(after_revision, self.store.revision)
            if events:
                yield events
                continue
            waiting = asyncio.ensure_future(changed.wait())
            try:
                await asyncio.wait([waiting], timeout=EXPIRY_POLL_S if self.store.leases else None)
            finally:
                waiting.cancel()

    async def grant_lease(self, ttl_s: float) -> int:
        await self._enter("grant_lease")
        ttl_ms = int(ttl_s * 1000)
        self.store.last_lease += 1
        self.store.leases[self.store.last_lease] = MemoryLease(ttl_ms, self.store.clock.wall_ms() + ttl_ms)
        return self.store.last_lease

    async def keep_alive(self, lease: int) -> None:
        await self._enter("keep_alive")
        if lease not in self.store.leases:
            raise LeaseExpired(f"lease {lease} has ended")
        state = self.store.leases[lease]
        state.expires_at_ms = self.store.clock.wall_ms() + state.ttl_ms

    async def revoke_lease(self, lease: int) -> None:
        await self._enter("revoke_lease")
        self.store.end_lease(lease)

    async def close(self) -> None:
        self._is_closed = True
        self.break_watches()

    async def _enter(self, name: str) -> None:
        self.calls.append(name)
        if self._awaited and self._awaited[0] == name and not self._awaited[1].done():
            self._awaited[1].set_result(None)
        await asyncio.sleep(0)  # as a real store would, let other tasks run in between
        if self._is_closed:
            raise CoordinatorUnavailable("closed")
        if self.refuse:
            self.refuse -= 1
            raise CoordinatorUnavailable("refused")
        self.store.collect()
