"""Sources of latency: given by quantiles, measured, whole requests; and the texts they are written in."""

from random import Random

import pytest

from kvshard.errors import InvalidArgument
from kvshard.tail.histogram import LogHistogram
from kvshard.tail.whatif.latency import GivenLatency, LegVectors, MeasuredLatency, parse_latency, parse_length

LEAF = parse_latency("p50=1ms, p95=5ms, p99=10ms")


@pytest.mark.parametrize(("fraction", "seconds"), [(0.5, 0.001), (0.95, 0.005), (0.99, 0.010)])
def test_given_quantiles_are_met_both_ways(fraction, seconds):
    assert LEAF.quantile(fraction) == pytest.approx(seconds)
    assert LEAF.share_above(seconds) == pytest.approx(1 - fraction)


def test_quantiles_never_fall_and_go_on_beyond_the_given_ones():
    values = [LEAF.quantile(fraction) for fraction in (1e-9, 0.1, 0.5, 0.7, 0.95, 0.97, 0.99, 0.999, 1 - 1e-9)]
    assert values == sorted(values)
    assert values[0] < 0.001
    assert values[-1] > 0.1


def test_draws_have_the_given_quantiles():
    rng, seen = Random(1), LogHistogram()
    for seconds in LEAF.request(rng, 20_000).legs:
        seen.record(seconds)
    for fraction, seconds in LEAF.points:
        assert seen.quantile(fraction) == pytest.approx(seconds, rel=0.06)


def test_one_quantile_is_a_constant():
    always = GivenLatency([(0.5, 0.003)])
    assert [always.attempt(Random(seed)) for seed in range(5)] == [pytest.approx(0.003)] * 5
    with pytest.raises(InvalidArgument):
        always.deviation(0.003)


@pytest.mark.parametrize(
    "points",
    [[], [(0.0, 1.0)], [(1.0, 1.0)], [(0.5, 0.0)], [(0.5, 7200.0)], [(0.5, 2.0), (0.9, 1.0)], [(0.5, 1.0), (0.5, 2.0)]],
)
def test_points_that_are_no_distribution_are_refused(points):
    with pytest.raises(InvalidArgument) as refused:
        GivenLatency(points)
    assert refused.value.details.field == "distribution"


@pytest.mark.parametrize("text", ["", "5ms", "p50", "p50=5", "p50=5ms;p99=9ms", "p500=5ms", "q50=5ms", "p50=-5ms", "p50=0ms"])
def test_texts_that_are_no_distribution_are_refused(text):
    with pytest.raises(InvalidArgument) as refused:
        parse_latency(text)
    assert refused.value.details.field == "distribution"


@pytest.mark.parametrize(("text", "seconds"), [("50ms", 0.05), (" 1.5 S ", 1.5), ("250us", 0.00025)])
def test_lengths(text, seconds):
    assert parse_length(text, "any") == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "50", "ms", "0ms", "2h", "3601s"])
def test_bad_lengths_name_the_field(text):
    with pytest.raises(InvalidArgument) as refused:
        parse_length(text, "pause_length")
    assert refused.value.details.field == "pause_length"


def test_a_measured_one_draws_what_was_measured():
    measured = LogHistogram()
    measured.record(0.001, 900)
    measured.record(0.050, 100)
    latency, rng = MeasuredLatency(measured), Random(2)
    draws = latency.request(rng, 10_000).legs
    assert latency.samples == 1_000
    assert sum(seconds > 0.04 for seconds in draws) == pytest.approx(1_000, rel=0.15)
    assert max(draws) <= 0.050
    assert all(0.00099 < seconds < 0.00101 or seconds > 0.049 for seconds in draws)


def test_an_empty_measurement_is_refused():
    with pytest.raises(InvalidArgument):
        MeasuredLatency(LogHistogram())
    with pytest.raises(InvalidArgument):
        LegVectors([[], []])
    with pytest.raises(InvalidArgument):
        LegVectors([[0.1, -0.1]])
    with pytest.raises(InvalidArgument):
        LegVectors([[0.1], [0.1]], beyond_s=[0.2])


def test_whole_requests_keep_what_their_legs_have_in_common():
    latency, rng = LegVectors([[0.001] * 4, [0.100] * 4]), Random(3)
    for _ in range(20):
        assert len(set(latency.request(rng, 4).legs)) == 1
        assert len(set(latency.request(rng, 2).legs)) == 1
    assert {len(latency.request(rng, legs).legs) for legs in (1, 3, 4, 9)} == {1, 3, 4, 9}
    assert {latency.attempt(rng) for _ in range(50)} == {0.001, 0.100}
