"""Reads and writes of keys on the wire: options and request ids in, failures, coverage and timing out.

For the public methods, which are protobuf throughout, and for the lanes, on which the columns are msgpack and only the rest is
protobuf, encoded.
"""

from collections.abc import Sequence
from functools import lru_cache

from google.protobuf.message import DecodeError

from kvshard.errors import ErrorDetails, ErrorRecord, InvalidArgument
from kvshard.model import UNKNOWN_AGE
from kvshard.rpc.status import failure_of, failure_of_key
from kvshard.scatter.coverage import Coverage
from kvshard.scatter.gather import ReadState
from kvshard.scatter.ledger import LegTime, Timing, micros
from kvshard.scatter.requests import (
    DEFAULT_READ_POLICY,
    ReadPolicy,
    RequestIdentity,
    read_policy,
    request_identity,
    request_identity_of_part,
)
from kvshard.v1 import kv_pb2, types_pb2

CACHED_OPTIONS_MAX_BYTES = 256
"""Encoded options that are remembered with their meaning: those of any caller of this version fit in, and with 256 of them
the memory stays under 100 kB, whatever is sent."""


def policy_of(options: types_pb2.ReadOptions) -> ReadPolicy:
    """The policy that the options of a read ask for. Raises InvalidArgument."""
    return read_policy(
        consistency=options.consistency,
        hedge=options.hedge,
        replica_choice=options.replica_choice,
        min_coverage=options.min_coverage if options.HasField("min_coverage") else None,
        on_shortfall=options.on_shortfall,
        is_timing_wanted=options.explain_timing,
    )


def policy_of_encoded(options: bytes) -> ReadPolicy:
    """The same for encoded options; without any the service's defaults. Raises InvalidArgument."""
    if not options:
        return DEFAULT_READ_POLICY
    return _known_policy(options) if len(options) <= CACHED_OPTIONS_MAX_BYTES else _decoded_policy(options)


def _decoded_policy(options: bytes) -> ReadPolicy:
    try:
        return policy_of(types_pb2.ReadOptions.FromString(options))
    except DecodeError:
        raise InvalidArgument("options are no ReadOptions message", ErrorDetails(field="options")) from None


_known_policy = lru_cache(maxsize=256)(_decoded_policy)


def identity_of(id: types_pb2.RequestId, keys: int) -> RequestIdentity:
    """The request id of a write of so many keys. Raises InvalidArgument."""
    identity = request_identity(id.client, id.number, id.is_retry, id.watermarks)
    return request_identity_of_part(identity, id.positions, id.total, keys)


def identity_of_encoded(id: bytes, keys: int) -> tuple[RequestIdentity | None, bool]:
    """The same for an encoded id, and whether the caller wants watermarks. Raises InvalidArgument."""
    if not id:
        return None, False
    try:
        message = types_pb2.RequestId.FromString(id)
    except DecodeError:
        raise InvalidArgument("request_id is no RequestId message", ErrorDetails(field="request_id")) from None
    return identity_of(message, keys), message.wants_watermarks


def state_to_proto(state: ReadState) -> types_pb2.ReadState:
    """Which state of a shard a read saw."""
    age_ms = None if state.age_ms == UNKNOWN_AGE else state.age_ms
    return types_pb2.ReadState(shard=state.shard, seqno=state.seqno, age_ms=age_ms)


def failures_to_proto(failures: Sequence[tuple[int, ErrorRecord]]) -> list[types_pb2.KeyFailure]:
    """Why keys of a batch failed, by their indices."""
    # The keys of a silent shard share one record, and there may be 10,000 of them.
    messages: dict[int, types_pb2.Failure] = {}
    return [
        types_pb2.KeyFailure(
            index=index, failure=messages.get(id(record)) or messages.setdefault(id(record), failure_of_key(record))
        )
        for index, record in failures
    ]


def coverage_to_proto(coverage: Coverage) -> types_pb2.Coverage:
    """How much of what was asked did answer."""
    return types_pb2.Coverage(
        complete=coverage.is_complete,
        documents_considered=coverage.documents_considered,
        documents_total=coverage.documents_total,
        fraction=coverage.fraction,
        legs=coverage.legs,
        legs_ok=coverage.legs_ok,
        failed=[
            types_pb2.FailedShard(shard=leg.shard, failure=failure_of(leg.error), replicas_tried=leg.replicas_tried)
            for leg in coverage.failed
        ],
    )


def timing_to_proto(timing: Timing) -> types_pb2.Timing:
    """Where the time of an answer went."""
    return types_pb2.Timing(
        legs=map(_leg_to_proto, timing.legs),
        total_us=timing.total_us,
        merge_us=timing.merge_us,
        straggler_shard=timing.straggler_shard or 0,
        legs_omitted=timing.legs_omitted,
        before_us=timing.before_us,
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


def rest_of_read(
    failures: Sequence[tuple[int, ErrorRecord]],
    coverage: Coverage | None = None,
    timing: Timing | None = None,
    states: Sequence[ReadState] = (),
) -> bytes:
    """What a `KeysReadReply` says beside its columns: an encoded BatchGetResponse; empty when there is nothing to say."""
    if not failures and not states and timing is None:
        if coverage is None:
            return b""
        if not coverage.failed:
            return _rest_of_whole(coverage)
    return kv_pb2.BatchGetResponse(
        failures=failures_to_proto(failures),
        coverage=None if coverage is None else coverage_to_proto(coverage),
        timing=None if timing is None else timing_to_proto(timing),
        states=map(state_to_proto, states),
    ).SerializeToString()


@lru_cache(maxsize=256)
def _rest_of_whole(coverage: Coverage) -> bytes:
    """The rest of an answer from all legs: as long as no document comes or goes, the same one again and again."""
    return kv_pb2.BatchGetResponse(coverage=coverage_to_proto(coverage)).SerializeToString()


def rest_of_write(failures: Sequence[tuple[int, ErrorRecord]], watermarks: bytes = b"", written: bytes = b"") -> bytes:
    """What a `KeysWriteReply` says beside its columns: an encoded BatchWriteResponse; empty when there is nothing to say."""
    if not failures and not watermarks and not written:
        return b""
    rest = kv_pb2.BatchWriteResponse(failures=failures_to_proto(failures), watermarks=watermarks, written=written)
    return rest.SerializeToString()
