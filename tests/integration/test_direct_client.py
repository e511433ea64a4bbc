"""A direct client before leaves that it cannot, or must not, ask itself: everything goes through the router."""

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard import Client, Detour, FailedPrecondition
from kvshard.clock import SystemClock
from kvshard.model import ShardRead, ShardReadReply
from kvshard.rpc.channel import aio_server, bind
from kvshard.rpc.codec import handler_of, leaf_mark
from kvshard.rpc.lane_server import LaneServicer
from kvshard.telemetry import RouterMetrics
from kvshard.v1 import lane_pb2_grpc
from router.server import RouterServer


@asynccontextmanager
async def routed(maps: FakeMapSource) -> AsyncIterator[RouterServer]:
    """A router, whose leaves are in its own memory: whatever the map says of their addresses, it reaches them."""
    server = RouterServer("127.0.0.1:0", maps, MemoryLeaves().client, SystemClock(), RouterMetrics(CollectorRegistry()))
    await server.start("blue")
    try:
        await server.wait_serving()
        yield server
    finally:
        await server.stop()


async def use(kv: Client[str]) -> None:
    """What a program does, and what it must find."""
    assert await kv.put("single", b"1") > 0
    item = await kv.get("single")
    assert item is not None
    assert item.value == b"1"
    assert (await kv.put_many({f"k{number:03d}": b"v" for number in range(100)})).ok
    found = await kv.get_many(["k000", "k099", "absent"])
    assert [None if item is None else item.value for item in found] == [b"v", b"v", None]
    assert [item.key async for item in kv.scan(prefix="k", limit=10)] == [f"k{number:03d}" for number in range(10)]
    assert await kv.delete("single")
    assert await kv.get("single") is None


async def test_leaves_that_cannot_be_reached_from_here() -> None:
    async with routed(FakeMapSource(cluster_map(shards=8, leaves=3))) as server, Client(server.address, direct=True) as kv:
        assert not await kv.wait_direct(timeout=0.3)
        await use(kv)
        status = kv.direct_status()
        assert not status.is_direct
        assert status.direct == 0
        assert status.detours[Detour.STARTING] == status.detoured > 0
        assert [leaf.is_reached for leaf in status.leaves] == [False] * 3
        assert status.tail is not None


async def test_another_cluster_lives_at_the_addresses_of_the_map() -> None:
    asked: list[ShardRead] = []

    async def read(request: ShardRead, deadline: float) -> ShardReadReply:
        asked.append(request)
        return ShardReadReply([b"of another cluster"] * len(request.keys), [1] * len(request.keys))

    leaf = aio_server()
    servicer = LaneServicer(dict([handler_of(ShardRead, read)]), SystemClock(), mark=lambda: leaf_mark("green", "leaf-1"))
    lane_pb2_grpc.add_LanesServicer_to_server(servicer, leaf)
    address = bind(leaf, "127.0.0.1:0")
    await leaf.start()
    current = cluster_map(shards=8, leaves=1)
    maps = FakeMapSource(replace(current, leaves={"leaf-1": replace(current.leaves["leaf-1"], address=address)}))
    try:
        async with routed(maps) as server, Client(server.address, direct=True) as kv:
            assert not await kv.wait_direct(timeout=0.3)
            await use(kv)
            assert asked == []
    finally:
        await leaf.stop(None)


async def test_a_client_that_is_not_direct_says_so() -> None:
    async with Client("127.0.0.1:1") as kv:
        with pytest.raises(FailedPrecondition):
            kv.direct_status()
        with pytest.raises(FailedPrecondition):
            await kv.wait_direct()


PROGRAM = """
import asyncio, logging, sys
from kvshard import NO_RETRIES, Client, Unavailable
logging.basicConfig(level=logging.INFO, stream=sys.stderr)

async def main():
    async with Client(sys.argv[1], direct=True, retries=NO_RETRIES) as kv:
        await kv.wait_direct(timeout=0.1)
        try:
            await kv.get("key", timeout=1.0)
        except Unavailable:
            print("the program's own line")

asyncio.run(main())
"""


def test_log_lines_do_not_get_between_what_a_program_prints() -> None:
    command = [sys.executable, "-c", PROGRAM, "127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "the program's own line\n"
    assert "INFO:kvshard.client.map_watch:event='the watch of the cluster map ended'" in done.stderr
