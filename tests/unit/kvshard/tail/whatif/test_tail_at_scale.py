"""How close the arithmetic and the attempt machine come to the published figures."""

from random import Random

import pytest

from kvshard.tail.whatif.latency import GivenLatency
from kvshard.tail.whatif.order_statistics import hedged_quantile
from kvshard.tail.whatif.tail_at_scale import (
    BIGTABLE_DELAY_S,
    bigtable,
    bigtable_latency,
    fan_out_arithmetic,
    hedged_leg,
    hedged_run,
    table_1,
    table_1_contradicts_itself,
)


def test_the_fan_out_arithmetic_is_met():
    written, larger, simulated = fan_out_arithmetic(requests=250)
    assert written.ours == pytest.approx(0.634, abs=0.001)
    assert larger.ours == pytest.approx(0.181, abs=0.001)
    assert simulated.ours == pytest.approx(written.ours, abs=0.09)


def test_the_slowest_of_all_leaves_comes_within_a_tenth_when_legs_share_slowness():
    rows = [each for each in table_1() if each.figure.startswith("all leaves")]
    independent, sharing = rows[:3], rows[3:]
    assert [abs(each.deviation) < 0.01 for each in (independent[0], sharing[0])] == [True, True]
    assert max(abs(each.deviation) for each in independent) < 0.30
    assert max(abs(each.deviation) for each in sharing) < 0.10


def test_table_1_cannot_be_met_as_a_whole():
    possible, published = table_1_contradicts_itself()
    assert possible < published


def test_bigtable_comes_within_a_tenth():
    by_key, by_server, plain, run, extra = bigtable(requests=2_000)
    assert abs(by_key.deviation) < 0.10
    assert abs(by_server.deviation) < 0.35
    assert plain.deviation == pytest.approx(0, abs=1e-6)
    assert run.ours < 0.2
    assert extra.ours == pytest.approx(0.02, rel=0.03)


def test_the_run_of_the_machine_agrees_with_the_arithmetic():
    leaf = bigtable_latency(100)
    run = hedged_run(leaf, 100, BIGTABLE_DELAY_S, 6_000, Random(5))
    for fraction in (0.5, 0.95, 0.99):
        expected = hedged_quantile(leaf, 100, fraction, BIGTABLE_DELAY_S)
        assert run.gathered.quantile(fraction) == pytest.approx(expected, rel=0.06)


@pytest.mark.parametrize(
    ("attempts", "expected"),
    [((0.005, 1.0), (0.005, 1)), ((0.5, 0.02), (0.03, 2)), ((0.025, 0.02), (0.025, 2)), ((1.0, 2.0), (1.0, 2))],
)
def test_one_leg(attempts, expected):
    ended, sent = hedged_leg(attempts, 0.010)
    assert (pytest.approx(ended), sent) == expected


def test_a_request_without_a_late_leg_takes_as_long_as_its_slowest():
    run = hedged_run(GivenLatency([(0.5, 0.001), (0.99, 0.002)]), 3, 1.0, 200, Random(1))
    assert run.hedges == 0
    assert 0.001 < (run.gathered.quantile(0.5) or 0) < 0.002
