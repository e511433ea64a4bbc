"""Scans of a direct client: chunks from the leaves, or streams of a router; and what leaving one early leaves behind."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fakes.direct import FakeRouterTransport, FollowedFakeMaps
from fakes.leaf_client import Hang
from fakes.map_source import cluster_map
from fakes.memory_leaves import MemoryLeaves

from kvshard.client import direct_reach
from kvshard.client.codecs import BYTES, key_decoder
from kvshard.client.connection import Connection
from kvshard.client.direct import Direct, RouterView
from kvshard.client.direct_scan import DirectScans, _DirectStream
from kvshard.client.options import ReadOptions
from kvshard.client.retries import RetryPolicy
from kvshard.client.scan import Scan, ScanRange
from kvshard.client.scan_source import ScanChunk, ScanSource, ScanStream
from kvshard.clock import SystemClock
from kvshard.errors import Cancelled, InvalidArgument, NotReady, Unavailable
from kvshard.lane_messages import KeysWrite
from kvshard.model import ShardScan
from kvshard.v1 import kv_pb2, types_pb2

CLOCK = SystemClock()
KEYS = [b"key-%04d" % number for number in range(6_000)]
FROM_ROUTER = ScanChunk((b"through a router",), (b"",), (1,), (), is_end=True)


class RouterStream(ScanStream):
    def __init__(self) -> None:
        self.is_cancelled = False

    @property
    def router(self) -> int | None:
        return 3

    async def read(self) -> ScanChunk | None:
        return FROM_ROUTER

    def cancel(self) -> None:
        self.is_cancelled = True


class RouterStreams(ScanSource):
    def __init__(self) -> None:
        self.requests: list[kv_pb2.ScanRequest] = []
        self.streams: list[RouterStream] = []

    def open(self, request: kv_pb2.ScanRequest, timeout: float) -> ScanStream:
        self.requests.append(request)
        self.streams.append(RouterStream())
        return self.streams[-1]


class Setting:
    def __init__(self) -> None:
        self.leaves = MemoryLeaves()
        self.routers = RouterStreams()
        maps = FollowedFakeMaps(cluster_map(shards=8, leaves=4))
        self.direct = Direct(FakeRouterTransport(), maps, lambda: self.leaves.client, self._ask_router, CLOCK)
        self.opened: list[ScanStream] = []
        self.scans = DirectScans(self.direct, self.routers, CLOCK, self.opened.append)

    async def _ask_router(self) -> RouterView:
        return RouterView()

    def open(self, timeout: float = 5.0, **fields) -> ScanStream:
        return self.scans.open(kv_pb2.ScanRequest(**fields), timeout)

    def under_way(self) -> list[object]:
        return [call for call in self.leaves.client.calls_of(ShardScan) if call.fate == "waiting"]


@pytest.fixture(autouse=True)
def long_setbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the machine is: what has failed stays a router's business for the length of a test."""
    monkeypatch.setattr(direct_reach, "FIRST_SETBACK_S", 60.0)


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    setting = Setting()
    assert await setting.direct.wait_ready(5.0)
    await setting.direct.write(KeysWrite("", KEYS, [b"v:" + key for key in KEYS]), CLOCK.monotonic() + 5)
    yield setting
    await setting.direct.close()


async def chunks_of(stream: ScanStream) -> list[ScanChunk]:
    chunks = []
    while (chunk := await stream.read()) is not None:
        chunks.append(chunk)
    return chunks


async def test_keys_come_in_order_from_all_shards(setting: Setting) -> None:
    stream = setting.open()
    assert setting.opened == [stream]
    assert stream.router is None
    chunks = await chunks_of(stream)
    assert [key for chunk in chunks for key in chunk.keys] == KEYS
    assert [value for chunk in chunks for value in chunk.values] == [b"v:" + key for key in KEYS]
    assert all(version for chunk in chunks for version in chunk.versions)
    *others, last = chunks
    assert others
    assert all(not chunk.is_end and chunk.coverage is None for chunk in others)
    assert last.is_end
    assert last.coverage is not None
    assert (last.coverage.complete, last.coverage.legs) == (True, 8)
    assert last.states == ()
    assert last.timing is None
    assert await stream.read() is None
    assert setting.routers.requests == []
    assert setting.direct.status().direct == 2  # The write, and one stream.


async def test_range_limit_and_options_are_kept(setting: Setting) -> None:
    options = types_pb2.ReadOptions(explain_timing=True, consistency=types_pb2.CONSISTENCY_STALE)
    (chunk,) = await chunks_of(setting.open(prefix=b"key-1", start=b"key-15", limit=10, keys_only=True, options=options))
    assert list(chunk.keys) == [key for key in KEYS if key >= b"key-15"][:10]
    assert list(chunk.values) == []
    assert not chunk.is_end  # There is more behind the limit.
    assert chunk.timing is not None
    assert {leg.leaf for leg in chunk.timing.legs} <= {"leaf-1", "leaf-2", "leaf-3", "leaf-4"}
    assert [state.shard for state in chunk.states] == sorted({leg.shard for leg in chunk.timing.legs})
    assert setting.under_way() == []


async def test_an_empty_range(setting: Setting) -> None:
    (chunk,) = await chunks_of(setting.open(prefix=b"nothing"))
    assert (list(chunk.keys), chunk.is_end) == ([], True)


async def test_what_a_router_began_goes_on_at_a_router(setting: Setting) -> None:
    stream = setting.open(token=b"of a router")
    assert stream.router == 3
    assert await stream.read() is FROM_ROUTER
    assert setting.leaves.client.calls_of(ShardScan) == []


async def test_a_scan_that_cannot_begin_begins_at_a_router(setting: Setting) -> None:
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    stream = setting.open(prefix=b"key")
    assert await stream.read() is FROM_ROUTER
    assert stream.router == 3
    assert [request.prefix for request in setting.routers.requests] == [b"key"]
    stream.cancel()
    assert setting.routers.streams[0].is_cancelled
    # For as long as the setback lasts the next one goes there at once.
    asked = len(setting.leaves.client.calls_of(ShardScan))
    assert setting.open().router == 3
    assert len(setting.leaves.client.calls_of(ShardScan)) == asked


async def test_a_scan_that_breaks_off_says_so_and_does_not_seem_complete(setting: Setting) -> None:
    stream = setting.open()
    assert await stream.read() is not None
    setting.leaves.fail("leaf-2", Unavailable("connection refused"))
    with pytest.raises(Unavailable):
        await chunks_of(stream)
    assert setting.routers.requests == []
    assert setting.open().router == 3


async def test_a_wrong_request_is_refused_and_not_asked_again(setting: Setting) -> None:
    setting.leaves.fail("leaf-2", InvalidArgument("it is wrong"))
    with pytest.raises(InvalidArgument):
        await setting.open().read()
    assert setting.routers.requests == []


async def test_leaving_a_scan_early_leaves_nothing_behind(setting: Setting) -> None:
    stream = setting.open()
    assert await stream.read() is not None
    setting.leaves.fail("leaf-2", Hang())
    stream.cancel()
    stream.cancel()
    async with asyncio.timeout(5):
        while setting.under_way():
            await asyncio.sleep(0)
    with pytest.raises(Cancelled):
        await stream.read()


async def test_a_reader_is_interrupted_by_a_cancel(setting: Setting) -> None:
    hang = Hang()
    setting.leaves.fail("leaf-2", hang)
    stream = setting.open()
    reader = asyncio.create_task(stream.read())
    await hang.reached.wait()
    stream.cancel()
    stream.cancel()
    with pytest.raises(Cancelled):
        await reader
    assert hang.cancelled >= 1
    assert setting.under_way() == []


async def test_a_cancelled_reader_takes_its_fetches_with_it(setting: Setting) -> None:
    hang = Hang()
    setting.leaves.fail("leaf-2", hang)
    stream = setting.open()
    reader = asyncio.create_task(stream.read())
    await hang.reached.wait()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    assert setting.under_way() == []
    with pytest.raises(Unavailable, match="interrupted"):  # And not the end of the keys.
        await stream.read()
    stream.cancel()


async def test_who_has_read_all_leaves_nothing_open(setting: Setting) -> None:
    stream = setting.open(limit=5)
    assert isinstance(stream, _DirectStream)
    assert len(await chunks_of(stream)) == 1
    assert stream._pages.ag_frame is None, "the pages are closed, and not only forgotten"


async def test_a_program_that_gives_up_waiting_may_go_on(setting: Setting) -> None:
    hang = Hang(NotReady("recovering"))
    setting.leaves.fail("leaf-2", hang)
    connection = Connection(["127.0.0.1:1"], RetryPolicy(), CLOCK)
    wanted = ScanRange.of("", prefix="key", start=None, end=None, limit=None, keys_only=False)
    scan = Scan(connection, wanted, ReadOptions(), key_decoder(str), BYTES, source=setting.scans)
    first = asyncio.create_task(anext(scan))
    await hang.reached.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    setting.leaves.serve("leaf-2")
    assert [item.key.encode() async for item in scan] == KEYS
    await connection.close()
