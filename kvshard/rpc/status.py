"""Errors at gRPC's door: a KvShardError becomes a status with google.rpc details, and a status becomes a KvShardError.

The status carries the canonical code, the message and, in `grpc-status-details-bin`, a google.rpc.Status with ErrorInfo
(reason, domain "kvshard"), BadRequest where a field is at fault, RetryInfo where a retry may help, and `kvshard.v1.Failure`
with everything else. Any gRPC client understands the first three; ours reads the last.
"""

from typing import NoReturn

import grpc
import grpc.aio
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from kvshard.errors import (
    Cancelled,
    CollectionExists,
    CollectionNotFound,
    Compacted,
    DataLoss,
    DeadlineExceeded,
    ErrorDetails,
    ErrorRecord,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    KvShardError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
    VersionConflict,
    error_of,
    record_of,
)
from kvshard.v1 import types_pb2

DETAILS_KEY = "grpc-status-details-bin"
DOMAIN = "kvshard"

TEXT_MAX_BYTES = 768
"""Longer messages are cut on the wire: the text travels up to four times (once percent-encoded, which triples what is not
ASCII), and other gRPC clients drop a call whose trailers pass 8 KiB."""

SHARDS_MAX_LISTED = 256
"""Shards named in one error, for the same reason; whoever has more silent shards than this has lost the cluster."""

REPLICAS_MAX_LISTED = 16
"""Leaves named in one error, for the same reason."""

_BY_CODE: dict[int, type[KvShardError]] = {
    1: Cancelled,
    3: InvalidArgument,
    4: DeadlineExceeded,
    5: CollectionNotFound,
    6: CollectionExists,
    7: FailedPrecondition,
    8: ResourceExhausted,
    9: FailedPrecondition,
    10: VersionConflict,
    11: Compacted,
    12: Unimplemented,
    14: Unavailable,
    15: DataLoss,
    16: FailedPrecondition,
}
"""Meaning of a code that came without our details: from gRPC itself, or from a proxy (7 and 16: permission, credentials)."""

_NOTHING_DONE = frozenset({3, 5, 6, 7, 9, 12, 16})
"""Codes that say the request was refused; with any other one, a write without our details may have been applied."""

_STATUS_CODES = {code.value[0]: code for code in grpc.StatusCode}


def _cut(text: str) -> str:
    return text.encode()[:TEXT_MAX_BYTES].decode(errors="ignore")


def failure_of(record: ErrorRecord) -> types_pb2.Failure:
    """An error as it stands in a response. Who was asked stands beside it, in FailedShard or ErrorInfo; for a key see below."""
    details = record.details
    return types_pb2.Failure(
        code=error_of(record).grpc_code,
        reason=record.reason,
        message=_cut(record.message),
        field=details.field or "",
        limit=details.limit or 0,
        position=details.position,
        current_version=details.current_version,
        maybe_applied=details.maybe_applied,
        shards=details.shards[:SHARDS_MAX_LISTED],
        retry_after_ms=details.retry_after_ms or 0,
        committed=details.committed or 0,
    )


def failure_of_key(record: ErrorRecord) -> types_pb2.Failure:
    """The error of one key of a batch, with the leaves that were asked for it."""
    failure = failure_of(record)
    failure.replicas_tried.extend(record.details.replicas_tried[:REPLICAS_MAX_LISTED])
    return failure


def record_of_failure(failure: types_pb2.Failure, replicas_tried: tuple[str, ...] = ()) -> ErrorRecord:
    """The error that a failure in a response stands for. replicas_tried: where they stand beside it."""
    details = ErrorDetails(
        field=failure.field or None,
        limit=failure.limit or None,
        position=failure.position if failure.HasField("position") else None,
        current_version=failure.current_version if failure.HasField("current_version") else None,
        maybe_applied=failure.maybe_applied,
        shards=tuple(failure.shards),
        replicas_tried=replicas_tried or tuple(failure.replicas_tried),
        retry_after_ms=failure.retry_after_ms or None,
        committed=failure.committed or None,
    )
    return ErrorRecord(failure.reason, failure.message, details)


def status_of(error: KvShardError) -> status_pb2.Status:
    """The google.rpc.Status that describes an error."""
    details = error.details
    status = status_pb2.Status(code=error.grpc_code, message=_cut(error.message))
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    if details.replicas_tried:
        info.metadata["replicas_tried"] = ",".join(details.replicas_tried[:REPLICAS_MAX_LISTED])
    status.details.add().Pack(info)
    if details.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(field=details.field, description=status.message)
        status.details.add().Pack(error_details_pb2.BadRequest(field_violations=[violation]))
    if details.retry_after_ms is not None:
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(details.retry_after_ms)
        status.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=delay))
    status.details.add().Pack(failure_of(record_of(error)))
    return status


async def abort(context: "grpc.aio.ServicerContext[object, object]", error: KvShardError) -> NoReturn:
    """End the call with the error. Never returns: gRPC raises its AbortError, which must not be caught."""
    status = status_of(error)
    trailers = ((DETAILS_KEY, status.SerializeToString()),)
    await context.abort(_STATUS_CODES[error.grpc_code], status.message, trailing_metadata=trailers)
    raise AssertionError("abort returned")


def error_from_rpc(error: grpc.aio.AioRpcError, *, is_write: bool = False) -> KvShardError:
    """The error behind a failed call.

    is_write: the call changes data. Without our details nobody can know whether the request arrived (a refused connection looks
    like a broken one), so such an error says maybe_applied unless its code is a refusal.
    """
    known = _error_in_details(error)
    if known is not None:
        return known
    code = error.code().value[0]
    cls = _BY_CODE.get(code, Internal)
    details = ErrorDetails(maybe_applied=is_write and code not in _NOTHING_DONE)
    text = error.details() or error.code().name.lower().replace("_", " ")
    return cls(_cut(text), details)


def _error_in_details(error: grpc.aio.AioRpcError) -> KvShardError | None:
    """The error that `abort` packed; None when the status is not one of ours."""
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            return _unpacked(value)
    return None


def _unpacked(packed: bytes) -> KvShardError | None:
    status, info, failure = status_pb2.Status(), error_details_pb2.ErrorInfo(), types_pb2.Failure()
    try:
        status.ParseFromString(packed)
        for detail in status.details:
            _ = detail.Unpack(info) or detail.Unpack(failure)
    except DecodeError:
        return None
    if info.domain != DOMAIN or not failure.reason:
        return None
    replicas = info.metadata.get("replicas_tried", "")
    return error_of(record_of_failure(failure, tuple(replicas.split(",")) if replicas else ()))
