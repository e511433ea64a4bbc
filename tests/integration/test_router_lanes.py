"""Lanes to a router, over real gRPC: what they carry, what is refused, and how they end."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from fakes.leaf_client import Hang
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    ResourceExhausted,
    ShardMoved,
    Unavailable,
    Unimplemented,
    VersionConflict,
    record_of,
)
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite, KeysWriteReply
from kvshard.model import ShardRead, ShardReadReply, ShardWrite
from kvshard.rpc.channel import aio_channel, aio_server, bind
from kvshard.rpc.codec import PING, READ, READ_KEYS, WRITE_KEYS, decode, decode_error, encode
from kvshard.rpc.lane import Lane
from kvshard.telemetry import RouterMetrics
from kvshard.v1 import kv_pb2, kv_pb2_grpc, lane_pb2, lane_pb2_grpc
from router.server import RouterServer

CLOCK = SystemClock()
KEYS = [b"key-%03d" % number for number in range(100)]


class Front:
    """A serving router and a lane to it."""

    def __init__(self, server: RouterServer, leaves: MemoryLeaves, registry: CollectorRegistry) -> None:
        self.server = server
        self.leaves = leaves
        self.registry = registry
        self.lane = Lane(server.address, CLOCK, peer="router")

    async def read(self, request: KeysRead, timeout_s: float = 10.0) -> KeysReadReply:
        frame = await self.lane.call(READ_KEYS.number, encode(request), CLOCK.monotonic() + timeout_s)
        return decode(KeysReadReply, frame.payload)

    async def write(self, request: KeysWrite, timeout_s: float = 10.0) -> KeysWriteReply:
        deadline = CLOCK.monotonic() + timeout_s
        frame = await self.lane.call(WRITE_KEYS.number, encode(request), deadline, is_write=True)
        return decode(KeysWriteReply, frame.payload)


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    leaves, registry = MemoryLeaves(), CollectorRegistry()
    maps = FakeMapSource(cluster_map(shards=8, leaves=4))
    server = RouterServer("127.0.0.1:0", maps, leaves.client, CLOCK, RouterMetrics(registry))
    await server.start("cluster")
    await server.wait_serving()
    front = Front(server, leaves, registry)
    yield front
    await front.lane.close()
    await server.stop()


async def until(is_true) -> None:
    async with asyncio.timeout(10):
        while not is_true():
            await asyncio.sleep(0.005)


async def test_writes_and_reads(front: Front) -> None:
    written = await front.write(KeysWrite("", KEYS, list(KEYS)))
    assert all(written.versions)
    read = await front.read(KeysRead("", [*KEYS, b"absent"]))
    assert read.values == [*KEYS, None]
    assert read.versions == [*written.versions, 0]
    alone = await front.write(KeysWrite("", [KEYS[0], b"new"], [None, b"v"], conditions=[None, 7], is_each_alone=True))
    assert alone.existed == [True, False]
    assert [each.index for each in kv_pb2.BatchWriteResponse.FromString(alone.rest).failures] == [1]


async def test_the_lane_and_the_unary_methods_see_one_state_and_count_alike(front: Front) -> None:
    async with aio_channel(front.server.address) as channel:
        kv = kv_pb2_grpc.KVStub(channel)
        put = await kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v"))
        read = await front.read(KeysRead("", [b"k"], is_each_alone=True))
        assert (read.values, read.versions, read.rest) == ([b"v"], [put.version], b"")
        await kv.Get(kv_pb2.GetRequest(key=b"k"))
    value = front.registry.get_sample_value
    assert value("kvshard_router_requests_total", {"method": "Get", "code": "OK"}) == 2


async def test_errors_arrive_as_they_were_raised(front: Front) -> None:
    with pytest.raises(CollectionNotFound):
        await front.read(KeysRead("nope", [b"k"]))
    with pytest.raises(VersionConflict) as caught:
        await front.write(KeysWrite("", [b"k"], [b"v"], conditions=[5], is_each_alone=True))
    assert caught.value.message == "not version 5"


async def test_many_frames_at_once(front: Front) -> None:
    await front.write(KeysWrite("", KEYS, list(KEYS)))
    frames = [KeysRead("", KEYS[n % 90 : n % 90 + 1 + n % 10], is_each_alone=n % 2 == 0) for n in range(200)]
    replies = await asyncio.gather(*map(front.read, frames))
    assert [reply.values for reply in replies] == [frame.keys for frame in frames]


async def test_methods_of_leaves_and_unknown_ones_are_refused_and_harm_nobody(front: Front) -> None:
    for method in (READ.number, 14, 999_999):
        with pytest.raises(Unimplemented, match=f"the router knows no lane method {method}"):
            await front.lane.call(method, b"", CLOCK.monotonic() + 5)
    assert (await front.lane.call(PING, b"", CLOCK.monotonic() + 5)).payload == b""
    assert (await front.read(KeysRead("", [b"k"]))).values == [None]


async def test_what_a_newer_peer_says_beside_what_is_known_is_passed_over(front: Front) -> None:
    """A field more in the message, in the frame and in the payload."""
    payload = encode({"collection": "", "keys": [b"k"], "mood": "hopeful"})
    frame = lane_pb2.RequestFrame(id=1, method=lane_pb2.LANE_METHOD_READ_KEYS, timeout_us=5_000_000, payload=payload)
    unknown = b"\xfa\x3e\x05extra"  # Field 1007, five bytes.
    inner = frame.SerializeToString() + unknown
    message = lane_pb2.LaneRequest.FromString(b"\x0a" + bytes([len(inner)]) + inner + unknown)
    async with aio_channel(front.server.address) as channel:
        stream = lane_pb2_grpc.LanesStub(channel).Lane()
        await stream.write(message)
        response = await stream.read()
        assert isinstance(response, lane_pb2.LaneResponse)
        (answer,) = response.frames
        assert not answer.is_error, decode_error(answer.payload)
        assert decode(KeysReadReply, answer.payload).values == [None]
        stream.cancel()


async def test_a_router_of_an_older_version_is_told_from_one_that_is_away() -> None:
    """It has KV, but no lanes: who asks must take the other way at once, and not wait for a lane that will not open."""
    server = aio_server()
    kv_pb2_grpc.add_KVServicer_to_server(kv_pb2_grpc.KVServicer(), server)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    lane = Lane(address, CLOCK, peer="router")
    for _ in range(3):
        with pytest.raises(Unimplemented, match="cannot connect to router"):
            await lane.call(READ_KEYS.number, encode(KeysRead("", [b"k"])), CLOCK.monotonic() + 5)
    await server.stop(None)
    await lane.close()
    gone = Lane(address, CLOCK, peer="router")
    with pytest.raises(Unavailable):
        await gone.call(READ_KEYS.number, encode(KeysRead("", [b"k"])), CLOCK.monotonic() + 5)
    await gone.close()


async def test_a_frame_that_is_taken_back_is_taken_back_at_the_leaves(front: Front) -> None:
    hang = Hang()
    front.leaves.fail("*", hang)
    call = asyncio.create_task(front.read(KeysRead("", KEYS)))
    await asyncio.wait_for(hang.reached.wait(), 5)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await until(lambda: hang.cancelled == 8)
    await until(lambda: front.server._calls.admission.calls == 0)


async def test_the_read_of_one_key_is_taken_back_too(front: Front) -> None:
    front.leaves.fail("*", hang := Hang())
    call = asyncio.create_task(front.read(KeysRead("", [b"k"], is_each_alone=True)))
    await asyncio.wait_for(hang.reached.wait(), 5)
    call.cancel()
    await asyncio.gather(call, return_exceptions=True)
    await until(lambda: hang.cancelled == 1)
    await until(lambda: front.server._calls.admission.calls == 0)
    value = front.registry.get_sample_value
    assert value("kvshard_router_requests_total", {"method": "Get", "code": "CANCELLED"}) == 1


async def test_a_key_that_has_moved_is_read_where_it_is(front: Front) -> None:
    """The read begins without a task, and goes on in one."""
    moved = ShardReadReply([None], [0], errors={0: record_of(ShardMoved("elsewhere"))})
    front.leaves.client.on("*", ShardRead, moved, ShardReadReply([b"v"], [1]))
    assert (await front.read(KeysRead("", [b"k"], is_each_alone=True))).values == [b"v"]
    assert len(front.leaves.client.calls_of(ShardRead)) == 2
    value = front.registry.get_sample_value
    assert value("kvshard_router_requests_total", {"method": "Get", "code": "OK"}) == 1


async def test_a_deadline_is_kept(front: Front) -> None:
    front.leaves.fail("*", Hang())
    with pytest.raises((DeadlineExceeded, Unavailable)):
        await front.read(KeysRead("", KEYS[:1], is_each_alone=True), 0.1)
    deadlines = [call.deadline for call in front.leaves.client.calls_of(ShardRead)]
    assert deadlines[-1] < CLOCK.monotonic() + 0.1


async def test_a_full_router_says_when_to_come_again(front: Front) -> None:
    front.server._calls.admission.enter(1 << 40)
    with pytest.raises(ResourceExhausted) as caught:
        await front.read(KeysRead("", KEYS, is_each_alone=True))
    assert caught.value.details.retry_after_ms
    front.server._calls.admission.leave(1 << 40)
    assert (await front.read(KeysRead("", [b"k"]))).values == [None]


async def test_answers_are_bounded(front: Front) -> None:
    """Keys that would make the answer too large fail, each for itself; the others are read."""
    big = bytes(8 * 1024 * 1024)
    front.leaves.client.on("*", ShardRead, lambda request: ShardReadReply([big] * len(request.keys), [1] * len(request.keys)))
    reply = await front.read(KeysRead("", KEYS[:12], is_each_alone=True))
    failures = kv_pb2.BatchGetResponse.FromString(reply.rest).failures
    assert 0 < len(failures) < 12
    assert {each.failure.reason for each in failures} == {"RESOURCE_EXHAUSTED"}
    assert sum(value is not None for value in reply.values) == 12 - len(failures)


class TestStopping:
    async def test_what_is_under_way_is_answered_and_then_the_lane_ends(self, front: Front) -> None:
        front.leaves.fail("*", hang := Hang(ShardReadReply([b"v"], [1])))
        call = asyncio.create_task(front.read(KeysRead("", [b"k"], is_each_alone=True)))
        await asyncio.wait_for(hang.reached.wait(), 5)
        stopping = asyncio.create_task(front.server.stop())
        await until(lambda: "draining" in repr(front.server._lanes))
        with pytest.raises(Unavailable, match="the router is stopping") as caught:
            await front.read(KeysRead("", [b"k"]))
        assert not caught.value.details.maybe_applied
        hang.release()
        assert (await call).values == [b"v"]
        await asyncio.wait_for(stopping, 1.5)
        with pytest.raises(Unavailable):
            await front.read(KeysRead("", [b"k"]))

    async def test_an_idle_lane_holds_nothing_up(self, front: Front) -> None:
        await front.read(KeysRead("", [b"k"]))
        await asyncio.wait_for(front.server.stop(), 1.5)

    async def test_the_grace_is_not_exceeded(self, front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("router.server.STOP_GRACE_S", 0.1)
        front.leaves.client.on("*", ShardWrite, hang := Hang())
        call = asyncio.create_task(front.write(KeysWrite("", [b"k"], [b"v"])))
        await asyncio.wait_for(hang.reached.wait(), 5)
        await asyncio.wait_for(front.server.stop(), 3)
        with pytest.raises(Unavailable) as caught:
            await call
        assert caught.value.details.maybe_applied
        assert hang.cancelled == 1

    async def test_a_router_that_never_started_stops(self) -> None:
        maps = FakeMapSource(cluster_map())
        server = RouterServer("127.0.0.1:0", maps, MemoryLeaves().client, CLOCK, RouterMetrics(CollectorRegistry()))
        await asyncio.wait_for(server.stop(), 3)


@asynccontextmanager
async def server_without_form(form: str) -> AsyncIterator[str]:
    """A server whose lanes say that their frames have another form."""

    class Servicer(lane_pb2_grpc.LanesServicer):
        async def Lane(self, request_iterator, context) -> None:
            await context.send_initial_metadata((("kvshard-lane", form),))
            await asyncio.Event().wait()

    server = aio_server()
    lane_pb2_grpc.add_LanesServicer_to_server(Servicer(), server)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    try:
        yield address
    finally:
        await server.stop(None)


async def test_lanes_of_another_form_are_none() -> None:
    async with server_without_form("2") as address:
        lane = Lane(address, CLOCK)
        began = CLOCK.monotonic()
        with pytest.raises(Unimplemented, match="form '2'"):
            await lane.call(READ_KEYS.number, b"", CLOCK.monotonic() + 5)
        assert CLOCK.monotonic() - began < 1.0, "it was told, not waited for"
        await lane.close()


async def test_health_and_reflection_name_the_service(front: Front) -> None:
    async with aio_channel(front.server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service="kvshard.v1.Lanes"))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
