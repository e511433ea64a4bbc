from math import inf

import pytest

from kvshard.model import ShardSearch
from leaf.joint_best import JointBest
from leaf.leg_group import LEGS_MAX, LOOK_AHEAD_S, LegGroup, LegGroups
from tests.fakes.clock import ManualClock


class FakeLeg:
    """A leg that notes when it looks, and takes its time for it."""

    def __init__(self, looked, name, clock=None, takes_s=0.0):
        self._looked, self._name, self._clock, self._takes_s = looked, name, clock, takes_s

    def look(self):
        self._looked.append(self._name)
        if self._clock is not None:
            self._clock.advance(self._takes_s)


def asked(shard, query="x", limit=3, together=5, **others):
    return ShardSearch(shard, epoch=shard, collection_id=1, query=query, filters=[], limit=limit, together=together, **others)


@pytest.mark.parametrize(
    ("told", "bar"),
    [
        ({}, -inf),
        ({1: [9.0, 8.0], 2: []}, -inf),
        ({1: [9.0, 8.0], 2: [8.5]}, 8.0),
        ({1: [9.0, 8.0], 2: [8.5, 8.25, 1.0]}, 8.25),
        ({1: [8.0, 8.0], 2: [8.0, 8.0]}, 8.0),
    ],
)
def test_the_bar_is_the_last_of_the_best(told, bar):
    best = JointBest(3)
    for shard, scores in told.items():
        best.note(shard, scores)
    assert best.bar == bar


def test_what_a_leg_tells_later_replaces_what_it_told():
    best = JointBest(2)
    best.note(1, [9.0, 8.0])
    best.note(1, [9.0])
    assert best.bar == -inf


def groups_of(*requests):
    groups, ends = LegGroups(ManualClock()), []
    return [groups.group_of(each, FakeLeg([], each.shard), ends.append) for each in requests]


def test_legs_of_one_search_are_one_group_whatever_differs_between_shards():
    first, second = groups_of(asked(1, min_seqno=7, cuts=0), asked(2, cuts=1))
    assert first is second


@pytest.mark.parametrize("other", [asked(2, "y"), asked(2, limit=4), asked(2, together=6), asked(2, sort="_score"), asked(1)])
def test_another_search_or_the_same_shard_again_is_another_group(other):
    first, second = groups_of(asked(1), other)
    assert first is not second


def test_a_group_has_no_more_legs_than_share_a_thread():
    groups = groups_of(*(asked(shard) for shard in range(LEGS_MAX + 1)))
    assert len(set(map(id, groups[:-1]))) == 1
    assert groups[-1] is not groups[0]


def test_a_group_ends_with_the_pass_of_the_event_loop():
    groups, ends = LegGroups(ManualClock()), []
    first = groups.group_of(asked(1), FakeLeg([], 1), ends.append)
    ends.pop()()
    assert groups.group_of(asked(2), FakeLeg([], 2), ends.append) is not first
    assert len(ends) == 1


def test_one_leg_alone_leaves_nothing_out():
    group = LegGroup(asked(1, together=1), ManualClock())
    assert group.join(asked(1, together=1), FakeLeg([], 1))
    group.best.note(1, [5.0, 4.0])
    assert group.bar == -inf
    assert group.join(asked(2, together=1), FakeLeg([], 2))
    assert group.bar == 5.0


def test_the_first_leg_looks_for_all_until_that_has_taken_long():
    clock, looked = ManualClock(), []
    group = LegGroup(asked(1), clock)
    for shard in range(1, 6):
        group.join(asked(shard), FakeLeg(looked, shard, clock, LOOK_AHEAD_S * 0.4))
    group.look_ahead()
    assert looked == [1, 2, 3]
