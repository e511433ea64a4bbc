"""Writes of one key keep their order, whatever travels beside them."""

import pytest

from kvshard.client.batch_window import BUCKETS, GAP_S, IN_FLIGHT_FEW, LATE_S, bucket_of
from kvshard.client.batching import FRAME_BYTES_MAX, FRAME_KEYS_MAX
from kvshard.client.write_batching import WriteBatching, WriteCall, WriteFrame
from kvshard.errors import ResourceExhausted


class Call:
    """A caller. gone: it has its outcome, or does not want it any more."""

    def __init__(self) -> None:
        self.gone = False

    def done(self) -> bool:
        return self.gone


def put(
    batching: WriteBatching,
    key: str,
    value: bytes | None = b"",
    *,
    refresh: bool = False,
    ttl_ms: int = 0,
    condition: int | None = None,
    collection: str = "c",
    deadline: float = 10.0,
) -> Call:
    call = Call()
    batching.add(collection, WriteCall(key.encode(), value, ttl_ms, condition, refresh, call, deadline))
    batching.check_invariants()
    return call


def take(batching: WriteBatching, now: float = 0.0) -> list[WriteFrame]:
    frames = batching.take(now)
    batching.check_invariants()
    return frames


def end(batching: WriteBatching, frame: WriteFrame) -> None:
    batching.end(frame)
    batching.check_invariants()


def shown(frames: list[WriteFrame]) -> list[list[tuple[bytes, bytes | None]]]:
    return [list(zip(frame.keys, frame.values, strict=True)) for frame in frames]


def test_writes_share_a_frame_with_their_columns() -> None:
    batching = WriteBatching()
    put(batching, "a", b"1", ttl_ms=5)
    put(batching, "b", None)
    put(batching, "c", b"", condition=0)
    (frame,) = take(batching)
    request = frame.request()
    assert (request.keys, request.values) == ([b"a", b"b", b"c"], [b"1", None, b""])
    assert (request.ttl_ms, request.conditions, request.refresh) == ([5, 0, 0], [None, None, 0], False)
    assert request.is_each_alone
    assert (list(frame.places), frame.total) == ([0, 1, 2], 3)


def test_a_column_that_nobody_uses_is_left_out() -> None:
    batching = WriteBatching()
    put(batching, "a")
    request = take(batching)[0].request()
    assert (request.ttl_ms, request.conditions) == ([], [])


def test_in_a_frame_the_order_of_the_calls_is_kept() -> None:
    batching = WriteBatching()
    put(batching, "a", b"1")
    put(batching, "b", b"2")
    put(batching, "a", b"3")
    assert shown(take(batching)) == [[(b"a", b"1"), (b"a", b"3"), (b"b", b"2")]]


def test_a_key_waits_for_its_write_in_another_frame_and_the_others_do_not() -> None:
    batching = WriteBatching()
    put(batching, "a", b"1")
    (first,) = take(batching)
    put(batching, "a", b"2")
    put(batching, "b", b"3")
    put(batching, "a", None)
    assert batching.waiting == 3
    assert shown(take(batching)) == [[(b"b", b"3")]]
    end(batching, first)
    assert shown(take(batching)) == [[(b"a", b"2"), (b"a", None)]]


def test_a_key_is_free_as_soon_as_it_is_settled_itself() -> None:
    batching = WriteBatching()
    put(batching, "a", b"1")
    put(batching, "b", b"2")
    (frame,) = take(batching)
    put(batching, "a", b"3")
    put(batching, "b", b"4")
    batching.answered(frame)
    batching.keep(frame, [1])
    batching.check_invariants()
    assert (frame.keys, frame.values, frame.places, frame.total) == ([b"b"], [b"2"], [1], 2)
    assert shown(take(batching)) == [[(b"a", b"3")]]
    end(batching, frame)
    assert shown(take(batching)) == [[(b"b", b"4")]]


def test_a_key_that_occurs_twice_is_free_when_both_are_settled() -> None:
    batching = WriteBatching()
    put(batching, "a", b"1")
    put(batching, "a", b"2")
    (frame,) = take(batching)
    put(batching, "a", b"3")
    batching.keep(frame, [1])
    assert take(batching) == []
    batching.keep(frame, [])
    assert shown(take(batching)) == [[(b"a", b"3")]]


def test_collections_do_not_wait_for_each_other() -> None:
    batching = WriteBatching()
    put(batching, "a", collection="c")
    take(batching)
    put(batching, "a", collection="d")
    assert [frame.collection for frame in take(batching)] == ["d"]


def test_who_waits_for_a_refresh_has_a_frame_of_its_own_and_keeps_the_order_all_the_same() -> None:
    batching = WriteBatching()
    put(batching, "a", b"1")
    put(batching, "a", b"2", refresh=True)
    put(batching, "b", b"3", refresh=True)
    put(batching, "a", b"4")
    plain, refreshing = take(batching)
    assert (shown([plain, refreshing]), plain.refresh, refreshing.refresh) == (
        [[(b"a", b"1")], [(b"b", b"3")]],
        False,
        True,
    )
    end(batching, plain)
    (second,) = take(batching)
    assert (shown([second]), second.refresh) == ([[(b"a", b"2")]], True)
    end(batching, second)
    assert shown(take(batching)) == [[(b"a", b"4")]]


def test_a_frame_is_bounded_in_keys_and_a_hot_key_in_one_is_cut() -> None:
    batching = WriteBatching()
    for number in range(FRAME_KEYS_MAX + 2):
        put(batching, "hot", b"%d" % number)
    put(batching, "cold")
    first, second = take(batching)
    assert first.values == [b"%d" % number for number in range(FRAME_KEYS_MAX)]
    assert second.keys == [b"cold"]
    put(batching, "hot", b"last")
    assert take(batching) == []
    end(batching, first)
    assert shown(take(batching)) == [[(b"hot", b"1000"), (b"hot", b"1001"), (b"hot", b"last")]]


def test_a_frame_is_bounded_in_bytes_but_any_value_fits_into_one_of_its_own() -> None:
    batching = WriteBatching()
    half = bytes(FRAME_BYTES_MAX // 2)
    for key, value in (("a", half), ("b", half), ("c", bytes(2 * FRAME_BYTES_MAX)), ("d", b"")):
        put(batching, key, value)
    assert [frame.keys for frame in take(batching)] == [[b"a"], [b"b"], [b"c"], [b"d"]]


def test_a_write_of_one_who_gave_up_is_not_sent_and_frees_its_key() -> None:
    batching = WriteBatching()
    put(batching, "a", b"1")
    (frame,) = take(batching)
    second, third = put(batching, "a", b"2"), put(batching, "a", b"3")
    second.gone = True
    batching.forget(second)
    end(batching, frame)
    third.gone = True
    batching.forget(third)
    put(batching, "b")
    assert [each.keys for each in take(batching)] == [[b"b"]]
    put(batching, "a", b"4")
    assert shown(take(batching)) == [[(b"a", b"4")]]


def test_one_behind_who_gave_up_frees_the_next() -> None:
    batching = WriteBatching()
    first = put(batching, "a", b"1")
    refreshing = put(batching, "a", b"2", refresh=True)
    first.gone = True
    batching.forget(first)
    (frame,) = take(batching)
    assert (frame.values, frame.refresh, frame.callers) == ([b"2"], True, [refreshing])


def test_deadlines_of_those_behind_count_too() -> None:
    batching = WriteBatching()
    first = put(batching, "a", deadline=3.0)
    (frame,) = take(batching)
    behind = put(batching, "a", deadline=1.0)
    assert batching.next_deadline == 1.0
    assert batching.expire(2.0) == [(behind, None, 0)]
    assert batching.next_deadline == 3.0
    behind.gone = True
    assert batching.expire(4.0) == [(first, frame, 0)]


def test_being_careful_keeps_the_order_too() -> None:
    batching = WriteBatching()
    stuck = []
    for number in range(IN_FLIGHT_FEW):
        put(batching, f"stuck{number}")
        stuck += take(batching)
    for number in range(100):
        put(batching, f"k{number}", b"1")
    frames, now = [], LATE_S
    while sum(len(frame.keys) for frame in frames) < 100:
        frames += take(batching, now)
        now += GAP_S
    assert {frame.bucket for frame in frames} <= set(range(BUCKETS))
    for frame in frames:
        assert {bucket_of(key) for key in frame.keys} == {frame.bucket}
    now += 1.0
    for number in range(100):
        put(batching, f"k{number}", b"2")
    assert take(batching, now) == []
    keys = sorted(frames[0].keys)
    end(batching, frames[0])
    (again,) = take(batching, now)
    assert (set(again.values), sorted(again.keys)) == ({b"2"}, keys)
    assert again.bucket == frames[0].bucket


def test_after_a_close_nothing_waits() -> None:
    batching = WriteBatching()
    put(batching, "a")
    (frame,) = take(batching)
    behind, other = put(batching, "a"), put(batching, "b")
    assert batching.clear() == [other, behind]
    end(batching, frame)
    assert batching.waiting == 0
    put(batching, "b")
    assert shown(take(batching)) == [[(b"b", b"")]]


def test_a_program_that_does_not_wait_for_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvshard.client.write_batching.CALLS_WAITING_MAX", 3)
    batching = WriteBatching()
    for key in ("a", "a", "b"):
        put(batching, key)
    for key in ("a", "c"):
        with pytest.raises(ResourceExhausted):
            put(batching, key)
    (frame,) = take(batching)
    for _ in range(3):
        put(batching, "a")
    with pytest.raises(ResourceExhausted):
        put(batching, "a")
    end(batching, frame)
    assert batching.waiting == 3
    take(batching)
    assert batching.waiting == 0
    put(batching, "a")
