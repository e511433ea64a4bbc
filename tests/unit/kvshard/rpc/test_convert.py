import pytest

from kvshard.clustermap import ClusterMap, Collection, Hedging, InvalidMap, Leaf, Replica, ShardConfig, WantedSplit
from kvshard.errors import InvalidArgument
from kvshard.model import CatchUpRecord, CollectionCountRecord, LeafStatusReply, ReplicaStatusRecord, SplitRecord
from kvshard.rpc.convert import (
    cluster_map_from_proto,
    cluster_map_to_proto,
    collection_from_proto,
    collection_to_proto,
    leaf_status_from_proto,
    leaf_status_to_proto,
    schema_from_proto,
    schema_to_proto,
    shard_from_proto,
    shard_to_proto,
    tail_status_from_proto,
    tail_status_to_proto,
)
from kvshard.schema import parse_schema
from kvshard.tail.status import LeafHealthStatus, LegKindStatus, TailStatus
from kvshard.v1 import cluster_pb2

SCHEMA = {"title": "text", "tag": "keyword", "year": "integer", "rank": "float", "ok": "boolean", "on": "date"}
LEAF = Leaf("leaf-1", "127.0.0.1:7001", "z1", 2.0)
CLUSTER_MAP = ClusterMap(
    version=9,
    seed=2**32 - 1,
    leaves={"leaf-1": LEAF, "leaf-2": Leaf("leaf-2", is_draining=True), "leaf-3": Leaf("leaf-3", is_removed=True)},
    shards={
        0: ShardConfig(0, 0, 32_767, 3, "leaf-1", (Replica("leaf-1", "abc"),), (), ("leaf-1",), WantedSplit(7, 20_000), 2),
        1: ShardConfig(1, 32_768, 65_535, 4, "leaf-2", (Replica("leaf-2"),), (Replica("leaf-1", "d"),), ("leaf-2", "leaf-1")),
    },
    collections={"default": Collection("default", 1), "docs": Collection("docs", 2, SCHEMA, Hedging("p99", 0.0, 2))},
    replicas=3,
)


def test_the_map_survives() -> None:
    message = cluster_map_to_proto(CLUSTER_MAP)
    assert cluster_map_from_proto(cluster_pb2.ClusterMap.FromString(message.SerializeToString())) == CLUSTER_MAP


def test_the_same_map_gives_the_same_bytes() -> None:
    backwards = ClusterMap(
        version=9,
        seed=2**32 - 1,
        leaves=dict(reversed(CLUSTER_MAP.leaves.items())),
        shards=dict(reversed(CLUSTER_MAP.shards.items())),
        collections=dict(reversed(CLUSTER_MAP.collections.items())),
        replicas=3,
    )
    messages = [cluster_map_to_proto(each).SerializeToString(deterministic=True) for each in (CLUSTER_MAP, backwards)]
    assert messages[0] == messages[1]


def test_slots_become_inclusive_token_ranges() -> None:
    first, last = (shard_to_proto(CLUSTER_MAP.shards[id]) for id in (0, 1))
    assert (first.first_token, last.last_token) == (0, 2**64 - 1)
    assert last.first_token == first.last_token + 1 == 2**63


def test_a_range_inside_a_slot_is_refused() -> None:
    message = shard_to_proto(CLUSTER_MAP.shards[1])
    message.first_token += 1
    with pytest.raises(InvalidMap, match="inside a token slot"):
        shard_from_proto(message)


def test_a_map_that_names_something_twice_is_refused() -> None:
    message = cluster_map_to_proto(CLUSTER_MAP)
    message.leaves.add().CopyFrom(message.leaves[0])
    with pytest.raises(InvalidMap, match="twice"):
        cluster_map_from_proto(message)


def test_collections_keep_the_order_of_their_fields() -> None:
    collection = collection_from_proto(collection_to_proto(Collection("docs", 2, SCHEMA)))
    assert collection == Collection("docs", 2, SCHEMA)
    assert list(collection.schema) == list(SCHEMA)


def test_analyzers_survive() -> None:
    schema = {"title": "text", "body": "text(english)", "name": "text(keyword)"}
    assert schema_from_proto(schema_to_proto(schema)) == schema


def test_an_analyzer_where_none_belongs_is_no_known_type() -> None:
    fields = [cluster_pb2.SchemaField(name="year", type=cluster_pb2.FIELD_TYPE_INTEGER, analyzer="english")]
    with pytest.raises(InvalidArgument, match="only text has analyzers"):
        parse_schema(schema_from_proto(fields))


def test_an_unknown_type_names_its_field() -> None:
    with pytest.raises(InvalidArgument, match="text, keyword, integer, float, boolean, date") as caught:
        schema_to_proto({"title": "string"})
    assert caught.value.details.field == "schema.title"


@pytest.mark.parametrize(
    "fields",
    [
        [cluster_pb2.SchemaField(name="title")],
        [cluster_pb2.SchemaField(name="title", type=99)],  # type: ignore[arg-type]
        [cluster_pb2.SchemaField(name="title", type=cluster_pb2.FIELD_TYPE_TEXT)] * 2,
    ],
    ids=["no type", "a newer type", "twice"],
)
def test_bad_schema_fields(fields: list[cluster_pb2.SchemaField]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        schema_from_proto(fields)
    assert caught.value.details.field == "schema.title"


def test_the_state_of_a_leaf_survives() -> None:
    replicas = [
        ReplicaStatusRecord(
            3,
            2,
            "primary",
            10,
            9,
            [CollectionCountRecord(1, 5, 600, 8)],
            catching_up=[CatchUpRecord("leaf-2", 7), CatchUpRecord("leaf-3", 4, 10**6, 10**9, 2.5e6)],
            split=SplitRecord(7, 20_000, 10, 100, True, False),
        ),
        ReplicaStatusRecord(4, 1, "failed", 0, 0, [], "no space left on device"),
    ]
    reply = LeafStatusReply("leaf-1", replicas, 4711, 1.5, 10**9, 10**12, "0.1.0")
    message = leaf_status_to_proto(LEAF, reply)
    assert (message.leaf.address, message.is_up, message.error) == (LEAF.address, True, "")
    assert leaf_status_from_proto(message) == reply


def test_a_silent_leaf_has_a_reason_and_no_state() -> None:
    message = leaf_status_to_proto(LEAF, None, "connection refused")
    assert (message.is_up, message.error, message.leaf.id) == (False, "connection refused", "leaf-1")
    assert leaf_status_from_proto(message) is None


def test_synonyms_survive() -> None:
    collection = Collection("docs", 2, SCHEMA, Hedging(), ("car, automobile", "laptop => notebook"))
    assert collection_from_proto(collection_to_proto(collection)) == collection


def test_a_collection_that_says_nothing_of_hedging_carries_nothing() -> None:
    assert not collection_to_proto(Collection("docs", 2)).HasField("hedging")
    assert collection_from_proto(cluster_pb2.Collection(name="docs", id=2)).hedging == Hedging()


def test_the_state_of_the_tail_survives() -> None:
    status = TailStatus(
        policy="auto",
        budget_max=0.1,
        budget=0.05,
        max_attempts=3,
        first_attempts=1_000,
        hedges=20,
        hedges_total=400,
        hedges_won_total=100,
        refused_total={"budget": 3, "storm": 1},
        kinds=(LegKindStatus("Search/page", 900, 2.5, 9.75, 7.5),),
        leaves=(LeafHealthStatus("leaf-1", "probation", 2, 5, 3.5, 40), LeafHealthStatus("leaf-2")),
    )
    message = tail_status_to_proto(status)
    assert tail_status_from_proto(cluster_pb2.TailStatus.FromString(message.SerializeToString())) == status
    assert (status.extra, status.won) == (0.02, 0.25)
    assert (TailStatus().extra, TailStatus().won) == (0.0, 0.0)
