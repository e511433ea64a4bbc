import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.errors import DataLoss, ErrorDetails, ErrorRecord, InvalidArgument, VersionConflict, record_of
from kvshard.model import ShardWriteReply
from leaf.write_result import DETAILS_MAX_BYTES, NOT_KEPT, decode_part, decode_result, encode_result

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


def test_a_part_of_a_write_is_known_by_its_positions() -> None:
    positions, total = [1, 4, 9], 10
    reply = ShardWriteReply([SEQNO, 0, SEQNO], [True, False, False], {1: conflict(3)}, SEQNO)
    data = encode_result(reply, positions, total)
    assert decode_part(data, SEQNO, positions, total) == (reply, [])
    found, unknown = decode_part(data, SEQNO, [9, 2, 4], total)
    assert (found.versions, found.errors, unknown) == ([SEQNO, 0, 0], {2: conflict(3)}, [1])
    assert decode_part(data, SEQNO, [0, 3], total)[1] == [0, 1]
    with pytest.raises(InvalidArgument, match="10 keys instead of 3"):
        decode_result(data, SEQNO, 3)


def test_a_part_can_be_taken_out_of_a_whole_write() -> None:
    data = encode_result(ShardWriteReply([SEQNO, 0, SEQNO], [True, False, False], {1: conflict(3)}, SEQNO))
    found, unknown = decode_part(data, SEQNO, [1, 2], 3)
    assert (found.versions, found.existed, found.errors, unknown) == ([0, SEQNO], [False, False], {0: conflict(3)}, [])


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_part_of_any_part_is_told_or_unknown(data) -> None:
    total = data.draw(st.integers(1, 20))
    places = st.lists(st.integers(0, total - 1), min_size=1, unique=True).map(sorted)
    came, asked = data.draw(places), data.draw(places)
    done = [data.draw(st.booleans()) for _ in came]
    failed = {index: conflict(index) for index, is_done in enumerate(done) if not is_done}
    reply = ShardWriteReply([SEQNO if each else 0 for each in done], done, failed, SEQNO)
    found, unknown = decode_part(encode_result(reply, came, total), SEQNO, asked, total)
    assert [asked[index] for index in unknown] == [place for place in asked if place not in came]
    for index, place in enumerate(asked):
        if place in came:
            at = came.index(place)
            assert (found.versions[index], found.existed[index]) == (reply.versions[at], reply.existed[at])
            assert found.errors.get(index) == reply.errors.get(at)


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20), st.data())
@settings(max_examples=60, deadline=None)
def test_parts_come_back_by_their_positions(keys: list[tuple[bool, bool]], data: st.DataObject) -> None:
    total = data.draw(st.integers(len(keys), 40))
    positions = data.draw(st.lists(st.integers(0, total - 1), min_size=len(keys), max_size=len(keys), unique=True))
    reply = ShardWriteReply([SEQNO if done else 0 for done, _ in keys], [existed for _, existed in keys], {}, SEQNO)
    found, unknown = decode_part(encode_result(reply, positions, total), SEQNO, range(total), total)
    assert sorted(unknown) == sorted(set(range(total)) - set(positions))
    assert [found.versions[place] for place in positions] == reply.versions
    assert [found.existed[place] for place in positions] == reply.existed


def test_the_form_of_a_result_does_not_change() -> None:
    """Other versions of this program read it, and it is part of the state that replicas are compared by."""
    reply = ShardWriteReply([SEQNO, 0, SEQNO], [False, True, True])
    assert encode_result(reply) == b"\0\0\0\x03\0" + bytes((0b01100000, 0b10100000))
    parts = bytes((0b00010000, 0b01000001)), bytes((0b00010000, 0b01000000)), bytes((0b00000000, 0b01000001))
    assert encode_result(reply, [15, 3, 9], 16) == b"\0\0\0\x10\x80" + parts[0] + parts[1] + parts[2]
