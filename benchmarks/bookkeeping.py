"""What a leg costs the router: a scattered read whose leaves answer at once, against bare tasks that make the same calls."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from prometheus_client import CollectorRegistry

from benchmarks.figures import Figure, percentile
from kvshard.clock import SystemClock
from kvshard.clustermap import DEFAULT_COLLECTION, ClusterMap, Leaf, Replica, ShardConfig, equal_ranges
from kvshard.model import ShardRead, ShardReadReply
from kvshard.rpc.leaf_client import Answer, Heard, ReadRequest, TakeBack
from kvshard.scatter.leg import USUALLY, How
from kvshard.scatter.scatter import Scatter
from kvshard.tail.hedging import Off, ReplicaChoice
from kvshard.telemetry import RouterMetrics

LEGS = 8
LEAVES = 5
REPLICAS = 3
BLOCKS = 10
GATHERS_PER_BLOCK = 400
BOUND_US = 60.0

_ANSWER = Answer(ShardReadReply([b"v"], [1], documents=3), queue_us=5, service_us=30, in_flight=1)


class FixedMap:
    """A map that does not change."""

    has_map = True

    def __init__(self) -> None:
        names = [f"leaf-{number}" for number in range(1, LEAVES + 1)]
        shards = {
            shard: ShardConfig(
                id=shard,
                first_slot=first,
                last_slot=last,
                epoch=1,
                primary=names[shard % LEAVES],
                in_sync=tuple(Replica(names[(shard + place) % LEAVES], "i") for place in range(REPLICAS)),
            )
            for shard, (first, last) in enumerate(equal_ranges(LEGS))
        }
        leaves = {name: Leaf(name, "127.0.0.1:1") for name in names}
        self.current = ClusterMap(1, 0, leaves, shards, {DEFAULT_COLLECTION.name: DEFAULT_COLLECTION})

    async def refresh(self) -> ClusterMap:
        """There is no newer one."""
        return self.current

    async def wait_newer(self, version: int, timeout: float) -> ClusterMap:
        """There is no newer one."""
        return self.current


async def _pass_of_the_loop() -> None:
    """As an answer on a lane: one future, set from elsewhere."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.call_soon(future.set_result, None)
    await future


async def _read(leaf: str, request: ShardRead, deadline: float, is_hedge: bool = False) -> Answer[ShardReadReply]:
    await _pass_of_the_loop()
    return _ANSWER


def _start(
    leaf: str, request: ReadRequest, deadline: float, heard: Heard, is_hedge: bool = False, is_last: bool = True
) -> TakeBack:
    return asyncio.get_running_loop().call_soon(heard, _ANSWER).cancel


async def _ping(leaf: str, deadline: float) -> None:
    await _pass_of_the_loop()


async def bookkeeping() -> list[Figure]:
    """Per leg, p50, beyond what bare tasks take: with every defence, and with none (no hedging, replicas by chance)."""
    clock = SystemClock()
    scatter = Scatter(FixedMap(), clock, RouterMetrics(CollectorRegistry()), _ping)
    requests = [ShardRead(shard, 1, 1, [b"k"]) for shard in range(LEGS)]

    async def bare() -> None:
        await asyncio.wait([asyncio.create_task(_read("leaf-1", request, 0.0)) for request in requests])

    async def gather(how: How) -> None:
        await scatter.gather("BatchGet", _read, requests, clock.monotonic() + 5.0, how, _start)

    undefended = How(hedge=Off(), replica_choice=ReplicaChoice.RANDOM)
    arms: dict[str, Callable[[], Awaitable[None]]] = {
        "bare": bare,
        "all": lambda: gather(USUALLY),
        "none": lambda: gather(undefended),
    }
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for block in range(BLOCKS + 1):
        for name in sorted(arms, reverse=bool(block % 2)):
            for _ in range(GATHERS_PER_BLOCK):
                started = time.perf_counter()
                await arms[name]()
                if block:  # The first one warms up.
                    taken[name].append((time.perf_counter() - started) / LEGS * 1e6)
    await scatter.close()
    middle = {name: percentile(values, 0.5) for name, values in taken.items()}
    samples = len(taken["all"]) * LEGS
    return [
        Figure("router bookkeeping per leg, p50", middle["all"] - middle["bare"], "us", samples, BOUND_US),
        Figure("the same without any defence", middle["none"] - middle["bare"], "us", samples),
    ]
