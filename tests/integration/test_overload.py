"""Too much at once, over real gRPC: what is too much is refused, what is taken is answered, and afterwards all is as before."""

import asyncio
import contextlib
import gc
import pathlib
import time
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import grpc.aio
from fakes.leaf_client import Hang
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from harness.leaf import LEAF, LeafCaller, bootstrap, coordinator_url, leaf_caller
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.errors import ResourceExhausted
from kvshard.model import ShardRead, ShardReadReply, ShardSearch, ShardWrite
from kvshard.rpc.channel import aio_channel, aio_server, bind
from kvshard.rpc.codec import handler_of
from kvshard.rpc.lane_client import LaneLeafClient
from kvshard.rpc.lane_server import LaneServicer
from kvshard.rpc.status import error_from_rpc
from kvshard.telemetry import RouterMetrics
from kvshard.v1 import kv_pb2, kv_pb2_grpc, lane_pb2_grpc
from leaf.admission import SEARCHES_MAX
from leaf.server import LeafOptions, run
from router.arrival_probe import SERVICE, ArrivalProbe
from router.server import RouterServer

CLOCK = SystemClock()


@contextlib.asynccontextmanager
async def serving_router(leaves: MemoryLeaves) -> AsyncIterator["tuple[kv_pb2_grpc.KVAsyncStub, RouterServer]"]:
    maps = FakeMapSource(cluster_map(shards=8, leaves=4))
    server = RouterServer("127.0.0.1:0", maps, leaves.client, CLOCK, RouterMetrics(CollectorRegistry()))
    await server.start("cluster")
    await server.wait_serving()
    try:
        async with aio_channel(server.address) as channel:
            yield kv_pb2_grpc.KVStub(channel), server
    finally:
        await server.stop()


async def until(is_true: Callable[[], bool], seconds: float = 10.0) -> None:
    async with asyncio.timeout(seconds):
        while not is_true():
            await asyncio.sleep(0.01)


async def test_a_router_with_too_much_to_do_refuses_and_recovers() -> None:
    leaves = MemoryLeaves()
    async with serving_router(leaves) as (kv, server):
        admission = server._calls.admission

        def work(request: ShardRead) -> ShardReadReply:
            end = time.perf_counter() + 0.004
            while time.perf_counter() < end:
                pass
            return ShardReadReply([b"v"] * len(request.keys), [1] * len(request.keys))

        for leaf in cluster_map(shards=8, leaves=4).leaves:
            leaves.client.on(leaf, ShardRead, work)
        outcomes: Counter[str] = Counter()

        async def ask() -> None:
            while outcomes.total() < 2_000 and not (outcomes["refused"] > 20 and outcomes["answered"] > 20):
                try:
                    await kv.Get(kv_pb2.GetRequest(key=b"k"), timeout=10.0)
                    outcomes["answered"] += 1
                except grpc.aio.AioRpcError as raised:
                    error = error_from_rpc(raised)
                    assert isinstance(error, ResourceExhausted), error
                    assert error.details.retry_after_ms
                    outcomes["refused"] += 1

        await asyncio.gather(*(ask() for _ in range(150)))
        assert outcomes["refused"] > 20
        assert outcomes["answered"] > 20
        assert admission.refused == outcomes["refused"]
        await until(lambda: admission.share == 0.0)
        assert (admission.calls, admission.bytes) == (0, 0)
        await kv.Get(kv_pb2.GetRequest(key=b"k"), timeout=10.0)


@contextlib.asynccontextmanager
async def serving_leaf(folder: pathlib.Path) -> AsyncIterator[LeafCaller]:
    await bootstrap(folder)
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    running = asyncio.create_task(
        run(LeafOptions(LEAF, folder / LEAF, coordinator_url(folder), "127.0.0.1:0"), stop, ready.set_result)
    )
    try:
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        async with leaf_caller(folder) as caller:
            yield caller
    finally:
        stop.set()
        await running


async def test_a_leaf_with_too_many_searches_refuses_some_and_answers_the_others(tmp_path: pathlib.Path) -> None:
    async with serving_leaf(tmp_path) as caller:
        docs = await caller.maps.create_collection("docs", {"body": "text"})
        keys = [b"%03d" % n for n in range(200)]
        values: list[bytes | None] = [b'{"body": "tail"}'] * len(keys)
        written = ShardWrite(0, caller.epoch(0), docs.id, keys, values, wait_for_refresh=True)
        await caller.client.write(LEAF, written, caller.deadline())

        async def search(is_hedge: bool = False) -> str:
            request = ShardSearch(0, caller.epoch(0), docs.id, "tail", [], 5)
            try:
                answer = await caller.client.search(LEAF, request, caller.deadline(), is_hedge)
            except ResourceExhausted as error:
                return "refused" if error.details.retry_after_ms else "refused without a hint"
            return "found" if answer.reply.total == len(keys) else f"found {answer.reply.total}"

        outcomes = Counter(await asyncio.gather(*(search() for _ in range(3 * SEARCHES_MAX))))
        assert outcomes["found"] >= SEARCHES_MAX
        assert outcomes["refused"] > 0
        assert await search() == "found"
        mixed = [asyncio.create_task(search(is_hedge=n >= SEARCHES_MAX * 3 // 4)) for n in range(SEARCHES_MAX)]
        found = [await task for task in mixed]
        hedges = found[SEARCHES_MAX * 3 // 4 :]
        assert found[: SEARCHES_MAX * 3 // 4] == ["found"] * (SEARCHES_MAX * 3 // 4)
        assert hedges == ["refused"] * len(hedges), "there is room, but not for those who ask elsewhere too"


async def held_after(rounds: int, run_round: Callable[[], Awaitable[None]]) -> int:
    """Bytes that Python holds more after so many rounds, once it has warmed up."""
    for _ in range(rounds // 4):
        await run_round()
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for _ in range(rounds):
            await run_round()
        gc.collect()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


async def test_requests_that_are_taken_back_leave_nothing_at_either_end_of_a_lane() -> None:
    async def wait_for_ever(request: ShardRead, deadline: float) -> ShardReadReply:
        await asyncio.Event().wait()
        raise AssertionError

    servicer, server = LaneServicer(dict([handler_of(ShardRead, wait_for_ever)]), CLOCK), aio_server()
    lane_pb2_grpc.add_LanesServicer_to_server(servicer, server)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    client = LaneLeafClient({"a": address}.get, CLOCK)

    async def run_round() -> None:
        keys = [b"k%d" % n for n in range(100)]
        calls = [asyncio.create_task(client.read("a", ShardRead(n, 1, 1, keys), CLOCK.monotonic() + 60)) for n in range(20)]
        await until(lambda: servicer.admission.requests == len(calls))
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        await until(lambda: servicer.admission.requests == 0)

    try:
        assert await held_after(40, run_round) < 100_000
        assert servicer.load == servicer.admission.bytes == 0
        assert "outstanding=0" in repr(client)
    finally:
        await client.close()
        await servicer.drain(0.0)
        await server.stop(None)


async def test_scattered_calls_that_are_taken_back_leave_nothing_in_the_router() -> None:
    leaves = MemoryLeaves()
    async with serving_router(leaves) as (kv, server):
        names = list(cluster_map(shards=8, leaves=4).leaves)
        leaves.client.forgets = True
        keys = [b"key-%03d" % n for n in range(200)]

        async def run_round() -> None:
            for leaf in names:
                leaves.client.on(leaf, ShardRead, Hang())
            calls = [kv.BatchGet(kv_pb2.BatchGetRequest(keys=keys), timeout=60.0) for _ in range(10)]
            # On a machine with much else to do the router may refuse some.
            await until(lambda: server._calls.admission.calls + sum(call.done() for call in calls) == len(calls))
            for call in calls:
                call.cancel()
            await until(lambda: server._calls.admission.calls == 0)

        assert await held_after(20, run_round) < 200_000
        assert server._calls.admission.bytes == 0


async def test_only_a_probe_of_the_routers_own_tells_how_long_calls_wait() -> None:
    noted: list[float] = []
    server = aio_server()
    address = bind(server, "127.0.0.1:0")
    probe = ArrivalProbe(address, CLOCK, lambda: True, lambda wait_s, now: noted.append(wait_s), lambda late_s, now: None)
    server.add_generic_rpc_handlers((probe.handler,))
    await server.start()
    async with aio_channel(address) as channel:
        ask = channel.unary_unary(f"/{SERVICE}/Arrive")
        for token in (b"", b"guessed"):
            assert await ask(token, timeout=5.0) == b""
        assert not noted
        probing = asyncio.create_task(probe.run())
        await until(lambda: len(noted) >= 2)
        probing.cancel()
        await asyncio.gather(probing, return_exceptions=True)
        seen = len(noted)
        assert await ask(b"", timeout=5.0) == b""
        assert len(noted) == seen
        assert 0.0 < min(noted) < 5.0
    await server.stop(None)
