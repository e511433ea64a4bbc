"""Which lane carries a request."""

from random import Random

import pytest
from fakes.clock import ManualClock

from kvshard.client.router_lanes import LANES_MAX, RouterLanes, choose_lane
from kvshard.client.routers import Routers
from kvshard.errors import InvalidArgument


def test_one_lane_carries_everything() -> None:
    assert choose_lane([9], True, 1) == 0


def test_of_two_one_is_for_small_requests_and_one_for_large_ones_however_full_they_are() -> None:
    for turn in range(4):
        assert choose_lane([9, 0], False, turn) == 0
        assert choose_lane([0, 9], True, turn) == 1


def test_the_emptiest_is_taken_but_the_last_is_kept_for_large_requests_and_the_first_for_small_ones() -> None:
    assert choose_lane([3, 1, 2, 0], False, 5) == 1
    assert choose_lane([0, 3, 1, 2], True, 5) == 2


def test_equals_take_turns() -> None:
    assert {choose_lane([0, 0, 0, 0], False, turn) for turn in range(3)} == {0, 1, 2}
    assert {choose_lane([0, 0, 0, 0], True, turn) for turn in range(3)} == {1, 2, 3}


@pytest.mark.parametrize("lanes", [0, LANES_MAX + 1])
def test_the_number_of_lanes_is_bounded(lanes: int) -> None:
    with pytest.raises(InvalidArgument) as refused:
        RouterLanes(Routers(["127.0.0.1:1"]), ManualClock(), Random(1), lanes)
    assert (refused.value.details.field, refused.value.details.limit) == ("lanes", LANES_MAX)
