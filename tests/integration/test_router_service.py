"""A router as its callers see it: real gRPC in front, leaves in memory behind."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import grpc
import grpc.aio
import pytest
from fakes.leaf_client import Hang
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from prometheus_client import CollectorRegistry

from kvshard import errors
from kvshard.clock import SystemClock
from kvshard.errors import KvShardError
from kvshard.model import SearchAfter, ShardRead, ShardSearch, ShardWrite
from kvshard.rpc.channel import aio_channel
from kvshard.rpc.status import error_from_rpc
from kvshard.scatter.tokens import SearchPosition, TokenCodec, fingerprint
from kvshard.telemetry import RouterMetrics, exposition
from kvshard.v1 import cluster_pb2, cluster_pb2_grpc, kv_pb2, kv_pb2_grpc, search_pb2, search_pb2_grpc, types_pb2
from router.server import SERVICES, RouterServer

PARTIAL = types_pb2.ReadOptions(on_shortfall=types_pb2.SHORTFALL_POLICY_PARTIAL)


class Front:
    """A serving router and stubs for it."""

    def __init__(self, server: RouterServer, maps: FakeMapSource, leaves: MemoryLeaves, channel: grpc.aio.Channel) -> None:
        self.server = server
        self.maps = maps
        self.leaves = leaves
        self.registry = CollectorRegistry()
        self.channel = channel
        self.kv = kv_pb2_grpc.KVStub(channel)
        self.searches = search_pb2_grpc.SearchStub(channel)
        self.cluster = cluster_pb2_grpc.ClusterStub(channel)

    async def load_documents(self, count: int = 50) -> None:
        documents = [{"title": " ".join(["tail"] * (1 + i % 5)), "tag": f"t{i % 3}", "year": i} for i in range(count)]
        keys = [b"doc-%03d" % i for i in range(count)]
        values = [json.dumps(document).encode() for document in documents]
        response = await self.kv.BatchWrite(kv_pb2.BatchWriteRequest(collection="docs", keys=keys, values=values))
        assert not response.failures


@asynccontextmanager
async def running(maps: FakeMapSource, leaves: MemoryLeaves, registry: CollectorRegistry) -> AsyncIterator[Front]:
    server = RouterServer("127.0.0.1:0", maps, leaves.client, SystemClock(), RouterMetrics(registry))
    await server.start("cluster")
    channel = aio_channel(server.address)
    try:
        front = Front(server, maps, leaves, channel)
        front.registry = registry
        yield front
    finally:
        await channel.close()
        await server.stop()


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    async with running(FakeMapSource(cluster_map(shards=8, leaves=4)), MemoryLeaves(), CollectorRegistry()) as front:
        await front.server.wait_serving()
        yield front


async def failing(call) -> KvShardError:
    """The error with which the call ends."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return error_from_rpc(caught.value)


async def collect(call) -> list[kv_pb2.ScanResponse]:
    return [page async for page in call]


async def test_cancelled_search_cancels_every_leg(front: Front) -> None:
    hangs = []
    for leaf in front.maps.current.leaves:
        hangs.append(Hang())
        front.leaves.client.on(leaf, ShardSearch, hangs[-1])
    call = front.searches.Search(search_pb2.SearchRequest(collection="docs"))
    await asyncio.gather(*(hang.reached.wait() for hang in hangs))
    call.cancel()
    async with asyncio.timeout(5):
        while [each for each in front.leaves.client.calls_of(ShardSearch) if each.fate == "waiting"]:
            await front.kv.Get(kv_pb2.GetRequest(key=b"k"))  # The router sees the cancellation when gRPC brings it.
    assert [hang.cancelled for hang in hangs] == [2, 2, 2, 2]


async def test_point_operations(front: Front) -> None:
    put = await front.kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v"))
    assert put.version > 0
    got = await front.kv.Get(kv_pb2.GetRequest(key=b"k"))
    assert (got.item.key, got.item.value, got.item.version) == (b"k", b"v", put.version)
    assert not got.HasField("timing")
    condition = types_pb2.WriteCondition(if_version=put.version + 1)
    error = await failing(front.kv.Put(kv_pb2.PutRequest(key=b"k", value=b"w", condition=condition)))
    assert isinstance(error, errors.VersionConflict)
    assert (await front.kv.Delete(kv_pb2.DeleteRequest(key=b"k"))).existed
    assert not (await front.kv.Delete(kv_pb2.DeleteRequest(key=b"k"))).existed
    assert not (await front.kv.Get(kv_pb2.GetRequest(key=b"k"))).HasField("item")


async def test_timing_on_request(front: Front) -> None:
    options = types_pb2.ReadOptions(explain_timing=True)
    got = await front.kv.Get(kv_pb2.GetRequest(key=b"k", options=options))
    assert len(got.timing.legs) == 1
    assert got.timing.legs[0].leaf.startswith("leaf-")
    found = await front.searches.Search(search_pb2.SearchRequest(collection="docs", options=options))
    assert [leg.shard for leg in found.timing.legs] == list(range(8))
    assert found.timing.total_us >= max(leg.total_us for leg in found.timing.legs)
    batch = await front.kv.BatchGet(kv_pb2.BatchGetRequest(keys=[b"k%d" % n for n in range(100)], options=options))
    assert [leg.shard for leg in batch.timing.legs] == list(range(8))
    assert batch.timing.straggler_shard in range(8)
    assert all(leg.total_us >= leg.network_us + leg.queue_us + leg.service_us for leg in batch.timing.legs)


async def test_timing_of_a_scan_comes_with_its_last_chunk(front: Front) -> None:
    await front.load_documents(50)
    options = types_pb2.ReadOptions(explain_timing=True)
    pages = await collect(front.kv.Scan(kv_pb2.ScanRequest(collection="docs", options=options)))
    assert [page.HasField("timing") for page in pages] == [page.HasField("coverage") for page in pages]
    timing = pages[-1].timing
    assert [leg.shard for leg in timing.legs] == list(range(8))
    assert timing.total_us >= timing.merge_us
    pages = await collect(front.kv.Scan(kv_pb2.ScanRequest(collection="docs")))
    assert not any(page.HasField("timing") for page in pages)


async def test_slow_log_tells_of_every_kind_of_read_and_of_failed_ones(front: Front) -> None:
    await front.load_documents()
    await front.kv.Get(kv_pb2.GetRequest(key=b"k"))
    await front.kv.BatchGet(kv_pb2.BatchGetRequest(keys=[b"a", b"b"]))
    await collect(front.kv.Scan(kv_pb2.ScanRequest(collection="docs", prefix=b"doc-00", limit=3, keys_only=True)))
    leaf = front.maps.current.shards[3].primary
    front.leaves.client.on(leaf, ShardSearch, Hang())
    error = await failing(front.searches.Search(search_pb2.SearchRequest(collection="docs", query="tail"), timeout=0.5))
    assert isinstance(error, errors.Unavailable)
    answer = await front.cluster.ListSlowReads(cluster_pb2.ListSlowReadsRequest())
    took = [read.timing.total_us for read in answer.reads]
    assert took == sorted(took, reverse=True)
    slowest = answer.reads[0]
    assert (slowest.method, slowest.collection, slowest.detail, slowest.code) == ("Search", "docs", "tail", "UNAVAILABLE")
    silent = [leg.shard for leg in slowest.timing.legs if not leg.leaf]
    assert silent == [shard for shard, config in front.maps.current.shards.items() if config.primary == leaf]
    assert slowest.timing.straggler_shard in silent
    told = {(each.leaf, each.kind, each.outcome) for leg in slowest.timing.legs for each in leg.tries}
    assert told == {(leaf, "first", "deadline_exceeded")}
    assert slowest.timing.total_us >= 400_000
    assert {(read.method, read.collection, read.detail, read.code) for read in answer.reads[1:]} == {
        ("Get", "default", "key 'k'", "OK"),
        ("BatchGet", "default", "2 keys", "OK"),
        ("Scan", "docs", "prefix 'doc-00', limit 3, keys only", "OK"),
    }
    only = await front.cluster.ListSlowReads(cluster_pb2.ListSlowReadsRequest(method="Scan", limit=1, reset=True))
    assert [read.method for read in only.reads] == ["Scan"]
    assert not (await front.cluster.ListSlowReads(cluster_pb2.ListSlowReadsRequest())).reads
    error = await failing(front.cluster.ListSlowReads(cluster_pb2.ListSlowReadsRequest(method="Put")))
    assert (type(error), error.details.field) == (errors.InvalidArgument, "method")


async def test_read_that_its_caller_gives_up_is_in_the_slow_log(front: Front) -> None:
    hang = Hang()
    front.leaves.client.on(front.maps.current.shards[front.maps.current.shard_of_key(b"k")].primary, ShardRead, hang)
    call = front.kv.Get(kv_pb2.GetRequest(key=b"k"))
    await hang.reached.wait()
    await asyncio.sleep(0.06)  # Reads that no leg has answered yet are of interest from 50 ms on.
    call.cancel()
    async with asyncio.timeout(5):
        while not (found := (await front.cluster.ListSlowReads(cluster_pb2.ListSlowReadsRequest())).reads):
            pass
    assert [(read.method, read.code) for read in found] == [("Get", "CANCELLED")]


async def test_tail_is_shown_by_fan_out_class(front: Front) -> None:
    for _ in range(100):
        await front.kv.BatchGet(kv_pb2.BatchGetRequest(keys=[b"k%d" % n for n in range(40)]))
    shown = exposition(front.registry).decode()
    found = dict(re.findall(r'^kvshard_router_(\w+)\{fan_out="5-16",method="BatchGet"\} (\S+)$', shown, re.MULTILINE))
    legs = re.search(r'^kvshard_router_leg_p99_seconds\{method="BatchGet"\} (\S+)$', shown, re.MULTILINE)
    assert found["gathered_window_reads"] == "100.0"
    quotient = float(found["gathered_p99_seconds"]) / float(legs[1])
    assert float(found["amplification_p99"]) == pytest.approx(quotient)
    assert 'kvshard_router_gathered_seconds_count{fan_out="5-16",method="BatchGet"} 100.0' in shown


@pytest.mark.parametrize(
    ("request_", "field", "limit"),
    [
        (kv_pb2.PutRequest(key=b"", value=b"v"), "key", 1024),
        (kv_pb2.PutRequest(key=b"k" * 1025, value=b"v"), "key", 1024),
        (kv_pb2.PutRequest(key=b"k", value=b"v" * (8 * 1024 * 1024 + 1)), "value", 8 * 1024 * 1024),
        (kv_pb2.PutRequest(key=b"k", condition=types_pb2.WriteCondition(if_absent=False)), "condition.if_absent", None),
        (kv_pb2.PutRequest(key=b"k", ttl_ms=2**64 - 1), "ttl_ms", 3_153_600_000_000),
        (kv_pb2.GetRequest(key=b""), "key", 1024),
        (kv_pb2.GetRequest(key=b"k", options=types_pb2.ReadOptions(min_coverage=2)), "options.min_coverage", 1),
        (kv_pb2.GetRequest(key=b"k", options=types_pb2.ReadOptions(hedge="often")), "options.hedge", None),
        (kv_pb2.GetRequest(key=b"k", options=types_pb2.ReadOptions(replica_choice="best")), "options.replica_choice", None),
        (kv_pb2.DeleteRequest(key=b"k" * 1025), "key", 1024),
        (kv_pb2.BatchGetRequest(keys=[b"k"] * 10_001), "keys", 10_000),
        (kv_pb2.BatchGetRequest(keys=[b"k", b""]), "keys[1]", 1024),
        (kv_pb2.BatchWriteRequest(keys=[b"k"], values=[]), "values", None),
        (
            kv_pb2.BatchWriteRequest(keys=[b"%d" % i for i in range(5)], values=[b"v" * 8_000_000] * 5),
            "values",
            32 * 1024 * 1024,
        ),
        (search_pb2.SearchRequest(collection="docs", limit=1001), "limit", 1000),
        (search_pb2.SearchRequest(collection="docs", sort="nothing"), "sort", None),
        (search_pb2.SearchRequest(collection="docs", facets=["year"]), "facets", None),
        (search_pb2.SearchRequest(collection="docs", highlight=["tag"]), "highlight", None),
        (search_pb2.SearchRequest(collection="docs", shards=[99]), "shards", None),
        (search_pb2.SearchRequest(collection="docs", query="nothing:x"), "query", None),
    ],
    ids=lambda value: type(value).__name__ if hasattr(value, "DESCRIPTOR") else str(value),
)
async def test_wrong_requests_name_field_and_limit(front: Front, request_, field: str, limit: int | None) -> None:
    method = type(request_).__name__.removesuffix("Request")
    stub = front.searches if method == "Search" else front.kv
    error = await failing(getattr(stub, method)(request_))
    assert isinstance(error, errors.InvalidArgument)
    assert (error.details.field, error.details.limit) == (field, limit)
    assert front.leaves.client.calls_of(ShardSearch) == []


async def test_malformed_query_points_at_the_place(front: Front) -> None:
    error = await failing(front.searches.Search(search_pb2.SearchRequest(collection="docs", query="a AND (b")))
    assert isinstance(error, errors.MalformedQuery)
    assert error.details.position is not None


async def test_unknown_collection(front: Front) -> None:
    error = await failing(front.kv.Get(kv_pb2.GetRequest(collection="nowhere", key=b"k")))
    assert isinstance(error, errors.CollectionNotFound)
    assert "nowhere" in error.message


async def test_search_without_schema(front: Front) -> None:
    error = await failing(front.searches.Search(search_pb2.SearchRequest(collection="default")))
    assert isinstance(error, errors.FailedPrecondition)


async def test_batches(front: Front) -> None:
    keys = [b"key-%d" % i for i in range(500)]
    written = await front.kv.BatchWrite(kv_pb2.BatchWriteRequest(keys=keys, values=keys))
    assert len(written.versions) == 500
    assert not written.failures
    read = await front.kv.BatchGet(kv_pb2.BatchGetRequest(keys=[*keys, b"absent"]))
    assert list(read.values) == [*keys, b""]
    assert read.versions[-1] == 0
    assert (read.coverage.complete, read.coverage.legs, read.coverage.legs_ok) == (True, 8, 8)


async def test_dead_leaf_fail_and_partial(front: Front) -> None:
    keys = [b"key-%d" % i for i in range(100)]
    await front.kv.BatchWrite(kv_pb2.BatchWriteRequest(keys=keys, values=keys))
    await front.load_documents()
    front.leaves.fail("leaf-2", errors.Unavailable("connection refused"))

    error = await failing(front.kv.BatchGet(kv_pb2.BatchGetRequest(keys=keys)))
    assert isinstance(error, errors.Unavailable)
    assert error.details.shards == (1, 5)
    assert error.details.replicas_tried == ("leaf-2",)
    read = await front.kv.BatchGet(kv_pb2.BatchGetRequest(keys=keys, options=PARTIAL))
    assert read.failures
    assert {each.failure.reason for each in read.failures} == {"UNAVAILABLE"}

    error = await failing(front.searches.Search(search_pb2.SearchRequest(collection="docs", query="tail")))
    assert error.details.shards == (1, 5)
    found = await front.searches.Search(search_pb2.SearchRequest(collection="docs", query="tail", options=PARTIAL, limit=1000))
    assert not found.coverage.complete
    assert (found.coverage.legs, found.coverage.legs_ok) == (8, 6)
    assert [failed.shard for failed in found.coverage.failed] == [1, 5]
    assert [list(failed.replicas_tried) for failed in found.coverage.failed] == [["leaf-2"], ["leaf-2"]]
    assert found.total == len(found.hits) == found.coverage.documents_considered
    assert 0 < found.coverage.fraction < 1

    error = await failing(collect(front.kv.Scan(kv_pb2.ScanRequest())))
    assert error.details.shards == (1, 5)
    pages = await collect(front.kv.Scan(kv_pb2.ScanRequest(options=PARTIAL)))
    assert [failed.shard for failed in pages[-1].coverage.failed] == [1, 5]

    error = (
        await failing(front.kv.Put(kv_pb2.PutRequest(key=keys[0], value=b"v"))) if _lives(front, keys[0], "leaf-2") else None
    )
    assert error is None or isinstance(error, errors.Unavailable)


def _lives(front: Front, key: bytes, leaf: str) -> bool:
    current = front.maps.current
    return current.shards[current.shard_of_key(key)].primary == leaf


async def test_dead_leaf_and_a_point_read(front: Front) -> None:
    front.leaves.fail("leaf-2", errors.Unavailable("connection refused"))
    key = next(key for key in (b"key-%d" % i for i in range(100)) if _lives(front, key, "leaf-2"))
    error = await failing(front.kv.Get(kv_pb2.GetRequest(key=key)))
    assert isinstance(error, errors.Unavailable)
    assert error.details.shards == (front.maps.current.shard_of_key(key),)


async def test_hung_leaf_leaves_time_for_a_partial_answer(front: Front) -> None:
    await front.load_documents()
    front.leaves.client.on("leaf-3", ShardSearch, Hang())
    request = search_pb2.SearchRequest(collection="docs", query="tail", options=PARTIAL, limit=1000)
    found = await front.searches.Search(request, timeout=0.4)
    assert [failed.failure.reason for failed in found.coverage.failed] == ["DEADLINE_EXCEEDED"] * 2
    assert found.hits


async def test_search_pages(front: Front) -> None:
    await front.load_documents(50)
    whole = await front.searches.Search(search_pb2.SearchRequest(collection="docs", query="tail", limit=1000))
    assert whole.total == 50
    order = [(-hit.score, hit.key) for hit in whole.hits]
    assert order == sorted(order)
    seen, token = [], b""
    while True:
        request = search_pb2.SearchRequest(collection="docs", query="tail", limit=7, token=token, facets=["tag"])
        page = await front.searches.Search(request)
        seen.extend(hit.key for hit in page.hits)
        assert sum(value.count for value in page.facets[0].values) == 50
        token = page.next
        if not token:
            break
    assert seen == [hit.key for hit in whole.hits]
    assert [hit.shard for hit in whole.hits] == [front.maps.current.shard_of_key(hit.key) for hit in whole.hits]


async def test_search_token_belongs_to_its_query(front: Front) -> None:
    await front.load_documents()
    page = await front.searches.Search(search_pb2.SearchRequest(collection="docs", query="tail"))
    assert page.next
    altered = page.next[:-1] + bytes([page.next[-1] ^ 1])
    for query, token in (("other", page.next), ("tail", altered)):
        request = search_pb2.SearchRequest(collection="docs", query=query, token=token)
        error = await failing(front.searches.Search(request))
        assert isinstance(error, errors.InvalidToken)
        assert error.details.field == "token"


async def test_search_of_chosen_shards(front: Front) -> None:
    await front.load_documents()
    found = await front.searches.Search(search_pb2.SearchRequest(collection="docs", shards=[3, 1, 3], limit=100))
    assert found.coverage.legs == 2
    assert {hit.shard for hit in found.hits} <= {1, 3}


async def test_page_depth_is_bounded(front: Front) -> None:
    query = fingerprint([b"tail", b"", b"all"])
    token = TokenCodec("cluster").encode_search(2, query, SearchPosition(SearchAfter([], 0.5, b"k"), 9_500))
    within = search_pb2.SearchRequest(collection="docs", query="tail", limit=500, token=token)
    await front.searches.Search(within)
    beyond = search_pb2.SearchRequest(collection="docs", query="tail", limit=501, token=token)
    error = await failing(front.searches.Search(beyond))
    assert isinstance(error, errors.InvalidArgument)
    assert (error.details.field, error.details.limit) == ("token", 10_000)


async def test_scan_streams_and_resumes(front: Front) -> None:
    keys = [b"key-%04d" % i for i in range(2500)]
    await front.kv.BatchWrite(kv_pb2.BatchWriteRequest(keys=keys, values=keys))
    pages = await collect(front.kv.Scan(kv_pb2.ScanRequest(prefix=b"key-")))
    assert [key for page in pages for key in page.keys] == keys
    assert len(pages) > 2
    assert pages[-1].coverage.complete
    rest = await collect(front.kv.Scan(kv_pb2.ScanRequest(prefix=b"key-", token=pages[0].token, keys_only=True)))
    assert [key for page in rest for key in page.keys] == keys[len(pages[0].keys) :]
    assert not rest[0].values
    error = await failing(collect(front.kv.Scan(kv_pb2.ScanRequest(prefix=b"key-", token=pages[0].token + b"x"))))
    assert isinstance(error, errors.InvalidToken)


async def test_stale_epoch_is_no_error_for_the_caller(front: Front) -> None:
    front.maps.upcoming = cluster_map(shards=8, leaves=4, version=2, epoch=2)
    handler = front.leaves._read

    def refuse_old(request: ShardRead):
        return handler(request) if request.epoch == 2 else errors.StaleEpoch("epoch is 2")

    for leaf in front.maps.current.leaves:
        front.leaves.client.on(leaf, ShardRead, refuse_old)
    assert not (await front.kv.Get(kv_pb2.GetRequest(key=b"k"))).HasField("item")
    assert front.maps.current.version == 2


async def test_collections(front: Front) -> None:
    field = cluster_pb2.SchemaField(name="title", type=cluster_pb2.FIELD_TYPE_TEXT)
    created = await front.cluster.CreateCollection(cluster_pb2.CreateCollectionRequest(name="books", fields=[field]))
    again = await front.cluster.CreateCollection(cluster_pb2.CreateCollectionRequest(name="books", fields=[field]))
    assert created.collection == again.collection
    error = await failing(front.cluster.CreateCollection(cluster_pb2.CreateCollectionRequest(name="books")))
    assert isinstance(error, errors.CollectionExists)
    listed = await front.cluster.ListCollections(cluster_pb2.ListCollectionsRequest())
    assert [collection.name for collection in listed.collections] == ["books", "default", "docs"]
    await front.cluster.DropCollection(cluster_pb2.DropCollectionRequest(name="books"))
    error = await failing(front.cluster.DropCollection(cluster_pb2.DropCollectionRequest(name="books")))
    assert isinstance(error, errors.CollectionNotFound)


async def test_how_reads_of_a_collection_are_hedged(front: Front) -> None:
    wanted = cluster_pb2.Hedging(policy="MAX(p95, 10ms)", budget=0.0)
    made = await front.cluster.CreateCollection(cluster_pb2.CreateCollectionRequest(name="books", hedging=wanted))
    assert (made.collection.hedging.policy, made.collection.hedging.budget) == ("max(p95,10ms)", 0.0)
    assert made.collection.hedging.HasField("budget")
    plain = await front.cluster.CreateCollection(
        cluster_pb2.CreateCollectionRequest(name="plain", hedging=cluster_pb2.Hedging())
    )
    assert not plain.collection.HasField("hedging")
    change = cluster_pb2.UpdateCollectionRequest(name="books", hedging=cluster_pb2.Hedging(policy="off", max_attempts=2))
    change.update_mask.paths.append("hedging.policy")
    updated = (await front.cluster.UpdateCollection(change)).collection
    assert updated.hedging == cluster_pb2.Hedging(policy="off", budget=0.0)
    del change.update_mask.paths[:]
    updated = (await front.cluster.UpdateCollection(change)).collection
    assert updated.hedging == cluster_pb2.Hedging(policy="off", max_attempts=2), "without a mask it replaces all"
    change.name = ""
    assert (await failing(front.cluster.UpdateCollection(change))).details.field == "name"
    change.name = "nothing"
    assert isinstance(await failing(front.cluster.UpdateCollection(change)), errors.CollectionNotFound)
    change.update_mask.paths.append("schema")
    assert (await failing(front.cluster.UpdateCollection(change))).details.field == "update_mask"
    bad = cluster_pb2.CreateCollectionRequest(name="bad", hedging=cluster_pb2.Hedging(max_attempts=9))
    assert (await failing(front.cluster.CreateCollection(bad))).details.field == "hedging.max_attempts"


@pytest.mark.parametrize("name", ["", "9a", "a b", "x" * 65])
async def test_collection_names(front: Front, name: str) -> None:
    error = await failing(front.cluster.CreateCollection(cluster_pb2.CreateCollectionRequest(name=name)))
    assert isinstance(error, errors.InvalidArgument)
    assert error.details.field == "name"


async def test_default_collection_cannot_be_dropped(front: Front) -> None:
    error = await failing(front.cluster.DropCollection(cluster_pb2.DropCollectionRequest(name="default")))
    assert isinstance(error, errors.InvalidArgument)


async def test_watch_sends_at_once_and_on_each_change(front: Front) -> None:
    watch = front.cluster.WatchMap(cluster_pb2.WatchMapRequest())
    first = await watch.read()
    assert first.map.version == 1
    front.maps.install(cluster_map(shards=8, leaves=4, version=5))
    assert (await watch.read()).map.version == 5
    watch.cancel()
    assert (await front.cluster.GetMap(cluster_pb2.GetMapRequest())).map.version == 5


async def test_stop_ends_watches_at_once() -> None:
    maps, leaves = FakeMapSource(cluster_map()), MemoryLeaves()
    async with running(maps, leaves, CollectorRegistry()) as front:
        watch = front.cluster.WatchMap(cluster_pb2.WatchMapRequest())
        await watch.read()
        stopping = asyncio.create_task(front.server.stop())
        error = await failing(watch.read())
        assert isinstance(error, errors.Unavailable)
        async with asyncio.timeout(1):
            await stopping


async def test_status_speaks_of_the_newest_map(front: Front) -> None:
    known = front.maps.current
    unborn = {name: replace(leaf, address="") for name, leaf in known.leaves.items()}
    front.maps.install(replace(known, leaves=unborn))
    front.maps.upcoming = replace(known, version=known.version + 1)
    status = await front.cluster.GetStatus(cluster_pb2.GetStatusRequest())
    assert [leaf.is_up for leaf in status.leaves] == [True] * len(known.leaves)
    assert status.map.version == known.version + 1


async def test_status_shows_a_dead_and_a_hung_leaf(front: Front) -> None:
    front.leaves.fail("leaf-2", errors.Unavailable("connection refused"))
    front.leaves.fail("leaf-3", Hang())
    status = await front.cluster.GetStatus(cluster_pb2.GetStatusRequest())
    assert [(leaf.leaf.id, leaf.is_up) for leaf in status.leaves] == [
        ("leaf-1", True),
        ("leaf-2", False),
        ("leaf-3", False),
        ("leaf-4", True),
    ]
    assert status.leaves[1].error == "connection refused"
    assert status.leaves[2].error == "it did not answer in time"
    assert len(status.map.shards) == 8


async def test_health_follows_the_leaves() -> None:
    maps, leaves = FakeMapSource(cluster_map()), MemoryLeaves()
    leaves.fail("leaf-1", errors.Unavailable("down"))
    leaves.fail("leaf-2", errors.Unavailable("down"))
    async with running(maps, leaves, CollectorRegistry()) as front:
        health = health_pb2_grpc.HealthStub(front.channel)
        checks = [health_pb2.HealthCheckRequest(service=name) for name in ("", *SERVICES)]
        answers = [(await health.Check(check)).status for check in checks]
        assert set(answers) == {health_pb2.HealthCheckResponse.NOT_SERVING}
        leaves.serve("leaf-2")
        await asyncio.wait_for(front.server.wait_serving(), 5)
        answers = [(await health.Check(check)).status for check in checks]
        assert set(answers) == {health_pb2.HealthCheckResponse.SERVING}


async def test_router_without_a_map_says_unavailable() -> None:
    async with running(FakeMapSource(None), MemoryLeaves(), CollectorRegistry()) as front:
        error = await failing(front.kv.Get(kv_pb2.GetRequest(key=b"k")))
        assert isinstance(error, errors.Unavailable)
        assert error.details.retry_after_ms


async def test_reflection_lists_the_services(front: Front) -> None:
    stub = reflection_pb2_grpc.ServerReflectionStub(front.channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    async for answer in call:
        names = {service.name for service in answer.list_services_response.service}
        assert {*SERVICES, "grpc.health.v1.Health"} <= names


async def test_metrics_count_calls_and_legs(front: Front) -> None:
    await front.kv.Get(kv_pb2.GetRequest(key=b"k"))
    await failing(front.kv.Get(kv_pb2.GetRequest(key=b"")))
    await front.searches.Search(search_pb2.SearchRequest(collection="docs"))
    value = front.registry.get_sample_value
    assert value("kvshard_router_requests_total", {"method": "Get", "code": "OK"}) == 1
    assert value("kvshard_router_requests_total", {"method": "Get", "code": "INVALID_ARGUMENT"}) == 1
    assert value("kvshard_router_legs_total", {"method": "Search", "outcome": "ok"}) == 8
    assert value("kvshard_router_request_seconds_count", {"method": "Get"}) == 2


async def test_port_in_use_is_a_clear_error(front: Front) -> None:
    with pytest.raises(errors.FailedPrecondition, match="in use"):
        RouterServer(front.server.address, front.maps, front.leaves.client, SystemClock(), RouterMetrics(CollectorRegistry()))


async def test_a_write_sent_again_takes_effect_once(front: Front) -> None:
    keys = [b"key-%d" % i for i in range(20)]
    id = types_pb2.RequestId(client="me", number=1, wants_watermarks=True)
    first = await front.kv.BatchWrite(kv_pb2.BatchWriteRequest(keys=keys, values=keys, request_id=id))
    assert first.watermarks
    put = await front.kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v", request_id=types_pb2.RequestId(client="me", number=2)))
    assert not put.watermarks
    id.is_retry, id.watermarks = True, first.watermarks
    again = await front.kv.BatchWrite(kv_pb2.BatchWriteRequest(keys=keys, values=keys, request_id=id))
    assert list(again.versions) == list(first.versions)
    id = types_pb2.RequestId(client="me", number=2, is_retry=True)
    assert (await front.kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v", request_id=id))).version == put.version
    assert front.leaves.seqno == 21


@pytest.mark.parametrize(
    ("id", "field"),
    [
        (types_pb2.RequestId(number=1), "request_id.client"),
        (types_pb2.RequestId(client="c" * 65, number=1), "request_id.client"),
        (types_pb2.RequestId(client="c"), "request_id.number"),
        (types_pb2.RequestId(client="c", number=1, watermarks=b"x"), "request_id.watermarks"),
        (types_pb2.RequestId(client="c", number=1, is_retry=True, watermarks=b"x"), "request_id.watermarks"),
    ],
)
async def test_a_wrong_request_id_is_refused(front: Front, id: types_pb2.RequestId, field: str) -> None:
    for call in (
        front.kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v", request_id=id)),
        front.kv.Delete(kv_pb2.DeleteRequest(key=b"k", request_id=id)),
        front.kv.BatchWrite(kv_pb2.BatchWriteRequest(keys=[b"k"], values=[b"v"], request_id=id)),
    ):
        error = await failing(call)
        assert isinstance(error, errors.InvalidArgument)
        assert error.details.field == field
    assert front.leaves.seqno == 0


async def test_an_expired_write_says_so(front: Front) -> None:
    expired = errors.Expired("forgotten", errors.ErrorDetails(committed=5))
    front.leaves.client.on("*", ShardWrite, expired)
    id = types_pb2.RequestId(client="me", number=2, is_retry=True)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await front.kv.Put(kv_pb2.PutRequest(key=b"k", value=b"v", request_id=id))
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    error = error_from_rpc(caught.value)
    assert isinstance(error, errors.Expired)
    assert (error.details.maybe_applied, error.details.committed) == (True, 5)


async def test_stale_reads_say_what_they_saw(front: Front) -> None:
    stale = types_pb2.ReadOptions(consistency=types_pb2.CONSISTENCY_STALE)
    keys = [b"key-%d" % i for i in range(100)]
    await front.kv.BatchWrite(kv_pb2.BatchWriteRequest(keys=keys, values=keys))
    got = await front.kv.Get(kv_pb2.GetRequest(key=keys[0], options=stale))
    assert (got.state.shard, got.state.seqno) == (front.maps.current.shard_of_key(keys[0]), 100)
    assert got.state.HasField("age_ms")
    assert [state.shard for state in (await front.kv.BatchGet(kv_pb2.BatchGetRequest(keys=keys, options=stale))).states] == [
        *range(8)
    ]
    pages = await collect(front.kv.Scan(kv_pb2.ScanRequest(options=stale)))
    assert [state.shard for state in pages[-1].states] == [*range(8)]
    assert not (await front.kv.Get(kv_pb2.GetRequest(key=keys[0]))).HasField("state")


async def test_a_search_sees_the_writes_that_were_promised_at_any_replica(front: Front) -> None:
    document = json.dumps({"title": "tail"}).encode()
    await front.kv.Put(kv_pb2.PutRequest(collection="docs", key=b"a", value=document))
    await front.searches.Search(search_pb2.SearchRequest(collection="docs"))
    assert {call.request.min_seqno for call in front.leaves.client.calls_of(ShardSearch)} == {0}
    await front.kv.Put(kv_pb2.PutRequest(collection="docs", key=b"a", value=document, refresh=True))
    await front.searches.Search(search_pb2.SearchRequest(collection="docs"))
    wanted = {call.request.shard: call.request.min_seqno for call in front.leaves.client.calls_of(ShardSearch)[8:]}
    assert wanted == {shard: 2 if shard == front.maps.current.shard_of_key(b"a") else 0 for shard in range(8)}


async def test_a_dead_leaf_of_three_is_seen_by_nobody() -> None:
    maps, leaves = FakeMapSource(cluster_map(shards=8, leaves=3, replicas=3)), MemoryLeaves()
    async with running(maps, leaves, CollectorRegistry()) as front:
        keys = [b"key-%d" % i for i in range(100)]
        await front.kv.BatchWrite(kv_pb2.BatchWriteRequest(keys=keys, values=keys))
        await front.load_documents()
        leaves.fail("leaf-2", errors.Unavailable("connection refused"))
        for _ in range(5):
            assert not (await front.kv.BatchGet(kv_pb2.BatchGetRequest(keys=keys))).failures
            found = await front.searches.Search(search_pb2.SearchRequest(collection="docs", query="tail"))
            assert found.coverage.complete
            pages = await collect(front.kv.Scan(kv_pb2.ScanRequest(prefix=b"key-")))
            assert sum(len(page.keys) for page in pages) == 100


async def test_a_hanging_leaf_of_three_does_not_eat_the_deadline() -> None:
    maps, leaves = FakeMapSource(cluster_map(shards=8, leaves=3, replicas=3)), MemoryLeaves()
    async with running(maps, leaves, CollectorRegistry()) as front:
        await front.load_documents()
        leaves.fail("leaf-2", Hang())
        options = types_pb2.ReadOptions(hedge="1ms")
        found = await front.searches.Search(
            search_pb2.SearchRequest(collection="docs", query="tail", options=options), timeout=5
        )
        assert found.coverage.complete
        assert len(await collect(front.kv.Scan(kv_pb2.ScanRequest(collection="docs", options=options), timeout=5))) >= 1
        assert not (await front.kv.BatchGet(kv_pb2.BatchGetRequest(keys=[b"a", b"b"], options=options), timeout=5)).failures
