"""How far a change of a schema is: the leaves are asked once a second, whoever waits."""

from dataclasses import replace

from fakes.clock import ManualClock
from fakes.leaf_client import ANY_LEAF, FakeLeafClient
from fakes.map_source import cluster_map

from kvshard.clustermap import Collection, SchemaChange
from kvshard.errors import Unavailable
from kvshard.model import CollectionCountRecord, LeafStatusReply, LeafStatusRequest, ReplicaStatusRecord
from router.indexing_progress import KEPT_S, IndexingProgress

DOCS = Collection("docs", 7, {"title": "text"}, change=SchemaChange({"title": "text", "n": "integer"}, 2))


def status(rebuilt: int) -> LeafStatusReply:
    counts = [CollectionCountRecord(DOCS.id, 100, 0, 0, 1, rebuilt, 100)]
    return LeafStatusReply("leaf-1", [ReplicaStatusRecord(0, 1, "primary", 1, 1, counts)], 1, 1.0, 1, 1, "x")


async def test_leaves_are_asked_once_in_a_while() -> None:
    leaves, clock, held = FakeLeafClient(), ManualClock(), cluster_map(shards=1, leaves=1)
    progress = IndexingProgress(leaves, clock)
    leaves.on("leaf-1", LeafStatusRequest, status(40))
    assert [await progress.of(held, DOCS) for _ in range(3)] == [0.4] * 3
    assert len(leaves.calls) == 1
    leaves.on("leaf-1", LeafStatusRequest, status(70))
    clock.advance(KEPT_S)
    assert await progress.of(held, DOCS) == 0.7
    assert await progress.of(held, replace(DOCS, change=None)) is None


async def test_of_leaves_that_do_not_answer_nothing_is_known() -> None:
    leaves = FakeLeafClient()
    leaves.on(ANY_LEAF, LeafStatusRequest, Unavailable("gone"))
    assert await IndexingProgress(leaves, ManualClock()).of(cluster_map(shards=1, leaves=1), DOCS) is None
