"""A replica that begins with nothing: how fast it catches up with a shard that serves, and what that costs the callers."""

import asyncio
import itertools
import os
import shutil
import time
from pathlib import Path

from benchmarks.figures import Figure, percentile
from benchmarks.fleet import Fleet
from kvshard import Client

KEYS = 1_000_000
VALUE_BYTES = 100
BATCH_KEYS = 5_000
BATCHES_IN_FLIGHT = 3
QUIET_S = 10.0
"""Of calls before the learner comes, to compare with."""

CALLERS = 4
PAUSE_S = 0.005
"""Between two calls of a caller: the load is that of a shard with room to spare."""

LEARNER = "leaf-3"
CATCH_UP_TIMEOUT_S = 120.0
POLL_S = 0.01


async def _load(client: Client[str], keys: int) -> None:
    numbers = iter(range(0, keys, BATCH_KEYS))

    async def worker() -> None:
        for first in numbers:
            values = {f"k:{number}": os.urandom(VALUE_BYTES) for number in range(first, min(first + BATCH_KEYS, keys))}
            (await client.put_many(values)).raise_for_failures()

    await asyncio.gather(*(worker() for _ in range(BATCHES_IN_FLIGHT)))


class _Calls:
    """Point reads and writes all the time. Each: (begin, seconds)."""

    def __init__(self, client: Client[str], keys: int) -> None:
        self.reads: list[tuple[float, float]] = []
        self.writes: list[tuple[float, float]] = []
        self._client = client
        self._keys = keys
        self._tasks = [asyncio.create_task(self._run(number)) for number in range(CALLERS)]

    async def _run(self, caller: int) -> None:
        for number in itertools.count(caller, 7919):
            key = f"k:{number % self._keys}"
            began = time.monotonic()
            if number % 2:
                await self._client.put(key, bytes(VALUE_BYTES))
            else:
                await self._client.get(key)
            (self.writes if number % 2 else self.reads).append((began, time.monotonic() - began))
            await asyncio.sleep(PAUSE_S)

    def check(self) -> None:
        """Raise what ended a caller."""
        for task in self._tasks:
            if task.done():
                task.result()

    async def stop(self) -> None:
        """No further call."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def _when(fleet: Fleet, calls: _Calls, *, is_in_sync: bool) -> float:
    """The instant at which the learner is one, or has been taken in sync."""
    deadline = time.monotonic() + CATCH_UP_TIMEOUT_S
    while True:
        config = (await fleet.map()).shards[0]
        if any(each.leaf == LEARNER for each in (config.in_sync if is_in_sync else config.learners)):
            return time.monotonic()
        calls.check()
        if time.monotonic() > deadline:
            raise RuntimeError(f"the learner has not caught up: {config} {fleet.leaves[LEARNER]!r}")
        await asyncio.sleep(POLL_S)


async def catch_up(folder: Path, keys: int = KEYS) -> list[Figure]:
    """One shard on two leaves gets its keys; then the third leaf, whose data is gone, comes back while the shard serves."""
    async with Fleet(folder, shards=1) as fleet, Client(fleet.address, timeout=60.0) as client:
        fleet.leaves[LEARNER].kill()
        await _load(client, keys)
        shutil.rmtree(fleet.data_dir(LEARNER))
        calls = _Calls(client, keys)
        try:
            await asyncio.sleep(QUIET_S)
            quiet_until = time.monotonic()
            fleet.leaves[LEARNER].start()
            began = await _when(fleet, calls, is_in_sync=False)
            ended = await _when(fleet, calls, is_in_sync=True)
        finally:
            await calls.stop()
    figures = [
        Figure(
            "a learner catches up", keys / (ended - began), "keys/s", keys, 50_000, is_upper_bound=False,
            note=f"{ended - began:.1f} s from its adding to in sync, while the shard serves",
        )
    ]  # fmt: skip
    for name, samples in (("reads", calls.reads), ("writes", calls.writes)):
        quiet = [seconds for start, seconds in samples if start < quiet_until]
        during = [seconds for start, seconds in samples if began <= start < ended]
        ratio = percentile(during, 0.99) / percentile(quiet, 0.99)
        note = f"p99 {percentile(quiet, 0.99) * 1e3:.1f} ms (n {len(quiet):,}) before"
        figures.append(Figure(f"{name} meanwhile, p99", percentile(during, 0.99) * 1e3, "ms", len(during), note=note))
        figures.append(Figure(f"{name} meanwhile / before, p99", ratio, "x", len(during), 1.5))
    return figures
