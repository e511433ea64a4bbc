"""Searches over lanes: a frame there and back, with all that the unary method tells; and routers that know only that."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fakes.leaf_client import Hang
from fakes.memory_front import MemoryFront, memory_front

from kvshard import Terms
from kvshard.clock import SystemClock
from kvshard.errors import (
    Cancelled,
    CollectionNotFound,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    MalformedQuery,
    Unavailable,
)
from kvshard.lane_messages import DocumentsSearch
from kvshard.model import ShardSearch
from kvshard.rpc.codec import SEARCH_DOCUMENTS, encode
from kvshard.rpc.lane import Lane
from kvshard.v1 import search_pb2

CLOCK = SystemClock()
KEYS = [f"key-{number:02d}" for number in range(40)]


@pytest.fixture
async def front() -> AsyncIterator[MemoryFront]:
    async with memory_front() as made:
        for place, key in enumerate(KEYS):
            made.put(2, key, b'{"title": "%s", "tag": "t%d"}' % (b" ".join([b"one"] * (place + 1)), place % 2))
        yield made


async def test_pages_come_over_a_lane(front: MemoryFront) -> None:
    found, token = [], b""
    while True:
        page = await front.kv.collection("docs").search("one", limit=7, facets=["tag"], next=token, explain_timing=True)
        found += [hit.key for hit in page.hits]
        assert (page.total, page.coverage.legs, page.complete) == (len(KEYS), 4, True)
        assert {value.value: value.count for value in page.facets["tag"].values} == {"t0": 20, "t1": 20}
        assert page.timing is not None
        assert {leg.shard for leg in page.timing.legs} == {0, 1, 2, 3}
        token = page.next
        if not token:
            break
    assert found == KEYS[::-1]
    assert page.hits[-1].document == {"title": "one", "tag": "t0"}
    assert not front.has_called
    assert front.counted("Search") == 6


async def test_several_collections_over_a_lane(front: MemoryFront) -> None:
    with pytest.raises(CollectionNotFound):
        await front.kv.collection("docs").search("one", collections=["nowhere"])
    assert not front.has_called


async def test_errors_are_those_of_the_unary_method(front: MemoryFront) -> None:
    async def told(failing, **options: object) -> list[tuple[object, ...]]:
        seen = []
        for way in ("lane", "unary"):
            if way == "unary":
                front.kv._connection.lanes._unknown_until[0, SEARCH_DOCUMENTS.number] = CLOCK.monotonic() + 99
            with pytest.raises(failing) as caught:
                await front.kv.collection("docs").search(**options)
            seen.append((type(caught.value), caught.value.message, caught.value.details))
            front.kv._connection.lanes._unknown_until.clear()
        return seen

    for failing, options in (
        (MalformedQuery, {"query": 'title:"one'}),
        (InvalidArgument, {"query": "one", "sort": "yaer"}),
        (InvalidArgument, {"query": "one", "aggs": {"a": Terms("nothing")}}),
    ):
        lane, unary = await told(failing, **options)
        assert lane == unary
    front.leaves.fail("leaf-2", Unavailable("connection refused"))
    with pytest.raises(Unavailable, match="connection refused"):
        await front.kv.collection("docs").search("one", timeout=0.2)
    page = await front.kv.collection("docs").search("one", on_shortfall="partial", timeout=0.5)
    assert not page.complete
    assert [failed.shard for failed in page.coverage.failed] == [1, 3]


async def test_a_router_that_does_not_know_the_method_is_asked_by_the_unary_one(front: MemoryFront) -> None:
    assert front.server._lanes is not None
    del front.server._lanes.handlers[SEARCH_DOCUMENTS.number]
    for count in (1, 2):
        page = await front.kv.collection("docs").search("one", limit=3)
        assert [hit.key for hit in page.hits] == KEYS[:-4:-1]
        assert front.has_called
        assert front.counted("Search") == count
    await front.kv.collection("docs").raw.put("single", b"calls go on over lanes")


async def test_who_gives_up_takes_the_search_back(front: MemoryFront) -> None:
    hang = Hang()
    for leaf in ("leaf-1", "leaf-2"):
        front.leaves.client.on(leaf, ShardSearch, hang)
    task = asyncio.create_task(front.kv.collection("docs").search("*", limit=3))
    await hang.reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with asyncio.timeout(5.0):
        while hang.cancelled < 4:
            await asyncio.sleep(0)
    # The router keeps a part of the time to say so; where it is late with that, the client says it.
    with pytest.raises((Unavailable, DeadlineExceeded), match="within the deadline"):
        await front.kv.collection("docs").search("*", limit=3, timeout=0.1)


async def test_a_client_that_is_closed_meanwhile_says_so(front: MemoryFront) -> None:
    hang = Hang()
    for leaf in ("leaf-1", "leaf-2"):
        front.leaves.client.on(leaf, ShardSearch, hang)
    task = asyncio.create_task(front.kv.collection("docs").search("*", limit=3))
    await hang.reached.wait()
    await front.kv.close()
    with pytest.raises(Cancelled, match="closed during the call"):
        await task
    with pytest.raises(FailedPrecondition, match="closed"):
        await front.kv.collection("docs").search("*")


async def test_what_is_no_request_is_refused(front: MemoryFront) -> None:
    lane = Lane(front.server.address, CLOCK)
    try:
        with pytest.raises(InvalidArgument, match="no SearchRequest message") as caught:
            await asyncio.wait_for(
                _answered(lane, DocumentsSearch(b"\xff\xff\xff")),
                5.0,
            )
        assert caught.value.details.field == "request"
        request = search_pb2.SearchRequest(collection="docs", query="one", limit=2_000)
        with pytest.raises(InvalidArgument, match="limit"):
            await _answered(lane, DocumentsSearch(request.SerializeToString()))
    finally:
        await lane.close()
    assert front.counted("Search", "INVALID_ARGUMENT") == 1


async def _answered(lane: Lane, request: DocumentsSearch) -> bytes:
    return (await lane.call(SEARCH_DOCUMENTS.number, encode(request), CLOCK.monotonic() + 5.0)).payload
