"""What can be said from samples: quantiles with bootstrap intervals, ratios, amplification, and what theory expects.

Requests that start within one slice of time share its pauses and are not independent, so the bootstrap draws whole slices
(Kuensch's block bootstrap, with blocks of `tally.SLICE_S`), not single requests: an interval over single requests would be far
too narrow.

Pure: imports only the standard library and other pure files.
"""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random

from kvshard.tail.histogram import LogHistogram, middle_of

RESAMPLES = 400
"""Draws of a bootstrap: the ends of a 95 % interval are then its 10th and 390th value."""

LEVEL = 0.95

SAMPLES_MIN = {0.5: 20, 0.9: 100, 0.95: 200, 0.99: 1_000, 0.999: 10_000, 0.9999: 100_000}
"""Below this many samples fewer than ten lie above the quantile, and it says nothing."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95 % interval and the number of samples that it comes from."""

    value: float
    low: float
    high: float
    samples: int

    def as_record(self) -> dict[str, float]:
        """Plain data for JSON."""
        return {"value": self.value, "low": self.low, "high": self.high, "n": self.samples}


class SliceTable:
    """The histograms of many slices, ready to be drawn from: per slice the cumulative counts over all buckets in use."""

    def __init__(self, slices: Sequence[LogHistogram]) -> None:
        self.slices = [held for held in slices if held.count]
        self.count = sum(held.count for held in self.slices)
        self._buckets = sorted({bucket for held in self.slices for bucket, _ in held.buckets()})
        self._cumulated: list[list[int]] = []
        for held in self.slices:
            counts = dict(held.buckets())
            self._cumulated.append(list(accumulate(counts.get(bucket, 0) for bucket in self._buckets)))

    def quantile(self, fraction: float, weights: Sequence[int] | None = None) -> float:
        """The quantile when each slice counts as often as its weight says. Raises ValueError without samples."""
        if not self.slices:
            raise ValueError("no samples")
        chosen = (
            [(1, row) for row in self._cumulated]
            if weights is None
            else [(weight, row) for weight, row in zip(weights, self._cumulated, strict=True) if weight]
        )
        total = sum(weight * row[-1] for weight, row in chosen)
        rank = min(total, max(1, -(-int(fraction * total * 1_000_000) // 1_000_000)))
        index = bisect_left(range(len(self._buckets)), rank, key=lambda at: sum(weight * row[at] for weight, row in chosen))
        return middle_of(self._buckets[index])

    def draw(self, rng: Random) -> list[int]:
        """How often each slice comes in one resample."""
        weights = [0] * len(self.slices)
        for index in rng.choices(range(len(weights)), k=len(weights)):
            weights[index] += 1
        return weights


def quantile(table: SliceTable, fraction: float, rng: Random) -> Estimate:
    """A quantile with its interval. Raises ValueError without samples."""
    drawn = [table.quantile(fraction, table.draw(rng)) for _ in range(RESAMPLES)]
    return _estimate(table.quantile(fraction), drawn, table.count)


def ratio(above: SliceTable, below: SliceTable, fraction: float, rng: Random) -> Estimate:
    """A quantile of one cell by that of another; the cells are drawn apart. Raises ValueError without samples."""
    return ratio_of(
        lambda weights: above.quantile(fraction, weights), lambda weights: below.quantile(fraction, weights), above, below, rng
    )


def ratio_of(
    above_value: Callable[[Sequence[int] | None], float],
    below_value: Callable[[Sequence[int] | None], float],
    above: SliceTable,
    below: SliceTable,
    rng: Random,
) -> Estimate:
    """A ratio of two statistics with its interval."""
    drawn = [above_value(above.draw(rng)) / below_value(below.draw(rng)) for _ in range(RESAMPLES)]
    return _estimate(above_value(None) / below_value(None), drawn, min(above.count, below.count))


def _estimate(value: float, drawn: list[float], samples: int) -> Estimate:
    drawn.sort()
    tail = (1 - LEVEL) / 2
    return Estimate(value, drawn[int(tail * len(drawn))], drawn[min(len(drawn) - 1, int((1 - tail) * len(drawn)))], samples)


def is_enough(samples: int, fraction: float) -> bool:
    """Whether that many samples say anything about a quantile: at least ten lie above it."""
    return samples * (1 - fraction) >= 10 - 1e-6


def slower_than(histogram: LogHistogram, seconds: float) -> float:
    """The part of the values above a limit."""
    above = sum(count for bucket, count in histogram.buckets() if middle_of(bucket) > seconds)
    return above / histogram.count if histogram.count else 0.0


def chance_of_a_straggler(chance: float, legs: int) -> float:
    """How often at least one of so many independent legs is slow: 1-(1-p)^n, the arithmetic of "The Tail at Scale"."""
    return 1.0 - (1.0 - chance) ** legs


def gathered_quantile(leg: LogHistogram, fraction: float, legs: int) -> float:
    """The quantile of the slowest of so many independent legs: that of one leg at the n-th root. Raises ValueError if empty."""
    value = leg.quantile(fraction ** (1.0 / legs))
    if value is None:
        raise ValueError("no samples")
    return value


def hedged_quantile(leg: LogHistogram, fraction: float, extra: float) -> float:
    """The quantile of one leg that is asked a second time after the best fixed delay, with at most that part of extra requests.

    Both attempts take what legs take without hedging, and do not know of each other. The sooner the second one, the better; so
    the delay d is the one that just `extra` of the legs exceed, and P(slower than t) = P(leg > t) P(leg > t - d) for t > d.
    Raises ValueError if empty.
    """
    delay = leg.quantile(1.0 - extra)
    if delay is None:
        raise ValueError("no samples")
    taken = [middle_of(bucket) for bucket, _ in leg.buckets()]
    candidates = sorted([*taken, *(delay + seconds for seconds in taken)])
    for seconds in candidates:
        waits_behind = slower_than(leg, seconds - delay) if seconds > delay else 1.0
        if slower_than(leg, seconds) * waits_behind <= 1.0 - fraction:
            return seconds
    return candidates[-1]


def percentile_points(histogram: LogHistogram, least: float = 1e-1, per_decade: int = 24) -> list[tuple[float, float]]:
    """Points of a latency-by-percentile curve: (1 - fraction, seconds), evenly on a log axis, as far as ten samples reach.

    least: the first point's part of slower values.
    """
    points: list[tuple[float, float]] = []
    tail = least
    while is_enough(histogram.count, 1.0 - tail) and len(points) < 10 * per_decade:
        value = histogram.quantile(1.0 - tail)
        assert value is not None, "a histogram with enough samples has quantiles"
        points.append((tail, value))
        tail *= 10 ** (-1.0 / per_decade)
    return points
