"""How long a frame is waited for: short at first, but long against what frames usually take."""

import pytest

from kvshard.client.frame_slices import DOUBLINGS_MAX, SLICE_MAX_S, USUAL_TIMES, FrameSlices


def test_the_first_slice_is_short_and_each_further_one_twice_as_long() -> None:
    slices = FrameSlices(0.1)
    assert [slices.length(attempts) for attempts in (1, 2, 3)] == [0.1, 0.2, 0.4]
    assert slices.length(1_000_000) == 0.1 * 2**DOUBLINGS_MAX


def test_where_frames_take_long_the_first_slice_has_room_for_several() -> None:
    slices = FrameSlices(0.1)
    for _ in range(100):
        slices.note(0.04)
    assert slices.length(1) == pytest.approx(USUAL_TIMES * 0.04, rel=0.01)
    for _ in range(100):
        slices.note(5.0)
    assert slices.length(1) == SLICE_MAX_S
    for _ in range(100):
        slices.note(0.001)
    assert slices.length(1) == 0.1


def test_a_single_slow_frame_changes_little() -> None:
    slices = FrameSlices(0.1)
    slices.note(0.09)
    assert slices.length(1) == 0.1
