"""Measured requests, played again: each as often as every other, leaf by leaf, moment by moment."""

from random import Random

import pytest

from kvshard.errors import InvalidArgument
from kvshard.tail.histogram import bounds_of
from kvshard.tail.whatif.prediction import predict
from kvshard.tail.whatif.replay import MeasuredRequest, Replay
from kvshard.tail.whatif.scenario import Arm, Delay, Scenario, Setting

FIRST = MeasuredRequest(10.0, ((0, 0.001), (1, 0.002), (0, 0.003)), 0.0005)
SECOND = MeasuredRequest(10.5, ((1, 0.020), (2, 0.030)), 0.0)


def test_requests_come_in_the_order_of_their_beginning_and_again():
    replay = Replay([SECOND, FIRST])
    assert [replay.request(Random(1), 3).beyond_s for _ in range(3)] == [0.0005, 0.0, 0.0005]


def test_a_request_of_fewer_legs_leaves_its_measured_one_to_the_next():
    replay = Replay([FIRST, SECOND])
    assert [replay.request(Random(1), legs).beyond_s for legs in (1, 2, 3, 1)] == [0.0005, 0.0005, 0.0005, 0.0]


def test_legs_at_one_leaf_take_what_those_at_one_measured_leaf_took():
    times = Replay([FIRST, SECOND]).request(Random(1), 3)
    assert [times.first(number, 3) for number in range(3)] == [0.001, 0.003, 0.001], "the leaf asked first plays the first"
    assert times.first(3, 0) == 0.002
    assert times.first(4, 1) == 0.030, "the third leaf, of the next request that asked it"
    assert times.first(5, 2) == 0.001, "more leaves than were measured"
    assert times.first(6, 0) == 0.002


def test_a_further_attempt_takes_what_a_leg_took_so_much_later():
    replay = Replay([FIRST, SECOND])
    times, rng = replay.request(Random(1), 3), Random(2)
    assert {times.first(0, 5), times.first(1, 5)} == {0.001, 0.003}
    assert times.further(rng, 6, 0.0) == 0.002, "a leaf that the request has not asked plays another one"
    assert times.further(rng, 6, 0.3) == times.further(rng, 6, 99.0) == 0.020
    assert {times.further(rng, 5, 0.0) for _ in range(20)} == {0.001, 0.003}


def test_what_counts_as_measured():
    replay = Replay([FIRST, SECOND, MeasuredRequest(11.0, ())])
    assert replay.samples == 5
    assert repr(replay) == "Replay(2 requests, 5 legs, 3 leaves)"
    assert {replay.attempt(Random(seed)) for seed in range(60)} == {0.001, 0.002, 0.003, 0.020, 0.030}


@pytest.mark.parametrize("requests", [[], [MeasuredRequest(0.0, ((0, -0.1),))], [MeasuredRequest(0.0, ((0, 0.1),), 4_000.0)]])
def test_what_makes_no_sense_is_refused(requests):
    with pytest.raises(InvalidArgument):
        Replay(requests)


def weather(*, is_common: bool):
    """4 leaves, every twentieth moment bad: for all of them, or for one of them."""
    rng, made = Random(5), []
    for number in range(2_000):
        bad = rng.random() < 0.05
        slow = rng.randrange(4)
        legs = tuple((shard % 4, 0.020 if bad and (is_common or shard % 4 == slow) else 0.001) for shard in range(8))
        made.append(MeasuredRequest(number / 200, legs))
    return Replay(made)


def test_a_hedge_helps_against_one_slow_leaf_but_not_against_a_slow_moment_of_all():
    setting, arm = Setting(rate=200), Arm.static(0.004, budget=1.0)
    held = [replay_moments(each) for each in (weather(is_common=True), weather(is_common=False))]
    moment, leaf = (predict(each, Scenario(), arm, setting, 2_000) for each in held)
    assert moment.p99 == pytest.approx(0.020, rel=0.02)
    assert leaf.p99 < 0.012


def replay_moments(replay):
    """The same, each moment lasting for 20 requests."""
    requests = [MeasuredRequest(place / 200, replay.requests[place - place % 20].legs) for place in range(len(replay.requests))]
    return Replay(requests)


def test_requests_that_ask_few_leaves_meet_a_slow_one_less_often():
    setting = Setting(rate=50)
    plain = predict(weather(is_common=False), Scenario(), Arm.none(), setting, 2_000)
    joined = predict(weather(is_common=False), Scenario(), Arm.choice_only(), Setting(rate=50, is_light=True), 2_000)
    slow = [sum(count for bucket, count in each.gathered.buckets() if bounds_of(bucket)[0] > 0.010) for each in (plain, joined)]
    assert slow[1] < 0.8 * slow[0]


def test_delays_come_on_top():
    replay = Replay([MeasuredRequest(0.0, ((0, 0.003), (1, 0.003), (0, 0.003)), 0.0005)])
    setting = Setting(leaves=2, replicas=2, shards=3, fan_out=3)
    found = predict(replay, Scenario("slow", (Delay(0.010),)), Arm.none(), setting, 300)
    assert found.p50 == pytest.approx(0.0135, rel=0.02)
