import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.errors import DataLoss, ErrorDetails, ErrorRecord, InvalidArgument, VersionConflict, record_of
from kvshard.model import ShardWriteReply
from leaf.write_result import DETAILS_MAX_BYTES, NOT_KEPT, decode_result, encode_result

SEQNO = 77


def conflict(current: int) -> ErrorRecord:
    return record_of(
        VersionConflict(f"the key must be absent, but its version is {current}", ErrorDetails(current_version=current))
    )


def test_a_plain_write_has_a_few_bytes() -> None:
    reply = ShardWriteReply([SEQNO], [True], {}, SEQNO)
    data = encode_result(reply)
    assert len(data) <= 8
    assert decode_result(data, SEQNO, 1) == reply


details = st.builds(
    ErrorDetails,
    field=st.none() | st.text(max_size=5),
    limit=st.none() | st.integers(0, 2**63),
    current_version=st.none() | st.integers(0, 9),
    maybe_applied=st.booleans(),
    shards=st.lists(st.integers(0, 9), max_size=2).map(tuple),
)
errors = st.builds(ErrorRecord, st.sampled_from(["VERSION_CONFLICT", "INVALID_ARGUMENT"]), st.text(max_size=9), details)


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.none() | errors), max_size=12))
@settings(max_examples=60, deadline=None)
def test_every_reply_comes_back(keys) -> None:
    failed = {index: error for index, (_, _, error) in enumerate(keys) if error is not None}
    reply = ShardWriteReply([SEQNO if done else 0 for done, _, _ in keys], [existed for _, existed, _ in keys], failed, SEQNO)
    assert decode_result(encode_result(reply), SEQNO, len(keys)) == reply


def test_of_very_many_failures_the_reasons_are_kept() -> None:
    count = 10_000
    failed = {index: conflict(index) for index in range(1, count, 2)}
    failed |= {index: ErrorRecord(f"REASON_{index}", "?") for index in range(0, 40, 2)}
    versions = [0 if index in failed else SEQNO for index in range(count)]
    data = encode_result(ShardWriteReply(versions, [True] * count, failed, SEQNO))
    assert len(data) < DETAILS_MAX_BYTES + 11 * count // 8
    found = decode_result(data, SEQNO, count)
    assert (found.versions, found.errors.keys()) == (versions, failed.keys())
    assert found.errors[1] == failed[1]
    assert found.errors[9_999] == ErrorRecord("VERSION_CONFLICT", NOT_KEPT)


def test_a_request_id_that_names_two_writes_is_told() -> None:
    data = encode_result(ShardWriteReply([SEQNO], [True]))
    with pytest.raises(InvalidArgument, match="1 keys instead of 2"):
        decode_result(data, SEQNO, 2)


def test_damage_is_data_loss() -> None:
    whole = encode_result(ShardWriteReply([0], [False], {0: conflict(3)}))
    for end in (*range(5), 6, 7, 12, len(whole) - 1):
        with pytest.raises(DataLoss):
            decode_result(whole[:end], SEQNO, 1)
