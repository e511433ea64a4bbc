"""The cluster map, collections and leaf states as protobuf messages, and back.

Only translation lives here, field by field, for what both the router's services and the clients need.
"""

from collections.abc import Iterable, Mapping

from kvshard.clustermap import (
    ClusterMap,
    Collection,
    Hedging,
    InvalidMap,
    Leaf,
    Replica,
    SchemaChange,
    ShardConfig,
    WantedSplit,
)
from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.hashing import SLOT_BITS, TOKEN_BITS
from kvshard.model import CatchUpRecord, CollectionCountRecord, LeafStatusReply, ReplicaStatusRecord, SplitRecord
from kvshard.schema import VECTOR, analyzer_of, base_type
from kvshard.tail.status import LeafHealthStatus, LegKindStatus, TailStatus
from kvshard.v1 import cluster_pb2
from kvshard.vectors import COSINE, VectorType, parse_vector_type

_SLOT_SHIFT = TOKEN_BITS - SLOT_BITS
"""A token slot is the high bits of a token."""

_TYPE_NAMES: dict[int, str] = {
    cluster_pb2.FIELD_TYPE_TEXT: "text",
    cluster_pb2.FIELD_TYPE_KEYWORD: "keyword",
    cluster_pb2.FIELD_TYPE_INTEGER: "integer",
    cluster_pb2.FIELD_TYPE_FLOAT: "float",
    cluster_pb2.FIELD_TYPE_BOOLEAN: "boolean",
    cluster_pb2.FIELD_TYPE_DATE: "date",
    cluster_pb2.FIELD_TYPE_VECTOR: "vector",
}
_TYPE_NUMBERS = {
    "text": cluster_pb2.FIELD_TYPE_TEXT,
    "keyword": cluster_pb2.FIELD_TYPE_KEYWORD,
    "integer": cluster_pb2.FIELD_TYPE_INTEGER,
    "float": cluster_pb2.FIELD_TYPE_FLOAT,
    "boolean": cluster_pb2.FIELD_TYPE_BOOLEAN,
    "date": cluster_pb2.FIELD_TYPE_DATE,
    "vector": cluster_pb2.FIELD_TYPE_VECTOR,
}


def schema_to_proto(schema: Mapping[str, str]) -> list[cluster_pb2.SchemaField]:
    """The fields of a schema, in its order. Raises InvalidArgument for a type that does not exist."""
    fields = []
    for name, kind in schema.items():
        base = base_type(kind)
        if base not in _TYPE_NUMBERS:
            known = ", ".join(_TYPE_NUMBERS)
            raise InvalidArgument(f"field {name!r} has the unknown type {kind!r}; types are {known}", _at(f"schema.{name}"))
        field = cluster_pb2.SchemaField(name=name, type=_TYPE_NUMBERS[base])
        if base == VECTOR:
            dim, metric = parse_vector_type(kind)
            field.vector.CopyFrom(cluster_pb2.VectorType(dim=dim, metric=metric))
        elif kind != base:
            field.analyzer = analyzer_of(kind)
        fields.append(field)
    return fields


def schema_from_proto(fields: Iterable[cluster_pb2.SchemaField]) -> dict[str, str]:
    """The schema of a request. Raises InvalidArgument for a field without a type, or named twice."""
    schema: dict[str, str] = {}
    for field in fields:
        if field.type not in _TYPE_NAMES:
            raise InvalidArgument(f"field {field.name!r} has no known type", _at(f"schema.{field.name}"))
        if field.name in schema:
            raise InvalidArgument(f"field {field.name!r} stands twice in the schema", _at(f"schema.{field.name}"))
        base = _TYPE_NAMES[field.type]
        if base == VECTOR:
            schema[field.name] = VectorType(field.vector.dim, field.vector.metric or COSINE).text
        else:
            schema[field.name] = f"{base}({field.analyzer})" if field.analyzer else base
    return schema


def _at(field: str) -> ErrorDetails:
    return ErrorDetails(field=field)


def collection_to_proto(collection: Collection) -> cluster_pb2.Collection:
    """A collection."""
    return cluster_pb2.Collection(
        name=collection.name,
        id=collection.id,
        fields=schema_to_proto(collection.schema),
        hedging=None if collection.hedging == Hedging() else hedging_to_proto(collection.hedging),
        synonyms=collection.synonyms,
        schema_version=collection.version,
        change=None if collection.change is None else change_to_proto(collection.change),
        schema_versions=collection.versions,
    )


def collection_from_proto(message: cluster_pb2.Collection) -> Collection:
    """A collection."""
    return Collection(
        message.name,
        message.id,
        schema_from_proto(message.fields),
        hedging_from_proto(message.hedging),
        tuple(message.synonyms),
        version=message.schema_version or 1,  # A router of an older version knows of no changes.
        change=change_from_proto(message.change) if message.HasField("change") else None,
        versions=message.schema_versions or 1,
    )


def change_to_proto(change: SchemaChange) -> cluster_pb2.SchemaChange:
    """The schema that a collection is to get."""
    return cluster_pb2.SchemaChange(fields=schema_to_proto(change.schema), version=change.version)


def change_from_proto(message: cluster_pb2.SchemaChange) -> SchemaChange:
    """The schema that a collection is to get."""
    return SchemaChange(schema_from_proto(message.fields), message.version)


def hedging_to_proto(hedging: Hedging) -> cluster_pb2.Hedging:
    """How reads are hedged."""
    return cluster_pb2.Hedging(policy=hedging.policy, budget=hedging.budget, max_attempts=hedging.max_attempts)


def hedging_from_proto(message: cluster_pb2.Hedging) -> Hedging:
    """How reads are hedged, as it came; an absent message says nothing."""
    return Hedging(message.policy, message.budget if message.HasField("budget") else None, message.max_attempts)


def leaf_to_proto(leaf: Leaf) -> cluster_pb2.LeafEntry:
    """A leaf of the map."""
    return cluster_pb2.LeafEntry(
        id=leaf.id,
        address=leaf.address,
        zone=leaf.zone,
        weight=leaf.weight,
        is_draining=leaf.is_draining,
        is_removed=leaf.is_removed,
    )


def leaf_from_proto(message: cluster_pb2.LeafEntry) -> Leaf:
    """A leaf of the map."""
    return Leaf(message.id, message.address, message.zone, message.weight, message.is_draining, message.is_removed)


def split_to_proto(split: WantedSplit) -> cluster_pb2.WantedSplit:
    """A wanted split; its slot becomes a token."""
    return cluster_pb2.WantedSplit(child=split.child, at_token=split.at_slot << _SLOT_SHIFT)


def split_from_proto(message: cluster_pb2.WantedSplit) -> WantedSplit:
    """A wanted split."""
    return WantedSplit(message.child, message.at_token >> _SLOT_SHIFT)


def shard_to_proto(shard: ShardConfig) -> cluster_pb2.ShardEntry:
    """A shard of the map; its slots become tokens."""
    return cluster_pb2.ShardEntry(
        id=shard.id,
        first_token=shard.first_token,
        last_token=shard.last_token,
        epoch=shard.epoch,
        primary=shard.primary,
        in_sync=[_replica_to_proto(replica) for replica in shard.in_sync],
        learners=[_replica_to_proto(replica) for replica in shard.learners],
        desired=shard.desired,
        split=None if shard.split is None else split_to_proto(shard.split),
        cuts=shard.cuts,
    )


def shard_from_proto(message: cluster_pb2.ShardEntry) -> ShardConfig:
    """A shard of the map. Raises InvalidMap when its range does not begin and end with a token slot."""
    shard = ShardConfig(
        id=message.id,
        first_slot=message.first_token >> _SLOT_SHIFT,
        last_slot=message.last_token >> _SLOT_SHIFT,
        epoch=message.epoch,
        primary=message.primary,
        in_sync=tuple(Replica(replica.leaf, replica.incarnation) for replica in message.in_sync),
        learners=tuple(Replica(replica.leaf, replica.incarnation) for replica in message.learners),
        desired=tuple(message.desired),
        split=split_from_proto(message.split) if message.HasField("split") else None,
        cuts=message.cuts,
    )
    if (shard.first_token, shard.last_token) != (message.first_token, message.last_token):
        raise InvalidMap(f"shard {shard.id} begins or ends inside a token slot")
    return shard


def _replica_to_proto(replica: Replica) -> cluster_pb2.ReplicaEntry:
    return cluster_pb2.ReplicaEntry(leaf=replica.leaf, incarnation=replica.incarnation)


def cluster_map_to_proto(cluster_map: ClusterMap) -> cluster_pb2.ClusterMap:
    """The whole map, each part in the order of its id or name, so that the same map gives the same message."""
    return cluster_pb2.ClusterMap(
        version=cluster_map.version,
        seed=cluster_map.seed,
        leaves=[leaf_to_proto(leaf) for _, leaf in sorted(cluster_map.leaves.items())],
        shards=[shard_to_proto(shard) for _, shard in sorted(cluster_map.shards.items())],
        collections=[collection_to_proto(entry) for _, entry in sorted(cluster_map.collections.items())],
        replicas=cluster_map.replicas,
        aliases=aliases_to_proto(cluster_map.aliases),
    )


def aliases_to_proto(aliases: Mapping[str, str]) -> list[cluster_pb2.Alias]:
    """Aliases with their collections, by name."""
    return [cluster_pb2.Alias(alias=alias, collection=name) for alias, name in sorted(aliases.items())]


def aliases_from_proto(messages: Iterable[cluster_pb2.Alias]) -> dict[str, str]:
    """Aliases with their collections."""
    return {each.alias: each.collection for each in messages}


def cluster_map_from_proto(message: cluster_pb2.ClusterMap) -> ClusterMap:
    """The whole map. Raises InvalidMap when it is not a sound one."""
    leaves = {leaf.id: leaf_from_proto(leaf) for leaf in message.leaves}
    shards = {shard.id: shard_from_proto(shard) for shard in message.shards}
    collections = {entry.name: collection_from_proto(entry) for entry in message.collections}
    if (len(leaves), len(shards), len(collections)) != (len(message.leaves), len(message.shards), len(message.collections)):
        raise InvalidMap("a leaf, a shard or a collection stands twice in the map")
    return ClusterMap(
        message.version, message.seed, leaves, shards, collections, message.replicas, aliases_from_proto(message.aliases)
    )


def leaf_status_to_proto(leaf: Leaf, reply: LeafStatusReply | None, error: str = "") -> cluster_pb2.LeafStatus:
    """The state of a leaf: what it reported, or (reply None) why it did not."""
    status = cluster_pb2.LeafStatus(leaf=leaf_to_proto(leaf), is_up=reply is not None, error=error)
    if reply is not None:
        status.replicas.extend(_replica_status_to_proto(replica) for replica in reply.replicas)
        status.pid = reply.pid
        status.uptime_s = reply.uptime_s
        status.resident_bytes = reply.resident_bytes
        status.disk_bytes = reply.disk_bytes
        status.software_version = reply.software_version
    return status


def leaf_status_from_proto(message: cluster_pb2.LeafStatus) -> LeafStatusReply | None:
    """What a leaf reported; None when it did not answer."""
    if not message.is_up:
        return None
    return LeafStatusReply(
        leaf=message.leaf.id,
        replicas=[_replica_status_from_proto(replica) for replica in message.replicas],
        pid=message.pid,
        uptime_s=message.uptime_s,
        resident_bytes=message.resident_bytes,
        disk_bytes=message.disk_bytes,
        software_version=message.software_version,
    )


def _replica_status_to_proto(record: ReplicaStatusRecord) -> cluster_pb2.ReplicaStatus:
    return cluster_pb2.ReplicaStatus(
        shard=record.shard,
        epoch=record.epoch,
        role=record.role,
        committed=record.committed,
        applied=record.applied,
        error=record.error,
        collections=[
            cluster_pb2.CollectionCount(
                collection_id=count.collection_id,
                documents=count.documents,
                bytes=count.bytes,
                indexed_through=count.indexed_through,
                schema_version=count.schema_version,
                rebuilt=count.rebuilt,
                to_rebuild=count.to_rebuild,
                misfits=count.misfits,
            )
            for count in record.collections
        ],
        catching_up=[
            cluster_pb2.CatchUp(
                leaf=each.leaf,
                lag=each.lag,
                bytes_sent=each.bytes_sent,
                bytes_total=each.bytes_total,
                bytes_per_s=each.bytes_per_s,
            )
            for each in record.catching_up
        ],
        split=None if record.split is None else _progress_to_proto(record.split),
    )


def _progress_to_proto(record: SplitRecord) -> cluster_pb2.SplitProgress:
    return cluster_pb2.SplitProgress(
        child=record.child,
        at_token=record.at_slot << _SLOT_SHIFT,
        walked=record.walked,
        total=record.total,
        is_copied=record.is_copied,
        is_done=record.is_done,
    )


def _progress_from_proto(message: cluster_pb2.SplitProgress) -> SplitRecord:
    at_slot = message.at_token >> _SLOT_SHIFT
    return SplitRecord(message.child, at_slot, message.walked, message.total, message.is_copied, message.is_done)


def _replica_status_from_proto(message: cluster_pb2.ReplicaStatus) -> ReplicaStatusRecord:
    counts = [
        CollectionCountRecord(
            count.collection_id,
            count.documents,
            count.bytes,
            count.indexed_through,
            count.schema_version,
            count.rebuilt,
            count.to_rebuild,
            dict(sorted(count.misfits.items())),
        )
        for count in message.collections
    ]
    catching_up = [
        CatchUpRecord(each.leaf, each.lag, each.bytes_sent, each.bytes_total, each.bytes_per_s) for each in message.catching_up
    ]
    return ReplicaStatusRecord(
        message.shard,
        message.epoch,
        message.role,
        message.committed,
        message.applied,
        counts,
        message.error,
        catching_up,
        _progress_from_proto(message.split) if message.HasField("split") else None,
    )


def tail_status_to_proto(status: TailStatus) -> cluster_pb2.TailStatus:
    """What a router does against slow leaves."""
    return cluster_pb2.TailStatus(
        policy=status.policy,
        budget_max=status.budget_max,
        budget=status.budget,
        max_attempts=status.max_attempts,
        first_attempts=status.first_attempts,
        hedges=status.hedges,
        hedges_total=status.hedges_total,
        hedges_won_total=status.hedges_won_total,
        refused_total=status.refused_total,
        kinds=[
            cluster_pb2.LegKindStatus(
                kind=each.kind,
                samples=each.samples,
                latency_ms_p50=each.latency_ms_p50,
                latency_ms_p99=each.latency_ms_p99,
                delay_ms=each.delay_ms,
            )
            for each in status.kinds
        ],
        leaves=[
            cluster_pb2.LeafHealth(
                leaf=each.leaf,
                state=each.state,
                outstanding=each.outstanding,
                in_flight=each.in_flight,
                slowness=each.slowness,
                first_attempts=each.first_attempts,
            )
            for each in status.leaves
        ],
    )


def tail_status_from_proto(message: cluster_pb2.TailStatus) -> TailStatus:
    """What a router does against slow leaves; the refusals by name."""
    return TailStatus(
        policy=message.policy,
        budget_max=message.budget_max,
        budget=message.budget,
        max_attempts=message.max_attempts,
        first_attempts=message.first_attempts,
        hedges=message.hedges,
        hedges_total=message.hedges_total,
        hedges_won_total=message.hedges_won_total,
        refused_total=dict(sorted(message.refused_total.items())),
        kinds=tuple(
            LegKindStatus(each.kind, each.samples, each.latency_ms_p50, each.latency_ms_p99, each.delay_ms)
            for each in message.kinds
        ),
        leaves=tuple(
            LeafHealthStatus(each.leaf, each.state, each.outstanding, each.in_flight, each.slowness, each.first_attempts)
            for each in message.leaves
        ),
    )
