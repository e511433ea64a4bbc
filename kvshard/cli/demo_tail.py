"""The demo's slow leaves: searches and batches at planned instants while leaves pause or dawdle, with and without defences.

May live here: the faults and the load of that step. What it adds up to is `demo_tail_report.py`, the printing is elsewhere.
"""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kvshard.cli.demo_tail_report import WITH, WITHOUT, Arm, Cell, Condition, ReadKind, ReadTimes, TailSamples, blocks
from kvshard.client.client import Client
from kvshard.client.collection import Collection
from kvshard.client.options import ReadOverrides
from kvshard.client.results import SearchPage, Timing
from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap
from kvshard.errors import KvShardError

BLOCK_S = 3.0
BLOCK_MIN_S = 0.5
SETTLE_S = 0.25
"""Reads of a block's first quarter second are made and not counted, until the load has got going."""

SEARCHES_PER_S = 50.0
BATCHES_PER_SEARCH = 2
"""On two cores that leaves more than half of them idle: what is to be seen is waiting for slow leaves, not for the cores."""

BUSY = 0.25
"""On a slower machine fewer searches are made: as many as keep one that follows the other busy for this part of the time."""

READ_TIMEOUT_S = 2.0
"""What a read without an answer counts as. It also bounds what is in flight: no block is planned with more than 700 reads or
so, and the next one begins when they are over."""

MARGIN_S = 10.0
"""Faults end by themselves so long after their block, should they not be ended before."""

KEYS_PER_SHARD = 200
VALUE = b"x" * 100

EXPLAINED_DELAY_S = 0.08
EXPLAINED_TRIES = 3
"""A search over eight shards at random replicas leaves one of three leaves out once in 26 times; three searches do not."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A read that is to start. at: seconds from the start of its block. seed: of what it asks."""

    at: float
    kind: ReadKind
    seed: int


def plan(rate: float, block_s: float, rng: random.Random) -> list[Planned]:
    """The reads of a block: Poisson arrivals, so many searches a second and BATCHES_PER_SEARCH times as many batches."""
    planned, at = list[Planned](), 0.0
    while (at := at + rng.expovariate(rate * (1 + BATCHES_PER_SEARCH))) < block_s:
        kind: ReadKind = "batch" if rng.randrange(1 + BATCHES_PER_SEARCH) else "search"
        planned.append(Planned(at, kind, rng.getrandbits(32)))
    return planned


def search_rate(search_s: float) -> float:
    """Searches a second for a machine on which one takes that long on average."""
    return min(SEARCHES_PER_S, BUSY / max(search_s, 0.001))


def turns(seconds: float) -> tuple[int, float]:
    """How many turns of all cells that time is for, and how many seconds a block of them has."""
    cells = len(blocks(0))
    count = max(1, round(seconds / (cells * BLOCK_S)))
    return count, max(BLOCK_MIN_S, seconds / (cells * count))


def read_options(arm: Arm) -> ReadOverrides:
    """How a read under this arm is asked for."""
    return {"hedge": arm.hedge, "replica_choice": arm.replica_choice, "timeout": READ_TIMEOUT_S, "explain_timing": True}


class SlowLeaves:
    """One run of the step. words: to search for. fan_out: shards that every read asks."""

    def __init__(self, kv: Client[str], docs: Collection[str], words: Sequence[str], clock: Clock, seed: int) -> None:
        self.samples = TailSamples()
        self.fan_out = 0
        self._kv = kv
        self._docs = docs
        self._words = words
        self._clock = clock
        self._seed = seed
        self._keys: list[list[str]] = []

    async def run(self, rate: float, seconds: float, ends_at: float, progress: Callable[[int, int], None]) -> None:
        """Measure all cells in turns. rate: searches a second. No turn begins after `ends_at` but the first.

        progress: told after each block how many are done, and of how many.
        """
        await self._store_keys(await self._kv.map())
        count, block_s = turns(seconds)
        for turn in range(count):
            if turn and self._clock.monotonic() > ends_at:
                return
            cells = blocks(turn)
            for number, cell in enumerate(cells, start=1):
                # The arms of a turn get the same pauses and the same reads at the same instants of their blocks.
                planned = plan(rate, block_s, random.Random(f"{self._seed}:{turn}"))
                await self._make_slow(cell.condition, block_s, seed=turn + 1)
                try:
                    await self._read_all(cell, planned)
                finally:
                    await self._kv.clear_faults()
                progress(turn * len(cells) + number, count * len(cells))

    async def _store_keys(self, cluster_map: ClusterMap) -> None:
        """Values for the batches, so many on every shard."""
        found: defaultdict[int, list[str]] = defaultdict(list)
        number = 0
        while len(found) < len(cluster_map.shards) or any(len(keys) < KEYS_PER_SHARD for keys in found.values()):
            key = f"demo:tail:{number}"
            found[cluster_map.shard_of_key(key.encode())].append(key)
            number += 1
        self._keys = [keys[:KEYS_PER_SHARD] for _, keys in sorted(found.items())]
        self.fan_out = len(self._keys)
        (await self._kv.put_many({key: VALUE for keys in self._keys for key in keys})).raise_for_failures()

    async def _make_slow(self, condition: Condition, block_s: float, seed: int) -> None:
        if condition.kind is not None:
            await self._kv.inject_fault(
                condition.kind,
                leaves=condition.leaves,
                probability=condition.probability,
                delay=condition.delay,
                factor=condition.factor,
                methods=condition.methods,
                duration=block_s + MARGIN_S,
                seed=seed,
            )

    async def _read_all(self, cell: Cell, planned: Sequence[Planned]) -> None:
        """Start every read when it is due, whatever became of those before, and wait for the last answer."""
        began = self._clock.monotonic()
        async with asyncio.TaskGroup() as group:
            for each in planned:
                await asyncio.sleep(max(0.0, began + each.at - self._clock.monotonic()))
                times = self.samples.of(each.kind, cell) if each.at >= SETTLE_S else ReadTimes()
                group.create_task(self._read(each, cell.arm, times, began + each.at))

    async def _read(self, planned: Planned, arm: Arm, times: ReadTimes, due: float) -> None:
        rng = random.Random(planned.seed)
        try:
            timing = await (self._search(rng, arm) if planned.kind == "search" else self._batch(rng, arm))
        except KvShardError:
            times.failed += 1
            times.took_us.append(round(max(READ_TIMEOUT_S, self._clock.monotonic() - due) * 1e6))
            return
        times.took_us.append(round((self._clock.monotonic() - due) * 1e6))
        if timing is not None:
            times.legs += len(timing.legs)
            times.extra += sum(leg.attempts - 1 for leg in timing.legs)

    async def _search(self, rng: random.Random, arm: Arm) -> Timing | None:
        query = " ".join(rng.sample(self._words, min(len(self._words), rng.randint(1, 3))))
        return (await self._docs.search(query, **read_options(arm))).timing

    async def _batch(self, rng: random.Random, arm: Arm) -> Timing | None:
        found = await self._kv.get_many([rng.choice(keys) for keys in self._keys], **read_options(arm))
        found.raise_for_failures()
        return found.timing


@dataclass(frozen=True, slots=True)
class Explained:
    """A search while `leaf` was slow: the first one with the defences, and the slowest of some without."""

    leaf: str
    with_defences: SearchPage[str]
    without: SearchPage[str]


async def explain(kv: Client[str], docs: Collection[str], query: str, leaf: str) -> Explained:
    """Make a leaf answer searches late, and ask the same thing with the defences and without them."""
    await kv.inject_fault("delay", leaves=[leaf], delay=EXPLAINED_DELAY_S, methods=["search"], duration=MARGIN_S)
    try:
        with_defences = await docs.search(query, **read_options(WITH))
        pages = [await docs.search(query, **read_options(WITHOUT)) for _ in range(EXPLAINED_TRIES)]
    finally:
        await kv.clear_faults()
    return Explained(leaf, with_defences, max(pages, key=lambda page: page.timing.total_us if page.timing else 0))
