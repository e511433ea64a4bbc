"""Every error kvshard raises, with what a program needs to react to it.

One class a reason. The same class is raised in the leaf, travels as an `ErrorRecord` over a lane, becomes a gRPC status
at the router's door (`kvshard/rpc/status.py`) and is raised again by the client.

Pure: imports only the standard library.
"""

from dataclasses import dataclass, field, replace
from typing import ClassVar


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What an error is about, for programs. Absence is None or empty.

    field: request field at fault, in dotted form ("documents.year"). limit: the limit exceeded. position: 0-based character in
    the query string. current_version: the key's present version after a conflict (0: the key is absent). maybe_applied: the
    outcome of a write is unknown. shards: shards concerned. replicas_tried: leaves that were asked. retry_after_ms: when a
    retry may succeed. committed: beside EXPIRED, the seqno through which the shard has committed: whoever never sent the write
    before may send it with that as its `since`.
    """

    field: str | None = None
    limit: int | None = None
    position: int | None = None
    current_version: int | None = None
    maybe_applied: bool = False
    shards: tuple[int, ...] = ()
    replicas_tried: tuple[str, ...] = ()
    retry_after_ms: int | None = None
    committed: int | None = None


_NO_DETAILS = ErrorDetails()


class KvShardError(Exception):
    """Base of every kvshard error.

    reason: stable upper-case name, the same on the wire. grpc_code: canonical status code (google.rpc.Code).
    is_retryable: the same call may succeed later without any change.
    """

    reason: ClassVar[str] = "INTERNAL"
    grpc_code: ClassVar[int] = 13
    is_retryable: ClassVar[bool] = False

    def __init__(self, message: str, details: ErrorDetails = _NO_DETAILS) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.message!r})"


class Internal(KvShardError):
    """A defect in kvshard."""


class Cancelled(KvShardError):
    """The caller gave the call up."""

    reason = "CANCELLED"
    grpc_code = 1


class InvalidArgument(KvShardError):
    """The request itself is wrong; details.field and details.limit say where and by what measure."""

    reason = "INVALID_ARGUMENT"
    grpc_code = 3


class MalformedQuery(InvalidArgument):
    """A query string cannot be parsed; details.position points at the place."""

    reason = "MALFORMED_QUERY"


class InvalidToken(InvalidArgument):
    """A page or scan token was altered, or belongs to another request."""

    reason = "INVALID_TOKEN"


class DeadlineExceeded(KvShardError):
    """The deadline passed first. details.maybe_applied: a write may still take effect."""

    reason = "DEADLINE_EXCEEDED"
    grpc_code = 4
    is_retryable = True


class CollectionNotFound(KvShardError):
    """There is no collection of that name."""

    reason = "COLLECTION_NOT_FOUND"
    grpc_code = 5


class AliasNotFound(KvShardError):
    """There is no alias of that name."""

    reason = "ALIAS_NOT_FOUND"
    grpc_code = 5


class LeafNotFound(KvShardError):
    """The cluster has no leaf of that id."""

    reason = "LEAF_NOT_FOUND"
    grpc_code = 5


class ShardNotFound(KvShardError):
    """The cluster has no shard of that number."""

    reason = "SHARD_NOT_FOUND"
    grpc_code = 5


class CollectionExists(KvShardError):
    """A collection of that name exists with another schema."""

    reason = "COLLECTION_EXISTS"
    grpc_code = 6


class ResourceExhausted(KvShardError):
    """A bound was reached (queue, disk, answer size); details.retry_after_ms where waiting helps."""

    reason = "RESOURCE_EXHAUSTED"
    grpc_code = 8
    is_retryable = True


class FailedPrecondition(KvShardError):
    """The cluster is not in a state in which the call makes sense."""

    reason = "FAILED_PRECONDITION"
    grpc_code = 9


class Expired(KvShardError):
    """A repeated write came so late that the shard no longer knows whether it took effect; it was not done again.

    Sending it again does not help: read, and decide anew. details.maybe_applied is false where it is known never to have been
    done.
    """

    reason = "EXPIRED"
    grpc_code = 9


class VersionConflict(KvShardError):
    """The condition of a write does not hold; details.current_version is the key's present version (0: absent)."""

    reason = "VERSION_CONFLICT"
    grpc_code = 10


class ChangeConflict(KvShardError):
    """Somebody else has changed the collection or the alias, or is changing it; nothing was done. Look, and decide anew."""

    reason = "CHANGE_CONFLICT"
    grpc_code = 10


class Compacted(KvShardError):
    """The history asked for is no longer kept; start again from a fresh read."""

    reason = "COMPACTED"
    grpc_code = 11


class Unimplemented(KvShardError):
    """The other side does not know this operation."""

    reason = "UNIMPLEMENTED"
    grpc_code = 12


class Unavailable(KvShardError):
    """Shards cannot be reached or do not serve; details.shards names them. A retry may help."""

    reason = "UNAVAILABLE"
    grpc_code = 14
    is_retryable = True


class StorageFailed(Unavailable):
    """A replica stopped because its disk refused a write; it serves again after an operator mended the disk."""

    reason = "STORAGE_FAILED"
    is_retryable = False


class StaleEpoch(Unavailable):
    """The request was routed by an older or newer replica set than the leaf knows; refresh the map and ask again.

    Nothing was done. Routers handle it; clients never see it unless the deadline passes meanwhile.
    """

    reason = "STALE_EPOCH"


class NotReady(Unavailable):
    """The replica cannot serve yet (it is recovering); ask another, or later. Nothing was done."""

    reason = "NOT_READY"


class ShardMoved(Unavailable):
    """A split has given the keys, or a part of the range asked for, to another shard; refresh the map and ask that one.

    Nothing was done. Routers handle it; clients never see it unless the deadline passes meanwhile.
    """

    reason = "SHARD_MOVED"


class SchemaChanged(ShardMoved):
    """The collection has another schema now than the request was routed by; refresh the map and ask again.

    Nothing was done. Routers handle it as they handle a split; clients never see it unless the deadline passes meanwhile.
    """

    reason = "SCHEMA_CHANGED"


class DataLoss(KvShardError):
    """Stored data is damaged."""

    reason = "DATA_LOSS"
    grpc_code = 15


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """An error as data: what crosses a lane, and what stands in the place of a failed key of a batch."""

    reason: str
    message: str
    details: ErrorDetails = field(default_factory=ErrorDetails)


def _subclasses(base: type[KvShardError]) -> list[type[KvShardError]]:
    return [base, *(deep for direct in base.__subclasses__() for deep in _subclasses(direct))]


_BY_REASON = {cls.reason: cls for cls in reversed(_subclasses(KvShardError))} | {"INTERNAL": Internal}


def record_of(error: KvShardError) -> ErrorRecord:
    """The error as data."""
    return ErrorRecord(error.reason, error.message, error.details)


def error_of(record: ErrorRecord) -> KvShardError:
    """The error that a record stands for; a reason this version does not know becomes Internal, with its text."""
    cls = _BY_REASON.get(record.reason)
    if cls is None:
        return Internal(f"{record.reason}: {record.message}", record.details)
    return cls(record.message, record.details)


def in_doubt(error: KvShardError) -> KvShardError:
    """The error of a write of which an earlier sending may have taken effect: it says maybe_applied.

    Not if the shard evaluated the write and refused it: before that it makes sure that it had not been done.
    """
    if error.details.maybe_applied or isinstance(error, (InvalidArgument, VersionConflict)):
        return error
    return type(error)(error.message, replace(error.details, maybe_applied=True))
