"""The model as a whole: against arithmetic, against queueing theory, and what the defences do in it."""

from dataclasses import replace

import pytest

from kvshard.errors import InvalidArgument
from kvshard.tail.hedging import Auto, FixedDelay, Off, ReplicaChoice
from kvshard.tail.histogram import LogHistogram
from kvshard.tail.whatif.latency import GivenLatency, LegVectors, MeasuredLatency, parse_latency
from kvshard.tail.whatif.model import Model, shard_configs
from kvshard.tail.whatif.order_statistics import gathered_quantile
from kvshard.tail.whatif.prediction import predict
from kvshard.tail.whatif.scenario import Arm, Delay, Pause, Scenario, Setting, Slow

LEAF = parse_latency("p50=1ms,p95=2ms,p99=4ms")
HEALTHY = Scenario()
PAUSED = Scenario("2 % pauses", (Pause(0.02, 0.05),))
SETTING = Setting(rate=200)


def test_without_defences_the_model_is_the_arithmetic():
    found = predict(LEAF, HEALTHY, Arm.none(), SETTING, 4_000)
    assert found.requests == 4_000
    assert found.firsts == 32_000
    for fraction, tolerance in ((0.5, 0.03), (0.99, 0.15)):
        assert found.gathered.quantile(fraction) == pytest.approx(gathered_quantile(LEAF, 8, fraction), rel=tolerance)
    assert found.legs.quantile(0.95) == pytest.approx(0.002, rel=0.05)
    assert (found.hedges, found.failures, found.wasted) == (0, 0, 0)


def test_the_same_seed_gives_the_same_figures_and_another_one_others():
    def run(seed):
        return predict(LEAF, PAUSED, Arm.all(), SETTING, 500, seed).as_record()

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_arms_meet_the_same_weather_and_a_leg_without_decisions_is_a_leg_that_decides_nothing():
    never = Arm("never", Off(), ReplicaChoice.PRIMARY)
    late = replace(Arm("late", FixedDelay(5.0), ReplicaChoice.PRIMARY), max_attempts=1)
    hanging = Scenario("hanging", (*PAUSED.faults, Delay(60.0, share=0.02)))
    one, other = (predict(LEAF, hanging, arm, replace(SETTING, deadline_s=2.0), 300) for arm in (never, late))
    assert one.gathered.buckets() == other.gathered.buckets()
    assert one.legs.buckets() == other.legs.buckets()
    assert one.first_attempts.buckets() == other.first_attempts.buckets()
    assert one.failures == other.failures > 0


def test_a_queue_waits_as_long_as_theory_says():
    """M/D/1: the mean wait is rho / (2 (1 - rho)) services."""
    setting = Setting(leaves=1, shards=1, replicas=1, fan_out=1, rate=600, busy_s=0.001)
    found = predict(GivenLatency([(0.5, 0.001)]), HEALTHY, Arm.none(), setting, 8_000)
    assert found.gathered.mean == pytest.approx(0.001 + 0.6 / (2 * 0.4) * 0.001, rel=0.08)


def test_each_defence_helps_against_pauses_and_together_they_help_most():
    arms = (Arm.none(), Arm.choice_only(), Arm.hedge_only(), Arm.all())
    none, choice, hedge, both = (predict(LEAF, PAUSED, arm, SETTING, 1_000) for arm in arms)
    assert none.p99 > 0.040
    assert choice.gathered.mean < 0.8 * none.gathered.mean
    assert hedge.p99 < 0.3 * none.p99
    assert both.p99 < 0.2 * none.p99
    assert both.gathered.mean < min(choice.gathered.mean, hedge.gathered.mean)


def test_hedges_stay_within_the_budget_and_refusals_are_counted():
    stragglers = Scenario("5 % x50", (Slow(50, share=0.05),))
    arm = Arm("greedy", FixedDelay(0.002), ReplicaChoice.RANDOM, budget=0.02)
    found = predict(LEAF, stragglers, arm, replace(SETTING, leaves=20), 1_000)
    seconds = 1_000 / SETTING.rate + 10
    assert 0 < found.hedges <= 0.02 * found.firsts * 1.25 + seconds
    assert found.refused["budget"] > 0


def test_no_leg_is_asked_more_often_than_the_arm_allows():
    found = predict(
        LEAF, Scenario("all slow", (Slow(100),)), replace(Arm.static(0.001, budget=0.1), max_attempts=1), SETTING, 300
    )
    assert found.hedges == 0


def test_one_leaf_that_is_slow_for_good_is_avoided():
    one_slow = Scenario("one slow", (Slow(10, leaves=(0,)),))
    without = predict(LEAF, one_slow, Arm.none(), SETTING, 1_000)
    found = predict(LEAF, one_slow, Arm.all(), SETTING, 1_000)
    assert without.p50 > 0.008
    assert found.p50 < 0.003
    assert found.p99 < 0.5 * without.p99


def test_a_request_beyond_its_deadline_fails_and_counts_as_the_deadline():
    setting = replace(SETTING, deadline_s=0.5)
    found = predict(LEAF, Scenario("hanging", (Delay(60.0, leaves=(0,)),)), Arm.none(), setting, 300)
    assert found.failures > 200
    assert found.gathered.maximum == 0.5


def test_an_overloaded_leaf_sheds_instead_of_letting_its_queue_grow():
    setting = Setting(leaves=3, shards=3, replicas=3, fan_out=1, rate=3_600, busy_s=0.001, queue_max=20, deadline_s=1.0)
    found = predict(GivenLatency([(0.5, 0.001)]), HEALTHY, Arm.all(), setting, 4_000)
    assert 0 < found.failures < 0.4 * found.requests
    assert found.p50 < 0.05


def test_what_else_is_asked_takes_its_part_of_the_leaves_and_is_not_counted():
    alone = Setting(leaves=1, shards=1, replicas=1, fan_out=1, rate=300, busy_s=0.001)
    latency = GivenLatency([(0.5, 0.001)])
    quiet = predict(latency, HEALTHY, Arm.none(), alone, 1_500)
    busy = predict(latency, HEALTHY, Arm.none(), replace(alone, background=((1, 300.0), (1, 200.0))), 1_500)
    assert quiet.requests == busy.requests == busy.firsts == 1_500
    assert busy.gathered.mean > 1.5 * quiet.gathered.mean


def test_refusals_of_the_warm_up_are_not_counted():
    hot_start = Scenario("bad start", (Slow(50, share=0.05, until_s=0.0),))
    found = predict(LEAF, hot_start, Arm.static(0.02, budget=0.0), replace(SETTING, leaves=20), 1_000)
    assert found.refused.get("budget", 0) < 5


def test_the_overhead_comes_on_top_of_the_slowest_leg():
    plain = predict(LEAF, HEALTHY, Arm.none(), SETTING, 300)
    more = predict(LEAF, HEALTHY, Arm.none(), replace(SETTING, overhead_s=0.010), 300)
    assert more.p50 == pytest.approx(plain.p50 + 0.010, rel=0.02)


def test_a_fault_may_begin_in_the_middle_of_a_run():
    shift = Scenario("3 x", (Slow(3, from_s=5.0),))
    found = predict(GivenLatency([(0.5, 0.001)]), shift, Arm.none(), SETTING, 2_000)
    assert found.gathered.quantile(0.3) == pytest.approx(0.001, rel=0.01)
    assert found.gathered.quantile(0.8) == pytest.approx(0.003, rel=0.01)


def test_measured_requests_are_drawn_as_they_were():
    found = predict(LegVectors([[0.001] * 8, [0.010] * 8]), HEALTHY, Arm.none(), SETTING, 1_000)
    assert found.gathered.quantile(0.25) == pytest.approx(0.001, rel=0.01)
    assert found.samples == 16


def test_what_a_request_took_beyond_its_legs_comes_with_them():
    latency = LegVectors([[0.001] * 8, [0.010] * 8], beyond_s=[0.002, 0.020])
    found = predict(latency, HEALTHY, Arm.none(), SETTING, 1_000)
    assert found.gathered.quantile(0.25) == pytest.approx(0.003, rel=0.01)
    assert found.gathered.quantile(0.75) == pytest.approx(0.030, rel=0.01)
    assert found.legs.quantile(0.75) == pytest.approx(0.010, rel=0.01)


def test_few_samples_are_told():
    few = LogHistogram()
    few.record(0.001, 1_000)
    found = predict(MeasuredLatency(few), HEALTHY, Arm.none(), SETTING, 200)
    assert not found.is_beyond_the_samples(0.5)
    assert found.is_beyond_the_samples(0.99)
    assert not predict(LEAF, HEALTHY, Arm.none(), SETTING, 200).is_beyond_the_samples(0.999)


@pytest.mark.parametrize(
    ("leaves", "shards", "replicas"), [(4, 8, 3), (3, 8, 3), (5, 40, 2), (6, 100, 3), (7, 7, 1), (2, 9, 2)]
)
def test_replicas_are_spread_evenly_over_different_leaves(leaves, shards, replicas):
    configs = shard_configs(Setting(leaves=leaves, shards=shards, replicas=replicas))
    held = [replica.leaf for config in configs for replica in config.in_sync]
    assert len(configs) == shards
    assert all(len({replica.leaf for replica in config.in_sync}) == replicas for config in configs)
    counts = [held.count(leaf) for leaf in set(held)]
    assert len(counts) == leaves
    assert max(counts) - min(counts) <= replicas


@pytest.mark.parametrize(
    ("setting", "faults", "field"),
    [
        (Setting(leaves=2), (), "replicas"),
        (Setting(fan_out=9), (), "shards"),
        (Setting(shards=2_000, fan_out=2_000), (), "fan_out"),
        (Setting(shards=2_000, fan_out=8), (), "shards"),
        (Setting(rate=0), (), "rate"),
        (Setting(queue_max=0), (), "queue_max"),
        (Setting(background=((9, 1.0),)), (), "background"),
        (Setting(), (Pause(1.0),), "pauses"),
        (Setting(), (Pause(0.5, 0.0),), "pause_length"),
        (Setting(), (Slow(0.5),), "factor"),
        (Setting(), (Delay(1.0, share=1.5),), "share"),
        (Setting(), (Slow(2, leaves=(4,)),), "leaves"),
        (Setting(), (Slow(2, leaves=(-1,)),), "leaves"),
    ],
)
def test_what_makes_no_sense_is_refused_by_its_name(setting, faults, field):
    with pytest.raises(InvalidArgument) as refused:
        Model(LEAF, Scenario("bad", faults), Arm("auto", Auto(), ReplicaChoice.ADAPTIVE), setting, 10, 1)
    assert refused.value.details.field == field


@pytest.mark.parametrize("requests", [0, 100_000_000])
def test_a_run_has_a_bounded_number_of_requests(requests):
    with pytest.raises(InvalidArgument) as refused:
        predict(LEAF, HEALTHY, Arm.none(), SETTING, requests)
    assert refused.value.details.field == "requests"
