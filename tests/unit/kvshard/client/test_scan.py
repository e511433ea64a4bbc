"""A scan over scripted streams: where it goes on after a break, what its token says, how it is left."""

import asyncio

import grpc
import pytest
from fakes.clock import ManualClock
from fakes.scan_source import FakeScanSource, chunk_of

from kvshard.client.codecs import BYTES
from kvshard.client.connection import Connection
from kvshard.client.options import ReadOptions
from kvshard.client.retries import RetryPolicy
from kvshard.client.routers import RouterStubs
from kvshard.client.scan import Scan, ScanRange
from kvshard.client.scan_source import RouterScans, ScanChunk
from kvshard.client.scan_token import ScanPosition, encode_position
from kvshard.errors import Cancelled, DataLoss, DeadlineExceeded, Unavailable
from kvshard.v1 import kv_pb2

KEYS = [b"k%02d" % number for number in range(10)]
BROKEN = Unavailable("the stream broke")
AT_ONCE = RetryPolicy(base_delay_s=0.0, max_delay_s=0.0)


def scan_of(
    source: FakeScanSource,
    *,
    limit: int = 0,
    keys_only: bool = False,
    resume: bytes | None = None,
    retries: RetryPolicy = AT_ONCE,
) -> Scan[str, bytes]:
    connection = Connection(["router:1"], retries, ManualClock())
    wanted = ScanRange("default", start=b"a", limit=limit, keys_only=keys_only)
    return Scan(connection, wanted, ReadOptions(), bytes.decode, BYTES, resume=resume, source=source)


async def keys_of(scan: Scan[str, bytes]) -> list[bytes]:
    return [item.key.encode() async for item in scan]


async def test_items_come_in_order_and_the_coverage_at_the_end() -> None:
    scan = scan_of(FakeScanSource(KEYS))
    first = await anext(scan)
    assert (first.key, first.value, first.version, first.expires_at_ms) == ("k00", b"vk00", 1, 0)
    assert scan.coverage is None
    assert await keys_of(scan) == KEYS[1:]
    assert scan.coverage is not None
    assert scan.coverage.complete
    assert scan.token == b""


async def test_expiry_and_values_that_were_not_asked_for() -> None:
    source = FakeScanSource([], [ScanChunk([b"a", b"b"], [], [4, 5], [0, 9], is_end=True)])
    items = [(item.key, item.value, item.version, item.expires_at_ms) async for item in scan_of(source, keys_only=True)]
    assert items == [("a", b"", 4, 0), ("b", b"", 5, 9)]
    assert source.requests[0].keys_only


@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 10, 11])
async def test_pages_are_taken_over_chunk_boundaries(size: int) -> None:
    scan, pages = scan_of(FakeScanSource(KEYS)), []
    while page := await scan.take(size):
        pages.append([item.key.encode() for item in page])
    assert [key for page in pages for key in page] == KEYS
    assert all(len(page) == size for page in pages[:-1])
    assert (await scan.take(size), await scan.take(0)) == ([], [])


async def test_one_by_one_and_in_pages_are_the_same_items() -> None:
    one_by_one = [item async for item in scan_of(FakeScanSource(KEYS))]
    assert await scan_of(FakeScanSource(KEYS)).take(100) == one_by_one


@pytest.mark.parametrize("given", range(11))
async def test_the_token_resumes_behind_the_last_item_given(given: int) -> None:
    scan = scan_of(FakeScanSource(KEYS))
    seen = [item.key.encode() for item in await scan.take(given)]
    assert bool(scan.token) == (0 < given < 10)
    if scan.token:
        source = FakeScanSource(KEYS)
        seen += await keys_of(scan_of(source, resume=scan.token))
        assert source.requests[0].start == KEYS[given - 1] + b"\0"
        assert seen == KEYS


async def test_a_limit_is_kept_over_breaks_and_only_the_rest_is_asked_for() -> None:
    source = FakeScanSource(KEYS, [chunk_of(KEYS[:3]), BROKEN], [chunk_of(KEYS[3:5]), BROKEN])
    scan = scan_of(source, limit=6)
    assert await keys_of(scan) == KEYS[:6]
    assert [request.limit for request in source.requests] == [6, 3, 1]
    assert [request.start for request in source.requests] == [b"a", KEYS[2] + b"\0", KEYS[4] + b"\0"]
    assert await keys_of(scan_of(FakeScanSource(KEYS), limit=4, resume=scan.token)) == KEYS[6:]


async def test_no_item_beyond_the_limit_is_given() -> None:
    scan = scan_of(FakeScanSource([], [chunk_of(KEYS)]), limit=2)
    assert await keys_of(scan) == KEYS[:2]
    assert scan.token


async def test_a_stream_that_breaks_before_its_first_chunk_is_opened_again_where_it_was() -> None:
    source = FakeScanSource(KEYS, [BROKEN], [BROKEN])
    assert await keys_of(scan_of(source)) == KEYS
    assert [request.start for request in source.requests] == [b"a"] * 3


async def test_the_time_of_a_stream_that_got_further_is_no_failure() -> None:
    source = FakeScanSource(KEYS, [chunk_of(KEYS[:2]), DeadlineExceeded("the time is over")])
    assert await keys_of(scan_of(source)) == KEYS


async def test_without_progress_it_is_one() -> None:
    late = DeadlineExceeded("the time is over")
    with pytest.raises(DeadlineExceeded):
        await keys_of(scan_of(FakeScanSource(KEYS, [late])))
    with pytest.raises(DeadlineExceeded):
        await keys_of(scan_of(FakeScanSource(KEYS, [chunk_of(KEYS[:2]), late], [late])))


async def test_a_repetition_that_is_cut_off_tells_why_there_was_one() -> None:
    late = DeadlineExceeded("the time is over")
    twice = RetryPolicy(max_attempts=2, base_delay_s=0.0)
    scan = scan_of(FakeScanSource(KEYS, [chunk_of(KEYS[:2]), BROKEN], [late]), retries=twice)
    assert [item.key for item in await scan.take(2)] == ["k00", "k01"]
    with pytest.raises(Unavailable, match="the stream broke"):
        await anext(scan)
    recovered = [[BROKEN], [chunk_of(KEYS[:2]), late], [late]]
    with pytest.raises(DeadlineExceeded):  # What was got over since explains nothing.
        await keys_of(scan_of(FakeScanSource(KEYS, *recovered), retries=twice))


async def test_an_error_that_a_repetition_does_not_help_is_raised() -> None:
    source = FakeScanSource(KEYS, [DataLoss("a value is damaged")])
    with pytest.raises(DataLoss):
        await keys_of(scan_of(source))
    assert source.streams[0].is_cancelled


async def test_a_stream_that_ends_without_a_word_ends_the_scan() -> None:
    scan = scan_of(FakeScanSource([], [chunk_of(KEYS[:3]), None]))
    assert await keys_of(scan) == KEYS[:3]
    assert scan.token == b""


async def test_chunks_without_keys_are_passed_over() -> None:
    scan = scan_of(FakeScanSource([], [chunk_of([]), chunk_of(KEYS[:1]), chunk_of([]), chunk_of([], is_end=True)]))
    assert await keys_of(scan) == KEYS[:1]
    assert scan.coverage is not None


async def test_a_reader_that_gives_up_waiting_may_read_on() -> None:
    source = FakeScanSource(KEYS, [chunk_of(KEYS[:3]), "hang"])
    scan = scan_of(source)
    await scan.take(3)
    waiting = asyncio.create_task(scan.take(1))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert source.streams[0].is_cancelled
    assert await keys_of(scan) == KEYS[3:]


async def test_leaving_it_cancels_its_stream() -> None:
    source = FakeScanSource(KEYS)
    async with scan_of(source) as scan:
        await anext(scan)
    assert source.streams[0].is_cancelled
    assert scan.token


async def test_what_lacks_a_shard_stays_incomplete_wherever_it_goes_on() -> None:
    source = FakeScanSource(KEYS, [chunk_of(KEYS[:2]), chunk_of(KEYS[2:4], is_incomplete=True), BROKEN])
    scan = scan_of(source)
    await scan.take(3)
    resumed = scan_of(FakeScanSource(KEYS), resume=scan.token)
    assert await keys_of(resumed) == KEYS[3:]
    assert resumed.coverage is not None
    assert not resumed.coverage.complete
    assert await keys_of(scan) == KEYS[3:]
    assert scan.coverage is not None
    assert not scan.coverage.complete


async def test_the_longest_last_key_has_no_key_behind_it() -> None:
    last = b"\xff" * 1024
    source = FakeScanSource([], [ScanChunk([last], [b""], [1], [], is_end=False), BROKEN])
    connection = Connection(["router:1"], AT_ONCE, ManualClock())
    scan = Scan(connection, ScanRange("default"), ReadOptions(), bytes, BYTES, source=source)
    assert [item.key async for item in scan] == [last]
    assert len(source.requests) == 1


async def test_a_token_of_an_earlier_version_goes_on_at_its_router_token() -> None:
    """There the chunk may begin with keys that were given then."""
    position = ScanPosition(b"k0", b"sealed by a router", KEYS[4])
    token = encode_position(position, ScanRange("default", start=b"a").identity)
    source = FakeScanSource(KEYS, [chunk_of(KEYS[3:6]), BROKEN])
    scan = scan_of(source, resume=token)
    assert scan.token == token
    assert await keys_of(scan) == KEYS[5:]
    first, second = source.requests
    assert (first.start, first.token) == (b"k0", b"sealed by a router")
    assert (second.start, second.token) == (KEYS[5] + b"\0", b"")


class CutCall:
    """A stream that its server cancels."""

    async def read(self) -> None:
        raise grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, grpc.aio.Metadata(), grpc.aio.Metadata(), "CANCELLED")

    def cancel(self) -> None:
        """Nothing is left to cancel."""


class CuttingRouter:
    """The stubs of a router that is stopping."""

    def Scan(self, request: object, *, timeout: float) -> CutCall:
        return CutCall()


async def test_a_stream_that_its_router_cuts_may_be_repeated() -> None:
    connection = Connection(["router:1"], AT_ONCE, ManualClock())
    stubs = RouterStubs(CuttingRouter(), None, None)  # type: ignore[arg-type]
    connection.routers._opened[0] = (None, stubs)  # type: ignore[assignment]
    stream = RouterScans(connection).open(kv_pb2.ScanRequest(), 1.0)
    with pytest.raises(Unavailable, match="gave the stream up"):
        await stream.read()
    connection.routers.is_closed = True
    with pytest.raises(Cancelled):
        await stream.read()
