"""What one leg of a search costs the router as the shards grow: processor time per leg at 4 to 64 shards.

`python -m benchmarks.leg_scaling`. The leaves are one process that answers every leg with the same page over a lane, so that
what is measured here is the router's own: legs made, sent, heard, merged, with every defence on. Blocks of each size take
turns, since the machine is not equally fast at all times.
"""

import pathlib
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.figures import Figure, percentile, show
from benchmarks.fleet import ServiceProcess
from kvshard.clock import SystemClock
from kvshard.clustermap import DEFAULT_COLLECTION, ClusterMap, Collection, Leaf, Replica, ShardConfig, equal_ranges
from kvshard.model import ShardHit, ShardSearch, ShardSearchReply
from kvshard.rpc.channel import aio_server, bind
from kvshard.rpc.codec import handler_of, immediate_handler_of
from kvshard.rpc.lane_client import LaneLeafClient
from kvshard.rpc.lane_server import LaneServicer
from kvshard.scatter.coverage import KnownCounts
from kvshard.scatter.requests import DEFAULT_READ_POLICY, SearchQuery
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import TokenCodec
from kvshard.telemetry import RouterMetrics
from kvshard.v1 import lane_pb2_grpc
from router.search import SearchOperation

SHARDS = (4, 8, 16, 32, 64)
LEAVES = 3
REPLICAS = 3
HITS = 10
BLOCKS = 8
LEGS_PER_BLOCK = 3_200
BOUND_RATIO = 1.2
"""Of the cost per leg at 64 shards to that at 4: what grows faster than the legs would show here."""

DOCS = Collection("docs", 2, {"title": "text"})
QUERY = SearchQuery("word", [], HITS, "", [], 10, [], False, False, None)


class _FixedMap:
    """A map of so many shards that does not change; every leaf is the same process."""

    has_map = True

    def __init__(self, shards: int, address: str) -> None:
        names = [f"leaf-{number}" for number in range(1, LEAVES + 1)]
        configs = {
            shard: ShardConfig(
                id=shard,
                first_slot=first,
                last_slot=last,
                epoch=1,
                primary=names[shard % LEAVES],
                in_sync=tuple(Replica(names[(shard + place) % LEAVES], "i") for place in range(REPLICAS)),
            )
            for shard, (first, last) in enumerate(equal_ranges(shards))
        }
        leaves = {name: Leaf(name, address) for name in names}
        self.current = ClusterMap(1, 0, leaves, configs, {each.name: each for each in (DEFAULT_COLLECTION, DOCS)})

    async def refresh(self) -> ClusterMap:
        return self.current

    async def wait_newer(self, version: int, timeout: float) -> ClusterMap:
        return self.current


class _Arm:
    """A router's search over so many shards."""

    def __init__(self, shards: int, address: str) -> None:
        self.shards = shards
        clock = SystemClock()
        maps = _FixedMap(shards, address)
        self.leaves = LaneLeafClient(lambda leaf: address, clock)
        self.scatter = Scatter(maps, clock, RouterMetrics(CollectorRegistry()), self.leaves.ping)
        self._clock = clock
        self._search = SearchOperation(maps, self.leaves, self.scatter, KnownCounts(), TokenCodec("benchmark"), clock)
        self.us_per_leg: list[float] = []

    async def block(self) -> float:
        """Processor time of one leg in microseconds, over a block."""
        searches = LEGS_PER_BLOCK // self.shards
        began = time.process_time()
        for _ in range(searches):
            found = await self._search.search("docs", QUERY, b"", DEFAULT_READ_POLICY, self._clock.monotonic() + 10.0)
            assert len(found.hits) == HITS, "every search finds its page"
            assert found.coverage.is_complete, "every leg answers"
        return (time.process_time() - began) / (searches * self.shards) * 1e6

    async def close(self) -> None:
        await self.scatter.close()
        await self.leaves.close()


async def measure(address: str) -> list[Figure]:
    """The figures, against leaves at this address."""
    arms = [_Arm(shards, address) for shards in SHARDS]
    for block in range(BLOCKS + 1):
        for arm in arms if block % 2 else reversed(arms):
            taken = await arm.block()
            if block:  # The first one warms up.
                arm.us_per_leg.append(taken)
    for arm in arms:
        await arm.close()
    middle = {arm.shards: percentile(arm.us_per_leg, 0.5) for arm in arms}
    fewest, most = min(SHARDS), max(SHARDS)
    ratio = percentile([b / a for a, b in zip(arms[0].us_per_leg, arms[-1].us_per_leg, strict=True)], 0.5)
    legs = BLOCKS * LEGS_PER_BLOCK
    return [
        *(Figure(f"search leg in the router, {shards} shards", middle[shards], "us", legs, note="CPU") for shards in SHARDS),
        Figure(f"the same, {most} shards / {fewest}", ratio, "x", BLOCKS, BOUND_RATIO, note="goal: flat, 1.0"),
    ]


def _page(request: ShardSearch) -> ShardSearchReply:
    """Hits that differ by shard, so that merging has something to do."""
    hits = [ShardHit(b"%05d-%05d" % (request.shard, n), 9.0 - n - request.shard / 1e4, b"{}", 1) for n in range(HITS)]
    return ShardSearchReply(hits, 100, 1_000)


async def _serve() -> None:
    """Leaves in one process: each leg is answered within the lane's reader, with a page that was encoded before."""

    async def search(request: ShardSearch, deadline: float) -> ShardSearchReply:
        return _page(request)

    pages: dict[int, ShardSearchReply] = {shard: _page(ShardSearch(shard, 1, 2, "", [], HITS)) for shard in range(max(SHARDS))}
    number, handler = handler_of(ShardSearch, search)
    _, immediate = immediate_handler_of(ShardSearch, lambda request, deadline: pages[request.shard])
    servicer = LaneServicer({number: handler}, SystemClock(), immediate={number: immediate})
    server = aio_server()
    lane_pb2_grpc.add_LanesServicer_to_server(servicer, server)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    print(f"ready: {address}", flush=True)
    await server.wait_for_termination()


@contextmanager
def _leaves(folder: pathlib.Path) -> Iterator[ServiceProcess]:
    process = ServiceProcess("benchmarks.leg_scaling", ("--serve",), folder / "leg-scaling-leaves.log")
    process.start()
    try:
        yield process
    finally:
        process.stop()


def main() -> int:
    """Measure; print and write the figures. Exits 1 when the bound is not kept."""
    if "--serve" in sys.argv[1:]:
        uvloop.run(_serve())
        return 0
    target = pathlib.Path("bench-results/leg_scaling.json")
    target.parent.mkdir(parents=True, exist_ok=True)

    async def run(process: ServiceProcess) -> list[Figure]:
        return await measure(await process.wait_ready())

    with _leaves(target.parent) as process:
        figures = uvloop.run(run(process))
    return 0 if show(figures, target) else 1


if __name__ == "__main__":
    sys.exit(main())
