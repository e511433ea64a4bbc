"""When the demo's reads beside slow leaves start, how many there are, and what they ask for."""

import random

import pytest

from kvshard.cli.demo_tail import BATCHES_PER_SEARCH, SEARCHES_PER_S, plan, read_options, search_rate, turns
from kvshard.cli.demo_tail_report import WITH, WITHOUT, blocks


def test_plan_is_as_dense_as_asked_and_the_same_for_the_same_seed():
    planned = plan(50.0, 40.0, random.Random(1))
    instants = [each.at for each in planned]
    assert instants == sorted(instants)
    assert 0 < instants[0] < instants[-1] < 40.0
    searches = sum(each.kind == "search" for each in planned)
    assert searches == pytest.approx(2000, rel=0.1)
    assert len(planned) - searches == pytest.approx(2000 * BATCHES_PER_SEARCH, rel=0.1)
    assert plan(50.0, 40.0, random.Random(1)) == planned
    assert plan(50.0, 40.0, random.Random(2)) != planned


@pytest.mark.parametrize(("search_s", "rate"), [(0.0, SEARCHES_PER_S), (0.004, SEARCHES_PER_S), (0.02, 12.5)])
def test_a_slower_machine_gets_fewer_searches(search_s, rate):
    assert search_rate(search_s) == pytest.approx(rate)


@pytest.mark.parametrize(("seconds", "expected"), [(72.0, (4, 3.0)), (18.0, (1, 3.0)), (6.0, (1, 1.0)), (0.0, (1, 0.5))])
def test_turns_fill_the_time(seconds, expected):
    assert turns(seconds) == expected
    assert turns(60.0)[0] * turns(60.0)[1] * len(blocks(0)) == pytest.approx(60.0)


def test_arms_differ_in_the_defences_only():
    without, with_defences = read_options(WITHOUT), read_options(WITH)
    assert {name for name in without if without[name] != with_defences[name]} == {"hedge", "replica_choice"}
    assert (without["hedge"], without["replica_choice"]) == ("off", "random")
    assert (with_defences["hedge"], with_defences["replica_choice"]) == (None, None), "what a caller gets who asks for nothing"
