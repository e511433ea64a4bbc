"""Reads that are sent on a lane without awaiting: who is told what, and what is taken back. Real gRPC on loopback."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kvshard.clock import SystemClock
from kvshard.errors import ErrorDetails, Internal, KvShardError, NotReady, Unavailable
from kvshard.model import ShardRead, ShardReadReply
from kvshard.rpc.channel import aio_server, bind
from kvshard.rpc.codec import PAYLOAD_MAX_BYTES, PING, handler_of
from kvshard.rpc.lane_client import LaneLeafClient
from kvshard.rpc.lane_server import LaneServicer
from kvshard.rpc.leaf_client import Answer
from kvshard.v1 import lane_pb2_grpc

CLOCK = SystemClock()
ECHO, REFUSED, HELD = 1, 404, 3


class Leaf:
    """Reads of shard ECHO are answered with their keys, of REFUSED with an error; those of HELD wait to be cancelled."""

    def __init__(self) -> None:
        self.held = asyncio.Event()
        self.cancelled = asyncio.Event()
        self.number, read = handler_of(ShardRead, self.read)
        self.servicer = LaneServicer({self.number: read, PING: self.pong}, CLOCK)
        self.server = aio_server()
        lane_pb2_grpc.add_LanesServicer_to_server(self.servicer, self.server)
        self.address = bind(self.server, "127.0.0.1:0")

    async def pong(self, payload: bytes, deadline: float) -> bytes:
        return b""

    async def read(self, request: ShardRead, deadline: float) -> ShardReadReply:
        if request.shard == REFUSED:
            raise NotReady("recovering", ErrorDetails(shards=(REFUSED,)))
        if request.shard == HELD:
            self.held.set()
            try:
                await asyncio.Event().wait()
            finally:
                self.cancelled.set()
        return ShardReadReply([*request.keys], [1] * len(request.keys), seqno=5)

    async def stop(self) -> None:
        await self.servicer.drain(0.0)
        await self.server.stop(None)


class Front:
    """A leaf with a client that has, or has not, a lane to it."""

    def __init__(self) -> None:
        self.leaf = Leaf()
        self.client = LaneLeafClient({"leaf-1": self.leaf.address}.get, CLOCK)
        self.told: asyncio.Queue[Answer[Any] | KvShardError] = asyncio.Queue()

    async def connect(self) -> None:
        await self.client.ping("leaf-1", CLOCK.monotonic() + 10)

    def start(self, shard: int, key: bytes = b"k", leaf: str = "leaf-1") -> Any:
        return self.client.start(leaf, ShardRead(shard, 1, 1, [key]), CLOCK.monotonic() + 10, self.told.put_nowait)


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    front = Front()
    await front.leaf.server.start()
    try:
        yield front
    finally:
        await front.client.close()
        await front.leaf.stop()


async def told(front: Front) -> Any:
    async with asyncio.timeout(10):
        return await front.told.get()


async def test_the_answer_is_told(front: Front) -> None:
    await front.connect()
    assert front.start(ECHO, b"key") is not None
    answer = await told(front)
    assert (answer.reply.values, answer.reply.seqno) == ([b"key"], 5)
    assert front.told.empty()


async def test_the_leaf_s_error_is_told(front: Front) -> None:
    await front.connect()
    front.start(REFUSED)
    error = await told(front)
    assert isinstance(error, NotReady)
    assert error.details.shards == (REFUSED,)


async def test_an_answer_that_cannot_be_read_is_an_internal_error(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    async def garbage(payload: bytes, deadline: float) -> bytes:
        return b"\xc1"

    await front.connect()
    monkeypatch.setitem(front.leaf.servicer.handlers, front.leaf.number, garbage)
    front.start(ECHO)
    assert isinstance(await told(front), Internal)


async def test_what_is_taken_back_is_cancelled_at_the_leaf_and_never_told(front: Front) -> None:
    await front.connect()
    take_back = front.start(HELD)
    await front.leaf.held.wait()
    take_back()
    async with asyncio.timeout(10):
        await front.leaf.cancelled.wait()
    front.start(ECHO)
    assert isinstance(await told(front), Answer)
    assert front.told.empty()
    take_back()  # Of no effect any more.


async def test_a_lane_that_breaks_tells_all(front: Front) -> None:
    await front.connect()
    front.start(HELD)
    await front.leaf.held.wait()
    await front.leaf.stop()
    assert isinstance(await told(front), Unavailable)
    assert front.start(ECHO) is None


async def test_nothing_is_started_without_an_open_lane(front: Front) -> None:
    assert front.start(ECHO) is None
    assert front.start(ECHO, leaf="nobody") is None
    await front.connect()
    assert front.start(ECHO, bytes(PAYLOAD_MAX_BYTES)) is None
    assert front.start(ECHO) is not None
    await told(front)


async def test_a_defect_of_who_is_told_does_not_break_the_lane(front: Front) -> None:
    def broken(outcome: object) -> None:
        raise ZeroDivisionError

    await front.connect()
    front.client.start("leaf-1", ShardRead(ECHO, 1, 1, [b"k"]), CLOCK.monotonic() + 10, broken)
    front.start(ECHO)
    assert isinstance(await told(front), Answer)
