"""From the protobuf messages of the public services to what the client hands back."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

from google.protobuf.message import DecodeError

from kvshard.client.results import (
    AttemptTiming,
    Collapsed,
    CollectionInfo,
    Coverage,
    Explanation,
    Facet,
    FacetValue,
    FailedShard,
    Highlight,
    Hit,
    K,
    LegProfile,
    LegTiming,
    Profile,
    ProfiledTerm,
    ReadState,
    SearchPage,
    SearchStatistics,
    SlowRead,
    Timing,
)
from kvshard.client.status import ClusterStatus, LeafStatus
from kvshard.errors import ErrorDetails, Internal, InvalidArgument, KvShardError, error_of
from kvshard.rpc.aggregation_convert import results_from_proto
from kvshard.rpc.convert import (
    cluster_map_from_proto,
    collection_from_proto,
    leaf_from_proto,
    leaf_status_from_proto,
    tail_status_from_proto,
)
from kvshard.rpc.status import record_of_failure
from kvshard.rpc.worker_convert import worker_status_from_proto
from kvshard.v1 import cluster_pb2, kv_pb2, search_pb2, types_pb2

NO_ALIASES: Mapping[str, str] = {}


def error_of_failure(failure: types_pb2.Failure) -> KvShardError:
    """The error that a failure inside an answer stands for."""
    return error_of(record_of_failure(failure))


def coverage_of(message: types_pb2.Coverage) -> Coverage:
    """How much answered."""
    failed = (
        FailedShard(row.shard, error_of(record_of_failure(row.failure, tuple(row.replicas_tried)))) for row in message.failed
    )
    return Coverage(
        message.complete,
        message.documents_considered,
        message.documents_total,
        message.fraction,
        message.legs,
        message.legs_ok,
        tuple(failed),
    )


def add_coverage(first: Coverage, second: Coverage) -> Coverage:
    """Coverage of a batch that was cut in two. Its documents are counted as in the part that covers less of them.

    A shard asked for both parts must not count twice, so they cannot be added; of two whole parts the larger view counts.
    """
    least = min(first, second, key=lambda coverage: (coverage.fraction, -coverage.documents_total))
    return Coverage(
        complete=first.complete and second.complete,
        documents_considered=least.documents_considered,
        documents_total=least.documents_total,
        fraction=least.fraction,
        legs=first.legs + second.legs,
        legs_ok=first.legs_ok + second.legs_ok,
        failed=first.failed + second.failed,
    )


def timing_of(message: Any) -> Timing | None:
    """Where the time of an answer went, if the answer says it."""
    if not message.HasField("timing"):
        return None
    return _timing(cast(types_pb2.Timing, message.timing))


def _timing(timing: types_pb2.Timing) -> Timing:
    legs = tuple(map(_leg, timing.legs))
    return Timing(legs, timing.total_us, timing.merge_us, timing.straggler_shard, timing.legs_omitted, timing.before_us)


def _leg(leg: types_pb2.LegTiming) -> LegTiming:
    return LegTiming(
        leg.shard,
        leg.leaf,
        leg.attempts,
        leg.total_us,
        leg.queue_us,
        leg.service_us,
        leg.network_us,
        tuple(AttemptTiming(each.leaf, each.kind, each.began_us, each.ended_us, each.outcome) for each in leg.tries),
        tuple(leg.refused),
    )


def add_timing(first: Timing | None, second: Timing | None) -> Timing | None:
    """Timing of a batch that was cut in two, sent one after the other. The straggler is that of the slower part."""
    if first is None or second is None:
        return first or second
    slower = max(first, second, key=lambda timing: timing.total_us)
    return Timing(
        legs=first.legs + second.legs,
        total_us=first.total_us + second.total_us,
        merge_us=first.merge_us + second.merge_us,
        straggler_shard=slower.straggler_shard,
        legs_omitted=first.legs_omitted + second.legs_omitted,
        before_us=first.before_us + second.before_us,
    )


def slow_read_of(message: cluster_pb2.SlowRead) -> SlowRead:
    """A read of the slow log."""
    timing = _timing(message.timing)
    return SlowRead(message.at_ms, message.method, message.collection, message.detail, message.code, timing, message.worker)


def state_of(message: types_pb2.ReadState) -> ReadState:
    """Which state of a shard an answer shows."""
    return ReadState(message.shard, message.seqno, message.age_ms if message.HasField("age_ms") else None)


def read_rest(rest: bytes) -> kv_pb2.BatchGetResponse:
    """What an answer to a read of keys says beside its columns. Raises Internal when that is none."""
    try:
        return kv_pb2.BatchGetResponse.FromString(rest)
    except DecodeError as error:
        raise Internal(f"the rest of an answer is no BatchGetResponse: {error}") from None


def read_failures(rest: bytes) -> dict[int, KvShardError]:
    """The keys of a read that failed, by index, ascending."""
    return failures_of(read_rest(rest).failures) if rest else {}


def write_rest(rest: bytes) -> tuple[dict[int, KvShardError], bytes, bytes]:
    """What an answer to a write of keys says beside its columns: failures, as of a read, the watermarks and the token."""
    if not rest:
        return {}, b"", b""
    try:
        response = kv_pb2.BatchWriteResponse.FromString(rest)
    except DecodeError as error:
        raise Internal(f"the rest of an answer is no BatchWriteResponse: {error}") from None
    return failures_of(response.failures), response.watermarks, response.written


def failures_of(failures: Iterable[types_pb2.KeyFailure]) -> dict[int, KvShardError]:
    """The errors of single keys, by index, ascending."""
    return {failure.index: error_of_failure(failure.failure) for failure in sorted(failures, key=lambda each: each.index)}


def _explanation(message: search_pb2.Explanation) -> Explanation:
    return Explanation(message.value, message.description, tuple(map(_explanation, message.details)))


def _profile(message: search_pb2.Profile) -> Profile:
    legs = (
        LegProfile(
            leg.shard,
            leg.leaf,
            tuple(ProfiledTerm(each.field, each.term, each.documents) for each in leg.terms),
            {each.name: each.took_us for each in leg.phases},
            leg.indexed_through,
            leg.segments,
            leg.documents,
            leg.matches,
            leg.hits,
            leg.collection,
        )
        for leg in message.legs
    )
    return Profile(tuple(legs), _timing(message.timing))


_STATISTICS_KINDS = {
    search_pb2.SearchStatistics.KIND_EXACT: "exact",
    search_pb2.SearchStatistics.KIND_CACHED: "cached",
    search_pb2.SearchStatistics.KIND_LOCAL: "local",
}

_STATISTICS_CHOICES = {
    "exact": search_pb2.STATISTICS_CHOICE_UNSPECIFIED,
    "local": search_pb2.STATISTICS_CHOICE_LOCAL,
}


def statistics_choice(name: str) -> "search_pb2.StatisticsChoice.ValueType":
    """What the scores of a search are to rest on. Raises InvalidArgument."""
    choice = _STATISTICS_CHOICES.get(name)
    if choice is None:
        message = f"statistics is one of {', '.join(_STATISTICS_CHOICES)}, not {name[:20]!r}"
        raise InvalidArgument(message, ErrorDetails(field="statistics"))
    return choice


def _statistics_of(message: search_pb2.SearchStatistics) -> SearchStatistics:
    kind = _STATISTICS_KINDS.get(message.kind, "")
    return SearchStatistics(kind, message.age_ms, message.extra_round_trips, message.bounded_shards)


def page_of(
    response: search_pb2.SearchResponse, decode_key: Callable[[bytes], K], decode_document: Callable[[bytes], dict[str, Any]]
) -> SearchPage[K]:
    """An answer to a search."""
    hits = (
        Hit(
            decode_key(hit.key),
            hit.score,
            decode_document(hit.document) if hit.document else None,
            hit.version,
            hit.shard,
            tuple(
                Highlight(mark.field, mark.fragment, tuple(zip(mark.starts, mark.ends, strict=True))) for mark in hit.highlights
            ),
            explanation=_explanation(hit.explanation) if hit.HasField("explanation") else None,
            sort_values=tuple(_sort_value(value, decode_key) for value in hit.sort_values),
            collapsed=_collapsed(hit.collapsed) if hit.HasField("collapsed") else None,
            collection=hit.collection,
        )
        for hit in response.hits
    )
    facets = {
        facet.field: Facet(facet.field, tuple(FacetValue(row.value, row.count) for row in facet.values), facet.error_bound)
        for facet in response.facets
    }
    return SearchPage(
        list(hits),
        response.total,
        coverage_of(response.coverage),
        facets,
        response.next,
        timing_of(response),
        statistics=_statistics_of(response.statistics),
        unseen_age_ms=response.unseen_age_ms if response.HasField("unseen_age_ms") else None,
        aggregations=results_from_proto(response.aggregations),
        profile=_profile(response.profile) if response.HasField("profile") else None,
        is_total_exact=response.total_relation != search_pb2.TOTAL_RELATION_GREATER_OR_EQUAL,
    )


def _sort_value(value: search_pb2.SortValue, decode_key: Callable[[bytes], K]) -> int | float | str | bytes | None:
    kind = value.WhichOneof("value")
    if kind == "key":
        return decode_key(value.key)
    return None if kind is None else getattr(value, kind)


def _collapsed(group: search_pb2.Collapsed) -> Collapsed:
    kind = group.value.WhichOneof("value")
    value = group.value.keyword if kind == "keyword" else group.value.integer if kind == "integer" else None
    return Collapsed(value, group.count, not group.is_lower_bound)


def collection_info_of(message: cluster_pb2.Collection, aliases: Mapping[str, str] = NO_ALIASES) -> CollectionInfo:
    """A collection with its schema and its hedging settings. aliases: of all collections."""
    held = collection_from_proto(message)
    names = tuple(alias for alias, name in aliases.items() if name == held.name)
    return CollectionInfo(held.name, held.schema, held.id, held.hedging, names, held.synonyms, held.version, held.change)


def cluster_status_of(response: cluster_pb2.GetStatusResponse) -> ClusterStatus:
    """State of the whole cluster."""
    leaves = (LeafStatus(leaf_from_proto(row.leaf), leaf_status_from_proto(row), row.error) for row in response.leaves)
    tail = tail_status_from_proto(response.tail) if response.HasField("tail") else None
    workers = tuple(map(worker_status_from_proto, response.workers))
    return ClusterStatus(cluster_map_from_proto(response.map), tuple(leaves), tail, workers)
