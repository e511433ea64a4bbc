"""What is pooled of the first attempts, and the delay that follows from it."""

import random
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.tail.histogram import LogHistogram, bucket_of, middle_of
from kvshard.tail.latency import (
    FLOOR_S,
    MEDIANS,
    NARROW_MEDIANS,
    QUANTILES_MAX,
    REFRESH_S,
    SAMPLES_MIN,
    SAMPLES_NONE,
    UNKNOWN_DELAY_S,
    LatencyPool,
    kaplan_meier,
)

NOW = 1_000.0
LONG_AGO = 20.0


def pool_of(*seconds: float, now: float = NOW) -> LatencyPool:
    pool = LatencyPool("Get")
    for each in seconds:
        pool.record(each, now)
    return pool


def naive(values: list[tuple[float, bool]], fraction: float) -> float:
    """The product-limit estimate by its definition, one value at a time: the survivors of those still at risk, multiplied."""
    survival = 1.0
    for time in sorted({bucket_of(value) for value, _ in values}):
        at_risk = sum(bucket_of(value) >= time for value, _ in values)
        ended = sum(bucket_of(value) == time and not is_censored for value, is_censored in values)
        survival *= (at_risk - ended) / at_risk
        if ended and survival <= 1 - fraction + 1e-9:
            return middle_of(time)
    return middle_of(max(bucket_of(value) for value, _ in values))


def histograms(values: list[tuple[float, bool]]) -> tuple[LogHistogram, LogHistogram]:
    seen, censored = LogHistogram(), LogHistogram()
    for value, is_censored in values:
        (censored if is_censored else seen).record(value)
    return seen, censored


class TestKaplanMeier:
    @settings(max_examples=400, deadline=None)
    @given(
        st.lists(
            st.tuples(st.sampled_from([0.001, 0.002, 0.003, 0.005, 0.01, 0.1, 1.0]), st.booleans()), min_size=1, max_size=60
        ),
        st.lists(st.sampled_from([0.1, 0.5, 0.9, 0.95, 0.99, 1.0]), min_size=1, max_size=3, unique=True),
    )
    def test_it_is_what_its_definition_says(self, values: list[tuple[float, bool]], fractions: list[float]) -> None:
        values = [*values, (0.004, True)]
        fractions = sorted(fractions)
        assert kaplan_meier(*histograms(values), fractions) == [naive(values, each) for each in fractions]

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.floats(1e-4, 10), min_size=1, max_size=60))
    def test_without_censored_values_it_is_the_plain_quantile(self, values: list[float]) -> None:
        seen, censored = histograms([(value, False) for value in values])
        assert kaplan_meier(seen, censored, (0.5, 0.99)) == seen.quantiles((0.5, 0.99))

    def test_censored_values_lift_what_is_seen(self) -> None:
        """Of a hundred, ten were given up after 10 ms: the 95th percentile is unknown, but not the 5 ms of the slowest seen."""
        values = [(0.005, False)] * 90 + [(0.01, True)] * 10
        assert kaplan_meier(*histograms(values), (0.5, 0.95)) == pytest.approx([0.005, 0.01], rel=0.01)

    def test_it_recovers_the_distribution_behind_the_censoring(self) -> None:
        rng = Random(5)
        values = []
        for _ in range(20_000):
            true, given_up = rng.expovariate(100), rng.expovariate(30)
            values.append((min(true, given_up), given_up < true))
        (p50, p90) = kaplan_meier(*histograms(values), (0.5, 0.9))
        assert p50 == pytest.approx(0.00693, rel=0.05)
        assert p90 == pytest.approx(0.0230, rel=0.05)


class TestDelay:
    def test_three_medians_where_the_tail_is_thin(self) -> None:
        pool = pool_of(*[0.01] * 196, *[0.04] * 4)
        assert pool.delay(0.95, NOW) == pytest.approx(MEDIANS * 0.01, rel=0.01)

    def test_less_where_nearly_all_take_less_but_two_medians(self) -> None:
        """A tenth of a budget of 5 % is half a percent of the attempts."""
        assert pool_of(*[0.01] * 600, *[0.024] * 400).delay(0.95, NOW) == pytest.approx(0.024, rel=0.01)
        assert pool_of(*[0.01] * 996, *[0.04] * 4).delay(0.95, NOW) == pytest.approx(NARROW_MEDIANS * 0.01, rel=0.01)
        assert pool_of(*[0.01] * 993, *[0.04] * 7).delay(0.95, NOW) == pytest.approx(MEDIANS * 0.01, rel=0.01)
        assert pool_of(*[0.01] * 150).delay(0.95, NOW) == pytest.approx(MEDIANS * 0.01, rel=0.01), "too few to tell"

    def test_the_quantile_where_it_is_fat(self) -> None:
        pool = pool_of(*[0.01] * 160, *[0.04] * 40)
        assert pool.delay(0.95, NOW) == pytest.approx(0.04, rel=0.01)
        assert pool.delay(0.79, NOW) == pytest.approx(0.03, rel=0.01)

    def test_a_smaller_budget_waits_longer(self) -> None:
        rng = Random(1)
        pool = pool_of(*(rng.lognormvariate(-5, 1) for _ in range(900)))
        delays = [pool.delay(1 - budget, NOW) for budget in (0.1, 0.05, 0.01, 0.0)]
        assert delays == sorted(delays)
        assert delays[0] < delays[-1]

    def test_nothing_is_shorter_than_the_floor(self) -> None:
        assert pool_of(*[1e-5] * 100).delay(0.95, NOW) == FLOOR_S

    def test_nor_than_two_round_trips(self) -> None:
        pool = LatencyPool("Get")
        for trip in (0.02, 0.01, 0.03):
            pool.record(0.0001, NOW, trip)
        assert pool.delay(0.95, NOW) >= 0.02
        assert pool.floor == pytest.approx(0.02)
        # One lucky trip does not set it, many do.
        pool.record(0.0001, NOW + 1, 0.002)
        pool.delay(0.95, NOW + 1)
        assert pool.floor == pytest.approx(0.018)

    def test_attempts_that_were_given_up_count(self) -> None:
        pool = pool_of(*[0.001] * 80)
        for _ in range(20):
            pool.record_censored(0.2, NOW)
        assert pool.samples == 100
        assert pool.delay(0.95, NOW) == pytest.approx(0.2, rel=0.01)

    def test_it_is_computed_anew_ten_times_a_second(self) -> None:
        pool = pool_of(*[0.01] * 100)
        before = pool.delay(0.95, NOW)
        for _ in range(900):
            pool.record(0.05, NOW)
        assert pool.delay(0.95, NOW + REFRESH_S / 2) == before
        assert pool.delay(0.95, NOW + REFRESH_S * 1.01) == pytest.approx(NARROW_MEDIANS * 0.05, rel=0.01)


class TestFewSamples:
    def test_nothing_known(self) -> None:
        assert LatencyPool("Get").delay(0.95, NOW) == UNKNOWN_DELAY_S
        pool = pool_of(*[0.001] * (SAMPLES_NONE - 1))
        assert (pool.delay(0.95, NOW), pool.median) == (UNKNOWN_DELAY_S, None)

    def test_little_known_the_largest_or_three_medians(self) -> None:
        assert pool_of(*[0.001] * (SAMPLES_NONE - 1), 0.05).delay(0.5, NOW) == pytest.approx(0.05, rel=0.01)
        assert pool_of(*[0.01] * SAMPLES_NONE).delay(0.5, NOW) == pytest.approx(0.03, rel=0.01)

    def test_enough_known(self) -> None:
        pool = pool_of(*[0.001] * (SAMPLES_MIN - 1), 0.05)
        assert pool.delay(0.95, NOW) == pytest.approx(0.003, rel=0.01)

    def test_only_given_up_ones(self) -> None:
        pool = LatencyPool("Get")
        for _ in range(SAMPLES_NONE):
            pool.record_censored(0.3, NOW)
        assert pool.quantile(0.95, NOW) == pytest.approx(0.3, rel=0.01)

    def test_what_is_old_is_forgotten(self) -> None:
        pool = pool_of(*[0.001] * 500)
        pool.record_censored(0.1, NOW)
        assert pool.delay(0.95, NOW + LONG_AGO) == UNKNOWN_DELAY_S
        assert (pool.samples, pool.median, pool.recent_median(NOW + LONG_AGO)) == (0, None, None)

    def test_quantiles_that_callers_name_are_bounded(self) -> None:
        pool = pool_of(*[0.001] * 100)
        for number in range(10 * QUANTILES_MAX):
            pool.quantile(number / 1_000, NOW)
        assert len(pool._known) <= QUANTILES_MAX


class TestShifts:
    def shifted(self, rate: int, factor: float, seconds: int) -> float:
        """Latency is `factor` times what it was for so many seconds: the delay against what it should be by then."""
        rng, now = Random(3), NOW
        pool = LatencyPool("Get")
        while now < NOW + 30:
            now += 1 / rate
            pool.record(rng.lognormvariate(-5, 0.4), now)
        while now < NOW + 30 + seconds:
            now += 1 / rate
            pool.record(factor * rng.lognormvariate(-5, 0.4), now)
        right = LatencyPool("Get")
        for _ in range(5_000):
            right.record(factor * rng.lognormvariate(-5, 0.4), now)
        return pool.delay(0.95, now) / right.delay(0.95, now)

    @pytest.mark.parametrize("factor", [3.0, 1 / 3])
    def test_ten_seconds_later_the_delay_is_right_whatever_the_load(self, factor: float) -> None:
        assert self.shifted(50, factor, 11) == pytest.approx(1.0, abs=0.15)

    @pytest.mark.parametrize("factor", [3.0, 1 / 3])
    def test_under_load_it_is_right_after_two_seconds(self, factor: float) -> None:
        assert self.shifted(1_000, factor, 3) == pytest.approx(1.0, abs=0.1)

    def test_a_slower_cluster_is_seen_from_attempts_that_were_all_given_up(self) -> None:
        pool = pool_of(*[0.01] * 500)
        now = NOW + LONG_AGO
        for _ in range(200):
            pool.record_censored(0.03, now)
        assert pool.delay(0.95, now) == pytest.approx(0.09, rel=0.01)


def test_a_delay_is_not_set_behind_the_cliff() -> None:
    """One attempt in twenty is ten times as slow: the 95th percentile is one of them, and a hedge then would come too late."""
    pool, rng = LatencyPool("Get"), random.Random(3)
    for _ in range(2_000):
        pool.record(0.002 * rng.uniform(0.8, 1.2) * (10 if rng.random() < 0.06 else 1), 1.0)
    assert pool.quantile(0.95, 2.0) > 0.015
    assert pool.delay(0.95, 2.0) == pytest.approx(0.006, rel=0.05)


def test_where_there_is_no_cliff_it_is_the_quantile() -> None:
    pool, rng = LatencyPool("Get"), random.Random(3)
    for _ in range(2_000):
        pool.record(0.002 * rng.lognormvariate(0, 1.0), 1.0)
    assert pool.delay(0.95, 2.0) == pool.quantile(0.95, 2.0) > 3 * (pool.median or 0)
