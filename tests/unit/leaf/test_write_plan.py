import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.errors import InvalidArgument
from kvshard.limits import BATCH_MAX_KEYS, KEY_MAX_BYTES, VALUE_MAX_BYTES
from kvshard.model import ABSENT, NEVER, ShardWrite
from leaf.layout import Header
from leaf.operations import WriteOperation
from leaf.pending import Latest
from leaf.write_plan import (
    EXPIRES_MAX_MS,
    WritePlan,
    check_request,
    invalid_keys,
    plan_each,
    plan_expiry,
    plan_write,
)

NOW = 1_000_000
SEQNO = 50


def request_of(items: list[tuple[bytes, bytes | None]], **columns) -> ShardWrite:
    return ShardWrite(0, 1, 9, [key for key, _ in items], [value for _, value in items], **columns)


def plan(
    items: list[tuple[bytes, bytes | None]],
    stored: dict[bytes, Header] | None = None,
    pending: dict[bytes, Latest] | None = None,
    **columns,
) -> WritePlan:
    request = request_of(items, **columns)
    headers = [(stored or {}).get(key) for key in request.keys]
    return plan_write(request, SEQNO, invalid_keys(request, None), pending or {}, headers, NOW)


def conflicts(planned: WritePlan) -> dict[int, int | None]:
    assert {record.reason for record in planned.reply.errors.values()} <= {"VERSION_CONFLICT"}
    return {index: record.details.current_version for index, record in planned.reply.errors.items()}


def test_unconditional_puts() -> None:
    planned = plan([(b"new", b"1"), (b"old", b"2"), (b"expired", b"3")], {b"old": (7, 0, 1), b"expired": (8, NOW, 1)})
    assert planned.operation == WriteOperation(9, [b"new", b"old", b"expired"], [b"1", b"2", b"3"])
    assert planned.reply.versions == [SEQNO] * 3
    assert planned.reply.existed == [False, True, False]
    assert planned.size == len(b"newoldexpired123")


def test_conditions_on_stored_keys() -> None:
    stored = {b"k": (7, 0, 1), b"e": (8, NOW - 1, 1)}
    held = plan([(b"k", b"1"), (b"x", b"1"), (b"e", b"1")], stored, conditions=[7, ABSENT, ABSENT])
    assert not held.reply.errors
    failed = plan(
        [(b"k", b"1"), (b"k", b"1"), (b"x", b"1"), (b"e", b"1"), (b"free", b"1")], stored, conditions=[6, ABSENT, 3, 8, None]
    )
    assert conflicts(failed) == {0: 7, 1: 7, 2: 0, 3: 0}
    assert failed.operation == WriteOperation(9, [b"free"], [b"1"])
    assert failed.reply.versions == [0, 0, 0, 0, SEQNO]


def test_conditions_see_entries_in_flight_and_the_reply_waits_for_them() -> None:
    pending = {b"p": Latest(40, 40, NEVER), b"d": Latest(41, ABSENT, NEVER), b"t": Latest(42, 42, NOW)}
    stored: dict[bytes, Header] = {b"d": (3, 0, 1)}
    failed = plan([(b"p", b"1"), (b"d", b"1")], stored, pending, conditions=[ABSENT, 3])
    assert conflicts(failed) == {0: 40, 1: 0}
    assert (failed.operation, failed.depends_on) == (None, 41)
    held = plan([(b"p", b"1"), (b"d", b"1"), (b"t", b"1")], stored, pending, conditions=[40, ABSENT, ABSENT])
    assert not held.reply.errors
    assert held.reply.existed == [True, False, False]


def test_keys_that_occur_twice_take_effect_in_order() -> None:
    planned = plan(
        [(b"k", b"1"), (b"k", b"2"), (b"k", None), (b"k", None), (b"k", b"3")], conditions=[ABSENT, SEQNO, SEQNO, None, ABSENT]
    )
    assert not planned.reply.errors
    assert planned.reply.versions == [SEQNO, SEQNO, SEQNO, 0, SEQNO]
    assert planned.reply.existed == [False, True, True, False, False]
    assert planned.operation == WriteOperation(9, [b"k", b"k", b"k", b"k"], [b"1", b"2", None, b"3"])


def test_deletes_of_absent_keys_are_not_logged() -> None:
    planned = plan([(b"a", None), (b"e", None)], {b"e": (8, NOW, 1)})
    assert planned.operation is None
    assert (planned.reply.versions, planned.reply.existed) == ([0, 0], [False, False])
    assert plan([(b"k", None)], {b"k": (7, NOW + 1, 1)}).reply.existed == [True]


def test_a_life_becomes_an_instant() -> None:
    planned = plan([(b"a", b"1"), (b"b", b"1"), (b"c", b"1")], ttl_ms=[5_000, 0, 2**63])
    assert planned.operation is not None
    assert planned.operation.expires_at_ms == [NOW + 5_000, NEVER, EXPIRES_MAX_MS]
    without = plan([(b"a", b"1")], ttl_ms=[0])
    assert without.operation == WriteOperation(9, [b"a"], [b"1"])


def test_what_may_never_be_written_is_refused_key_by_key() -> None:
    def validate(value: bytes) -> None:
        if value == b"bad":
            raise InvalidArgument("no")

    request = request_of(
        [(b"", b"1"), (b"k" * (KEY_MAX_BYTES + 1), b"1"), (b"v", bytes(VALUE_MAX_BYTES + 1)), (b"d", b"bad"), (b"t", b"1")],
        ttl_ms=[0, 0, 0, 0, -1],
    )
    errors = invalid_keys(request, validate)
    assert {index: (record.details.field, record.details.limit) for index, record in errors.items()} == {
        0: ("key", KEY_MAX_BYTES),
        1: ("key", KEY_MAX_BYTES),
        2: ("value", VALUE_MAX_BYTES),
        3: (None, None),
        4: ("ttl_ms", None),
    }
    planned = plan_write(request, SEQNO, errors, {}, [None] * 5, NOW)
    assert planned.operation is None
    assert planned.reply.errors == errors
    legal = request_of([(b"k" * KEY_MAX_BYTES, bytes(VALUE_MAX_BYTES)), (b"k", b"")])
    assert invalid_keys(legal, validate) == {}


def test_batches_over_the_limits_are_refused_whole() -> None:
    with pytest.raises(InvalidArgument, match=str(BATCH_MAX_KEYS)):
        check_request(request_of([(b"k", b"")] * (BATCH_MAX_KEYS + 1)))
    with pytest.raises(InvalidArgument, match="bytes"):
        check_request(request_of([(b"k", bytes(VALUE_MAX_BYTES))] * 5))
    with pytest.raises(InvalidArgument) as caught:
        check_request(request_of([(b"k", b"")], ttl_ms=[1, 2]))
    assert caught.value.details.field == "ttl_ms"
    with pytest.raises(InvalidArgument):
        check_request(ShardWrite(0, 1, 1, [b"k"], []))
    assert check_request(request_of([(b"k", b"val"), (b"d", None)])) == 5


headers = st.none() | st.tuples(st.integers(1, 40), st.sampled_from([0, NOW, NOW + 1]), st.integers(0, 9))


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=2), st.binary(max_size=3), headers)))
def test_the_short_cut_makes_the_same_plan(rows) -> None:
    request = request_of([(key, value) for key, value, _ in rows])
    stored_of: dict[bytes, Header | None] = {}
    stored = [stored_of.setdefault(key, header) for key, _, header in rows]
    assert plan_write(request, SEQNO, {}, {}, stored, NOW) == plan_each(request, SEQNO, {}, {}, stored, NOW)


def test_an_expiry_takes_away_only_what_it_was_set_with() -> None:
    due = [(b"due", 10), (b"renewed", 10), (b"gone", 10), (b"busy", 10)]
    stored: list[Header | None] = [(1, 10, 1), (2, 20, 1), None, (3, 10, 1)]
    assert plan_expiry(due, {b"busy": Latest(40, 40, NEVER)}, stored) == ([b"due"], [1, 2])


LIMITS = st.sampled_from([b"", b"k", b"k" * KEY_MAX_BYTES, b"k" * (KEY_MAX_BYTES + 1)])
SIZES = st.sampled_from([None, b"", b"v", bytes(VALUE_MAX_BYTES), bytes(VALUE_MAX_BYTES + 1)])


@given(st.lists(st.tuples(LIMITS, SIZES, st.sampled_from([0, 5, -1])), max_size=4), st.booleans())
def test_the_quick_look_at_the_limits_sees_what_the_long_one_sees(items, has_ttls: bool) -> None:
    ttls = [ttl for _, _, ttl in items] if has_ttls else []
    request = request_of([(key, value) for key, value, _ in items], ttl_ms=ttls)
    assert invalid_keys(request, None) == invalid_keys(request, lambda value: None)
