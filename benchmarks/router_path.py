"""What a request costs the router in Python, between frame and legs: no wire, no gRPC, and leaves that answer at once.

`python -m benchmarks.router_path`. What it shows is processor time of this process; reading and writing of the lanes comes on
top. The answers of all legs that were started in one pass of the event loop are told in the next one, as on a lane.
"""

import asyncio
import pathlib
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.bookkeeping import FixedMap
from benchmarks.figures import Figure, percentile, show
from kvshard.clock import SystemClock
from kvshard.heap import settle_heap
from kvshard.lane_messages import KeysRead, KeysWrite
from kvshard.model import LeafStatusRequest, ShardRead, ShardReadReply, ShardWrite, ShardWriteReply
from kvshard.rpc.codec import READ_KEYS, WRITE_KEYS, encode
from kvshard.rpc.leaf_client import Answer, Heard, LeafClient, ReadRequest, TakeBack
from kvshard.scatter.coverage import KnownCounts
from kvshard.scatter.key_frames import KeyFrames
from kvshard.scatter.kv import KeyValueOperations
from kvshard.scatter.lone_reads import LoneReads
from kvshard.scatter.scan import ScanOperation
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import TokenCodec
from kvshard.telemetry import RouterMetrics
from kvshard.v1 import kv_pb2
from router.calls import Calls
from router.lane_service import LaneService
from router.reads import Reads
from router.service import KVService

BLOCKS = 40
"""Of each arm, in turns. A block is measured as one, in processor time: the clock's own cost vanishes in it."""

BLOCK_S = 0.02
"""A block, about: many requests, and still shorter than a stretch of the machine's noise."""

BATCHES = (100, 1_000)
SINGLE_KEYS = 512
VALUE = b"v" * 100
DEADLINE_S = 5.0

Arm = Callable[[], Awaitable[object]]


class _Leaves(LeafClient):
    """Leaves that answer in the next pass of the event loop, whatever they are asked."""

    def __init__(self) -> None:
        self._told: list[tuple[Heard, Answer[Any]]] = []
        self._answers: dict[tuple[type, int], Answer[Any]] = {}

    def start(
        self, leaf: str, request: ReadRequest, deadline: float, heard: Heard, is_hedge: bool = False, is_last: bool = True
    ) -> TakeBack:
        if not self._told:
            asyncio.get_running_loop().call_soon(self._tell)
        told = (heard, self._answer_to(request))
        self._told.append(told)
        return lambda: None

    def _tell(self) -> None:
        told, self._told = self._told, []
        for heard, answer in told:
            heard(answer)

    def _answer_to(self, request: Any) -> Answer[Any]:
        kind, keys = type(request), len(request.keys)
        found = self._answers.get((kind, keys))
        if found is None:
            versions = list(range(1, keys + 1))
            if kind is ShardRead:
                reply: Any = ShardReadReply([VALUE] * keys, versions, documents=1_000, seqno=7)
            else:
                reply = ShardWriteReply(versions, [True] * keys, seqno=7)
            found = self._answers[kind, keys] = Answer(reply, queue_us=5, service_us=30, in_flight=1)
        return found

    async def read(self, leaf: str, request: ShardRead, deadline: float, is_hedge: bool = False) -> Answer[ShardReadReply]:
        return await self._later(request)

    async def write(self, leaf: str, request: ShardWrite, deadline: float) -> Answer[ShardWriteReply]:
        return await self._later(request)

    async def _later(self, request: Any) -> Answer[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.start("", request, 0.0, future.set_result)
        answer: Answer[Any] = await future
        return answer

    async def scan(self, *_: Any) -> Any:
        raise NotImplementedError

    async def term_statistics(self, *_: Any) -> Any:
        raise NotImplementedError

    async def search(self, *_: Any) -> Any:
        raise NotImplementedError

    async def status(self, leaf: str, request: LeafStatusRequest, deadline: float) -> Any:
        raise NotImplementedError

    async def ping(self, leaf: str, deadline: float) -> None:
        return

    async def order_faults(self, *_: Any) -> Any:
        raise NotImplementedError

    async def close(self) -> None:
        return


class _Context:
    """What a unary handler asks of gRPC's context."""

    def time_remaining(self) -> float:
        return DEADLINE_S

    def invocation_metadata(self) -> tuple[()]:
        return ()


class RouterParts:
    """What a router is between its server and its leaf clients, over leaves that answer at once."""

    def __init__(self) -> None:
        self.clock = SystemClock()
        maps, leaves, metrics, known = FixedMap(), _Leaves(), RouterMetrics(CollectorRegistry()), KnownCounts()
        self.scatter = Scatter(maps, self.clock, metrics, leaves.ping)
        operations = KeyValueOperations(maps, leaves, self.scatter, known, self.clock)
        calls = Calls(self.clock, metrics)
        reads = Reads(calls, self.clock, metrics)
        scans = ScanOperation(maps, leaves, self.scatter, known, TokenCodec("c"), self.clock)
        lone = LoneReads(maps, leaves, self.scatter)
        self._lanes = LaneService(calls, reads, KeyFrames(operations, self.clock), lone).servicer(self.clock)
        self._service = KVService(calls, reads, operations, scans)

    def frame(self, method: int, request: KeysRead | KeysWrite) -> Arm:
        """A frame of a lane, from its payload to that of its answer."""
        handler, payload, now = self._lanes.handlers[method], encode(request), self.clock.monotonic
        return lambda: handler(payload, now() + DEADLINE_S)

    def lone(self, request: KeysRead) -> Arm:
        """A frame that needs no task: until it is answered."""
        begin, payload, now = self._lanes.beginning[READ_KEYS.number], encode(request), self.clock.monotonic

        def ask() -> Awaitable[object]:
            answered: asyncio.Future[object] = asyncio.get_running_loop().create_future()
            begin(payload, now() + DEADLINE_S, answered.set_result)
            return answered

        return ask

    def unary(self) -> Arm:
        """KV.Get."""
        request, context = kv_pb2.GetRequest(key=b"user:1"), _Context()
        return lambda: self._service.Get(request, context)  # type: ignore[arg-type]


def _keys(count: int) -> list[bytes]:
    return [b"user:%d" % number for number in range(count)]


def arms_of(router: RouterParts) -> dict[str, tuple[Arm, int]]:
    """By name: what makes a request, and its keys."""
    arms = {"one single key": (router.lone(KeysRead("", _keys(1), is_each_alone=True)), 1)}
    single = KeysRead("", _keys(SINGLE_KEYS), is_each_alone=True)
    arms[f"{SINGLE_KEYS} single keys"] = (router.frame(READ_KEYS.number, single), SINGLE_KEYS)
    for count in BATCHES:
        arms[f"batch of {count:,}"] = (router.frame(READ_KEYS.number, KeysRead("", _keys(count))), count)
    arms["unary Get, without gRPC"] = (router.unary(), 1)
    one = KeysWrite("", _keys(1), [VALUE], is_each_alone=True)
    arms["write of one key"] = (router.frame(WRITE_KEYS.number, one), 1)
    many = KeysWrite("", _keys(1_000), [VALUE] * 1_000)
    arms["write of 1,000"] = (router.frame(WRITE_KEYS.number, many), 1_000)
    return arms


async def _block(arm: Arm, count: int) -> float:
    """Microseconds of processor time a request, one after the other."""
    started = time.thread_time()
    for _ in range(count):
        await arm()
    return (time.thread_time() - started) / count * 1e6


async def router_path(names: list[str]) -> list[Figure]:
    """The cost of each kind of request, p50 of the blocks."""
    router = RouterParts()
    arms = {name: arm for name, arm in arms_of(router).items() if not names or any(each in name for each in names)}
    counts = {name: max(1, int(BLOCK_S * 1e6 / await _block(arm, 50))) for name, (arm, _) in arms.items()}
    taken: dict[str, list[float]] = {name: [] for name in arms}
    for block in range(BLOCKS):
        for name in sorted(arms, reverse=bool(block % 2)):
            taken[name].append(await _block(arms[name][0], counts[name]))
    await router.scatter.close()
    return [
        Figure(name, percentile(taken[name], 0.5), "us a request", counts[name] * BLOCKS, note=f"{keys:,} keys over 8 shards")
        for name, (_, keys) in arms.items()
    ]


def main() -> int:
    """Measure and show; the arguments name parts of arms."""
    settle_heap()  # As a router does once it has started.
    figures = uvloop.run(router_path(sys.argv[1:]))
    return 0 if show(figures, pathlib.Path("bench-results/router-path.json")) else 1


if __name__ == "__main__":
    sys.exit(main())
