"""The state of the cluster as `Client.status` hands it back: plain immutable data.

Pure apart from the cluster map's token hash.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from kvshard.clustermap import ClusterMap, Leaf
from kvshard.model import CatchUpRecord, CollectionCountRecord, LeafStatusReply, ReplicaStatusRecord, SplitRecord
from kvshard.rebalancing import Situation, is_changing
from kvshard.reindexing_progress import Reindexing, reindexing
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
        replicas = {status.leaf.id: status.replicas for status in self.leaves}
        return reindexing(self.map, replicas, collection_id, collection.change.version)

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
