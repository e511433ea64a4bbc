"""The placement ring: a deterministic order of leaves for each shard, fair by weight, stable when leaves come and go."""

from collections import Counter

import pytest

from kvshard.ring import VIRTUAL_NODES_MAX, Ring, RingLeaf

SHARDS = range(2000)


def leaves(count: int, zones: int = 1) -> list[RingLeaf]:
    return [RingLeaf(f"leaf-{n}", f"zone-{n % zones}") for n in range(count)]


def test_frozen_order() -> None:
    """Placements of existing clusters hang on it: a change here moves replicas."""
    ring = Ring(leaves(5, zones=2), seed=1)
    assert [ring.order(shard) for shard in range(4)] == FROZEN
    assert repr(ring) == "Ring(5 leaves, 320 virtual nodes, seed=1)"


FROZEN = [
    ("leaf-4", "leaf-1", "leaf-3", "leaf-2", "leaf-0"),
    ("leaf-4", "leaf-1", "leaf-3", "leaf-0", "leaf-2"),
    ("leaf-1", "leaf-4", "leaf-3", "leaf-0", "leaf-2"),
    ("leaf-3", "leaf-0", "leaf-4", "leaf-1", "leaf-2"),
]


def test_the_order_of_the_input_does_not_matter() -> None:
    forward, backward = Ring(leaves(7, 3), 9), Ring(leaves(7, 3)[::-1], 9)
    assert [forward.order(n) for n in range(50)] == [backward.order(n) for n in range(50)]


def test_every_leaf_once() -> None:
    ring = Ring(leaves(7, 3))
    assert all(sorted(ring.order(shard)) == sorted(leaf.id for leaf in leaves(7)) for shard in range(200))
    assert list(Ring([]).walk("x")) == []


def test_zones_take_turns() -> None:
    every = leaves(7, 3)
    zone_of = {leaf.id: leaf.zone for leaf in every}
    for shard in range(200):
        zones = [zone_of[leaf] for leaf in Ring(every).order(shard)]
        assert len(set(zones[:3])) == len(set(zones[3:6])) == 3


def test_first_places_follow_the_weights() -> None:
    weights = {"a": 1.0, "b": 2.0, "c": 4.0}
    ring = Ring([RingLeaf(leaf, "", weight) for leaf, weight in weights.items()])
    first = Counter(ring.order(shard)[0] for shard in SHARDS)
    for leaf, weight in weights.items():
        assert first[leaf] / len(SHARDS) == pytest.approx(weight / 7, rel=0.35)


def test_a_leaf_of_no_weight_is_never_met_and_a_tiny_one_is() -> None:
    ring = Ring([RingLeaf("none", "", 0.0), RingLeaf("tiny", "", 0.0001), RingLeaf("one")])
    assert sorted(ring.order(1)) == ["one", "tiny"]


def test_virtual_nodes_are_bounded() -> None:
    assert repr(Ring([RingLeaf("huge", "", 1000.0)])) == f"Ring(1 leaves, {VIRTUAL_NODES_MAX} virtual nodes, seed=0)"


def test_a_leaf_that_joins_leaves_the_order_of_the_others_alone() -> None:
    before, after = Ring(leaves(6)), Ring(leaves(7))
    for shard in range(200):
        assert [leaf for leaf in after.order(shard) if leaf != "leaf-6"] == list(before.order(shard))


def test_another_seed_is_another_ring() -> None:
    assert [Ring(leaves(5), 1).order(n) for n in range(20)] != [Ring(leaves(5), 2).order(n) for n in range(20)]
