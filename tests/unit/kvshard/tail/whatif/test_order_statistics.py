"""The arithmetic of a fan-out, against cases that can be worked out by hand or by drawing."""

from random import Random

import pytest

from kvshard.tail.whatif.latency import parse_latency
from kvshard.tail.whatif.order_statistics import (
    gathered_quantile,
    gathered_quantile_shared,
    hedged_quantile,
    leg_tail,
    most_late_requests,
    part_quantile_shared,
    share_of_slow_requests,
)

LEAF = parse_latency("p50=1ms,p95=5ms,p99=10ms")


@pytest.mark.parametrize(
    ("share", "legs", "expected"), [(0.01, 100, 0.634), (0.0001, 2_000, 0.181), (0.5, 1, 0.5), (0.01, 8, 0.0773)]
)
def test_share_of_slow_requests(share, legs, expected):
    assert share_of_slow_requests(share, legs) == pytest.approx(expected, abs=0.0005)


def test_the_tail_of_a_leg_and_the_share_of_slow_requests_are_inverse():
    for legs in (1, 8, 100, 1_000):
        assert share_of_slow_requests(leg_tail(0.99, legs), legs) == pytest.approx(0.01)


def test_one_leg_is_the_leaf_itself():
    for fraction, seconds in LEAF.points:
        assert gathered_quantile(LEAF, 1, fraction) == pytest.approx(seconds)


def test_hundred_legs_have_their_median_at_the_leafs_99_3th_percentile():
    assert gathered_quantile(LEAF, 100, 0.5) == pytest.approx(LEAF.quantile(0.5 ** (1 / 100)))


def test_waiting_for_a_part_of_the_legs_agrees_with_drawing():
    rng, legs, runs = Random(4), 40, 4_000
    drawn = sorted(sorted(LEAF.request(rng, legs).legs)[37] for _ in range(runs))
    for fraction in (0.5, 0.95):
        assert gathered_quantile(LEAF, legs, fraction, awaited=0.95) == pytest.approx(drawn[int(fraction * runs)], rel=0.06)


def test_slowness_in_common_narrows_the_median_and_keeps_a_single_leg():
    alone = gathered_quantile(LEAF, 1_000, 0.5)
    assert gathered_quantile_shared(LEAF, 1_000, 0.5, 0.0) == pytest.approx(alone, rel=1e-3)
    assert gathered_quantile_shared(LEAF, 1_000, 0.5, 0.4) < 0.7 * alone
    for shared in (0.0, 0.3, 0.7):
        assert gathered_quantile_shared(LEAF, 1, 0.99, shared) == pytest.approx(0.010, rel=1e-3)


def test_a_part_of_very_many_legs_is_the_leafs_own_quantile_unless_they_share():
    assert part_quantile_shared(LEAF, 0.99, 0.0, 0.95) == pytest.approx(0.005)
    assert part_quantile_shared(LEAF, 0.99, 0.2, 0.95) > 0.010


def test_a_second_attempt_squares_the_tail():
    hedged = hedged_quantile(LEAF, 100, 0.99, 0.010)
    assert hedged < 0.5 * gathered_quantile(LEAF, 100, 0.99)
    assert LEAF.share_above(hedged) * LEAF.share_above(hedged - 0.010) == pytest.approx(leg_tail(0.99, 100), rel=1e-6)


def test_markov():
    assert most_late_requests(0.01, 0.05) == pytest.approx(0.2)
    assert most_late_requests(0.5, 0.05) == 1.0
