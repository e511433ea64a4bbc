"""How far the indexes of a new schema are, from what the leaves report."""

from dataclasses import replace

from fakes.map_source import DOCS, cluster_map

from kvshard.client.status import ClusterStatus, LeafStatus
from kvshard.clustermap import ClusterMap, SchemaChange
from kvshard.model import CollectionCountRecord, LeafStatusReply, ReplicaStatusRecord

CHANGING = replace(DOCS, change=SchemaChange({**DOCS.schema, "lang": "keyword"}, 2), versions=2)


def status_of(known: ClusterMap, counts: dict[tuple[str, int], CollectionCountRecord | None]) -> ClusterStatus:
    """counts: (leaf, shard) -> what it says of docs; leaves that are not in it do not answer."""
    leaves = []
    for leaf in known.leaves.values():
        rows = [
            ReplicaStatusRecord(shard, 1, "primary", 1, 1, [] if count is None else [count])
            for (name, shard), count in counts.items()
            if name == leaf.id
        ]
        leaves.append(LeafStatus(leaf, LeafStatusReply(leaf.id, rows, 1, 1.0, 1, 1, "x") if rows else None))
    return ClusterStatus(known, tuple(leaves))


def known_map() -> ClusterMap:
    held = cluster_map(shards=2, leaves=2, replicas=2)
    return replace(held, collections={**held.collections, "docs": CHANGING})


def count(documents: int, version: int = 1, rebuilt: int = 0, misfits: dict[str, int] | None = None) -> CollectionCountRecord:
    return CollectionCountRecord(DOCS.id, documents, 0, 5, version, rebuilt, documents if rebuilt else 0, misfits or {})


def test_progress_counts_every_replica() -> None:
    ready, half = count(100, version=2), count(100, rebuilt=50)
    found = status_of(
        known_map(), {("leaf-1", 0): ready, ("leaf-2", 0): half, ("leaf-1", 1): None, ("leaf-2", 1): count(0, version=2)}
    ).reindexing(DOCS.id)
    assert found is not None
    assert (found.rebuilt, found.total, found.fraction, found.waiting_for) == (150, 200, 0.75, ((0, "leaf-2"),))


def test_a_silent_leaf_is_waited_for() -> None:
    ready = count(100, version=2)
    found = status_of(known_map(), {("leaf-1", 0): ready, ("leaf-1", 1): ready}).reindexing(DOCS.id)
    assert found is not None
    assert found.waiting_for == ((0, "leaf-2"), (1, "leaf-2"))
    assert found.fraction == 0.99, "what is not done is not shown as done"


def test_without_a_change_nothing_is_under_way() -> None:
    assert status_of(cluster_map(), {}).reindexing(DOCS.id) is None
    assert status_of(cluster_map(), {}).reindexing(99) is None


def test_misfits_are_added_up_over_the_primaries() -> None:
    counts = {("leaf-1", 0): count(3, 2, misfits={"lang": 1}), ("leaf-2", 0): count(3, 2, misfits={"lang": 1})}
    counts |= {("leaf-2", 1): count(3, 2, misfits={"lang": 2, "": 4})}
    assert status_of(known_map(), counts).misfits(DOCS.id) == {"lang": 3, "": 4}
