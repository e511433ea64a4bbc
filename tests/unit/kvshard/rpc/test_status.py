from typing import Any

import grpc
import grpc.aio
import pytest
from google.rpc import error_details_pb2, status_pb2

from kvshard.errors import (
    Cancelled,
    DeadlineExceeded,
    ErrorDetails,
    ErrorRecord,
    Internal,
    InvalidArgument,
    KvShardError,
    ResourceExhausted,
    StaleEpoch,
    Unavailable,
    VersionConflict,
)
from kvshard.rpc.status import DETAILS_KEY, abort, error_from_rpc, failure_of, record_of_failure, status_of

FULL = ErrorDetails(
    field="documents.year",
    limit=10,
    position=0,
    current_version=0,
    maybe_applied=True,
    shards=(0, 4_095),
    replicas_tried=("leaf-1", "leaf-2"),
    retry_after_ms=1_500,
    committed=2**40,
)


def classes(base: type[KvShardError] = KvShardError) -> list[type[KvShardError]]:
    """The errors that travel; a module's own refinement of one of them arrives as that one."""
    found = [cls for direct in base.__subclasses__() for cls in (direct, *classes(direct))]
    return [cls for cls in found if cls.__module__ == "kvshard.errors"]


class FakeContext:
    """Records what a call was ended with."""

    def __init__(self) -> None:
        self.ended_with: tuple[grpc.StatusCode, str, tuple[Any, ...]] | None = None

    async def abort(self, code: grpc.StatusCode, details: str, trailing_metadata: tuple[Any, ...]) -> None:
        self.ended_with = (code, details, trailing_metadata)
        raise grpc.aio.AbortError

    def rpc_error(self) -> grpc.aio.AioRpcError:
        assert self.ended_with is not None
        code, details, trailers = self.ended_with
        return rpc_error(code, details, trailers)

    def __repr__(self) -> str:
        return f"FakeContext({self.ended_with})"


def rpc_error(code: grpc.StatusCode, details: str = "", trailers: tuple[Any, ...] = ()) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, grpc.aio.Metadata(), grpc.aio.Metadata(*trailers), details)


async def through_the_wire(error: KvShardError) -> KvShardError:
    context: Any = FakeContext()
    with pytest.raises(grpc.aio.AbortError):
        await abort(context, error)
    return error_from_rpc(context.rpc_error())


@pytest.mark.parametrize("details", [ErrorDetails(), FULL], ids=["empty", "full"])
@pytest.mark.parametrize("cls", classes(), ids=lambda cls: cls.__name__)
async def test_every_error_survives_the_wire(cls: type[KvShardError], details: ErrorDetails) -> None:
    error = cls("leaf-1 is däad", details)
    arrived = await through_the_wire(error)
    assert (type(arrived), arrived.reason, arrived.message, arrived.details) == (cls, cls.reason, error.message, details)


async def test_the_status_is_the_canonical_one() -> None:
    context: Any = FakeContext()
    with pytest.raises(grpc.aio.AbortError):
        await abort(context, VersionConflict("changed meanwhile"))
    assert context.ended_with[0] is grpc.StatusCode.ABORTED
    assert context.ended_with[1] == "changed meanwhile"


def test_any_client_finds_the_standard_details() -> None:
    status = status_of(InvalidArgument("too long", FULL))
    info, bad, retry = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest(), error_details_pb2.RetryInfo()
    found = [any(detail.Unpack(message) for detail in status.details) for message in (info, bad, retry)]
    assert found == [True, True, True]
    assert (info.reason, info.domain) == ("INVALID_ARGUMENT", "kvshard")
    assert [violation.field for violation in bad.field_violations] == ["documents.year"]
    assert retry.retry_delay.ToMilliseconds() == 1_500


async def test_a_huge_error_stays_small_on_the_wire() -> None:
    huge = Unavailable("ü" * 100_000, ErrorDetails(field="f", shards=tuple(range(4_096)), replicas_tried=("leaf",) * 1_000))
    packed = status_of(huge).SerializeToString()
    assert len(packed) * 4 / 3 + 768 * 3 < 8_192
    arrived = await through_the_wire(huge)
    assert arrived.message == "ü" * 384
    assert arrived.details.shards == tuple(range(256))


@pytest.mark.parametrize(
    ("code", "cls"),
    [
        (grpc.StatusCode.UNAVAILABLE, Unavailable),
        (grpc.StatusCode.DEADLINE_EXCEEDED, DeadlineExceeded),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, ResourceExhausted),
        (grpc.StatusCode.CANCELLED, Cancelled),
        (grpc.StatusCode.UNKNOWN, Internal),
        (grpc.StatusCode.INTERNAL, Internal),
    ],
)
def test_errors_of_grpc_itself(code: grpc.StatusCode, cls: type[KvShardError]) -> None:
    error = error_from_rpc(rpc_error(code, "failed to connect"))
    assert type(error) is cls
    assert error.message == "failed to connect"
    assert not error.details.maybe_applied
    assert error_from_rpc(rpc_error(code), is_write=True).details.maybe_applied


@pytest.mark.parametrize("code", list(grpc.StatusCode))
def test_every_code_has_a_meaning(code: grpc.StatusCode) -> None:
    assert error_from_rpc(rpc_error(code)).message == code.name.lower().replace("_", " ")


def test_a_refused_write_was_not_applied() -> None:
    error = error_from_rpc(rpc_error(grpc.StatusCode.UNIMPLEMENTED, "no such method"), is_write=True)
    assert not error.details.maybe_applied


async def test_our_details_decide_whether_a_write_was_applied() -> None:
    context: Any = FakeContext()
    with pytest.raises(grpc.aio.AbortError):
        await abort(context, Unavailable("not sent"))
    assert not error_from_rpc(context.rpc_error(), is_write=True).details.maybe_applied


@pytest.mark.parametrize(
    "packed",
    [
        b"\xff\xff garbage",
        b"",
        status_pb2.Status(code=14, message="of another service").SerializeToString(),
        status_of(StaleEpoch("x")).SerializeToString().replace(b"\x07kvshard", b"\x07another"),
    ],
)
def test_details_that_are_not_ours_are_passed_over(packed: bytes) -> None:
    error = error_from_rpc(rpc_error(grpc.StatusCode.UNAVAILABLE, "down", ((DETAILS_KEY, packed),)))
    assert repr(error) == "Unavailable('down')"


def test_a_reason_of_a_newer_version_is_internal_with_its_text() -> None:
    record = ErrorRecord("QUOTA_EXCEEDED", "too much")
    failure = failure_of(record)
    assert failure.code == 13
    assert record_of_failure(failure) == record


def test_failures_round_trip_but_for_the_replicas() -> None:
    record = ErrorRecord("VERSION_CONFLICT", "no", FULL)
    assert record_of_failure(failure_of(record), FULL.replicas_tried) == record
    assert record_of_failure(failure_of(ErrorRecord("UNAVAILABLE", ""))) == ErrorRecord("UNAVAILABLE", "")
