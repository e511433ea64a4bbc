"""Live amplification: classes, the quotient, the window, too few samples."""

from random import Random

import pytest

from router.amplification import MIN_SAMPLES, SLICE_S, SLICES, Amplification, fan_out_class

NOW = 1000.0


@pytest.mark.parametrize(
    ("fan_out", "name"),
    [(1, "1"), (2, "2-4"), (4, "2-4"), (5, "5-16"), (16, "5-16"), (17, "17-64"), (64, "17-64"), (65, "65+"), (4096, "65+")],
)
def test_classes(fan_out: int, name: str) -> None:
    assert fan_out_class(fan_out) == name


def test_quotient_of_the_two_p99() -> None:
    """1 % of the legs take 100 ms: of 8 legs the slowest does in 8 % of the reads, so the p99 of the answers is 100 ms."""
    amplification, rng = Amplification(), Random(1)
    for _ in range(2000):
        legs_us = [100_000 if rng.random() < 0.008 else 1_000 for _ in range(8)]
        amplification.record("Search", 8, max(legs_us) / 1e6, legs_us, NOW)
    (tail,), (legs,) = amplification.gathered(NOW), amplification.legs(NOW)
    assert (tail.method, tail.fan_out, tail.reads, legs.legs) == ("Search", "5-16", 2000, 16_000)
    assert legs.p99 == pytest.approx(0.001, rel=0.01)
    assert tail.gathered_p99 == pytest.approx(0.1, rel=0.01)
    assert tail.amplification_p99 == pytest.approx(100, rel=0.02)


def test_methods_and_classes_stand_side_by_side() -> None:
    amplification = Amplification()
    for fan_out, method in ((1, "BatchGet"), (8, "BatchGet"), (8, "Search")):
        amplification.record(method, fan_out, 0.01, [1000] * fan_out, NOW)
    assert [(tail.method, tail.fan_out) for tail in amplification.gathered(NOW)] == [
        ("BatchGet", "1"),
        ("BatchGet", "5-16"),
        ("Search", "5-16"),
    ]


def test_no_figure_of_too_few_samples() -> None:
    amplification = Amplification()
    for number in range(MIN_SAMPLES):
        (tail,) = amplification.gathered(NOW) or [None]
        assert tail is None or (tail.reads, tail.gathered_p99, tail.amplification_p99) == (number, None, None)
        amplification.record("Get", 1, 0.002, [1000], NOW)
    assert amplification.gathered(NOW)[0].amplification_p99 == pytest.approx(2, rel=0.01)


def test_what_is_older_than_the_window_does_not_count_also_when_nothing_comes_after_it() -> None:
    amplification = Amplification()
    for _ in range(MIN_SAMPLES):
        amplification.record("Get", 1, 1.0, [1000], NOW)
    window = SLICE_S * SLICES
    assert amplification.gathered(NOW + window - 1)[0].reads == MIN_SAMPLES
    assert amplification.gathered(NOW + window + 1)[0].reads == 0
    amplification.record("Get", 1, 0.001, [1000], NOW + window)
    assert amplification.gathered(NOW + window)[0].reads == 1


def test_looking_changes_nothing() -> None:
    """The scraper is another thread."""
    amplification = Amplification()
    amplification.record("Get", 1, 1.0, [1000], NOW)
    assert amplification.gathered(NOW + 1e6)[0].reads == 0
    assert amplification.gathered(NOW)[0].reads == 1
