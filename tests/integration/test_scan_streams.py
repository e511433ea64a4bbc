"""Streams of scans whose readers stop, and whose readers go away: what the router fetches, holds and counts."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard import Client
from kvshard.clock import SystemClock
from kvshard.errors import Cancelled, FailedPrecondition
from kvshard.model import ShardScan
from kvshard.telemetry import RouterMetrics
from router import server as server_module
from router.server import RouterServer

CLOCK = SystemClock()
KEYS = [b"key-%03d" % number for number in range(400)]
VALUE = bytes(200_000)
"""80 MB in all: far beyond what gRPC takes for a reader that does not read."""


class Front:
    """A serving router over leaves in memory."""

    def __init__(self, server: RouterServer, leaves: MemoryLeaves, maps: FakeMapSource, registry: CollectorRegistry) -> None:
        self.server = server
        self.maps = maps
        self.leaves = leaves
        self.registry = registry

    @property
    def fetched(self) -> int:
        return len(self.leaves.client.calls_of(ShardScan))

    def ended(self, code: str) -> float:
        labels = {"method": "Scan", "code": code}
        return self.registry.get_sample_value("kvshard_router_requests_total", labels) or 0.0


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    leaves, registry, maps = MemoryLeaves(), CollectorRegistry(), FakeMapSource(cluster_map(shards=4, leaves=2))
    for key in KEYS:
        leaves.shards.setdefault((maps.current.shard_of_key(key), 1), {})[key] = (VALUE, 1)
    server = RouterServer("127.0.0.1:0", maps, leaves.client, CLOCK, RouterMetrics(registry))
    await server.start("cluster")
    try:
        yield Front(server, leaves, maps, registry)
    finally:
        await server.stop()


async def settled(front: Front) -> int:
    """How many chunks were fetched once no more are."""
    before = -1
    while before != front.fetched:
        before = front.fetched
        await asyncio.sleep(0.1)
    return before


async def test_what_a_reader_does_not_take_is_not_fetched(front: Front) -> None:
    async with Client(front.server.address, keys=bytes) as kv, kv.scan() as scan:
        await scan.take(1)
        fetched = await settled(front)
        assert fetched < len(KEYS) // 4
        assert [item.key for item in await scan.take(len(KEYS))] == KEYS[1:]
        assert front.fetched > 2 * fetched


@pytest.mark.parametrize("scans", [1, 12])
@pytest.mark.parametrize("closes", ["scans", "client"])
async def test_readers_that_go_away_while_they_are_written_to_are_no_failure(front: Front, scans: int, closes: str) -> None:
    async with Client(front.server.address) as kv:
        left = [kv.scan() for _ in range(scans)]
        await asyncio.gather(*(scan.take(1) for scan in left))
        await settled(front)
        if closes == "scans":
            await asyncio.gather(*(scan.aclose() for scan in left))
    async with asyncio.timeout(5.0):
        while front.ended("CANCELLED") + front.ended("INTERNAL") < scans:
            await asyncio.sleep(0.01)
    assert (front.ended("CANCELLED"), front.ended("INTERNAL"), front.ended("OK")) == (scans, 0, 0)
    if closes == "client":
        with pytest.raises((Cancelled, FailedPrecondition)):
            await left[0].take(len(KEYS))


async def test_a_stream_that_its_router_cuts_goes_on_at_the_next_one(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "STOP_GRACE_S", 0.05)
    other = RouterServer("127.0.0.1:0", front.maps, front.leaves.client, CLOCK, RouterMetrics(CollectorRegistry()))
    await other.start("cluster")
    try:
        async with Client([other.address, front.server.address], keys=bytes) as kv, kv.scan() as scan:
            await scan.take(1)
            await settled(front)
            await other.stop()
            assert [item.key for item in await scan.take(len(KEYS))] == KEYS[1:]
    finally:
        await other.stop()
