"""The engine of `kvshard load`: several batches under way at once, acknowledged in the file's order.

Batches are settled oldest first, so that everything before the settled position is acknowledged or kept as a reject: that is
the place from which a load can be resumed. Records that fail for a while are written again, for as long as some succeed.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from kvshard.cli.load_sources import Batch, Reject, Source
from kvshard.client.keyspace import Keyspace
from kvshard.client.retries import RetryPolicy
from kvshard.clock import Clock
from kvshard.errors import Expired, InvalidArgument, KvShardError

BATCHES_IN_FLIGHT = 4
"""Enough to keep the leaves' disks and the router busy at once; with BATCH_BYTES it bounds the memory to some 16 MB."""

BATCH_BYTES = 4 * 1024 * 1024
"""A batch ends here even with few records: larger ones gain nothing and make the answer late."""

_PAUSES = RetryPolicy(base_delay_s=0.05, max_delay_s=1.0)


@dataclass(slots=True)
class Progress:
    """How far a load is. offset, line: of the source; loaded, rejected: records."""

    offset: int = 0
    line: int = 0
    loaded: int = 0
    rejected: int = 0


class Loader:
    """Loads a source into a collection.

    keep_rejects is called with the bad lines of a batch, in order, before on_settled, which is called when everything up to the
    progress is acknowledged. Raises the KvShardError that ended the load: one that no waiting helps, or the last one after
    retry_for_s seconds without any progress of a batch.
    """

    def __init__(
        self,
        target: Keyspace[bytes, bytes],
        source: Source,
        clock: Clock,
        *,
        batch_records: int,
        retry_for_s: float,
        keep_rejects: Callable[[list[Reject]], None],
        on_settled: Callable[[Progress], None],
        progress: Progress,
    ) -> None:
        self._target = target
        self._source = source
        self._clock = clock
        self._batch_records = batch_records
        self._retry_for_s = retry_for_s
        self._keep_rejects = keep_rejects
        self._on_settled = on_settled
        self._random = Random()
        self._in_flight: deque[tuple[Batch, set[bytes], asyncio.Task[list[Reject]]]] = deque()
        self.progress = progress

    async def run(self) -> Progress:
        """Load everything that is left of the source."""
        try:
            # Read on a thread: a slow file or pipe must not hold up the answers.
            while (batch := await asyncio.to_thread(self._source.next_batch, self._batch_records, BATCH_BYTES)) is not None:
                keys = {record.key for record in batch.records}
                while len(self._in_flight) >= BATCHES_IN_FLIGHT or self._is_in_flight(keys):
                    await self._settle_oldest()
                self._in_flight.append((batch, keys, asyncio.create_task(self._write(batch))))
            while self._in_flight:
                await self._settle_oldest()
        finally:
            tasks = [task for _, _, task in self._in_flight]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return self.progress

    def _is_in_flight(self, keys: set[bytes]) -> bool:
        """Whether a key is being written already: of two lines with one key the later must win."""
        return any(not keys.isdisjoint(others) for _, others, _ in self._in_flight)

    async def _settle_oldest(self) -> None:
        batch, _, task = self._in_flight[0]
        refused = await task
        self._in_flight.popleft()
        rejects = sorted([*batch.rejects, *refused], key=lambda reject: reject.line)
        self._keep_rejects(rejects)
        self.progress.offset, self.progress.line = batch.offset, batch.line
        self.progress.loaded += len(batch.records) - len(refused)
        self.progress.rejected += len(rejects)
        self._on_settled(self.progress)

    async def _write(self, batch: Batch) -> list[Reject]:
        """Write a batch until each record is acknowledged or refused; the refused ones."""
        pending, refused = batch.records, list[Reject]()
        attempts, give_up_at = 0, self._clock.monotonic() + self._retry_for_s
        while pending:
            attempts += 1
            outcomes: list[int | KvShardError]
            try:
                outcomes = list((await self._target.put_many((record.key, record.value) for record in pending)).outcomes)
            except KvShardError as error:
                if not _may_write_again(error):
                    raise
                outcomes = [error] * len(pending)
            left, last = [], None
            for record, outcome in zip(pending, outcomes, strict=True):
                if isinstance(outcome, InvalidArgument):
                    refused.append(Reject(record.line, outcome.message, record.raw))
                elif isinstance(outcome, KvShardError):
                    if not _may_write_again(outcome):
                        raise outcome
                    left.append(record)
                    last = outcome
            if len(left) < len(pending):
                attempts, give_up_at = 1, self._clock.monotonic() + self._retry_for_s
            pending = left
            if last is not None:
                if self._clock.monotonic() >= give_up_at:
                    raise last
                await asyncio.sleep(min(_PAUSES.max_delay_s, _PAUSES.base_delay_s * 2**attempts) * self._random.random())
        return refused


def _may_write_again(error: KvShardError) -> bool:
    """Whether it may help. It is harmless even where nobody knows whether the first one took effect: the value is the same."""
    return error.is_retryable or isinstance(error, Expired)
