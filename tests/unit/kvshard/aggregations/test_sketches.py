"""Percentiles and numbers of different values at their real sizes."""

import random
from collections import Counter

import pytest

from kvshard.aggregations.distinct import STANDARD_ERROR, count_of, distinct_of, is_exact, merge_distinct
from kvshard.aggregations.partial import Distinct, Spread
from kvshard.aggregations.spread import CODES_MAX, grid_error, merge_spreads, percentiles, relative_error, spread_of

PERCENTS = (0.0, 1.0, 25.0, 50.0, 90.0, 99.9, 100.0)


def test_percentiles_of_few_values_are_exact():
    found = spread_of(Counter(float(year) for year in range(1900, 2024)), is_grid=False)
    assert percentiles(found, (0.0, 50.0, 100.0)) == [1900.0, 1961.0, 2023.0]
    assert relative_error(found) == grid_error(found) == 0
    assert percentiles(Spread(), PERCENTS) == [None] * len(PERCENTS)


@pytest.mark.parametrize("spread_over", [1.0, 30.0])
def test_percentiles_of_many_values_keep_their_stated_error(spread_over):
    seed = random.Random(3)
    values = [seed.choice((-1, 1)) * 2 ** seed.uniform(0, spread_over) for _ in range(20_000)]
    found = spread_of(Counter(values), is_grid=False)
    assert len(found.counts) <= CODES_MAX
    error = relative_error(found)
    assert 0 < error <= (0.0005 if spread_over == 1.0 else 0.02)
    ordered = sorted(values)
    for percent, value in zip(PERCENTS, percentiles(found, PERCENTS), strict=True):
        wanted = ordered[max(-(-int(percent * 200) // 1), 1) - 1]
        assert value == pytest.approx(wanted, rel=error)


def test_percentiles_of_dates_are_off_by_hours_not_by_a_part_of_them():
    seed = random.Random(4)
    decade = 10 * 365 * 86_400_000_000
    values = [1_500_000_000_000_000 + seed.randrange(decade) for _ in range(20_000)]
    found = spread_of(Counter(values), is_grid=True)
    assert relative_error(found) == 0
    assert 0 < grid_error(found) <= 20 * 3_600_000_000
    for percent, value in zip(PERCENTS, percentiles(found, PERCENTS), strict=True):
        wanted = sorted(values)[max(int(percent * 200), 1) - 1]
        assert abs(value - wanted) <= grid_error(found)


def test_every_double_at_once_needs_no_more_room():
    values = [sign * 2.0**exponent for sign in (-1, 1) for exponent in range(-1_074, 1_024)] + [0.0]
    values += [value * 1.5 for value in values if abs(value) < 1e300]
    found = merge_spreads([spread_of(Counter(values[part::7]), is_grid=False) for part in range(7)])
    assert found.shift <= 52
    assert percentiles(found, (0.0, 100.0)) == [-(2.0**1023), 2.0**1023]


@pytest.mark.parametrize("count", [0, 1, 4_096, 4_097, 20_000, 200_000])
def test_different_values(count):
    seed = random.Random(count)
    hashes = [seed.getrandbits(64) for _ in range(count)]
    found = merge_distinct([distinct_of(hashes[part::3]) for part in range(3)])
    assert found == distinct_of(hashes)
    assert is_exact(found) == (count <= 4_096)
    assert count_of(found) == count if is_exact(found) else count_of(found) == pytest.approx(count, rel=3 * STANDARD_ERROR)


def test_the_standard_error_is_what_it_says():
    """Over 40 sets the mean error is near 0, and the root of the mean square near the stated one."""
    errors = []
    for number in range(40):
        seed = random.Random(number)
        size = seed.choice((5_000, 30_000))
        errors.append(count_of(distinct_of(seed.getrandbits(64) for _ in range(size))) / size - 1)
    assert abs(sum(errors) / len(errors)) < 3 * STANDARD_ERROR / 40**0.5
    assert (sum(error * error for error in errors) / len(errors)) ** 0.5 < 1.3 * STANDARD_ERROR


def test_registers_without_anything():
    assert count_of(Distinct(registers=bytes(1 << 14))) == 0
