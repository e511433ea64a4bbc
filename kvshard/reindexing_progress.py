"""How far the change of a collection's schema is, by what the leaves report of its indexes.

Pure apart from the cluster map's token hash.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kvshard.clustermap import ClusterMap
from kvshard.model import ReplicaStatusRecord


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


def reindexing(
    cluster_map: ClusterMap, replicas: Mapping[str, Sequence[ReplicaStatusRecord]], collection_id: int, version: int
) -> Reindexing:
    """What the leaves report of the indexes of a schema version. replicas: by leaf; of those that answered."""
    by_leaf = {leaf: {replica.shard: replica for replica in reported} for leaf, reported in replicas.items()}
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
