"""Connections whose other end is gone without a word: our own processes notice soon, and dial anew."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from harness.fault_proxy import Fault, FaultProxy, Mode

from kvshard.clock import SystemClock
from kvshard.errors import Unavailable
from kvshard.model import ShardRead, ShardReadReply
from kvshard.rpc.channel import aio_server, bind
from kvshard.rpc.codec import handler_of
from kvshard.rpc.lane_client import LaneLeafClient
from kvshard.rpc.lane_server import LaneServicer
from kvshard.rpc.peer_stream import PeerServicer, PeerStream
from kvshard.v1 import lane_pb2_grpc, peer_pb2_grpc

CLOCK = SystemClock()
NOTICED_WITHIN_S = 6.0
"""1 + 2 s of keepalive; the rest is for a busy machine. Patience as toward clients would take 15 s."""


async def read(request: ShardRead, deadline: float) -> ShardReadReply:
    return ShardReadReply([*request.keys], [1] * len(request.keys))


@pytest.fixture
async def proxy() -> AsyncIterator[FaultProxy]:
    """Before a leaf that answers reads and takes replication messages."""
    server = aio_server()
    lanes = LaneServicer(dict([handler_of(ShardRead, read)]), CLOCK)
    lane_pb2_grpc.add_LanesServicer_to_server(lanes, server)
    peer_pb2_grpc.add_PeerServicer_to_server(PeerServicer("b", lambda: "cluster", lambda sender, payload: None), server)
    made = FaultProxy()
    host, _, port = bind(server, "127.0.0.1:0").rpartition(":")
    made.upstream = (host, int(port))
    await server.start()
    await made.start()
    yield made
    await made.close()
    await lanes.drain(0.0)
    await server.stop(None)


async def test_a_call_on_a_dead_lane_fails_soon_and_the_next_one_is_answered(proxy: FaultProxy) -> None:
    client = LaneLeafClient({"b": proxy.address}.get, CLOCK)
    request = ShardRead(1, 1, 1, [b"k"])
    try:
        await client.read("b", request, CLOCK.monotonic() + 10.0)
        proxy.half_open()
        began = time.monotonic()
        with pytest.raises(Unavailable):
            await client.read("b", request, CLOCK.monotonic() + 30.0)
        assert time.monotonic() - began < NOTICED_WITHIN_S
        assert (await client.read("b", request, CLOCK.monotonic() + 10.0)).reply.values == [b"k"]
    finally:
        await client.close()


async def test_a_dead_stream_between_leaves_ends_soon(proxy: FaultProxy) -> None:
    stream = PeerStream(proxy.address, "cluster", "a", "b")
    ended = asyncio.Event()
    stream.on_end(ended.set)
    try:
        await stream.write(b"hello")
        while not proxy.sources:
            await asyncio.sleep(0.01)
        proxy.set(Fault(Mode.DROP))
        async with asyncio.timeout(NOTICED_WITHIN_S):
            await ended.wait()
    finally:
        await stream.close()
