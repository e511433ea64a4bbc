import random

import pytest

from kvshard.tail.histogram import LogHistogram
from loadtests.statistics import (
    SliceTable,
    chance_of_a_straggler,
    gathered_quantile,
    hedged_quantile,
    is_enough,
    percentile_points,
    quantile,
    ratio,
    slower_than,
)


def slices_of(values, per_slice):
    made = []
    for first in range(0, len(values), per_slice):
        made.append(LogHistogram())
        for value in values[first : first + per_slice]:
            made[-1].record(value)
    return made


def drawn(count, seed=1):
    rng = random.Random(seed)
    return [rng.lognormvariate(-6, 0.5) for _ in range(count)]


def test_quantiles_of_slices_are_those_of_all_values():
    values = drawn(5_000)
    table = SliceTable(slices_of(values, 100))
    for fraction in (0.01, 0.5, 0.99, 0.999):
        assert table.quantile(fraction) == pytest.approx(sorted(values)[int(fraction * 5_000) - 1], rel=0.01)


def test_weights_count_slices_as_often_as_they_say():
    table = SliceTable(slices_of([0.001] * 10 + [0.1] * 10, 10))
    assert table.quantile(0.5, [3, 1]) == pytest.approx(0.001, rel=0.01)
    assert table.quantile(0.5, [1, 3]) == pytest.approx(0.1, rel=0.01)
    assert table.quantile(0.99, [1, 0]) == pytest.approx(0.001, rel=0.01)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    truth = sorted(drawn(200_000, seed=99))[100_000]
    hits = 0
    for seed in range(60):
        estimate = quantile(SliceTable(slices_of(drawn(2_000, seed), 50)), 0.5, random.Random(seed))
        hits += estimate.low <= truth <= estimate.high
    assert hits >= 51  # 95 % of 60 is 57.


def test_correlated_slices_widen_the_interval():
    rng = random.Random(5)
    # Whole slices are slow or fast together, as in a pause; the same values shuffled are not.
    slow = [value * (20 if index // 50 % 10 == 0 else 1) for index, value in enumerate(drawn(5_000))]
    shuffled = slow[:]
    rng.shuffle(shuffled)
    wide, narrow = (quantile(SliceTable(slices_of(values, 50)), 0.92, random.Random(1)) for values in (slow, shuffled))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_a_ratio_has_the_samples_of_its_smaller_side():
    above, below = SliceTable(slices_of([0.02] * 100, 10)), SliceTable(slices_of([0.01] * 40, 10))
    estimate = ratio(above, below, 0.5, random.Random(1))
    assert estimate.value == pytest.approx(2.0, rel=0.01)
    assert estimate.low == estimate.high == estimate.value
    assert estimate.samples == 40


def test_no_samples_have_no_quantile():
    with pytest.raises(ValueError, match="no samples"):
        SliceTable([]).quantile(0.5)


@pytest.mark.parametrize(("samples", "fraction", "enough"), [(1_000, 0.99, True), (999, 0.99, False), (10_000, 0.999, True)])
def test_ten_samples_above_a_quantile_are_enough(samples, fraction, enough):
    assert is_enough(samples, fraction) is enough


def test_the_arithmetic_of_the_tail_at_scale():
    assert chance_of_a_straggler(0.01, 100) == pytest.approx(0.634, abs=0.001)
    assert chance_of_a_straggler(0.0, 100) == 0.0
    leg = LogHistogram()
    for value in drawn(20_000):
        leg.record(value)
    assert gathered_quantile(leg, 0.5, 1) == leg.quantile(0.5)
    assert gathered_quantile(leg, 0.5, 8) == leg.quantile(0.5 ** (1 / 8)) > leg.quantile(0.9)


def test_the_best_delay_is_the_one_that_spends_all_that_may_be_spent():
    """Of a hundred legs five take 100 ms, the others 1 to 10 ms evenly."""
    values = [0.1] * 500 + [0.001 + 0.009 * place / 9_500 for place in range(9_500)]
    leg = slices_of(values, len(values))[0]
    unhedged = leg.quantile(0.99)
    assert unhedged == pytest.approx(0.1, rel=0.01)
    assert hedged_quantile(leg, 0.99, 0.0501) == pytest.approx(0.01 + 0.008, rel=0.05)
    drawn_apart = sorted(
        each if each <= 0.0053 else min(each, 0.0053 + values[at * 7_919 % 10_000]) for at, each in enumerate(values)
    )
    assert hedged_quantile(leg, 0.99, 0.5) == pytest.approx(drawn_apart[9_900], rel=0.05)
    with pytest.raises(ValueError, match="no samples"):
        hedged_quantile(LogHistogram(), 0.99, 0.09)


def test_slower_than_counts_what_lies_above():
    held = slices_of([0.001] * 90 + [0.1] * 10, 100)[0]
    assert slower_than(held, 0.01) == pytest.approx(0.1)
    assert slower_than(LogHistogram(), 0.01) == 0.0


def test_a_curve_ends_where_ten_samples_are_left():
    held = slices_of(drawn(5_000), 5_000)[0]
    points = percentile_points(held)
    assert points[0][0] == pytest.approx(0.1)
    assert 10 / 5_000 <= points[-1][0] < 13 / 5_000
    assert [seconds for _, seconds in points] == sorted(seconds for _, seconds in points)
