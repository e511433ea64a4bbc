"""The state of the cluster as `Client.status` hands it back: plain immutable data.

Pure apart from the cluster map's token hash.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvshard.clustermap import ClusterMap, Leaf
from kvshard.model import CatchUpRecord, CollectionCountRecord, LeafStatusReply, ReplicaStatusRecord, SplitRecord
from kvshard.rebalancing import Situation, is_changing
from kvshard.tail.status import TailStatus
from kvshard.workers import WorkerStatus


@dataclass(frozen=True, slots=True)
class LeafStatus:
    """State of one leaf. report: what it says about itself; None when it did not answer, and error says why."""

    leaf: Leaf
    report: LeafStatusReply | None
    error: str = ""

    @property
    def is_up(self) -> bool:
        """True when it answered."""
        return self.report is not None

    @property
    def replicas(self) -> list[ReplicaStatusRecord]:
        """Its replicas; none when it did not answer."""
        return [] if self.report is None else self.report.replicas


@dataclass(frozen=True, slots=True)
class Reindexing:
    """How far the indexes of a new schema are. Documents count once for each replica, as each has an index of its own.

    waiting_for: replicas in sync, as (shard, leaf), that have no whole index yet.
    """

    rebuilt: int
    total: int
    waiting_for: tuple[tuple[int, str], ...]

    @property
    def fraction(self) -> float:
        """Part of the documents that are in the new indexes; below 1 as long as a replica lacks its own."""
        done = self.rebuilt / self.total if self.total else 1.0
        return min(done, 0.99) if self.waiting_for else done


def reindexing(cluster_map: ClusterMap, leaves: Sequence[LeafStatus], collection_id: int, version: int) -> Reindexing:
    """What the leaves report of the indexes of a schema version."""
    by_leaf = {status.leaf.id: {replica.shard: replica for replica in status.replicas} for status in leaves}
    rebuilt = total = 0
    waiting: list[tuple[int, str]] = []
    for shard in cluster_map.shards.values():
        for member in shard.in_sync:
            replica = by_leaf.get(member.leaf, {}).get(shard.id)
            counts = replica.collections if replica is not None else ()
            count = next((each for each in counts if each.collection_id == collection_id), None)
            is_ready = replica is not None and (count is None or count.schema_version >= version)
            total += count.documents if count is not None else 0
            if is_ready:
                rebuilt += count.documents if count is not None else 0
            else:
                rebuilt += count.rebuilt if count is not None else 0
                waiting.append((shard.id, member.leaf))
    return Reindexing(min(rebuilt, total), total, tuple(waiting))


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """State of the whole cluster: the map, the leaves by id, and what the router process that answered does against slow ones.

    tail: None when the router does not say it. workers: the processes of that router, which share its port; empty when it does
    not say it.
    """

    map: ClusterMap
    leaves: tuple[LeafStatus, ...]
    tail: TailStatus | None = None
    workers: tuple[WorkerStatus, ...] = ()

    @property
    def tails(self) -> dict[str, TailStatus]:
        """What each process of the router does against slow leaves, by name; those that did not answer are missing."""
        return {each.worker: each.tail for each in self.workers if each.tail is not None}

    def primary_replica(self, shard: int) -> ReplicaStatusRecord | None:
        """What the primary of a shard reports about it; None when it did not answer."""
        primary = self.map.shards[shard].primary
        replicas = (replica for status in self.leaves if status.leaf.id == primary for replica in status.replicas)
        return next((replica for replica in replicas if replica.shard == shard), None)

    def is_changing(self, shard: int) -> bool:
        """Whether a shard is on its way to where it is wanted."""
        alive = frozenset(status.leaf.id for status in self.leaves if status.is_up)
        return is_changing(Situation(self.map, alive), self.map.shards[shard])

    def catching_up(self, shard: int) -> list[CatchUpRecord]:
        """How far the learners of a shard are; empty when its primary did not answer."""
        replica = self.primary_replica(shard)
        return [] if replica is None else replica.catching_up

    def splitting(self, shard: int) -> SplitRecord | None:
        """How far the split of a shard is, at its primary; None when there is none, or its primary did not answer."""
        replica = self.primary_replica(shard)
        return None if replica is None else replica.split

    def reindexing(self, collection_id: int) -> Reindexing | None:
        """How far the change of a collection's schema is; None when none is under way."""
        collection = self.map.collection_by_id(collection_id)
        if collection is None or collection.change is None:
            return None
        return reindexing(self.map, self.leaves, collection_id, collection.change.version)

    def misfits(self, collection_id: int) -> dict[str, int]:
        """Field -> documents that have a value there which does not fit, so that the index leaves it out; as when it was built.

        "": documents that are no JSON object.
        """
        found: Counter[str] = Counter()
        for count in self._counts(collection_id):
            found.update(count.misfits)
        return dict(found)

    def documents(self, collection_id: int | None = None) -> int:
        """Live keys of the cluster, each shard counted at its primary; of one collection where an id is given."""
        return sum(count.documents for count in self._counts(collection_id))

    def bytes(self, collection_id: int | None = None) -> int:
        """Bytes of keys and values of the cluster, each shard counted at its primary; of one collection, if an id is given."""
        return sum(count.bytes for count in self._counts(collection_id))

    def _counts(self, collection_id: int | None) -> Iterator[CollectionCountRecord]:
        for shard in self.map.shards:
            replica = self.primary_replica(shard)
            if replica is not None:
                for count in replica.collections:
                    if collection_id in (None, count.collection_id):
                        yield count
