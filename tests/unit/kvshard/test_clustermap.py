"""The cluster map: lookup, validation and text forms."""

import dataclasses
import json

import pytest

from kvshard import clustermap_text, hashing
from kvshard.clustermap import (
    DEFAULT_COLLECTION,
    TOKEN_SLOTS,
    ClusterMap,
    Collection,
    Hedging,
    InvalidMap,
    Leaf,
    Replica,
    ShardConfig,
    WantedSplit,
    equal_ranges,
)
from kvshard.errors import InvalidArgument, KvShardError


def shard(number: int, first: int, last: int, **changes: object) -> ShardConfig:
    made = ShardConfig(number, first, last, 1, "leaf-1", (Replica("leaf-1", "x"), Replica("leaf-2")))
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


LEAVES = {"leaf-1": Leaf("leaf-1", "127.0.0.1:1", "a"), "leaf-2": Leaf("leaf-2", "", "b", 2.5), "leaf-3": Leaf("leaf-3")}
SHARDS = {
    7: shard(7, 0, 999),
    2: shard(2, 1000, 40000, epoch=5, learners=(Replica("leaf-3"),), desired=("leaf-3", "leaf-1")),
    3: shard(3, 40001, 65535, in_sync=(Replica("leaf-1"),)),
}
COLLECTIONS = {"default": DEFAULT_COLLECTION, "docs": Collection("docs", 4, {"title": "text", "année": "integer"})}


def new_map(**changes: object) -> ClusterMap:
    arguments = {"version": 12, "seed": 99, "leaves": LEAVES, "shards": SHARDS, "collections": COLLECTIONS}
    return ClusterMap(**{**arguments, **changes})  # type: ignore[arg-type]


def test_lookups() -> None:
    cluster_map = new_map()
    assert [cluster_map.shard_of_slot(slot) for slot in (0, 999, 1000, 40000, 40001, 65535)] == [7, 7, 2, 2, 3, 3]
    assert cluster_map.collection("docs") == cluster_map.collection_by_id(4) == COLLECTIONS["docs"]
    assert cluster_map.collection("nothing") is cluster_map.collection_by_id(5) is None
    assert cluster_map.leaf_address("leaf-1") == "127.0.0.1:1"
    assert cluster_map.leaf_address("leaf-2") is cluster_map.leaf_address("nobody") is None
    assert [each.id for each in cluster_map.shards_on("leaf-3")] == [2]
    assert [each.id for each in cluster_map.shards_on("leaf-1")] == [2, 3, 7]
    assert cluster_map.shards_on("nobody") == []


def test_a_key_lies_in_the_range_of_its_shard() -> None:
    cluster_map = new_map()
    for number in range(2000):
        key = b"key-%d" % number
        found = cluster_map.shards[cluster_map.shard_of_key(key)]
        assert found.first_token <= hashing.token(key, 99) <= found.last_token
    assert cluster_map.shard_of_key(b"{tag}a") == cluster_map.shard_of_key(b"b{tag}")


def test_the_shards_of_many_keys_are_those_of_each() -> None:
    cluster_map = new_map()
    keys = [b"key-%d" % number for number in range(2000)] + [b"{tag}a", b"b{tag}"]
    assert cluster_map.shards_of_keys(keys) == [cluster_map.shard_of_key(key) for key in keys]
    assert cluster_map.shards_of_keys([]) == []


def test_token_ranges_meet() -> None:
    assert SHARDS[7].first_token == 0
    assert SHARDS[7].last_token + 1 == SHARDS[2].first_token
    assert SHARDS[3].last_token == (1 << 64) - 1


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 1000, 4095, 4096])
def test_equal_ranges(count: int) -> None:
    ranges = equal_ranges(count)
    assert len(ranges) == count
    assert [slot for first, last in ranges for slot in range(first, last + 1)] == list(range(TOKEN_SLOTS))
    sizes = {last - first + 1 for first, last in ranges}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", [0, -1, 4097])
def test_equal_ranges_of_an_impossible_number(count: int) -> None:
    with pytest.raises(InvalidArgument):
        equal_ranges(count)


def two(other: WantedSplit | None = None, **changes: object) -> dict[int, ShardConfig]:
    return {0: shard(0, 0, 5, **changes), 1: shard(1, 6, 65535, split=other)}  # type: ignore[arg-type]


INVALID = {
    "no shards": ({"shards": {}}, "0 shards"),
    "gap": ({"shards": {0: shard(0, 0, 5), 1: shard(1, 7, 65535)}}, "a gap before slot 7"),
    "overlap": ({"shards": {0: shard(0, 0, 5), 1: shard(1, 5, 65535)}}, "an overlap before slot 5"),
    "late start": ({"shards": {0: shard(0, 1, 65535)}}, "a gap"),
    "early end": ({"shards": {0: shard(0, 0, 65534)}}, "end at slot 65534"),
    "beyond": ({"shards": {0: shard(0, 0, 65536)}}, "end at slot 65536"),
    "backward": ({"shards": {0: shard(0, 0, -1), 1: shard(1, 0, 65535)}}, "ends before it begins"),
    "misnumbered": ({"shards": {1: shard(0, 0, 65535)}}, "stands under the number 1"),
    "id too big": ({"shards": {65536: shard(65536, 0, 65535)}}, "65536"),
    "epoch": ({"shards": {0: shard(0, 0, 65535, epoch=0)}}, "epoch 0"),
    "unknown leaf": ({"shards": {0: shard(0, 0, 65535, learners=(Replica("x"),))}}, "unknown leaves: x"),
    "unknown desired": ({"shards": {0: shard(0, 0, 65535, desired=("x",))}}, "unknown leaves: x"),
    "twice on a leaf": ({"shards": {0: shard(0, 0, 65535, learners=(Replica("leaf-2"),))}}, "two replicas on one leaf"),
    "primary not in sync": ({"shards": {0: shard(0, 0, 65535, primary="leaf-3")}}, "primary 'leaf-3' is not in sync"),
    "nobody in sync": ({"shards": {0: shard(0, 0, 65535, in_sync=())}}, "not in sync"),
    "cut at its begin": ({"shards": two(split=WantedSplit(5, 0))}, "cut at slot 0, outside"),
    "cut behind its end": ({"shards": two(split=WantedSplit(5, 6))}, "cut at slot 6, outside"),
    "child is there": ({"shards": two(split=WantedSplit(1, 3))}, "split into 1, which is no new shard"),
    "child too big": ({"shards": two(split=WantedSplit(65536, 3))}, "no new shard"),
    "one child of two": ({"shards": two(WantedSplit(5, 9), split=WantedSplit(5, 3))}, "into the same one"),
    "cuts": ({"shards": two(cuts=-1)}, "-1 cuts"),
    "misnamed leaf": ({"leaves": LEAVES | {"leaf-4": Leaf("leaf-5")}}, "'leaf-5' stands under the name 'leaf-4'"),
    "nameless leaf": ({"leaves": LEAVES | {"": Leaf("")}}, "stands under"),
    "weight": ({"leaves": LEAVES | {"leaf-1": Leaf("leaf-1", weight=float("nan"))}}, "weight nan"),
    "negative weight": ({"leaves": LEAVES | {"leaf-1": Leaf("leaf-1", weight=-1)}}, "weight -1"),
    "no default": ({"collections": {}}, "default collection"),
    "other default": ({"collections": {"default": Collection("default", 2)}}, "default collection"),
    "same number": ({"collections": COLLECTIONS | {"x": Collection("x", 4)}}, "same number"),
    "misnamed collection": ({"collections": COLLECTIONS | {"x": Collection("y", 5)}}, "'y' stands under"),
    "number": ({"collections": COLLECTIONS | {"x": Collection("x", 0)}}, "number 0"),
    "version": ({"version": -1}, "version -1"),
    "seed": ({"seed": 1 << 32}, "32 bits"),
    "replicas": ({"replicas": -1}, "-1 replicas"),
}


@pytest.mark.parametrize("name", INVALID)
def test_a_map_that_contradicts_itself_cannot_be_made(name: str) -> None:
    changes, message = INVALID[name]
    with pytest.raises(InvalidMap, match=message) as caught:
        new_map(**changes)
    assert isinstance(caught.value, KvShardError)


def test_json_is_canonical() -> None:
    cluster_map = new_map()
    shuffled = new_map(leaves=dict(reversed(LEAVES.items())), shards=dict(sorted(SHARDS.items())))
    assert cluster_map == shuffled
    assert clustermap_text.to_json(cluster_map) == clustermap_text.to_json(shuffled)
    assert clustermap_text.from_json(clustermap_text.to_json(cluster_map)) == cluster_map
    text = clustermap_text.to_json(cluster_map)
    assert clustermap_text.to_json(clustermap_text.from_json(text.encode())) == text
    integer_weights = new_map(leaves={name: dataclasses.replace(leaf, weight=2) for name, leaf in LEAVES.items()})
    float_weights = new_map(leaves={name: dataclasses.replace(leaf, weight=2.0) for name, leaf in LEAVES.items()})
    assert clustermap_text.to_json(integer_weights) == clustermap_text.to_json(float_weights)


def test_json_keeps_the_order_of_schema_fields() -> None:
    read = clustermap_text.from_json(clustermap_text.to_json(new_map()))
    assert list(read.collections["docs"].schema) == ["title", "année"]


def test_frozen_json() -> None:
    small = ClusterMap(
        3, 0, {"a": Leaf("a")}, {0: ShardConfig(0, 0, 65535, 1, "a", (Replica("a"),))}, {"default": DEFAULT_COLLECTION}
    )
    assert clustermap_text.to_json(small) == (
        '{"collections":[{"id":1,"name":"default","schema":[]}],"format":1,'
        '"leaves":[{"address":"","id":"a","weight":1.0,"zone":""}],"replicas":1,"seed":0,'
        '"shards":[{"desired":[],"epoch":1,"first_slot":0,"id":0,"in_sync":[["a",""]],"last_slot":65535,"learners":[],'
        '"primary":"a"}],"version":3}'
    )


def test_json_of_a_newer_version_with_more_fields_is_read() -> None:
    data = json.loads(clustermap_text.to_json(new_map()))
    data["new"] = 1
    data["leaves"][0]["new"] = [1]
    data["shards"][0]["new"] = {}
    assert clustermap_text.from_json(json.dumps(data)) == new_map()


def damaged(path: list[object], value: object) -> str:
    data = json.loads(clustermap_text.to_json(new_map()))
    place = data
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(data)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "{",
        b"\xff",
        damaged(["format"], 2),
        damaged(["version"], "12"),
        damaged(["version"], True),
        damaged(["leaves"], {}),
        damaged(["leaves", 0], "leaf-1"),
        damaged(["leaves", 0, "weight"], "1"),
        damaged(["leaves", 0, "weight"], True),
        damaged(["leaves", 1, "id"], "leaf-1"),
        damaged(["shards", 0, "in_sync"], [["leaf-1"]]),
        damaged(["shards", 0, "in_sync"], ["leaf-1"]),
        damaged(["shards", 0, "desired"], [1]),
        damaged(["shards", 0, "epoch"], 1.5),
        damaged(["shards", 0, "last_slot"], 5),
        damaged(["collections", 0, "schema"], [["a", 1]]),
        damaged(["collections", 0, "hedging"], "off"),
        damaged(["collections", 0, "synonyms"], "car, automobile"),
        damaged(["collections", 0, "synonyms"], [1]),
        damaged(["collections", 0, "hedging"], {"policy": 1}),
        damaged(["collections", 0, "hedging"], {"budget": "5%"}),
        damaged(["collections", 0, "hedging"], {"max_attempts": True}),
    ],
)
def test_damaged_json_is_refused(text: str | bytes) -> None:
    with pytest.raises(InvalidMap):
        clustermap_text.from_json(text)


def test_pretty() -> None:
    assert clustermap_text.pretty(new_map()) == PRETTY


PRETTY = """\
cluster map, version 12, seed 99

leaf    address      zone  weight  replicas  marks
leaf-1  127.0.0.1:1  a     1       3         -
leaf-2  -            b     2.5     2         -
leaf-3  -            -     1       1         -

shard  slots          epoch  primary  in sync         learners  desired
2      0x03e8-0x9c40  5      leaf-1   leaf-1, leaf-2  leaf-3    leaf-3, leaf-1
3      0x9c41-0xffff  1      leaf-1   leaf-1          -         -
7      0x0000-0x03e7  1      leaf-1   leaf-1, leaf-2  -         -

collection  id  schema
default     1   -
docs        4   title: text, année: integer
"""


def test_a_change_of_a_replica_set_forgets_no_identity_and_leaves_the_range_and_what_is_desired() -> None:
    held = shard(2, 1000, 2000, epoch=5, desired=("leaf-3", "leaf-1"))
    held = dataclasses.replace(held, in_sync=(Replica("leaf-1", "x"), Replica("leaf-2", "y")))
    asked = ShardConfig(2, 0, 1, 6, "leaf-2", (Replica("leaf-2"), Replica("leaf-4")), (Replica("leaf-1", "z"),), ("leaf-2",))
    stored = held.succeeded_by(asked)
    assert stored.in_sync == (Replica("leaf-2", "y"), Replica("leaf-4"))
    assert (stored.epoch, stored.primary, stored.learners) == (6, "leaf-2", (Replica("leaf-1", "z"),))
    assert (stored.first_slot, stored.last_slot, stored.desired) == (1000, 2000, ("leaf-3", "leaf-1"))


def test_a_wanted_split_and_the_cuts_survive_the_text() -> None:
    split_map = new_map(shards={**SHARDS, 2: dataclasses.replace(SHARDS[2], split=WantedSplit(9, 20_000), cuts=3)})
    assert clustermap_text.from_json(clustermap_text.to_json(split_map)) == split_map
    assert "into 9 at 0x4e20" in clustermap_text.pretty(split_map)
    without = json.loads(clustermap_text.to_json(new_map()))
    assert not any("split" in each or "cuts" in each for each in without["shards"]), "older readers see what they know"


def test_the_middle_of_a_shard() -> None:
    assert [shard(0, *ends).middle_slot for ends in ((0, 65535), (0, 1), (4, 6), (7, 7))] == [32768, 1, 5, 7]


def test_synonyms_survive_the_text_and_are_written_only_where_there_are_some() -> None:
    rules = ("car, automobile", "laptop => notebook")
    told = new_map(collections={**COLLECTIONS, "docs": dataclasses.replace(COLLECTIONS["docs"], synonyms=rules)})
    assert clustermap_text.from_json(clustermap_text.to_json(told)) == told
    written = {each["name"]: each.get("synonyms") for each in json.loads(clustermap_text.to_json(told))["collections"]}
    assert written.pop("docs") == list(rules)
    assert not any(written.values())


def test_what_was_said_of_hedging_survives_the_text_and_nothing_else_is_written() -> None:
    said = {
        "docs": dataclasses.replace(COLLECTIONS["docs"], hedging=Hedging("min(p99,50ms)", 0.0, 2)),
        "off": Collection("off", 5, {}, Hedging("off")),
    }
    told = new_map(collections={**COLLECTIONS, **said})
    assert clustermap_text.from_json(clustermap_text.to_json(told)) == told
    written = {each["name"]: each.get("hedging") for each in json.loads(clustermap_text.to_json(told))["collections"]}
    assert written == {
        "default": None,
        "docs": {"policy": "min(p99,50ms)", "budget": 0.0, "max_attempts": 2},
        "off": {"policy": "off"},
    }
    assert "min(p99,50ms), budget 0%, at most 2 attempts" in clustermap_text.pretty(told)


def test_a_policy_that_this_version_does_not_know_is_no_reason_to_refuse_the_map() -> None:
    newer = new_map(collections={**COLLECTIONS, "new": Collection("new", 5, {}, Hedging("by-moon", 0.9, 7))})
    assert clustermap_text.from_json(clustermap_text.to_json(newer)) == newer
