"""Short scans over lanes: a page in a frame, what it leaves over as a stream, and routers that do not know the method."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard import Client
from kvshard.clock import SystemClock
from kvshard.errors import CollectionNotFound, InvalidArgument, Unavailable
from kvshard.lane_messages import KeysScan, KeysScanReply
from kvshard.model import ShardScan
from kvshard.rpc.codec import SCAN_KEYS, decode, encode
from kvshard.rpc.lane import Lane
from kvshard.telemetry import RouterMetrics
from kvshard.v1 import kv_pb2, types_pb2
from router.server import RouterServer

CLOCK = SystemClock()
KEYS = [f"key-{number:03d}" for number in range(300)]


class Front:
    """A serving router over leaves in memory, and a client of it."""

    def __init__(self, server: RouterServer, leaves: MemoryLeaves, maps: FakeMapSource, registry: CollectorRegistry) -> None:
        self.server = server
        self.leaves = leaves
        self.maps = maps
        self.registry = registry
        self.kv = Client(server.address)

    def fill(self, value: bytes) -> None:
        for key in KEYS:
            shard = self.maps.current.shard_of_key(key.encode())
            self.leaves.shards.setdefault((shard, 1), {})[key.encode()] = (value, 1)

    @property
    def has_streamed(self) -> bool:
        """The client has called a method of the router that is none of its lanes'."""
        return bool(self.kv._connection.routers._opened)

    def scans_counted(self) -> float:
        labels = {"method": "Scan", "code": "OK"}
        return self.registry.get_sample_value("kvshard_router_requests_total", labels) or 0.0


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    leaves, registry, maps = MemoryLeaves(), CollectorRegistry(), FakeMapSource(cluster_map(shards=4, leaves=2))
    server = RouterServer("127.0.0.1:0", maps, leaves.client, CLOCK, RouterMetrics(registry))
    await server.start("cluster")
    made = Front(server, leaves, maps, registry)
    made.fill(b"v")
    try:
        yield made
    finally:
        await made.kv.close()
        await server.stop()


async def test_a_short_scan_is_one_frame(front: Front) -> None:
    scan = front.kv.scan(start=KEYS[10], limit=100)
    assert [(item.key, item.value, item.version) async for item in scan] == [(key, b"v", 1) for key in KEYS[10:110]]
    assert scan.coverage is not None
    assert (scan.coverage.complete, scan.coverage.legs) == (True, 4)
    assert not front.has_streamed
    assert front.scans_counted() == 1
    rest = front.kv.scan(start=KEYS[10], limit=1_000, resume=scan.token)
    assert [item.key async for item in rest] == KEYS[110:]
    assert rest.token == b""
    assert not front.has_streamed


async def test_keys_alone_and_a_range_that_ends(front: Front) -> None:
    scan = front.kv.scan(prefix="key-1", limit=500, keys_only=True)
    assert [(item.key, item.value) async for item in scan] == [(key, b"") for key in KEYS[100:200]]
    assert scan.token == b""
    assert [item async for item in front.kv.scan(prefix="nothing", limit=5)] == []


async def test_what_the_page_leaves_over_comes_as_a_stream(front: Front) -> None:
    front.fill(b"x" * 20_000)
    scan = front.kv.scan(limit=120)
    assert [item.key async for item in scan] == KEYS[:120]
    assert front.has_streamed
    assert scan.coverage is not None
    assert scan.token


async def test_a_long_scan_is_a_stream(front: Front) -> None:
    assert [item.key async for item in front.kv.scan()] == KEYS
    assert front.has_streamed


async def test_timing_states_and_shortfall_travel_with_the_page(front: Front) -> None:
    scan = front.kv.scan(limit=10, explain_timing=True, consistency="stale")
    assert len([item async for item in scan]) == 10
    assert scan.timing is not None
    assert len(scan.timing.legs) == 4
    assert [state.shard for state in scan.states] == [0, 1, 2, 3]
    front.leaves.fail("leaf-2", Unavailable("connection refused"))
    partial = front.kv.scan(limit=50, on_shortfall="partial")
    assert len([item async for item in partial]) == 50
    assert partial.coverage is not None
    assert not partial.coverage.complete
    assert not front.has_streamed


async def test_errors_are_those_of_a_stream(front: Front) -> None:
    with pytest.raises(CollectionNotFound):
        await front.kv.collection("nowhere").raw.scan(limit=3).take(3)
    front.leaves.fail("leaf-2", Unavailable("connection refused"))
    with pytest.raises(Unavailable, match="connection refused"):
        await front.kv.scan(limit=3, timeout=0.2).take(3)
    assert not front.has_streamed


async def scans_ended(front: Front, count: int) -> None:
    """A stream is counted when its call ends, which its reader need not wait for."""
    async with asyncio.timeout(5.0):
        while front.scans_counted() < count:
            await asyncio.sleep(0)
    assert front.scans_counted() == count


async def test_a_router_that_does_not_know_the_method_is_asked_by_streams(front: Front) -> None:
    assert front.server._lanes is not None
    del front.server._lanes.handlers[SCAN_KEYS.number]
    assert [item.key for item in await front.kv.scan(limit=20).take(20)] == KEYS[:20]
    assert front.has_streamed
    await scans_ended(front, 1)
    assert [item.key for item in await front.kv.scan(limit=20).take(20)] == KEYS[:20]
    await scans_ended(front, 2)
    await front.kv.put("single", b"calls go on over lanes")


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (kv_pb2.ScanRequest(limit=0).SerializeToString(), "limit"),
        (kv_pb2.ScanRequest(limit=1_001).SerializeToString(), "limit"),
        (kv_pb2.ScanRequest(limit=1, start=b"k" * 1_025).SerializeToString(), "start"),
        (
            kv_pb2.ScanRequest(limit=1, options=types_pb2.ReadOptions(min_coverage=2.0)).SerializeToString(),
            "options.min_coverage",
        ),
        (b"\xff\xff\xff", "request"),
    ],
)
async def test_a_wrong_request_is_refused_before_a_leaf_is_asked(front: Front, request_: bytes, field: str) -> None:
    lane = Lane(front.server.address, CLOCK)
    try:
        with pytest.raises(InvalidArgument) as refused:
            await lane.call(SCAN_KEYS.number, encode(KeysScan(request_)), CLOCK.monotonic() + 5.0)
        assert refused.value.details.field == field
        assert front.leaves.client.calls_of(ShardScan) == []
        asked = KeysScan(kv_pb2.ScanRequest(limit=2).SerializeToString())
        frame = await lane.call(SCAN_KEYS.number, encode(asked), CLOCK.monotonic() + 5.0)
        assert decode(KeysScanReply, frame.payload).keys == [b"key-000", b"key-001"]
    finally:
        await lane.close()
