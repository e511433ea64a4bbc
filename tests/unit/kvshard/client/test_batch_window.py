"""When a frame may be sent: few at once, one more after a gap, and bucket by bucket while one is late."""

import math

import pytest

from kvshard.client.batch_window import (
    BUCKET_FRAMES,
    BUCKETS,
    CAREFUL_FOR_S,
    GAP_S,
    IN_FLIGHT_FEW,
    IN_FLIGHT_MOST,
    LATE_S,
    Window,
    bucket_of,
)
from kvshard.hashing import token


def sent(window: Window, count: int, now: float, bucket: int | None = None) -> list[object]:
    frames: list[object] = [object() for _ in range(count)]
    for frame in frames:
        assert window.places(bucket, now) > 0
        window.sent(frame, bucket, now)
        window.check_invariants()
    return frames


def test_a_few_are_in_flight_and_the_next_waits_for_one_of_them() -> None:
    window = Window()
    assert window.places(None, 0.0) == IN_FLIGHT_FEW
    first, *_ = sent(window, IN_FLIGHT_FEW, 0.0)
    assert window.places(None, 0.0) == 0
    window.ended(first)
    window.ended(first)
    assert window.places(None, 0.0) == 1
    assert len(window) == IN_FLIGHT_FEW - 1


def test_after_a_gap_one_more_goes_out_however_many_are_far_away() -> None:
    window = Window()
    sent(window, IN_FLIGHT_FEW, 0.0)
    assert window.look_again_at() == GAP_S
    assert window.places(None, GAP_S - 1e-6) == 0
    assert window.places(None, GAP_S) == 1
    sent(window, 1, GAP_S)
    assert window.places(None, GAP_S) == 0
    assert window.look_again_at() == 2 * GAP_S


def test_the_gap_has_an_end() -> None:
    window, now = Window(), 0.0
    sent(window, IN_FLIGHT_FEW, now)
    while len(window) < IN_FLIGHT_MOST:
        now += 2 * GAP_S
        sent(window, 1, now)
    assert window.places(None, now + 1.0) == 0
    assert window.look_again_at() == math.inf
    window.check_invariants()


def test_a_late_frame_takes_no_place_and_makes_the_window_careful_until_a_second_after_the_last_one() -> None:
    window = Window()
    late, *others = sent(window, IN_FLIGHT_FEW, 0.0)
    assert not window.is_careful(LATE_S - 1e-6)
    assert window.places(None, GAP_S / 2) == 0
    assert window.is_careful(LATE_S)
    assert window.places(None, LATE_S) == IN_FLIGHT_FEW
    for other in others:
        window.ended(other)
    assert window.is_careful(5.0)
    window.ended(late)
    assert len(window) == 0
    assert window.is_careful(5.0 + CAREFUL_FOR_S - 1e-6)
    assert not window.is_careful(5.0 + CAREFUL_FOR_S)


def test_only_the_oldest_frame_has_to_be_late() -> None:
    window = Window()
    sent(window, 1, 0.0)
    sent(window, 1, LATE_S)
    assert window.is_careful(LATE_S)
    assert window.places(None, LATE_S) == IN_FLIGHT_FEW - 1


def test_a_bucket_has_few_frames_in_flight_however_late_they_are() -> None:
    window = Window()
    frames = sent(window, BUCKET_FRAMES, 0.0, bucket=3)
    assert window.places(3, 10.0) == 0
    assert window.is_full_for(3)
    assert window.places(4, 10.0) == IN_FLIGHT_FEW
    assert not window.is_full_for(4)
    assert not window.is_full_for(None)
    window.ended(frames[0])
    assert window.places(3, 10.0) == 1
    window.check_invariants()


def test_the_buckets_share_the_few_places() -> None:
    """Where everything is slow, being careful must not make it worse."""
    window = Window()
    for bucket in range(IN_FLIGHT_FEW):
        sent(window, 1, 0.0, bucket=bucket)
    assert window.places(9, 0.0) == 0
    assert window.places(9, GAP_S) == 1


def test_nothing_in_flight_is_never_late() -> None:
    window = Window()
    assert not window.is_careful(1e9)
    assert window.look_again_at() == -math.inf  # At once: there is a place.


@pytest.mark.parametrize("shards", [1, 2, 4, 8, 16])
def test_a_bucket_lies_in_one_shard(shards: int) -> None:
    keys = [b"key-%d" % number for number in range(2_000)]
    shards_of: dict[int, set[int]] = {}
    for key in keys:
        shards_of.setdefault(bucket_of(key), set()).add(token(key, 0) * shards >> 64)
    assert sorted(shards_of) == list(range(BUCKETS))
    assert all(len(found) == 1 for found in shards_of.values())
