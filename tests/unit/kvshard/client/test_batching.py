"""Which reads share a frame: of one kind, in order, spread over the free places, bounded in keys and bytes."""

import math

import pytest

from kvshard.client.batch_window import BUCKET_FRAMES, GAP_S, IN_FLIGHT_FEW, LATE_S, bucket_of
from kvshard.client.batching import (
    COLLECTIONS_MEASURED,
    COMPACT_AFTER,
    FRAME_BYTES_MAX,
    FRAME_KEYS_MAX,
    FRAME_KEYS_SPREAD,
    REFUSED_RETRY_MS,
    ReadBatching,
    ReadFrame,
)
from kvshard.errors import ResourceExhausted


class Call:
    """A caller. gone: it has its outcome, or does not want it any more."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.gone = False

    def __repr__(self) -> str:
        return f"Call({self.name})"

    def done(self) -> bool:
        return self.gone


def add(batching: ReadBatching, count: int, prefix: str = "k", collection: str = "c", options: bytes = b"") -> list[Call]:
    calls = [Call(f"{prefix}{number}") for number in range(count)]
    for call in calls:
        batching.add(collection, options, call.name.encode(), call, 10.0)
    return calls


def sizes(frames: list[ReadFrame]) -> list[int]:
    return [len(frame.keys) for frame in frames]


def test_calls_of_one_kind_share_a_frame_in_order() -> None:
    batching = ReadBatching()
    calls = add(batching, 3)
    (frame,) = batching.take(0.0)
    assert frame.keys == [b"k0", b"k1", b"k2"]
    assert frame.callers == calls
    assert frame.deadline == 10.0
    assert batching.take(0.0) == []
    request = frame.request()
    assert (request.collection, request.keys, request.options, request.is_each_alone) == ("c", frame.keys, b"", True)


def test_other_options_or_collections_have_frames_of_their_own() -> None:
    batching = ReadBatching()
    for collection, options in (("a", b""), ("b", b""), ("a", b"o"), ("a", b"")):
        add(batching, 1, collection=collection, options=options)
    frames = batching.take(0.0)
    assert [(frame.collection, frame.options, len(frame.keys)) for frame in frames] == [
        ("a", b"", 2),
        ("b", b"", 1),
        ("a", b"o", 1),
    ]


def test_while_no_place_is_free_calls_gather_and_one_place_takes_them_all() -> None:
    batching = ReadBatching()
    for _ in range(IN_FLIGHT_FEW):
        add(batching, 1)
        assert batching.may_send(0.0)
        assert sizes(batching.take(0.0)) == [1]
    add(batching, 300)
    assert not batching.may_send(0.0)
    assert batching.take(0.0) == []
    assert batching.has_backlog
    batching.answered(next(iter(batching.frames)))
    assert batching.may_send(0.0)
    assert sizes(batching.take(0.0)) == [300]


def test_many_calls_at_once_are_spread_over_the_places() -> None:
    batching = ReadBatching()
    add(batching, 2 * FRAME_KEYS_SPREAD)
    assert sizes(batching.take(0.0)) == [FRAME_KEYS_SPREAD] * 2
    batching = ReadBatching()
    add(batching, 2_000)
    assert sizes(batching.take(0.0)) == [500] * 4


def test_a_frame_has_an_upper_bound_and_what_is_left_waits() -> None:
    batching = ReadBatching()
    add(batching, IN_FLIGHT_FEW * FRAME_KEYS_MAX + 1)
    assert sizes(batching.take(0.0)) == [FRAME_KEYS_MAX] * IN_FLIGHT_FEW
    assert batching.waiting == 1


def test_queues_take_turns() -> None:
    batching = ReadBatching()
    add(batching, 3 * FRAME_KEYS_MAX, collection="greedy")
    add(batching, 1, collection="modest")
    frames = batching.take(0.0)
    assert [frame.collection for frame in frames] == ["greedy", "modest", "greedy", "greedy"]


@pytest.mark.parametrize(("value_bytes", "keys"), [(100, FRAME_KEYS_MAX), (1 << 16, 64), (8 << 20, 1)])
def test_large_values_make_small_frames(value_bytes: int, keys: int) -> None:
    batching = ReadBatching()
    batching.learn("c", [bytes(value_bytes)] * 2)
    add(batching, 4 * FRAME_KEYS_MAX)
    assert sizes(batching.take(0.0)) == [min(keys, FRAME_KEYS_MAX)] * IN_FLIGHT_FEW
    assert keys * value_bytes <= max(FRAME_BYTES_MAX, value_bytes)


def test_the_memory_of_sizes_is_bounded_and_follows_what_comes() -> None:
    batching = ReadBatching()
    for number in range(COLLECTIONS_MEASURED + 1):
        batching.learn(f"c{number}", [bytes(1 << 20)])
    batching.learn("c", [bytes(1 << 20)])
    for _ in range(30):
        batching.learn("c", [b"small", None])
    batching.learn("c", [])
    add(batching, FRAME_KEYS_MAX * IN_FLIGHT_FEW)
    assert sizes(batching.take(0.0)) == [FRAME_KEYS_MAX] * IN_FLIGHT_FEW


def test_who_gave_up_before_the_sending_is_not_asked_for() -> None:
    batching = ReadBatching()
    calls = add(batching, 3)
    calls[1].gone = True
    assert batching.forget(calls[1]) is None
    assert batching.take(0.0)[0].callers == [calls[0], calls[2]]
    only = add(batching, 1)
    only[0].gone = True
    batching.forget(only[0])
    assert batching.take(0.0) == []
    assert not batching.has_backlog


def test_many_who_give_up_while_they_wait_are_cleared_away() -> None:
    batching = ReadBatching()
    for _ in range(IN_FLIGHT_FEW):
        add(batching, 1)
        batching.take(0.0)
    for call in add(batching, COMPACT_AFTER):
        call.gone = True
        batching.forget(call)
    assert batching.waiting == 0


def test_a_frame_that_nobody_waits_for_is_given_back() -> None:
    batching = ReadBatching()
    first, second = add(batching, 2)
    (frame,) = batching.take(0.0)
    first.gone = True
    assert batching.forget(first) is None
    second.gone = True
    assert batching.forget(second) is frame
    batching.end(frame)
    assert len(batching.window) == 0
    assert not batching.frames


def test_what_is_kept_of_a_frame() -> None:
    batching = ReadBatching()
    calls = add(batching, 4)
    (frame,) = batching.take(0.0)
    assert frame.has(calls[0])
    calls[3].gone = True
    batching.keep(frame, [1, 3])
    assert (frame.keys, frame.callers, frame.live) == ([b"k1", b"k3"], [calls[1], calls[3]], 1)
    assert not frame.has(calls[0])


def test_each_caller_has_a_deadline_of_its_own() -> None:
    batching = ReadBatching()
    early, late, waiting = Call("early"), Call("late"), Call("waiting")
    batching.add("c", b"", b"1", early, 1.0)
    batching.add("c", b"", b"2", late, 3.0)
    assert batching.next_deadline == 1.0
    (frame,) = batching.take(0.0)
    assert frame.deadline == 3.0
    batching.add("c", b"", b"3", waiting, 2.0)
    assert batching.expire(0.5) == []
    assert batching.next_deadline == 1.0
    assert batching.expire(1.0) == [(early, frame, 0)]
    early.gone = True
    assert (batching.next_deadline, frame.live) == (2.0, 1)
    assert batching.expire(2.5) == [(waiting, None, 0)]
    waiting.gone = True
    assert batching.take(2.5) == []
    assert batching.expire(9.0) == [(late, frame, 1)]
    assert frame.live == 0
    assert batching.next_deadline == math.inf


def test_while_a_frame_is_late_the_others_keep_to_a_bucket_and_a_silent_one_holds_up_no_other() -> None:
    batching = ReadBatching()
    for _ in range(IN_FLIGHT_FEW):
        add(batching, 1, "stuck")
        batching.take(0.0)
    calls = add(batching, 400)
    assert batching.take(0.0) == []
    assert batching.look_again_at() == GAP_S
    silent = bucket_of(b"k0")
    answered: set[object] = set()
    now = LATE_S
    while True:
        frames = batching.take(now)
        for frame in frames:
            assert {bucket_of(key) for key in frame.keys} == {frame.bucket}
            if frame.bucket != silent:
                answered.update(frame.callers)
                batching.end(frame)
        batching.window.check_invariants()
        if not frames:
            break
        now += GAP_S
    assert len(answered) == len([call for call in calls if bucket_of(call.name.encode()) != silent])


def test_what_waits_for_a_silent_bucket_is_looked_at_when_a_frame_of_it_ends() -> None:
    batching = ReadBatching()
    add(batching, 1)
    batching.take(0.0)
    held = []
    for number in range(BUCKET_FRAMES):
        add(batching, 1)
        held += batching.take(LATE_S * (number + 1))
    assert {frame.bucket for frame in held} == {bucket_of(b"k0")}
    add(batching, 1)
    assert batching.take(10.0) == []
    assert batching.look_again_at() == math.inf
    batching.end(held[0])
    assert sizes(batching.take(10.0)) == [1]


def test_an_answer_that_was_too_large_is_asked_for_by_halves() -> None:
    batching = ReadBatching()
    calls = add(batching, 5)
    (frame,) = batching.take(0.0)
    first, second = batching.split(frame, [1, 2, 4])
    assert (first.callers, second.callers) == ([calls[1], calls[2]], [calls[4]])
    assert len(batching.window) == 1
    assert list(batching.frames) == [frame, first, second]
    assert [len(half.keys) for half in batching.split(second, [0])] == [1]


def test_when_nothing_is_sent_any_more_those_who_wait_are_told() -> None:
    batching = ReadBatching()
    gone, waiting = add(batching, 2)
    gone.gone = True
    assert batching.clear() == [waiting]
    assert not batching.has_backlog


def test_a_program_that_does_not_wait_for_answers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kvshard.client.batching.CALLS_WAITING_MAX", 5)
    batching = ReadBatching()
    add(batching, 5)
    with pytest.raises(ResourceExhausted) as refused:
        add(batching, 1)
    assert (refused.value.details.limit, refused.value.details.retry_after_ms) == (5, REFUSED_RETRY_MS)
    batching.take(0.0)
    add(batching, 5)
