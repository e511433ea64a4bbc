"""A router that stops while unary calls are under way: who has begun is answered, who comes is told so."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from fakes.leaf_client import Hang
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.errors import Unavailable
from kvshard.model import ShardRead, ShardReadReply
from kvshard.rpc.channel import aio_channel
from kvshard.rpc.status import error_from_rpc
from kvshard.telemetry import RouterMetrics
from kvshard.v1 import kv_pb2, kv_pb2_grpc
from router.server import DRAIN_S, STOP_GRACE_S, RouterServer

CALLS = 200
"""Their answers are more packets than a young connection may have under way."""


class Stopping:
    """A router whose leaves answer no read before `release`, and a caller."""

    def __init__(self) -> None:
        leaves = MemoryLeaves()
        self.hang = Hang(ShardReadReply([b"v"], [1]))
        leaves.client.on("*", ShardRead, self.hang)
        maps = FakeMapSource(cluster_map())
        self.server = RouterServer("127.0.0.1:0", maps, leaves.client, SystemClock(), RouterMetrics(CollectorRegistry()))
        self.channel = aio_channel(self.server.address)

    async def get(self) -> str:
        """How a Get ends: "answered", or the text of its error."""
        try:
            got = await kv_pb2_grpc.KVStub(self.channel).Get(kv_pb2.GetRequest(key=b"k"), timeout=20.0)
        except grpc.aio.AioRpcError as error:
            known = error_from_rpc(error)
            assert isinstance(known, Unavailable)
            return known.message
        assert got.item.value == b"v"
        return "answered"

    def begin(self, calls: int) -> list[asyncio.Task[str]]:
        """So many Gets at once."""
        return [asyncio.create_task(self.get()) for _ in range(calls)]

    async def refused(self) -> None:
        """Wait until the first one is told that the router stops."""
        async with asyncio.timeout(10):
            while await self.get() != "the router is stopping":
                pass

    async def all_begun(self, calls: int) -> None:
        """Wait until so many are taken in."""
        async with asyncio.timeout(10):
            while self.server._calls.admission.calls < calls:
                await asyncio.sleep(0)


@pytest.fixture
async def stopping() -> AsyncIterator[Stopping]:
    made = Stopping()
    await made.server.start("cluster")
    yield made
    await made.channel.close()
    await made.server.stop()


async def test_all_who_have_begun_are_answered_before_callers_are_sent_away(stopping: Stopping) -> None:
    """gRPC alone, when it stops, cancels who comes, and closes the connection behind the last answers without having read what
    the caller sent meanwhile: the kernel throws away what it had not sent by then."""
    calls = stopping.begin(CALLS)
    await stopping.all_begun(CALLS)
    stop = asyncio.create_task(stopping.server.stop())
    await stopping.refused()
    assert await asyncio.gather(*stopping.begin(3)) == ["the router is stopping"] * 3
    assert stopping.channel.get_state() is grpc.ChannelConnectivity.READY
    stopping.hang.release()
    assert Counter(await asyncio.gather(*calls)) == {"answered": CALLS}
    await asyncio.wait_for(stop, 1.5)


async def test_a_call_that_lasts_does_not_keep_callers_at_a_router_that_refuses_them(stopping: Stopping) -> None:
    calls = stopping.begin(1)
    await stopping.all_begun(1)
    began = asyncio.get_running_loop().time()
    stop = asyncio.create_task(stopping.server.stop())
    await stopping.channel.wait_for_state_change(grpc.ChannelConnectivity.READY)
    assert DRAIN_S * 0.9 < asyncio.get_running_loop().time() - began < STOP_GRACE_S * 0.9
    stopping.hang.release()
    assert await calls[0] == "answered"
    await asyncio.wait_for(stop, 1.5)


async def test_a_call_that_never_ends_is_cut_after_the_grace(stopping: Stopping, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("router.server.STOP_GRACE_S", 0.1)
    calls = stopping.begin(1)
    await stopping.all_begun(1)
    await asyncio.wait_for(stopping.server.stop(), 1.5)
    assert await calls[0] != "answered"
    assert stopping.hang.cancelled == 1
