import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.tail.histogram import (
    PENDING_MAX,
    SUB_BUCKETS,
    LogHistogram,
    SlidingHistogram,
    bounds_of,
    bucket_of,
    buckets_of,
    middle_of,
)

VALUES = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=200)


@given(st.floats(1e-6, 1e6))
def test_value_lies_in_its_bucket(value: float) -> None:
    low, high = bounds_of(bucket_of(value))
    assert low <= value < high
    assert abs(middle_of(bucket_of(value)) / value - 1) <= 1 / SUB_BUCKETS


@given(VALUES, st.floats(0.001, 1.0))
def test_quantile_is_that_of_the_sorted_values(values: list[float], fraction: float) -> None:
    histogram = LogHistogram()
    for value in values:
        histogram.record(value)
    rank = min(len(values), max(1, -(-int(fraction * len(values) * 1_000_000) // 1_000_000)))
    found = histogram.quantile(fraction)
    assert found is not None
    assert found == pytest.approx(sorted(values)[rank - 1], rel=1 / SUB_BUCKETS)
    assert found <= max(values)


@given(VALUES, VALUES)
def test_merging_counts_both_and_subtracting_takes_one_back(first: list[float], second: list[float]) -> None:
    one, other, both = LogHistogram(), LogHistogram(), LogHistogram()
    for value in first:
        one.record(value)
        both.record(value)
    for value in second:
        other.record(value)
        both.record(value)
    merged = one.copy()
    merged.merge(other)
    assert merged.buckets() == both.buckets()
    assert merged.mean == pytest.approx(both.mean)
    merged.subtract(other)
    assert merged.buckets() == one.buckets()
    assert merged.count == one.count


def test_record_survives_json_like_data() -> None:
    histogram = LogHistogram()
    for value in (0.001, 0.002, 0.5):
        histogram.record(value, 3)
    again = LogHistogram.from_record(histogram.as_record())
    assert again.buckets() == histogram.buckets()
    assert (again.count, again.total, again.maximum) == (histogram.count, histogram.total, histogram.maximum)
    with pytest.raises(TypeError):
        LogHistogram.from_record({"buckets": 3, "total": 1.0, "maximum": 1.0})


def test_empty_histogram_has_no_quantile() -> None:
    histogram = LogHistogram()
    assert histogram.quantile(0.5) is None
    assert histogram.quantiles((0.5, 0.9)) == []
    assert histogram.mean is None


def test_sliding_histogram_forgets_what_is_too_old() -> None:
    sliding = SlidingHistogram(slice_s=1.0, slices=3)
    sliding.record(0.010, now=100.2)
    sliding.record(0.020, now=101.1)
    sliding.record(0.030, now=102.9)
    assert sliding.sum.count == 3
    sliding.advance(103.0)
    assert [count for _, count in sliding.sum.buckets()] == [1, 1]
    assert sliding.recent(2).count == 1
    assert sliding.recent(3).count == 2
    sliding.advance(200.0)
    assert sliding.sum.count == 0


@given(st.lists(st.tuples(st.floats(0.0, 2.0), st.floats(1e-4, 1.0)), max_size=60))
def test_sliding_histogram_holds_exactly_the_values_of_its_slices(steps: list[tuple[float, float]]) -> None:
    sliding, now, seen = SlidingHistogram(0.5, 4), 50.0, []
    for pause, value in steps:
        now += pause
        sliding.record(value, now)
        seen.append((int(now / 0.5), bucket_of(value)))
        expected = sorted(bucket for slice, bucket in seen if slice > int(now / 0.5) - 4)
        held = [bucket for bucket, count in sliding.sum.buckets() for _ in range(count)]
        assert held == expected


@given(st.lists(st.lists(st.floats(0, 100), max_size=5), max_size=8))
def test_many_values_at_once_are_recorded_as_one_by_one(batches: list[list[float]]) -> None:
    one, many, now = SlidingHistogram(0.5, 4), SlidingHistogram(0.5, 4), 50.0
    for values in batches:
        now += 0.3
        many.record_all(values, now)
        for value in values:
            one.record(value, now)
        many.advance(now)
        one.advance(now)
        assert many.sum.as_record() == {**one.sum.as_record(), "total": pytest.approx(one.sum.total)}
        assert many.newest.buckets() == one.newest.buckets()


def test_quantiles_of_a_known_distribution() -> None:
    rng, histogram = random.Random(5), LogHistogram()
    values = [rng.lognormvariate(-6, 0.5) for _ in range(20_000)]
    for value in values:
        histogram.record(value)
    values.sort()
    for fraction, found in zip((0.5, 0.99, 0.999), histogram.quantiles((0.5, 0.99, 0.999)), strict=True):
        assert found == pytest.approx(values[int(fraction * len(values)) - 1], rel=0.01)


@given(st.lists(st.floats(-1.0, 100.0), max_size=20))
def test_buckets_of_many_values_are_those_of_each(values: list[float]) -> None:
    assert buckets_of(values) == [bucket_of(value) for value in values]


@pytest.mark.parametrize("count", [0, 1, PENDING_MAX - 1, PENDING_MAX, 3 * PENDING_MAX + 1])
def test_a_snapshot_holds_what_waits_to_be_counted_and_changes_nothing(count: int) -> None:
    sliding = SlidingHistogram(1.0, 3)
    for place in range(count):
        sliding.record(0.001 * (place + 1), now=100.0)
    snapshot = sliding.snapshot()
    assert (snapshot.count, sliding.count) == (count, count)
    assert snapshot.as_record() == {**sliding.sum.as_record(), "total": pytest.approx(sliding.sum.total)}
    snapshot.record(9.0)
    assert sliding.sum.count == sliding.newest.count == count


def test_what_waits_counts_in_the_slice_in_which_it_came() -> None:
    sliding = SlidingHistogram(1.0, 2)
    sliding.record(0.010, now=100.9)
    sliding.record(0.020, now=101.1)
    assert sliding.newest.count == 1
    sliding.advance(102.0)
    assert sliding.sum.buckets() == [(bucket_of(0.020), 1)]
