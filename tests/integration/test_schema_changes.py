"""Changes of a schema through a real router and the client; the leaves are in memory, the map changes by hand."""

from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest
from fakes.leaf_client import ANY_LEAF
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard import Client, CollectionNotFound, FailedPrecondition, InvalidArgument, InvalidToken
from kvshard.clock import SystemClock
from kvshard.clustermap import ClusterMap
from kvshard.errors import DeadlineExceeded, SchemaChanged
from kvshard.model import CollectionCountRecord, LeafStatusReply, LeafStatusRequest, ReplicaStatusRecord, ShardSearch
from kvshard.tail.hedging import HedgeSettings
from kvshard.telemetry import RouterMetrics
from router.server import RouterServer


class Front(NamedTuple):
    kv: Client[str]
    maps: FakeMapSource
    leaves: MemoryLeaves

    def searched(self) -> list[ShardSearch]:
        return [call.request for call in self.leaves.client.calls if isinstance(call.request, ShardSearch)]


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    leaves, maps = MemoryLeaves(), FakeMapSource(cluster_map())
    metrics = RouterMetrics(CollectorRegistry())
    server = RouterServer("127.0.0.1:0", maps, leaves.client, SystemClock(), metrics, HedgeSettings())
    await server.start("cluster")
    try:
        async with Client(server.address) as client:
            yield Front(client, maps, leaves)
    finally:
        await server.stop()


def reporting(cluster_map: ClusterMap, leaf: str, counts: list[CollectionCountRecord]) -> LeafStatusReply:
    """What a leaf says that has so much of each of its shards."""
    held = [shard for shard in cluster_map.shards.values() if any(member.leaf == leaf for member in shard.in_sync)]
    replicas = [ReplicaStatusRecord(shard.id, 1, "primary", 1, 1, counts) for shard in held]
    return LeafStatusReply(leaf, replicas, 1, 2.0, 3, 4, "0.1.0")


async def test_a_field_that_is_being_indexed_is_named(front: Front) -> None:
    docs = front.kv.collection("docs")
    with pytest.raises(InvalidArgument, match="lang"):
        await docs.search("lang:en")
    info = await docs.add_fields({"lang": "keyword"})
    assert info.change is not None
    for leaf, rebuilt in (("leaf-1", 100), ("leaf-2", 0)):
        counts = [CollectionCountRecord(info.id, 100, 0, 0, 1, rebuilt, 100)]
        front.leaves.client.on(leaf, LeafStatusRequest, reporting(front.maps.current, leaf, counts))
    assert (info.version, dict(info.change.schema)["lang"], info.change.version) == (1, "keyword", 2)
    for query, options in (
        ("lang:en", {}),
        ("*", {"sort": "lang"}),
        ("*", {"facets": ["lang"]}),
        ("*", {"filters": ["lang:e"]}),
    ):
        with pytest.raises(FailedPrecondition, match=r"being indexed \(lang\).* 50% of the documents") as refused:
            await docs.search(query, **options)
        assert refused.value.details.retry_after_ms
    with pytest.raises(InvalidArgument, match="nothing"):
        await docs.search("nothing:en")
    assert (await docs.search("word")).total == 0
    front.maps.finish_change("docs")
    await docs.search("lang:en")
    assert {request.schema_version for request in front.searched()[-4:]} == {2}


async def test_a_field_that_another_router_has_added_is_found(front: Front) -> None:
    held = front.maps.current
    await front.kv.collection("docs").add_fields({"lang": "keyword"})
    front.maps.finish_change("docs")
    front.maps.upcoming = front.maps.current
    front.maps.install(held)
    await front.kv.collection("docs").search("lang:en")


async def test_a_search_that_meets_the_switch_is_asked_anew_as_a_whole(front: Front) -> None:
    held = front.maps.current
    await front.kv.collection("docs").add_fields({"lang": "keyword"})
    front.maps.finish_change("docs")
    front.maps.upcoming = front.maps.current
    front.maps.install(held)

    def switched(request: ShardSearch):
        if request.schema_version < 2 and request.shard == 1:
            raise SchemaChanged("docs has schema version 2 now")
        return front.leaves._search(request)

    front.leaves.client.on(ANY_LEAF, ShardSearch, switched)
    page = await front.kv.collection("docs").search("word")
    assert page.complete
    assert [request.schema_version for request in front.searched()] == [1] * 4 + [2] * 4


async def test_a_token_of_a_ranking_ends_with_its_schema_and_one_of_an_order_by_fields_does_not(front: Front) -> None:
    docs = front.kv.collection("docs")
    await docs.put_many({f"d{n}": {"title": "word", "year": n} for n in range(9)})
    ranked, ordered = await docs.search("word", limit=2), await docs.search("word", limit=2, sort="_key")
    await docs.add_fields({"lang": "keyword"})
    front.maps.finish_change("docs")
    with pytest.raises(InvalidToken, match="and the schema"):
        await docs.search("word", limit=2, next=ranked.next)
    assert (await docs.search("word", limit=2, sort="_key", next=ordered.next)).hits


async def test_a_change_is_waited_for_and_called_off(front: Front) -> None:
    docs = front.kv.collection("docs")
    await docs.reindex({"title": "text(english)"})
    with pytest.raises(DeadlineExceeded, match="not indexed within"):
        await docs.wait_indexed(timeout=0.05)
    assert (await docs.cancel_reindex()).change is None
    assert (await docs.wait_indexed()).version == 1
    with pytest.raises(CollectionNotFound):
        await front.kv.collection("none").wait_indexed()
    with pytest.raises(CollectionNotFound):
        await front.kv.collection("none").add_fields({"title": "text"})
