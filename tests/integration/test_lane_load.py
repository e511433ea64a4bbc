"""What a lane's answers say of the leaf's load, and what a message takes back of itself, over real gRPC on loopback."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from kvshard.clock import SystemClock
from kvshard.rpc.channel import aio_channel, aio_server, bind
from kvshard.rpc.lane_server import LaneServicer
from kvshard.v1 import leaf_pb2, leaf_pb2_grpc

CLOCK = SystemClock()
READ = leaf_pb2.LANE_METHOD_READ
WRITE = leaf_pb2.LANE_METHOD_WRITE
CANCEL = leaf_pb2.LANE_METHOD_CANCEL


class Leaf:
    """Reads are answered at once; writes wait for `go`. began: payloads that a handler has seen."""

    def __init__(self) -> None:
        self.began: list[bytes] = []
        self.go = asyncio.Event()
        self.servicer = LaneServicer({int(READ): self.write, int(WRITE): self.write}, CLOCK, immediate={int(READ): self.read})

    def read(self, payload: bytes, deadline: float) -> bytes:
        self.began.append(payload)
        return payload

    async def write(self, payload: bytes, deadline: float) -> bytes:
        self.began.append(payload)
        await self.go.wait()
        return payload


class Caller:
    """A caller that composes its messages itself."""

    def __init__(self, stub: "leaf_pb2_grpc.LeafAsyncStub") -> None:
        self._stream = stub.Lane()
        self._frames: list[leaf_pb2.ResponseFrame] = []

    async def send(self, *frames: tuple[int, int]) -> None:
        """One message. frames: id, method."""
        message = leaf_pb2.LaneRequest()
        for id, method in frames:
            message.frames.add(id=id, method=leaf_pb2.LaneMethod.ValueType(method), timeout_us=5_000_000, payload=b"%d" % id)
        await self._stream.write(message)

    async def answers(self, count: int) -> dict[int, leaf_pb2.ResponseFrame]:
        """The next so many answers by id."""
        async with asyncio.timeout(5):
            while len(self._frames) < count:
                message = await self._stream.read()
                assert isinstance(message, leaf_pb2.LaneResponse)
                self._frames += message.frames
        taken, self._frames = self._frames[:count], self._frames[count:]
        return {frame.id: frame for frame in taken}


@asynccontextmanager
async def calling(leaf: Leaf) -> AsyncIterator[Caller]:
    server = aio_server()
    leaf_pb2_grpc.add_LeafServicer_to_server(leaf.servicer, server)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    try:
        async with aio_channel(address) as channel:
            yield Caller(leaf_pb2_grpc.LeafStub(channel))
    finally:
        await leaf.servicer.drain(0.0)
        await server.stop(None)


class TestTheLoadReport:
    async def test_a_lone_request_is_all_there_is(self) -> None:
        async with calling(Leaf()) as caller:
            await caller.send((1, READ))
            assert (await caller.answers(1))[1].in_flight == 1

    async def test_what_came_in_the_same_message_counts_until_its_turn(self) -> None:
        async with calling(Leaf()) as caller:
            await caller.send((1, READ), (2, READ), (3, READ))
            answers = await caller.answers(3)
            assert [answers[id].in_flight for id in (1, 2, 3)] == [3, 2, 1]

    async def test_requests_that_wait_count(self) -> None:
        async with calling(leaf := Leaf()) as caller:
            await caller.send((1, WRITE), (2, WRITE), (3, READ))
            assert (await caller.answers(1))[3].in_flight == 3
            leaf.go.set()
            assert sorted((await caller.answers(2)).keys()) == [1, 2]
            await caller.send((4, READ))
            assert (await caller.answers(1))[4].in_flight == 1

    async def test_refusals_carry_it_too(self) -> None:
        async with calling(Leaf()) as caller:
            await caller.send((1, WRITE), (2, 14))
            answer = (await caller.answers(1))[2]
            assert answer.is_error
            assert answer.in_flight == 2


class TestACancelInTheSameMessage:
    async def test_a_request_that_its_message_takes_back_never_begins(self) -> None:
        async with calling(leaf := Leaf()) as caller:
            await caller.send((1, READ), (2, WRITE), (2, CANCEL), (1, CANCEL), (3, READ))
            assert list(await caller.answers(1)) == [3]
            assert leaf.began == [b"3"]
            assert leaf.servicer.load == 0

    async def test_one_that_runs_already_is_cancelled(self) -> None:
        async with calling(leaf := Leaf()) as caller:
            await caller.send((1, WRITE), (2, READ))
            await caller.answers(1)
            await caller.send((1, CANCEL), (3, READ))
            await caller.answers(1)
            await caller.send((4, READ))
            assert (await caller.answers(1))[4].in_flight == 1
            assert leaf.began == [b"1", b"2", b"3", b"4"] or leaf.began == [b"2", b"1", b"3", b"4"]
