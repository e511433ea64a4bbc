"""Lanes on loopback, over real gRPC and over plain connections.

What arrives, what is cancelled, what breaks, and what is known about it afterwards.
"""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest

from kvshard.clock import SystemClock
from kvshard.errors import (
    DeadlineExceeded,
    ErrorDetails,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotReady,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from kvshard.model import LeafStatusRequest, ShardRead, ShardReadReply, ShardWrite, ShardWriteReply
from kvshard.rpc.channel import aio_channel, aio_server, bind
from kvshard.rpc.codec import PAYLOAD_MAX_BYTES, READ, WRITE, decode, decode_error, encode, handler_of, immediate_handler_of
from kvshard.rpc.lane import Lane
from kvshard.rpc.lane_admission import LaneAdmission
from kvshard.rpc.lane_client import LaneLeafClient
from kvshard.rpc.lane_port import NO_PORT, LanePort
from kvshard.rpc.lane_server import LaneServicer
from kvshard.rpc.lane_session import MAX_OUTSTANDING, MAX_WAITING_BYTES
from kvshard.rpc.status import abort, error_from_rpc
from kvshard.v1 import lane_pb2, lane_pb2_grpc

CLOCK = SystemClock()

TRANSPORTS = {"grpc": LanePort(NO_PORT), "tcp": LanePort(is_fronted=True), "unix": LanePort()}


@pytest.fixture(autouse=True, params=[*TRANSPORTS])
def transport(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test runs over each of them."""
    monkeypatch.setattr(Leaf, "lane_port", TRANSPORTS[request.param])
    return str(request.param)


class Leaf:
    """A leaf whose reads echo the keys, whose writes wait for `go`, and that notes what happens to its handlers."""

    lane_port = LanePort()

    def __init__(self, **options: Any) -> None:
        self.go = asyncio.Event()
        self.began: asyncio.Queue[Any] = asyncio.Queue()
        self.cancelled: asyncio.Queue[Any] = asyncio.Queue()
        self.deadlines: list[float] = []
        self.is_stubborn = False
        handlers = dict([handler_of(ShardRead, self.read), handler_of(ShardWrite, self.write)])
        self.servicer = LaneServicer(handlers, CLOCK, **options)
        self.server = aio_server()
        lane_pb2_grpc.add_LanesServicer_to_server(self.servicer, self.server)
        self.address = ""

    async def start(self, listen: str = "127.0.0.1:0") -> None:
        self.address = bind(self.server, listen)
        await self.servicer.listen(self.address, self.lane_port)
        await self.server.start()

    async def die(self) -> None:
        """Drop every connection."""
        await asyncio.gather(self.servicer.close(), self.server.stop(None))

    async def read(self, request: ShardRead, deadline: float) -> ShardReadReply:
        self.deadlines.append(deadline)
        if request.shard == 404:
            raise NotReady("recovering", ErrorDetails(shards=(404,)))
        if request.shard == 500:
            raise ZeroDivisionError("secret")
        return ShardReadReply([*request.keys], [1] * len(request.keys))

    async def write(self, request: ShardWrite, deadline: float) -> ShardWriteReply:
        self.began.put_nowait(request)
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.put_nowait(request)
            if not self.is_stubborn:
                raise
        return ShardWriteReply([1] * len(request.keys), [False] * len(request.keys))


@asynccontextmanager
async def running(leaf: Leaf, listen: str = "127.0.0.1:0") -> AsyncIterator[Leaf]:
    await leaf.start(listen)
    try:
        yield leaf
    finally:
        await leaf.servicer.drain(0.0)
        await leaf.die()


@asynccontextmanager
async def client_of(leaf: Leaf) -> AsyncIterator[LaneLeafClient]:
    client = LaneLeafClient({"leaf-1": leaf.address}.get, CLOCK)
    try:
        yield client
    finally:
        await client.close()


@pytest.fixture
async def leaf() -> AsyncIterator[Leaf]:
    async with running(Leaf()) as leaf:
        yield leaf


@pytest.fixture
async def client(leaf: Leaf) -> AsyncIterator[LaneLeafClient]:
    async with client_of(leaf) as client:
        yield client


def read(shard: int = 1, keys: int = 1) -> ShardRead:
    return ShardRead(shard, 1, 1, [b"key:%06d" % i for i in range(keys)])


def write(shard: int = 1) -> ShardWrite:
    return ShardWrite(shard, 1, 1, [b"k"], [b"v"])


def soon(timeout_s: float = 10.0) -> float:
    return CLOCK.monotonic() + timeout_s


class TestAnswers:
    async def test_an_answer_with_its_times(self, client: LaneLeafClient) -> None:
        answer = await client.read("leaf-1", read(keys=3), soon())
        assert answer.reply.values == read(keys=3).keys
        assert 0 <= answer.queue_us < 1_000_000
        assert 0 <= answer.service_us < 1_000_000

    async def test_many_at_once_out_of_order(self, leaf: Leaf, client: LaneLeafClient) -> None:
        slow = asyncio.create_task(client.write("leaf-1", write(), soon()))
        requests = [read(shard, keys=1 + shard % 7) for shard in range(300)]
        answers = await asyncio.gather(*(client.read("leaf-1", request, soon()) for request in requests))
        assert [answer.reply.values for answer in answers] == [request.keys for request in requests]
        leaf.go.set()
        assert (await slow).reply.versions == [1]

    async def test_the_deadline_travels_as_a_length(self, leaf: Leaf, client: LaneLeafClient) -> None:
        deadline = soon(3.0)
        await client.read("leaf-1", read(), deadline)
        assert leaf.deadlines == [pytest.approx(deadline, abs=0.5)]

    async def test_values_larger_than_a_message_of_small_frames(self, leaf: Leaf, client: LaneLeafClient) -> None:
        big = ShardRead(1, 1, 1, [bytes(9 * 1024 * 1024)])
        answers = await asyncio.gather(*(client.read("leaf-1", request, soon()) for request in (big, read(), big, read())))
        assert [len(answer.reply.values[0] or b"") for answer in answers] == [9 * 1024 * 1024, 10, 9 * 1024 * 1024, 10]

    async def test_errors_arrive_as_they_were_raised(self, client: LaneLeafClient) -> None:
        with pytest.raises(NotReady, match="recovering") as caught:
            await client.read("leaf-1", read(shard=404), soon())
        assert caught.value.details == ErrorDetails(shards=(404,))

    async def test_a_defect_is_internal_and_keeps_its_secrets(self, client: LaneLeafClient) -> None:
        with pytest.raises(Internal, match="ZeroDivisionError") as caught:
            await client.read("leaf-1", read(shard=500), soon())
        assert "secret" not in caught.value.message
        assert (await client.read("leaf-1", read(), soon())).reply.versions == [1]

    async def test_an_unknown_method_harms_nobody(self, client: LaneLeafClient) -> None:
        with pytest.raises(Unimplemented, match="lane method 5"):
            await client.status("leaf-1", LeafStatusRequest(), soon())
        assert (await client.read("leaf-1", read(), soon())).reply.versions == [1]

    async def test_frames_that_come_together_are_answered_together(self, leaf: Leaf) -> None:
        async with aio_channel(leaf.address) as channel:
            stream = lane_pb2_grpc.LanesStub(channel).Lane()
            message = lane_pb2.LaneRequest()
            for id in range(1, 101):
                message.frames.add(id=id, method=lane_pb2.LANE_METHOD_READ, timeout_us=5_000_000, payload=encode(read()))
            await stream.write(message)
            response = await stream.read()
            assert isinstance(response, lane_pb2.LaneResponse)
            assert [frame.id for frame in response.frames] == list(range(1, 101))
            stream.cancel()

    async def test_an_id_used_twice_is_refused(self, leaf: Leaf) -> None:
        async with aio_channel(leaf.address) as channel:
            stream = lane_pb2_grpc.LanesStub(channel).Lane()
            message = lane_pb2.LaneRequest()
            for _ in range(2):
                message.frames.add(id=7, method=lane_pb2.LANE_METHOD_WRITE, timeout_us=5_000_000, payload=encode(write()))
            await stream.write(message)
            response = await stream.read()
            assert isinstance(response, lane_pb2.LaneResponse)
            assert "outstanding already" in decode_error(response.frames[0].payload).message
            stream.cancel()

    async def test_a_short_cut_answers_or_declines(self) -> None:
        def shortcut(request: ShardRead, deadline: float) -> ShardReadReply | None:
            if request.shard == 3:
                raise NotReady("not even at once")
            return ShardReadReply([b"at once"], [9]) if request.shard == 2 else None

        async with (
            running(Leaf(immediate=dict([immediate_handler_of(ShardRead, shortcut)]))) as leaf,
            client_of(leaf) as client,
        ):
            assert (await client.read("leaf-1", read(2), soon())).reply.values == [b"at once"]
            assert (await client.read("leaf-1", read(1), soon())).reply.values == read().keys
            with pytest.raises(NotReady, match="at once"):
                await client.read("leaf-1", read(3), soon())


class TestGivingUp:
    async def test_a_cancelled_call_is_cancelled_at_the_leaf(self, leaf: Leaf, client: LaneLeafClient) -> None:
        call = asyncio.create_task(client.write("leaf-1", write(), soon()))
        await leaf.began.get()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.wait_for(leaf.cancelled.get(), 5) == write()
        assert (await client.read("leaf-1", read(), soon())).reply.versions == [1]

    async def test_work_that_came_too_late_is_counted(self, leaf: Leaf, client: LaneLeafClient) -> None:
        leaf.is_stubborn = True
        call = asyncio.create_task(client.write("leaf-1", write(), soon()))
        await leaf.began.get()
        await asyncio.sleep(0.02)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait_for(leaf.cancelled.get(), 5)
        await client.read("leaf-1", read(), soon())
        assert client.late.count == 1
        assert 0.01 < client.late.service_s < 5.0

    async def test_a_call_cancelled_before_it_was_sent_never_reaches_the_leaf(self, leaf: Leaf) -> None:
        lane = Lane(leaf.address, CLOCK)
        await lane.call(READ.number, encode(read()), soon())  # the lane is open now
        call = lane.call(WRITE.number, encode(write()), soon())
        call.send(None)  # by hand, up to its wait: the writer has had no turn
        assert lane.outstanding == 1
        with pytest.raises(asyncio.CancelledError):
            call.throw(asyncio.CancelledError())
        await lane.call(READ.number, encode(read()), soon())
        assert leaf.began.empty()
        assert lane.outstanding == 0
        await lane.close()

    async def test_the_deadline_ends_the_wait_and_the_work(self, leaf: Leaf, client: LaneLeafClient) -> None:
        await client.read("leaf-1", read(), soon())
        with pytest.raises(DeadlineExceeded, match="no answer from leaf leaf-1") as caught:
            await client.write("leaf-1", write(), soon(0.03))
        assert caught.value.details.maybe_applied
        assert await asyncio.wait_for(leaf.cancelled.get(), 5) == write()

    async def test_a_deadline_in_the_past_sends_nothing(self, leaf: Leaf, client: LaneLeafClient) -> None:
        await client.read("leaf-1", read(), soon())
        with pytest.raises(DeadlineExceeded) as caught:
            await client.write("leaf-1", write(), soon(-1))
        assert not caught.value.details.maybe_applied
        assert leaf.began.empty()

    async def test_closing_the_client_fails_what_is_outstanding(self, leaf: Leaf) -> None:
        async with client_of(leaf) as client:
            call = asyncio.create_task(client.write("leaf-1", write(), soon()))
            await leaf.began.get()
            await client.close()
            with pytest.raises(Unavailable) as caught:
                await call
            assert caught.value.details.maybe_applied
            with pytest.raises(Unavailable):
                await client.read("leaf-1", read(), soon())
        assert await asyncio.wait_for(leaf.cancelled.get(), 5) == write()


class TestBreaking:
    async def test_a_refused_connection_fails_fast_and_was_not_sent(self) -> None:
        address = f"127.0.0.1:{unused_port()}"
        client = LaneLeafClient(lambda _: address, CLOCK)
        for _ in range(3):  # the later ones do not even try: the back-off runs
            with pytest.raises(Unavailable, match="cannot connect to leaf leaf-1") as caught:
                await client.write("leaf-1", write(), soon())
            assert not caught.value.details.maybe_applied
        assert caught.value.details.retry_after_ms is not None
        await client.close()

    async def test_a_leaf_that_comes_up_is_found(self) -> None:
        leaf, port = Leaf(), unused_port()
        client = LaneLeafClient(lambda _: f"127.0.0.1:{port}", CLOCK)
        with pytest.raises(Unavailable):
            await client.read("leaf-1", read(), soon())
        async with running(leaf, f"127.0.0.1:{port}"):
            assert (await until_reachable(lambda: client.read("leaf-1", read(), soon()))).reply.versions == [1]
            await client.close()

    async def test_a_broken_stream_fails_what_is_outstanding_and_is_replaced(self) -> None:
        first, second = Leaf(), Leaf()
        await first.start()
        async with client_of(first) as client:
            writing = asyncio.create_task(client.write("leaf-1", write(), soon()))
            await first.began.get()
            await client.read("leaf-1", read(), soon())
            await first.die()
            with pytest.raises(Unavailable, match="broke") as caught:
                await writing
            assert caught.value.details.maybe_applied
            async with running(second, first.address):
                assert (await until_reachable(lambda: client.read("leaf-1", read(), soon()))).reply.versions == [1]

    async def test_broken_streams_are_not_kept(self) -> None:
        """A leaf that comes and goes for weeks must not fill its callers' memory."""
        address = f"127.0.0.1:{unused_port()}"
        lane = Lane(address, CLOCK)
        sessions = set()
        for _ in range(3):
            async with running(Leaf(), address):
                await until_reachable(lambda: lane.call(READ.number, encode(read()), soon()))
                sessions.add(lane._session)
            await asyncio.gather(*(session._stream.gone for session in sessions))
        assert len(sessions) == 3
        assert lane._sessions == set()
        await lane.close()

    async def test_a_leaf_that_moved_is_asked_at_its_new_address(self) -> None:
        async with running(Leaf()) as first, running(Leaf()) as second:
            where = [first.address]
            client = LaneLeafClient(lambda _: where[0], CLOCK)
            await client.read("leaf-1", read(), soon())
            where[0] = second.address
            await client.read("leaf-1", read(), soon())
            assert (len(first.deadlines), len(second.deadlines)) == (1, 1)
            await client.close()

    @pytest.mark.parametrize("address", [None, ""])
    async def test_a_leaf_without_an_address(self, address: str | None) -> None:
        client = LaneLeafClient(lambda _: address, CLOCK)
        with pytest.raises(Unavailable, match="leaf-9 has no address"):
            await client.read("leaf-9", read(), soon())
        await client.close()

    async def test_a_port_that_accepts_and_says_nothing(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as mute:
            lane = Lane(f"127.0.0.1:{mute.getsockname()[1]}", CLOCK)
            with pytest.raises(DeadlineExceeded, match="while connecting"):
                await lane.call(READ.number, b"", soon(0.02))
            await lane.close()

    async def test_a_server_that_is_no_leaf(self) -> None:
        server = aio_server()
        address = bind(server, "127.0.0.1:0")
        await server.start()
        client = LaneLeafClient({"leaf-1": address}.get, CLOCK)
        try:
            for keys in (1, 1000):  # By either lane it is as good as gone, so that others are asked.
                with pytest.raises(Unavailable, match="cannot connect"):
                    await client.read("leaf-1", read(keys=keys), soon())
        finally:
            await client.close()
            await server.stop(None)

    async def test_runs_over_what_its_leaf_offers(self, leaf: Leaf, transport: str) -> None:
        lane = Lane(leaf.address, CLOCK)
        await lane.call(READ.number, encode(read()), soon())
        assert lane.transport == transport
        await lane.close()

    async def test_callers_share_one_connection_attempt(self, leaf: Leaf) -> None:
        async with client_of(leaf) as client:
            await asyncio.gather(*(client.read("leaf-1", read(), soon()) for _ in range(20)))
            async with asyncio.timeout(10):
                while "lanes=1," not in repr(leaf.servicer):  # The stream that made the offer ends a moment later.
                    await asyncio.sleep(0.001)


class TestBounds:
    async def test_the_leaf_refuses_what_it_cannot_hold(self) -> None:
        async with running(Leaf(admission=LaneAdmission(max_requests=2))) as leaf, client_of(leaf) as client:
            held = [asyncio.create_task(client.write("leaf-1", write(), soon())) for _ in range(2)]
            for _ in held:
                await leaf.began.get()
            with pytest.raises(ResourceExhausted) as caught:
                await client.read("leaf-1", read(), soon())
            assert caught.value.details.retry_after_ms
            leaf.go.set()
            await asyncio.gather(*held)
            assert (await client.read("leaf-1", read(), soon())).reply.versions == [1]
            assert "in_flight=0" in repr(leaf.servicer)

    async def test_outstanding_requests_are_bounded(self, leaf: Leaf) -> None:
        lane = Lane(leaf.address, CLOCK)
        held = [asyncio.create_task(lane.call(WRITE.number, encode(write(i)), soon())) for i in range(MAX_OUTSTANDING)]
        for _ in range(MAX_OUTSTANDING):
            await leaf.began.get()
        with pytest.raises(ResourceExhausted, match=f"{MAX_OUTSTANDING} requests"):
            await lane.call(READ.number, encode(read()), soon(0.02))
        waiting = [asyncio.create_task(lane.call(READ.number, encode(read(keys=n)), soon())) for n in range(1, 11)]
        impatient = asyncio.create_task(lane.call(READ.number, encode(read()), soon()))
        await asyncio.sleep(0)
        impatient.cancel()
        assert lane.outstanding == MAX_OUTSTANDING
        leaf.go.set()
        replies = await asyncio.gather(*waiting)
        assert [len(decode(ShardReadReply, reply.payload).values) for reply in replies] == list(range(1, 11))
        await asyncio.gather(*held, impatient, return_exceptions=True)
        assert impatient.cancelled()
        await lane.close()

    async def test_waiting_bytes_are_bounded(self, leaf: Leaf) -> None:
        """Large batches for a leaf that hangs must not fill the router's memory."""
        lane = Lane(leaf.address, CLOCK)
        held = [asyncio.create_task(lane.call(WRITE.number, encode(write(i)), soon())) for i in range(MAX_OUTSTANDING)]
        for _ in range(MAX_OUTSTANDING):
            await leaf.began.get()
        large = bytes(MAX_WAITING_BYTES // 8)
        waiting = [asyncio.create_task(lane.call(READ.number, large, soon())) for _ in range(8)]
        await asyncio.sleep(0)
        with pytest.raises(ResourceExhausted, match="wait for the lane") as caught:
            await lane.call(READ.number, b"x", soon())
        assert caught.value.details.retry_after_ms
        waiting[0].cancel()
        await asyncio.gather(waiting[0], return_exceptions=True)
        with pytest.raises(ResourceExhausted, match=f"{MAX_OUTSTANDING} requests"):  # It waits, until its deadline.
            await lane.call(READ.number, large, soon(0.02))
        for task in (*held, *waiting):
            task.cancel()
        await asyncio.gather(*held, *waiting, return_exceptions=True)
        await lane.close()

    async def test_waiting_callers_learn_of_a_break(self, leaf: Leaf) -> None:
        lane = Lane(leaf.address, CLOCK)
        calls = [
            asyncio.create_task(lane.call(WRITE.number, encode(write(i)), soon(), is_write=True))
            for i in range(MAX_OUTSTANDING + 3)
        ]
        for _ in range(MAX_OUTSTANDING):
            await leaf.began.get()
        await leaf.die()
        errors = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(error, Unavailable) for error in errors)
        applied = [error.details.maybe_applied for error in errors if isinstance(error, Unavailable)]
        assert applied == [True] * MAX_OUTSTANDING + [False] * 3
        await lane.close()

    async def test_a_request_too_large_for_a_message(self, leaf: Leaf) -> None:
        lane = Lane(leaf.address, CLOCK)
        with pytest.raises(InvalidArgument):
            await lane.call(READ.number, bytes(PAYLOAD_MAX_BYTES + 1), soon())
        await lane.close()

    async def test_a_reply_too_large_for_a_message(self) -> None:
        async def huge(payload: bytes, deadline: float) -> bytes:
            return bytes(PAYLOAD_MAX_BYTES + int(payload))

        leaf = Leaf()
        leaf.servicer.handlers[READ.number] = huge
        async with running(leaf):
            lane = Lane(leaf.address, CLOCK)
            with pytest.raises(ResourceExhausted, match="more than one message carries"):
                await lane.call(READ.number, b"1", soon())
            reply = (await lane.call(READ.number, b"0", soon())).payload  # the largest one passes
            assert len(reply) == PAYLOAD_MAX_BYTES
            await lane.close()


class TestDraining:
    async def test_what_is_in_flight_ends_and_what_is_new_is_refused(self, leaf: Leaf, client: LaneLeafClient) -> None:
        writing = asyncio.create_task(client.write("leaf-1", write(), soon()))
        await leaf.began.get()
        draining = asyncio.create_task(leaf.servicer.drain(5.0))
        await asyncio.sleep(0)
        with pytest.raises(Unavailable, match="stopping") as caught:
            await client.write("leaf-1", write(), soon())
        assert not caught.value.details.maybe_applied
        leaf.go.set()
        assert (await writing).reply.versions == [1]
        await draining
        assert "lanes=0" in repr(leaf.servicer)

    async def test_the_grace_is_not_exceeded(self, leaf: Leaf, client: LaneLeafClient) -> None:
        writing = asyncio.create_task(client.write("leaf-1", write(), soon()))
        await leaf.began.get()
        await asyncio.wait_for(leaf.servicer.drain(0.01), 3)
        assert leaf.cancelled.get_nowait() == write()
        with pytest.raises(Unavailable) as caught:
            await writing
        assert caught.value.details.maybe_applied

    async def test_no_lane_begins_while_the_leaf_stops(self, leaf: Leaf, client: LaneLeafClient) -> None:
        await client.read("leaf-1", read(), soon())
        await leaf.servicer.drain(5.0)
        errors = []
        for _ in range(2):  # the first may still meet the end of the old lane
            with pytest.raises(Unavailable) as caught:
                await client.read("leaf-1", read(), soon())
            errors.append(caught.value.message)
        assert "the leaf is stopping" in errors[-1]
        assert "lanes=0" in repr(leaf.servicer)

    async def test_an_idle_leaf_drains_at_once(self, leaf: Leaf) -> None:
        await leaf.servicer.drain(5.0)


class TestDoor:
    async def test_a_port_in_use_is_said_so(self, leaf: Leaf) -> None:
        other = aio_server()
        with pytest.raises(FailedPrecondition, match="in use"):
            bind(other, leaf.address)
        await other.stop(None)

    async def test_an_address_without_a_port(self) -> None:
        server = aio_server()
        with pytest.raises(FailedPrecondition, match="expected host:port"):
            bind(server, "localhost")
        await server.stop(None)

    @pytest.mark.parametrize(
        "error",
        [
            NotReady("soon", ErrorDetails(shards=(1, 2), retry_after_ms=5, replicas_tried=("leaf-1",))),
            Unavailable("\N{SNOWMAN}" * 200, ErrorDetails(field="ü" * 100, shards=tuple(range(256)))),
        ],
        ids=["small", "large"],
    )
    async def test_an_error_crosses_a_real_call(self, error: Unavailable) -> None:
        async def fail(request: bytes, context: Any) -> bytes:
            await abort(context, error)

        server = aio_server()
        method = grpc.unary_unary_rpc_method_handler(fail)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", {"Fail": method}),))
        address = bind(server, "127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(address) as channel:  # a client without our options
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary("/test.Service/Fail")(b"")
        arrived = error_from_rpc(caught.value)
        assert (type(arrived), arrived.message, arrived.details) == (type(error), error.message, error.details)
        await server.stop(None)


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


async def until_reachable(call: Callable[[], Awaitable[Any]]) -> Any:
    for _ in range(200):
        try:
            return await call()
        except Unavailable as error:
            await asyncio.sleep((error.details.retry_after_ms or 5) / 1000)
    raise AssertionError("never reachable")
