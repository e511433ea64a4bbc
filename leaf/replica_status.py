"""What a leaf reports of its replicas: their places, their contents, and how far those are who catch up from them."""

from kvshard.clustermap import ClusterMap
from kvshard.model import CatchUpRecord, CollectionCountRecord, ReplicaStatusRecord, SplitRecord
from leaf.hosting import Index
from leaf.index_report import IndexReport
from leaf.replica import Replica
from leaf.shard_store import ShardStore


def status_of(replica: Replica, store: ShardStore, index: Index, known: ClusterMap, now: float) -> ReplicaStatusRecord:
    """The state of a replica. now: monotonic seconds."""
    counts = store.state(replica.shard).counts if store.has(replica.shard) else {}
    records = []
    for collection_id, (documents, size) in sorted(counts.items()):
        collection = known.collection_by_id(collection_id)
        is_indexed = collection is not None and collection.written_schema
        found = index.report(replica.shard, collection_id) if is_indexed else IndexReport()
        indexed, version = found.indexed_through, found.schema_version
        progress = (found.rebuilt, found.to_rebuild, found.misfits)
        records.append(CollectionCountRecord(collection_id, documents, size, indexed, version, *progress))
    return ReplicaStatusRecord(
        replica.shard,
        replica.epoch,
        replica.role,
        replica.committed,
        replica.applied,
        records,
        replica.error.message if replica.error else "",
        _catching_up(replica, now),
        _split_of(replica, store),
    )


def _split_of(replica: Replica, store: ShardStore) -> SplitRecord | None:
    """The split that is under way; of several that are not cleaned up, one that is not copied, else the oldest."""
    if not store.has(replica.shard):
        return None
    state = store.state(replica.shard)
    splits, total = state.splits, sum(each.documents for each in state.counts.values())
    departed = min(splits.departed, key=lambda each: each.is_copied, default=None)
    shadow = splits.shadow if departed is None else splits.late.get(departed.part.child)
    if departed is not None:
        walked = shadow.walked if shadow is not None else total
        return SplitRecord(departed.part.child, departed.part.at_slot, walked, total, departed.is_copied, True)
    if shadow is None:
        return None
    return SplitRecord(shadow.part.child, shadow.part.at_slot, shadow.walked, total, shadow.is_complete, False)


def _catching_up(replica: Replica, now: float) -> list[CatchUpRecord]:
    if replica.machine is None:
        return []
    records = []
    for learner in replica.machine.catching_up():
        sending = replica.snapshots.get(learner.snapshot) if learner.snapshot is not None else None
        if sending is None:
            records.append(CatchUpRecord(learner.replica.leaf, learner.lag))
            continue
        rate = sending.sent_bytes / max(now - sending.began_at, 0.001)
        total = max(sending.source.total_bytes, sending.sent_bytes)
        records.append(CatchUpRecord(learner.replica.leaf, learner.lag, sending.sent_bytes, total, rate))
    return records
