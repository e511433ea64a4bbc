"""The ledger on the wire: timings, slow reads, and what a read asked for, in a few words."""

from typing import TypeAlias

from kvshard.scatter.ledger import LegTime, Timing, micros
from kvshard.v1 import cluster_pb2, kv_pb2, search_pb2, types_pb2
from router.slowlog import DETAIL_MAX_CHARS, SlowRead

ReadRequest: TypeAlias = kv_pb2.GetRequest | kv_pb2.BatchGetRequest | kv_pb2.ScanRequest | search_pb2.SearchRequest


def timing_to_proto(timing: Timing) -> types_pb2.Timing:
    """Where the time of an answer went."""
    return types_pb2.Timing(
        legs=map(_leg_to_proto, timing.legs),
        total_us=timing.total_us,
        merge_us=timing.merge_us,
        straggler_shard=timing.straggler_shard or 0,
        legs_omitted=timing.legs_omitted,
    )


def _leg_to_proto(leg: LegTime) -> types_pb2.LegTiming:
    tries = [
        types_pb2.AttemptTiming(
            leaf=each.leaf,
            kind=each.kind.value,
            began_us=micros(each.began_s),
            ended_us=micros(each.ended_s),
            outcome=each.outcome,
        )
        for each in leg.tries
    ]
    return types_pb2.LegTiming(
        shard=leg.shard,
        leaf=leg.leaf,
        attempts=leg.attempts,
        total_us=leg.total_us,
        queue_us=leg.queue_us,
        service_us=leg.service_us,
        network_us=leg.network_us,
        tries=tries,
        refused=leg.refused,
    )


def slow_read_to_proto(read: SlowRead) -> cluster_pb2.SlowRead:
    """A read of the slow log."""
    return cluster_pb2.SlowRead(
        at_ms=read.at_ms,
        method=read.method,
        collection=read.collection,
        detail=read.detail,
        code=read.code,
        timing=timing_to_proto(read.timing),
    )


def detail_of(request: ReadRequest) -> str:
    """What a read asked for, for people; at most DETAIL_MAX_CHARS."""
    if isinstance(request, kv_pb2.GetRequest):
        text = f"key {_shown(request.key)}"
    elif isinstance(request, kv_pb2.BatchGetRequest):
        text = f"{len(request.keys):,} keys"
    elif isinstance(request, kv_pb2.ScanRequest):
        bounds = (("prefix", request.prefix), ("from", request.start), ("to", request.end))
        parts = [f"{name} {_shown(bound)}" for name, bound in bounds if bound]
        parts += [f"limit {request.limit}"] if request.limit else []
        parts += ["keys only"] if request.keys_only else []
        text = ", ".join(parts) or "all keys"
    else:
        # A megabyte of query must not be copied for two hundred characters of it.
        parts = [
            request.query[: DETAIL_MAX_CHARS + 1] or "*",
            *(f"filter {each[:DETAIL_MAX_CHARS]}" for each in request.filters[:3]),
        ]
        parts += [f"facets {', '.join(request.facets[:3])}"] if request.facets else []
        parts += [f"shards {', '.join(map(str, request.shards[:8]))}"] if request.shards else []
        text = ", ".join(parts)
    return text if len(text) <= DETAIL_MAX_CHARS else text[: DETAIL_MAX_CHARS - 1] + "…"


def _shown(key: bytes) -> str:
    return repr(key[:DETAIL_MAX_CHARS].decode("utf-8", "backslashreplace"))
