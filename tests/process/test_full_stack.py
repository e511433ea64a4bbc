"""The whole service over real processes: what a user does, and what a user gets wrong."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest
from harness.cluster import UpProcess

import kvshard
from kvshard import Client
from kvshard.rpc.status import error_from_rpc
from kvshard.v1 import kv_pb2, kv_pb2_grpc, search_pb2, search_pb2_grpc

LIFE_S = 3.0
"""Of a key that expires: a busy machine takes a second for the first searches of a collection."""

SCHEMA = {
    "title": "text",
    "body": "text",
    "tag": "keyword",
    "year": "integer",
    "price": "float",
    "open": "boolean",
    "day": "date",
}


@contextlib.asynccontextmanager
async def connected(up: UpProcess) -> AsyncIterator[Client]:
    async with Client(up.address, timeout=20.0) as client:
        yield client


async def test_point_operations(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        assert await kv.get("p:absent") is None
        first = await kv.put("p:1", b"one")
        item = await kv.get("p:1")
        assert item is not None
        assert (item.key, item.value, item.version, item.expires_at) == ("p:1", b"one", first, None)
        second = await kv.put("p:1", b"", if_version=first)
        assert second > first
        item = await kv.get("p:1")
        assert item is not None
        assert item.value == b""
        with pytest.raises(kvshard.VersionConflict) as conflict:
            await kv.put("p:1", b"x", if_version=first)
        assert conflict.value.details.current_version == second
        with pytest.raises(kvshard.VersionConflict):
            await kv.put("p:1", b"x", if_absent=True)
        with pytest.raises(kvshard.VersionConflict):
            await kv.delete("p:1", if_version=first)
        assert await kv.delete("p:1", if_version=second)
        assert not await kv.delete("p:1")
        assert await kv.get("p:1") is None
        assert await kv.put("p:1", b"again", if_absent=True) > second


async def test_batches_and_ordered_scan_over_all_shards(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        expected = {f"s:{n:05d}": f"value {n}".encode() for n in range(3_000)}
        results = await kv.put_many(expected)
        results.raise_for_failures()
        keys = [*expected, "s:missing"]
        items = await kv.get_many(keys)
        assert [item.value if isinstance(item, kvshard.Item) else item for item in items] == [*expected.values(), None]
        scanned = [(item.key, item.value) async for item in kv.scan(prefix="s:")]
        assert scanned == list(expected.items())
        window = [item.key async for item in kv.scan(start="s:00100", end="s:00110", keys_only=True)]
        assert window == [f"s:{n:05d}" for n in range(100, 110)]

        first = kv.scan(prefix="s:", limit=1_234)
        head = [item.key async for item in first]
        rest = [item.key async for item in kv.scan(prefix="s:", resume=first.token)]
        assert head + rest == list(expected)
        assert [item async for item in kv.scan(prefix="nothing:")] == []


async def test_ttl_hides_a_key_from_reads_scans_and_searches(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        docs = kv.collection("ttl")
        await docs.create(schema={"body": "text"})
        await docs.put("long", {"body": "ephemeral words too"}, refresh=True)
        await docs.put("short", {"body": "ephemeral words"}, ttl=LIFE_S, refresh=True)
        assert (await docs.search("ephemeral")).total == 2
        await kv.put("ttl:short", b"x", ttl=LIFE_S)
        stored = await kv.get("ttl:short")
        assert stored is not None
        assert stored.expires_at is not None
        await asyncio.sleep(LIFE_S + 0.1)
        assert await kv.get("ttl:short") is None
        assert [item.key async for item in docs.scan()] == ["long"]
        page = await docs.search("ephemeral")
        assert ([hit.key for hit in page.hits], page.total) == (["long"], 1)


async def test_search_speaks_the_query_language(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        docs = kv.collection("books")
        await docs.create(schema=SCHEMA)
        years = {"a": 2008, "b": 2013, "c": 2020, "d": 2013}
        for key, year in years.items():
            document = {
                "title": f"The tail at scale {key}",
                "body": "latency of a hedged request" if key in "ab" else "request for comments about latency",
                "tag": ["rpc", key],
                "year": year,
                "price": year / 100,
                "open": key == "a",
                "day": f"{year}-01-02",
                "not in the schema": {"kept": True},
            }
            await docs.put(key, document, refresh=True)

        async def found(query: str, **options: object) -> list[str]:
            return sorted(hit.key for hit in (await docs.search(query, **options)).hits)

        assert await found("") == ["a", "b", "c", "d"]
        assert await found("hedged") == ["a", "b"]
        assert await found('"hedged request" AND year:[2010 TO *]') == ["b"]
        assert await found("comm*") == ["c", "d"]
        assert await found("latency NOT hedged") == ["c", "d"]
        assert await found("tag:c OR tag:d") == ["c", "d"]
        assert await found("open:true") == ["a"]
        assert await found("day:[2013-01-01 TO 2013-12-31]") == ["b", "d"]
        assert await found("price:>20.1", filters=["tag:rpc", "NOT tag:c"]) == ["b", "d"]
        page = await docs.search("latency", sort="-year", facets=["tag"], limit=2, highlight=["body"])
        assert [hit.key for hit in page.hits] == ["c", "b"]
        assert page.total == 4
        assert page.complete
        assert page.coverage.fraction == 1.0
        assert page.hits[0].document["not in the schema"] == {"kept": True}
        assert page.facets["tag"]["rpc"] == 4
        assert page.hits[0].highlights
        rest = await docs.search("latency", sort="-year", limit=2, next=page.next)
        assert [hit.key for hit in rest.hits] == ["d", "a"]
        assert not rest.next
        await docs.delete("c", refresh=True)
        assert await found("comments") == ["d"]
        await docs.drop()
        with pytest.raises(kvshard.CollectionNotFound, match="books"):
            await docs.search("latency")


@pytest.mark.parametrize("round_", range(6))
async def test_equal_scores_come_in_key_order(shared_cluster: UpProcess, round_: int) -> None:
    """Pages come from other replicas than the first one, whose indexes are not refreshed yet: in one round of ten, documents
    were on no page."""
    async with connected(shared_cluster) as kv:
        docs = kv.collection(f"ties-{round_}")
        await docs.create(schema={"body": "text"})
        keys = [f"k{n:03d}" for n in range(200)]
        (await docs.put_many({key: {"body": "same words"} for key in reversed(keys)})).raise_for_failures()
        everything, token = [], None
        while token is None or token:
            page = await docs.search("*", limit=30, next=token, refresh=token is None)
            everything += [hit.key for hit in page.hits]
            token = page.next
        assert everything == keys


INVALID: list[tuple[str, Callable[[kv_pb2_grpc.KVStub, search_pb2_grpc.SearchStub], Awaitable[object]], str | None, int | None]]
INVALID = [
    ("empty key", lambda kv, s: kv.Get(kv_pb2.GetRequest(key=b"")), "key", 1024),
    ("long key", lambda kv, s: kv.Put(kv_pb2.PutRequest(key=b"k" * 1025, value=b"v")), "key", 1024),
    ("big value", lambda kv, s: kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v" * (8 * 2**20 + 1))), "value", 8 * 2**20),
    ("batch of keys", lambda kv, s: kv.BatchGet(kv_pb2.BatchGetRequest(keys=[b"k"] * 10_001)), "keys", 10_000),
    (
        "batch of bytes",
        lambda kv, s: kv.BatchWrite(
            kv_pb2.BatchWriteRequest(keys=[b"%d" % n for n in range(5)], values=[b"v" * 7 * 2**20] * 5)
        ),
        "values",
        32 * 2**20,
    ),
    ("limit 1001", lambda kv, s: s.Search(search_pb2.SearchRequest(collection="limits", limit=1001)), "limit", 1000),
    ("no such field", lambda kv, s: s.Search(search_pb2.SearchRequest(collection="limits", query="bdy:x")), "query", None),
]


@pytest.mark.parametrize(("name", "call", "field", "limit"), INVALID, ids=[row[0] for row in INVALID])
async def test_invalid_arguments_name_the_field_and_the_limit(shared_cluster, name, call, field, limit) -> None:
    async with connected(shared_cluster) as kv, grpc.aio.insecure_channel(shared_cluster.address) as channel:
        await kv.collection("limits").create(schema={"body": "text"})
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(kv_pb2_grpc.KVStub(channel), search_pb2_grpc.SearchStub(channel))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        error = error_from_rpc(caught.value)
        assert isinstance(error, kvshard.InvalidArgument)
        assert (error.details.field, error.details.limit) == (field, limit)


async def test_the_largest_legal_value_travels_both_ways(shared_cluster: UpProcess) -> None:
    value = os.urandom(8 * 2**20)
    async with connected(shared_cluster) as kv:
        await kv.put("k" * 1024, value)
        item = await kv.get("k" * 1024)
        assert item is not None
        assert item.value == value
        await kv.delete("k" * 1024)


async def test_a_document_that_breaks_its_schema_is_refused_by_field(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        docs = kv.collection("strict")
        await docs.create(schema=SCHEMA)
        with pytest.raises(kvshard.InvalidArgument, match="year") as caught:
            await docs.put("bad", {"year": "last"})
        assert caught.value.details.field == "document.year"
        results = await docs.put_many({"good": {"year": 1}, "bad": {"price": True}})
        assert isinstance(results["good"], int)
        assert isinstance(results["bad"], kvshard.InvalidArgument)
        assert results["bad"].details.field == "document.price"
        assert await docs.get("bad") is None
    async with grpc.aio.insecure_channel(shared_cluster.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError, match="JSON") as refused:
            await kv_pb2_grpc.KVStub(channel).Put(kv_pb2.PutRequest(collection="strict", key=b"raw", value=b"not json"))
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_malformed_query_points_at_the_place(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        docs = kv.collection("queries")
        await docs.create(schema=SCHEMA)
        for query, position in [('title:"tail', 6), ("a AND (b OR", 9), ("year:[1 TO", 5)]:
            with pytest.raises(kvshard.MalformedQuery) as caught:
                await docs.search(query)
            assert caught.value.details.position is not None
            assert abs(caught.value.details.position - position) <= 1, (query, caught.value.details.position)


async def test_unknown_collections_are_not_found(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        nowhere = kv.collection("nowhere")
        for call in (nowhere.get("k"), nowhere.put("k", {}), nowhere.search("x"), nowhere.drop()):
            with pytest.raises(kvshard.CollectionNotFound, match="nowhere"):
                await call
        with pytest.raises(kvshard.CollectionNotFound, match="nowhere"):
            _ = [item async for item in nowhere.scan()]


async def test_an_altered_scan_token_is_refused(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        (await kv.put_many({f"t:{n}": b"" for n in range(50)})).raise_for_failures()
        scan = kv.scan(prefix="t:", limit=10)
        assert len([item async for item in scan]) == 10
        token = scan.token
        assert token
        altered = [token[:-1] + bytes([token[-1] ^ 1]), token[:4], b"garbage", bytes([token[0] ^ 1]) + token[1:]]
        for bad in altered:
            with pytest.raises(kvshard.InvalidToken):
                _ = [item async for item in kv.scan(prefix="t:", resume=bad)]
        with pytest.raises(kvshard.InvalidToken):
            _ = [item async for item in kv.scan(prefix="other:", resume=token)]


async def test_an_empty_collection_answers_as_one(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        docs = kv.collection("empty")
        await docs.create(schema=SCHEMA)
        page = await docs.search("anything", facets=["tag"], sort="year")
        assert (page.hits, page.total, page.complete, page.coverage.fraction) == ([], 0, True, 1.0)
        assert [item async for item in docs.scan()] == []


async def test_collections_are_idempotent_and_keep_their_schema(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        docs = kv.collection("same")
        await docs.create(schema={"body": "text"})
        await docs.create(schema={"body": "text"})
        with pytest.raises(kvshard.CollectionExists):
            await docs.create(schema={"body": "keyword"})
        await docs.put("k", {"body": "old"}, refresh=True)
        await docs.drop()
        await docs.create(schema={"body": "text"})
        assert await docs.get("k") is None
        assert (await docs.search("old", refresh=True)).total == 0


async def test_a_timeout_is_obeyed(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        loop = asyncio.get_running_loop()
        started = loop.time()
        with contextlib.suppress(kvshard.DeadlineExceeded, kvshard.Unavailable):
            _ = [item async for item in kv.scan(timeout=0.05)]
        assert loop.time() - started < 2.0
