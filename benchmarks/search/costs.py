"""What a search costs beside the reference: processor time, rate, and the time of one that is alone."""

import itertools
from collections.abc import Sequence

import grpc

from benchmarks.echo_server import METHOD
from benchmarks.figures import Figure, percentile
from benchmarks.fleet import ROUTER
from benchmarks.loops import one_by_one, together
from benchmarks.measured import CLIENT, Comparison, Measured
from benchmarks.processes import RunningEcho
from benchmarks.search.floor import ShardIndexes, one_of_each_shard
from benchmarks.search.loaded import Loaded
from benchmarks.search.reference import Reference
from benchmarks.turns import Arm, Pace, in_turns
from kvshard.clustermap import ClusterMap

TOP = 10
CALLERS = 8
"""Searches under way at a time, one for each shard: enough to keep this machine's cores busy."""

GATHERED, REFERENCE, ECHO = "kvshard, 8 shards", "one tantivy index, in this process", "unary echo"
BARE, LEGS = "the shards' indexes, in this process", "a key of each shard"
CPU_BOUND, CPU_GOAL = 4.0, 2.5
TIME_BOUND, TIME_GOAL = 2.5, 1.5


class _Operations:
    """One of each kind, as the arms repeat them; each goes through the queries, or the keys, in turn. Every one counts as 1."""

    def __init__(
        self, loaded: Loaded, reference: Reference, indexes: ShardIndexes, queries: Sequence[str], cluster_map: ClusterMap
    ) -> None:
        self._texts = loaded.texts
        self._reference = reference
        self._indexes = indexes
        self._ours, self._theirs, self._bare = (itertools.cycle(queries) for _ in range(3))
        self._keys = itertools.cycle(one_of_each_shard(cluster_map, indexes.keys))

    async def search(self) -> int:
        """Through the cluster."""
        await self._texts.search(next(self._ours), limit=TOP)
        return 1

    async def answer(self) -> int:
        """By the reference."""
        self._reference.answer(next(self._theirs), TOP)
        return 1

    async def answer_bare(self) -> int:
        """By the shards' indexes."""
        self._indexes.answer(next(self._bare), TOP)
        return 1

    async def read(self) -> int:
        """A key of each shard."""
        await self._texts.get_many(next(self._keys))
        return 1


async def rates(loaded: Loaded, reference: Reference, indexes: ShardIndexes, queries: Sequence[str], pace: Pace) -> Comparison:
    """Searches as fast as they go, with their documents; the reference finds and reads the same. The floors: see `floor`."""
    do = _Operations(loaded, reference, indexes, queries, await loaded.fleet.map())
    arms = [
        Arm(GATHERED, lambda seconds: together(seconds, CALLERS, do.search), loaded.processes, f"{CALLERS} at a time"),
        Arm(REFERENCE, lambda seconds: one_by_one(seconds, "search", do.answer)),
        Arm(BARE, lambda seconds: one_by_one(seconds, "search", do.answer_bare), setting=f"{indexes.segments} segments"),
        Arm(LEGS, lambda seconds: together(seconds, CALLERS, do.read), loaded.processes, f"{CALLERS} at a time"),
    ]
    return await in_turns("searches with 10 documents", "queries/s", arms, pace)


def rate_figures(compared: Comparison) -> list[Figure]:
    """Rates, and the processor time of router and leaves against that of the reference."""
    ours, theirs = compared.arms[GATHERED], compared.arms[REFERENCE]
    used = ours.processor_us()
    servers = sum(value for role, value in used.items() if role != CLIENT)
    alone = theirs.processor_us()[CLIENT]
    roles = f"router {used[ROUTER]:,.0f} + leaves {used['leaf']:,.0f} us against {alone:,.0f} us; client {used[CLIENT]:,.0f} us"
    note = f"{roles}; busiest: {ours.busiest}"
    bare, legs = compared.arms[BARE], compared.arms[LEGS]
    bare_us, legs_us = bare.processor_us()[CLIENT], legs.processor_us()
    way_us = legs_us[ROUTER] + legs_us["leaf"]
    way = f"router {legs_us[ROUTER]:,.0f} + leaves {legs_us['leaf']:,.0f} us; {CALLERS} at a time"
    floor = f"floor: ({bare_us:,.0f} + {way_us:,.0f}) us, {(bare_us + way_us) / alone:.1f} x the reference's"
    return [
        Figure("searches", ours.rate, "queries/s", ours.operations, note=f"{CALLERS} at a time; {_spread(ours)}"),
        Figure("searches of the reference", theirs.rate, "queries/s", theirs.operations, note=f"one thread; {_spread(theirs)}"),
        Figure("CPU per query / the reference's", servers / alone, "x", ours.operations, CPU_BOUND, note=note, goal=CPU_GOAL),
        Figure(
            "floor: the shards' indexes by bare tantivy", bare_us, "us CPU", bare.operations, note=f"{bare.setting}; one thread"
        ),
        Figure("floor: legs of one key through router and leaves", way_us, "us CPU", legs.operations, note=way),
        Figure("CPU per query / both floors", servers / (bare_us + way_us), "x", ours.operations, note=floor),
    ]


def _spread(arm: Measured) -> str:
    return f"blocks {min(arm.rates):,.0f} to {max(arm.rates):,.0f}"


async def times(
    loaded: Loaded, reference: Reference, indexes: ShardIndexes, echo: RunningEcho, queries: Sequence[str], pace: Pace
) -> Comparison:
    """One search at a time, the reference's, and a unary call that does nothing. The floors: see `floor`."""
    do = _Operations(loaded, reference, indexes, queries, await loaded.fleet.map())
    async with grpc.aio.insecure_channel(echo.address) as channel:
        bare: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)

        async def call() -> int:
            await bare(b"x" * 100)
            return 1

        arms = [
            Arm(GATHERED, lambda seconds: one_by_one(seconds, "one", do.search), loaded.processes),
            Arm(REFERENCE, lambda seconds: one_by_one(seconds, "one", do.answer)),
            Arm(ECHO, lambda seconds: one_by_one(seconds, "one", call), {"echo": [echo.pid]}),
            Arm(BARE, lambda seconds: one_by_one(seconds, "one", do.answer_bare)),
            Arm(LEGS, lambda seconds: one_by_one(seconds, "one", do.read), loaded.processes),
        ]
        return await in_turns("one search at a time", "calls/s", arms, pace)


def time_figures(compared: Comparison) -> list[Figure]:
    """The median of a gathered search against those of the reference and of one unary echo together."""
    middle = {name: percentile(arm.latencies("one"), 0.5) for name, arm in compared.arms.items()}
    bar = middle[REFERENCE] + middle[ECHO]
    samples = compared.arms[GATHERED].operations
    note = f"({middle[REFERENCE] * 1e3:.2f} + {middle[ECHO] * 1e3:.2f}) ms"
    floor, floor_samples = middle[BARE] + middle[LEGS], min(compared.arms[BARE].operations, compared.arms[LEGS].operations)
    floors = f"bare tantivy {middle[BARE] * 1e3:.2f} + legs of one key {middle[LEGS] * 1e3:.2f} ms, one after the other"
    return [
        Figure("gathered search, p50", middle[GATHERED] * 1e3, "ms", samples),
        Figure(
            "gathered p50 / (reference p50 + echo)", middle[GATHERED] / bar, "x", samples, TIME_BOUND, note=note, goal=TIME_GOAL
        ),
        Figure("both floors p50 / (reference p50 + echo)", floor / bar, "x", floor_samples, note=floors),
    ]
