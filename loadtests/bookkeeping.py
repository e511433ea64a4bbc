"""What the router's own work on a leg costs: scattering to leaves that answer at once, beside the bare tasks that it takes."""

import asyncio
import random
import time
from collections.abc import Sequence

from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.clustermap import DEFAULT_COLLECTION, ClusterMap
from kvshard.model import ShardRead, ShardReadReply
from kvshard.rpc.leaf_client import Answer, Heard, ReadRequest, TakeBack
from kvshard.scatter.scatter import Scatter
from kvshard.telemetry import RouterMetrics
from loadtests.one_map import OneMap

REQUESTS = 1_500
WARM_UP = 200
DEADLINE_S = 2.0


async def per_leg_s(cluster_map: ClusterMap) -> tuple[float, int]:
    """Seconds of bookkeeping a leg at the median, and how many requests that stands on; each asks every shard for a key.

    The difference of two medians, of requests in turns: through the router's code, with all defences, and as bare tasks.
    """
    answer = Answer(ShardReadReply([b"value"], [1]), 10, 50, 1)

    async def ask(leaf: str, request: ShardRead, deadline: float, is_hedge: bool = False) -> Answer[ShardReadReply]:
        await asyncio.sleep(0)  # As an answer that comes with the next look at the socket.
        return answer

    def start(
        leaf: str, request: ReadRequest, deadline: float, heard: Heard, is_hedge: bool = False, is_last: bool = True
    ) -> TakeBack:
        return asyncio.get_running_loop().call_soon(heard, answer).cancel

    async def ping(leaf: str, deadline: float) -> None:
        return

    scatter = Scatter(OneMap(cluster_map), SystemClock(), RouterMetrics(CollectorRegistry()), ping, random.Random(1))
    requests = [
        ShardRead(shard.id, shard.epoch, DEFAULT_COLLECTION.id, [b"key"], cuts=shard.cuts)
        for shard in cluster_map.shards.values()
    ]
    routed: list[float] = []
    bare: list[float] = []
    for number in range(WARM_UP + REQUESTS):
        began = time.perf_counter()
        await scatter.gather("BatchGet", ask, requests, time.monotonic() + DEADLINE_S, start=start)
        middle = time.perf_counter()
        await asyncio.wait([asyncio.create_task(ask("leaf-1", request, 0.0)) for request in requests])
        if number >= WARM_UP:
            routed.append(middle - began)
            bare.append(time.perf_counter() - middle)
    await scatter.close()
    return max(0.0, (_median(routed) - _median(bare)) / len(requests)), len(routed)


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
