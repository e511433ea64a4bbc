import itertools
import random

import pytest

from loadtests.arrivals import Ramp, Spike, Steady, Steps, poisson, schedule


def count_between(instants, begin, end):
    return sum(begin <= at < end for at in instants)


def test_a_steady_rate_is_kept_and_gaps_are_exponential():
    instants = list(poisson(Steady(200.0, 50.0), random.Random(1)))
    gaps = [after - before for before, after in itertools.pairwise(instants)]
    assert len(instants) == pytest.approx(10_000, rel=0.04)
    assert instants == sorted(instants)
    # Of exponential gaps the part exp(-1) is longer than the mean.
    mean = sum(gaps) / len(gaps)
    assert sum(gap > mean for gap in gaps) / len(gaps) == pytest.approx(0.368, abs=0.02)


@pytest.mark.parametrize(
    ("shape", "quiet", "busy"),
    [
        (Ramp(0.0, 400.0, 20.0), (0.0, 5.0), (15.0, 20.0)),
        (Steps((50.0, 350.0), 10.0), (0.0, 10.0), (10.0, 20.0)),
        (Spike(50.0, 7.0, 20.0, 10.0, 20.0), (0.0, 10.0), (10.0, 20.0)),
    ],
)
def test_the_rate_follows_the_shape(shape, quiet, busy):
    instants = list(poisson(shape, random.Random(2)))
    assert shape.seconds == 20.0
    assert count_between(instants, *busy) == pytest.approx(7 * count_between(instants, *quiet), rel=0.2)


def test_a_seed_repeats_the_schedule_and_kinds_come_as_often_as_they_weigh():
    made = [schedule(Steady(500.0, 10.0), [("a", 3.0), ("b", 1.0)], random.Random(seed)) for seed in (3, 3, 4)]
    assert made[0] == made[1] != made[2]
    kinds = [arrival.kind for arrival in made[0]]
    assert kinds.count("a") / len(kinds) == pytest.approx(0.75, abs=0.03)
    assert len({arrival.seed for arrival in made[0]}) > 0.99 * len(kinds)
