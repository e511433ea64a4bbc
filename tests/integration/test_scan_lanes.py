"""Short scans over lanes: a page in a frame, what it leaves over as a stream, and routers that do not know the method."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fakes.memory_front import MemoryFront, memory_front

from kvshard.clock import SystemClock
from kvshard.errors import CollectionNotFound, InvalidArgument, Unavailable
from kvshard.lane_messages import KeysScan, KeysScanReply
from kvshard.model import ShardScan
from kvshard.rpc.codec import SCAN_KEYS, decode, encode
from kvshard.rpc.lane import Lane
from kvshard.v1 import kv_pb2, types_pb2

CLOCK = SystemClock()
KEYS = [f"key-{number:03d}" for number in range(300)]


@pytest.fixture
async def front() -> AsyncIterator[MemoryFront]:
    async with memory_front() as made:
        fill(made, b"v")
        yield made


def fill(front: MemoryFront, value: bytes) -> None:
    """All keys have this value."""
    for key in KEYS:
        front.put(1, key, value)


async def test_a_short_scan_is_one_frame(front: MemoryFront) -> None:
    scan = front.kv.scan(start=KEYS[10], limit=100)
    assert [(item.key, item.value, item.version) async for item in scan] == [(key, b"v", 1) for key in KEYS[10:110]]
    assert scan.coverage is not None
    assert (scan.coverage.complete, scan.coverage.legs) == (True, 4)
    assert not front.has_called
    assert front.counted("Scan") == 1
    rest = front.kv.scan(start=KEYS[10], limit=1_000, resume=scan.token)
    assert [item.key async for item in rest] == KEYS[110:]
    assert rest.token == b""
    assert not front.has_called


async def test_keys_alone_and_a_range_that_ends(front: MemoryFront) -> None:
    scan = front.kv.scan(prefix="key-1", limit=500, keys_only=True)
    assert [(item.key, item.value) async for item in scan] == [(key, b"") for key in KEYS[100:200]]
    assert scan.token == b""
    assert [item async for item in front.kv.scan(prefix="nothing", limit=5)] == []


async def test_what_the_page_leaves_over_comes_as_a_stream(front: MemoryFront) -> None:
    fill(front, b"x" * 20_000)
    scan = front.kv.scan(limit=120)
    assert [item.key async for item in scan] == KEYS[:120]
    assert front.has_called
    assert scan.coverage is not None
    assert scan.token


async def test_a_long_scan_is_a_stream(front: MemoryFront) -> None:
    assert [item.key async for item in front.kv.scan()] == KEYS
    assert front.has_called


async def test_timing_states_and_shortfall_travel_with_the_page(front: MemoryFront) -> None:
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
    assert not front.has_called


async def test_errors_are_those_of_a_stream(front: MemoryFront) -> None:
    with pytest.raises(CollectionNotFound):
        await front.kv.collection("nowhere").raw.scan(limit=3).take(3)
    front.leaves.fail("leaf-2", Unavailable("connection refused"))
    with pytest.raises(Unavailable, match="connection refused"):
        await front.kv.scan(limit=3, timeout=0.2).take(3)
    assert not front.has_called


async def scans_ended(front: MemoryFront, count: int) -> None:
    """A stream is counted when its call ends, which its reader need not wait for."""
    async with asyncio.timeout(5.0):
        while front.counted("Scan") < count:
            await asyncio.sleep(0)
    assert front.counted("Scan") == count


async def test_a_router_that_does_not_know_the_method_is_asked_by_streams(front: MemoryFront) -> None:
    assert front.server._lanes is not None
    del front.server._lanes.handlers[SCAN_KEYS.number]
    assert [item.key for item in await front.kv.scan(limit=20).take(20)] == KEYS[:20]
    assert front.has_called
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
async def test_a_wrong_request_is_refused_before_a_leaf_is_asked(front: MemoryFront, request_: bytes, field: str) -> None:
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
