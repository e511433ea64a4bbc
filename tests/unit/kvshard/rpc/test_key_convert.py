"""Options and ids as they come encoded, and what an answer says beside its columns."""

import pytest

from kvshard.errors import ErrorRecord, InvalidArgument
from kvshard.rpc import key_convert
from kvshard.rpc.key_convert import identity_of_encoded, policy_of_encoded, rest_of_read, rest_of_write
from kvshard.scatter.coverage import Coverage
from kvshard.scatter.gather import ReadState
from kvshard.scatter.requests import DEFAULT_READ_POLICY
from kvshard.v1 import kv_pb2, types_pb2


def encoded(**options: object) -> bytes:
    return types_pb2.ReadOptions(**options).SerializeToString()


def test_no_options_are_the_defaults() -> None:
    assert policy_of_encoded(b"") is DEFAULT_READ_POLICY


def test_options() -> None:
    policy = policy_of_encoded(encoded(consistency=types_pb2.CONSISTENCY_STALE, explain_timing=True, min_coverage=0.0))
    assert (policy.is_stale, policy.is_timing_wanted, policy.min_coverage) == (True, True, 0.0)
    assert policy_of_encoded(encoded(explain_timing=True)).min_coverage == 1.0


def test_options_that_come_again_are_not_decoded_again() -> None:
    options = encoded(hedge="17ms")
    assert policy_of_encoded(options) is policy_of_encoded(bytes(bytearray(options)))


def test_what_is_remembered_is_bounded() -> None:
    """A newer caller's options, with a field that this version does not know, may be of any length."""
    unknown = encoded(hedge="17ms") + b"\xfa\x01\xac\x02" + b"x" * 300
    assert len(unknown) > key_convert.CACHED_OPTIONS_MAX_BYTES
    before = key_convert._known_policy.cache_info().currsize
    assert policy_of_encoded(unknown) == policy_of_encoded(encoded(hedge="17ms"))
    assert key_convert._known_policy.cache_info().currsize <= before + 1


@pytest.mark.parametrize("options", [b"\xff", encoded(on_shortfall=9), encoded(min_coverage=2.0), encoded(hedge="x" * 65)])
def test_wrong_options_are_refused_every_time(options: bytes) -> None:
    for _ in range(2):
        with pytest.raises(InvalidArgument):
            policy_of_encoded(options)


def test_ids() -> None:
    assert identity_of_encoded(b"", 5) == (None, False)
    id = types_pb2.RequestId(client="me", number=7, wants_watermarks=True, positions=[1, 3], total=4)
    identity, wants_watermarks = identity_of_encoded(id.SerializeToString(), 2)
    assert identity is not None
    assert (identity.client, identity.number, identity.positions, identity.total) == ("me", 7, (1, 3), 4)
    assert wants_watermarks


def test_nothing_to_say_takes_no_bytes() -> None:
    assert rest_of_read(()) == b""
    assert rest_of_write(()) == b""


def test_rests_are_the_public_messages() -> None:
    failures = [(3, ErrorRecord("UNAVAILABLE", "down"))]
    read = kv_pb2.BatchGetResponse.FromString(
        rest_of_read(failures, Coverage(True, 7, 7, 2, 2), None, [ReadState(1, 5, -1), ReadState(2, 6, 40)])
    )
    assert [(each.index, each.failure.message) for each in read.failures] == [(3, "down")]
    assert [(state.shard, state.HasField("age_ms"), state.age_ms) for state in read.states] == [(1, False, 0), (2, True, 40)]
    assert (read.coverage.complete, read.coverage.legs, read.HasField("timing")) == (True, 2, False)
    write = kv_pb2.BatchWriteResponse.FromString(rest_of_write(failures, b"marks"))
    assert (write.failures[0].failure.code, write.watermarks) == (14, b"marks")
    assert kv_pb2.BatchWriteResponse.FromString(rest_of_write((), b"marks")).watermarks == b"marks"
