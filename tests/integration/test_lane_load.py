"""What a lane's answers say of the leaf's load, and what a message takes back of itself, over real gRPC on loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from kvshard.clock import SystemClock
from kvshard.errors import ResourceExhausted
from kvshard.rpc import lane_connection
from kvshard.rpc.channel import aio_channel, aio_server, bind
from kvshard.rpc.codec import decode_error
from kvshard.rpc.lane_admission import LaneAdmission
from kvshard.rpc.lane_server import LaneServicer
from kvshard.v1 import lane_pb2, lane_pb2_grpc

CLOCK = SystemClock()
READ = lane_pb2.LANE_METHOD_READ
WRITE = lane_pb2.LANE_METHOD_WRITE
PING = lane_pb2.LANE_METHOD_PING
CANCEL = lane_pb2.LANE_METHOD_CANCEL


class Leaf:
    """Reads are answered at once; writes wait for `go`. began: payloads that a handler has seen."""

    def __init__(self, **options: Any) -> None:
        self.began: list[bytes] = []
        self.withdrawn = 0
        self.go = asyncio.Event()
        handlers = {int(READ): self.write, int(WRITE): self.write}
        immediate = {int(READ): self.read, int(PING): lambda payload, deadline: b""}
        self.servicer = LaneServicer(
            {**handlers, int(PING): self.write}, CLOCK, immediate=immediate, on_withdrawn=self.note_withdrawn, **options
        )

    def note_withdrawn(self) -> None:
        self.withdrawn += 1

    def read(self, payload: bytes, deadline: float) -> bytes:
        self.began.append(payload)
        return payload

    async def write(self, payload: bytes, deadline: float) -> bytes:
        self.began.append(payload)
        await self.go.wait()
        return payload


class Caller:
    """A caller that composes its messages itself."""

    def __init__(self, stub: "lane_pb2_grpc.LanesAsyncStub") -> None:
        self._stream = stub.Lane()
        self._frames: list[lane_pb2.ResponseFrame] = []

    async def send(self, *frames: tuple[int, int], sent_s: float = 0.0, is_hedge: bool = False) -> None:
        """One message. frames: id, method. sent_s: what it says of when it was sent."""
        message = lane_pb2.LaneRequest(sent_us=int(sent_s * 1e6))
        for id, method in frames:
            number, payload = lane_pb2.LaneMethod.ValueType(method), b"%d" % id
            message.frames.add(id=id, method=number, timeout_us=500_000, payload=payload, is_hedge=is_hedge)
        await self._stream.write(message)

    async def answers(self, count: int) -> dict[int, lane_pb2.ResponseFrame]:
        """The next so many answers by id."""
        async with asyncio.timeout(5):
            while len(self._frames) < count:
                message = await self._stream.read()
                assert isinstance(message, lane_pb2.LaneResponse)
                self._frames += message.frames
        taken, self._frames = self._frames[:count], self._frames[count:]
        return {frame.id: frame for frame in taken}


@asynccontextmanager
async def calling(leaf: Leaf) -> AsyncIterator[Caller]:
    server = aio_server()
    lane_pb2_grpc.add_LanesServicer_to_server(leaf.servicer, server)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    try:
        async with aio_channel(address) as channel:
            yield Caller(lane_pb2_grpc.LanesStub(channel))
    finally:
        await leaf.servicer.drain(0.0)
        await server.stop(None)


class TestTheLoadReport:
    async def test_there_is_nothing_besides_a_lone_request(self) -> None:
        async with calling(Leaf()) as caller:
            await caller.send((1, READ))
            assert (await caller.answers(1))[1].in_flight == 0

    async def test_what_came_in_the_same_message_counts_until_its_turn(self) -> None:
        async with calling(Leaf()) as caller:
            await caller.send((1, READ), (2, READ), (3, READ))
            answers = await caller.answers(3)
            assert [answers[id].in_flight for id in (1, 2, 3)] == [2, 1, 0]

    async def test_requests_that_wait_count(self) -> None:
        async with calling(leaf := Leaf()) as caller:
            await caller.send((1, WRITE), (2, WRITE), (3, READ))
            assert (await caller.answers(1))[3].in_flight == 2
            leaf.go.set()
            answers = await caller.answers(2)
            assert [answers[id].in_flight for id in (1, 2)] == [1, 0], "both end in one pass"
            await caller.send((4, READ))
            assert (await caller.answers(1))[4].in_flight == 0
            assert leaf.servicer.ending == 0

    async def test_refusals_carry_it_too(self) -> None:
        async with calling(Leaf()) as caller:
            await caller.send((1, WRITE), (2, 14))
            answer = (await caller.answers(1))[2]
            assert answer.is_error
            assert answer.in_flight == 1


class TestACancelInTheSameMessage:
    async def test_a_request_that_its_message_takes_back_never_begins(self) -> None:
        async with calling(leaf := Leaf()) as caller:
            await caller.send((1, READ), (2, WRITE), (2, CANCEL), (1, CANCEL), (3, READ))
            assert list(await caller.answers(1)) == [3]
            assert leaf.began == [b"3"]
            assert leaf.servicer.load == 0
            assert leaf.withdrawn == 2

    async def test_one_that_runs_already_is_cancelled(self) -> None:
        async with calling(leaf := Leaf()) as caller:
            await caller.send((1, WRITE), (2, READ))
            await caller.answers(1)
            await caller.send((1, CANCEL), (3, READ))
            await caller.answers(1)
            await caller.send((4, READ))
            assert (await caller.answers(1))[4].in_flight == 0
            assert sorted(leaf.began) == [b"1", b"2", b"3", b"4"]
            assert leaf.withdrawn == 1


class TestTimeInBuffers:
    """A message tells when it was sent; the first on a lane says how long the way is, any later one how long it lay."""

    async def test_it_is_reported_as_queue(self) -> None:
        async with calling(Leaf()) as caller:
            await caller.send((1, READ), sent_s=CLOCK.monotonic())
            assert (await caller.answers(1))[1].queue_us < 100_000
            await caller.send((2, READ), (3, WRITE), (3, CANCEL), sent_s=CLOCK.monotonic() - 0.3)
            assert (await caller.answers(1))[2].queue_us == pytest.approx(300_000, abs=100_000)

    async def test_it_counts_for_the_deadline(self) -> None:
        async with calling(leaf := Leaf()) as caller:
            await caller.send((1, READ), sent_s=CLOCK.monotonic())
            await caller.answers(1)
            await caller.send((2, READ), (3, WRITE), sent_s=CLOCK.monotonic() - 0.8)
            answers = await caller.answers(2)
            assert [decode_error(answers[id].payload).reason for id in (2, 3)] == ["DEADLINE_EXCEEDED"] * 2
            assert leaf.began == [b"1"]

    async def test_what_lay_for_long_waits_for_what_takes_it_back(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lane_connection, "HOLD_S", 1.0)  # this process may be as late as it likes
        async with calling(leaf := Leaf()) as caller:
            await caller.send((1, READ), sent_s=CLOCK.monotonic())
            await caller.answers(1)
            asked_at = CLOCK.monotonic() - 0.2
            await caller.send((2, READ), (3, READ), sent_s=asked_at)
            await caller.send((2, CANCEL), (4, READ), sent_s=CLOCK.monotonic() + 0.01)  # the way is quicker than it was
            assert list(await caller.answers(2)) == [3, 4]
            assert leaf.began == [b"1", b"3", b"4"]
            assert leaf.withdrawn == 1

    async def test_a_caller_without_a_clock_is_served(self) -> None:
        async with calling(Leaf()) as caller:
            await caller.send((1, READ))
            await caller.answers(1)
            await caller.send((2, READ))
            assert (await caller.answers(1))[2].queue_us < 100_000


class TestHedgesComeLast:
    async def test_a_hedge_is_refused_where_another_request_is_not(self) -> None:
        async with calling(leaf := Leaf(admission=LaneAdmission(max_requests=4))) as caller:
            await caller.send((1, WRITE), (2, WRITE))
            await caller.send((3, READ), is_hedge=True)
            answer = (await caller.answers(1))[3]
            assert decode_error(answer.payload).details.retry_after_ms
            assert answer.in_flight == 2
            await caller.send((4, READ))
            assert not (await caller.answers(1))[4].is_error
            assert b"3" not in leaf.began

    async def test_a_method_may_have_a_gate_of_its_own(self) -> None:
        gates = {int(READ): ResourceExhausted("no room for this one")}
        async with calling(Leaf(hedge_gate=gates.get)) as caller:
            await caller.send((1, READ), is_hedge=True)
            assert "no room" in decode_error((await caller.answers(1))[1].payload).message
            await caller.send((2, READ))
            assert not (await caller.answers(1))[2].is_error

    async def test_a_full_leaf_still_says_that_it_is_awake(self) -> None:
        async with calling(Leaf(admission=LaneAdmission(max_requests=1))) as caller:
            await caller.send((1, WRITE), (2, READ), (3, PING))
            answers = await caller.answers(2)
            assert answers[2].is_error
            assert not answers[3].is_error
