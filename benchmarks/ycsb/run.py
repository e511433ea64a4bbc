"""One workload against one store: a closed loop of callers, and the latency of each operation by its kind."""

import itertools
import time
from asyncio import TaskGroup
from collections.abc import Iterator
from random import Random

from benchmarks.loops import WrongAnswer
from benchmarks.measured import Block
from benchmarks.ycsb.stores import Store
from benchmarks.ycsb.workloads import (
    RECORD_BYTES,
    Inserted,
    Kind,
    Operation,
    RecordKeys,
    Workload,
    operations,
)

CALLERS = 128
"""YCSB's threads: tasks here, each with one operation under way."""

RECORDS_MADE = 64
"""Different contents that are written in turn: making one anew for each write would cost as much as sending it."""


def made_records(seed: int = 1) -> Iterator[bytes]:
    """Contents of records, without end."""
    rng = Random(seed)
    return itertools.cycle([rng.randbytes(RECORD_BYTES) for _ in range(RECORDS_MADE)])


class StoreUnderLoad:
    """A store with its records, as far as this process has inserted any."""

    def __init__(self, name: str, store: Store, inserted: Inserted, keys: RecordKeys) -> None:
        """inserted: the records that are there, or will be once they are loaded; two clients of one store share it."""
        self.name = name
        self._store = store
        self.inserted = inserted
        self._keys = keys
        self._contents = made_records()

    async def load(self) -> None:
        """Store what is to be there at first."""
        numbers = range(self.inserted.newest + 1)
        await self._store.load({self._keys[number]: next(self._contents) for number in numbers})

    def operations(self, workload: Workload, expected: int) -> Iterator[Operation]:
        """The operations of a workload against this store; see `workloads.operations`."""
        return operations(workload, self.inserted, expected)

    async def run(self, source: Iterator[Operation], seconds: float) -> Block:
        """Take operations from the source for so many seconds. Raises what the first failure raises."""
        clock = time.perf_counter
        began = clock()
        end = began + seconds
        taken: dict[str, list[float]] = {}

        async def caller() -> None:
            now, is_first = clock(), True
            while is_first or now < end:
                operation = next(source)
                await self.perform(operation)
                done = clock()
                taken.setdefault(operation.kind, []).append(done - now)
                now, is_first = done, False

        async with TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(caller())
        return Block(sum(map(len, taken.values())), clock() - began, taken)

    async def perform(self, operation: Operation) -> None:
        """Do it. Raises WrongAnswer when a record that must be there is not, or is not whole."""
        kind, key = operation.kind, self._keys[operation.record]
        if kind is Kind.READ:
            self._check(key, await self._store.read(key))
        elif kind is Kind.UPDATE:
            await self._store.update(key, next(self._contents))
        elif kind is Kind.READ_MODIFY_WRITE:
            self._check(key, await self._store.read(key))
            await self._store.update(key, next(self._contents))
        elif kind is Kind.INSERT:
            await self._store.insert(key, next(self._contents))
            self.inserted.acknowledge(operation.record)
        else:
            found = await self._store.scan(key, operation.length)
            if not 1 <= len(found) <= operation.length:
                raise WrongAnswer(f"{self.name}: {len(found)} records from {key} on, {operation.length} were asked for")
            for record in found:
                self._check(key, record)

    def _check(self, key: str, record: bytes | None) -> None:
        if record is None or len(record) != RECORD_BYTES:
            raise WrongAnswer(f"{self.name}: {key}: {'absent' if record is None else f'{len(record)} bytes'}")
