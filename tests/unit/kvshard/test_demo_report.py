"""Percentiles, amplification and the pictures of the demo."""

import random

import pytest

from kvshard.cli.demo_report import (
    FanOutSamples,
    bar,
    explanation,
    percentile,
    percentiles,
    picture,
    query_words,
    rotated,
)


@pytest.mark.parametrize(
    ("values", "fraction", "expected"),
    [
        ([7], 0.5, 7),
        ([7], 0.99, 7),
        ([1, 2], 0.5, 1),
        ([1, 2, 3], 0.5, 2),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 101)), 0.9, 90),
        (list(range(1, 1001)), 0.99, 990),
        (list(range(1, 102)), 0.99, 100),
        ([1, 2, 3], 1.0, 3),
    ],
)
def test_nearest_rank(values, fraction, expected):
    assert percentile(values, fraction) == expected


def test_percentiles_are_milliseconds_of_unsorted_microseconds():
    values = list(range(1000, 101_000, 1000))
    random.Random(1).shuffle(values)
    found = percentiles(values)
    assert (found.n, found.p50, found.p90, found.p99, found.slowest) == (100, 50.0, 90.0, 99.0, 100.0)


@pytest.fixture
def samples():
    samples = FanOutSamples()
    for number in range(1, 101):
        samples.add(1, number * 110, [number * 100])
        samples.add(2, number * 250, [number * 100, number * 200])
    return samples


def test_amplification_is_the_answers_p99_over_a_lone_legs_p99(samples):
    one, two = samples.rows()
    assert (one.fan_out, two.fan_out) == (1, 2)
    assert samples.single_leg.p99 == pytest.approx(9.9)
    assert one.amplification == pytest.approx(1.1)
    assert two.amplification == pytest.approx(2.5)
    assert (two.answers.n, two.legs.n) == (100, 200)


def test_mean_of_the_widest_searches(samples):
    assert samples.widest_mean_s == pytest.approx(250 * 50.5 / 1e6)


def test_every_fan_out_stands_at_every_place_equally_often():
    places = {fan_out: [0, 0, 0, 0] for fan_out in (1, 2, 4, 8)}
    for turn in range(40):
        for place, fan_out in enumerate(rotated((1, 2, 4, 8), turn)):
            places[fan_out][place] += 1
    assert places == {fan_out: [10, 10, 10, 10] for fan_out in (1, 2, 4, 8)}


def test_bars():
    assert [bar(value, 8.0, 8) for value in (0.0, 0.001, 1.0, 1.5, 8.0)] == ["", "▏", "█", "█▌", "████████"]
    assert bar(0.0, 0.0, 8) == ""


def test_picture_and_explanation_carry_the_numbers(samples):
    lines = picture(samples.single_leg, samples.rows(), width=10)
    assert lines[0] == "one leg alone p50 ██ 5.00 ms"
    assert lines[-1] == "              p99 ██████████ 24.75 ms"
    text = explanation(samples, cores=2, replicas=3)
    assert "p99 is 24.8 ms where one leg asked alone has 9.9 ms, an amplification of 2.5" in text
    assert "one of its shard's 3 replicas" in text


def test_words_that_are_neither_rare_nor_everywhere():
    counts = {"the": 900, "loop": 40, "socket": 40, "zzz": 9, "edge": 50, "more": 51, "ten": 10}
    assert query_words(counts, 1000) == ["edge", "loop", "socket", "ten"]
