"""How long one attempt takes at a healthy leaf, as the router sees it: network, queue and service together. In seconds.

Pure: imports only the standard library and other pure files.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate, pairwise
from math import exp, log
from random import Random
from statistics import NormalDist
from typing import NamedTuple, Protocol

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.tail.histogram import LogHistogram, bounds_of

LONGEST_S = 3600.0
"""A leaf that takes longer than an hour is a slip of the unit."""

POINTS_MAX = 32
"""Quantiles of a given distribution: nobody reads more off a dashboard."""

_NORMAL = NormalDist()
_LEAST_FRACTION = 1e-12
"""Keeps a random fraction off 0 and 1, where the normal quantile is infinite; no run draws 1e12 times."""

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_POINT = re.compile(r"p(\d{1,2}(?:\.\d+)?)=(.+)")


class RequestTimes(Protocol):
    """What one request meets, at healthy leaves."""

    @property
    def beyond_s(self) -> float:
        """What it takes beyond its slowest leg."""

    def first(self, number: int, leaf: int) -> float:
        """The time of the first attempt of the leg of that number (from 0), at that leaf; asked once for each leg."""

    def further(self, rng: Random, leaf: int, age_s: float) -> float:
        """The time of a further attempt at that leaf, sent when the request is that old."""


class Latency(Protocol):
    """A source of latencies."""

    @property
    def samples(self) -> int | None:
        """How many measured values stand behind it; None: none, it was given."""

    def request(self, rng: Random, legs: int) -> RequestTimes:
        """The times of one request."""

    def attempt(self, rng: Random) -> float:
        """The time of one attempt by itself."""


class DrawnTimes(NamedTuple):
    """Drawn at once for all first attempts, whatever the leaves; further attempts have nothing in common with them."""

    legs: Sequence[float]
    latency: Latency
    beyond_s: float = 0.0

    def first(self, number: int, leaf: int) -> float:
        """The time of the first attempt of that leg."""
        return self.legs[number]

    def further(self, rng: Random, leaf: int, age_s: float) -> float:
        """The time of any attempt."""
        return self.latency.attempt(rng)


class GivenLatency:
    """Known by some of its quantiles: log-normal between each two neighbours, and beyond the outermost ones.

    Leaf latencies are skewed, and the published leaf row of "The Tail at Scale" (1, 5, 10 ms at p50, p95, p99) is log-normal
    within 2 %. One quantile alone means that every attempt takes exactly that long.
    """

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        ordered = sorted(points)
        if not 1 <= len(ordered) <= POINTS_MAX:
            raise _bad(f"between 1 and {POINTS_MAX} quantiles are needed, not {len(ordered)}")
        if any(not 0 < fraction < 1 or not 0 < seconds <= LONGEST_S for fraction, seconds in ordered):
            raise _bad(f"a quantile lies between p0 and p100, and a latency above 0 and within {LONGEST_S:g} s")
        for (fraction, seconds), (next_fraction, next_seconds) in pairwise(ordered):
            if fraction == next_fraction or seconds > next_seconds:
                raise _bad("a higher quantile has no lower latency, and none is named twice")
        self.points = tuple(ordered)
        self._at = [_NORMAL.inv_cdf(fraction) for fraction, _ in ordered]
        self._logs = [log(seconds) for _, seconds in ordered]
        pairs = range(len(ordered) - 1)
        self._slopes = [(self._logs[i + 1] - self._logs[i]) / (self._at[i + 1] - self._at[i]) for i in pairs]

    def __repr__(self) -> str:
        return f"GivenLatency({', '.join(f'p{fraction * 100:g}={seconds:g}s' for fraction, seconds in self.points)})"

    @property
    def samples(self) -> int | None:
        """None: it was given."""
        return None

    def quantile(self, fraction: float) -> float:
        """The latency that this part of the attempts does not exceed; 0 < fraction < 1."""
        return self.at_deviation(_NORMAL.inv_cdf(min(max(fraction, _LEAST_FRACTION), 1 - _LEAST_FRACTION)))

    def at_deviation(self, deviation: float) -> float:
        """The latency at so many standard deviations of the normal scale: sharper than a fraction, far out in the tail."""
        if not self._slopes:
            return exp(self._logs[0])
        segment = min(max(bisect_left(self._at, deviation) - 1, 0), len(self._slopes) - 1)
        return exp(self._logs[segment] + self._slopes[segment] * (deviation - self._at[segment]))

    def deviation(self, seconds: float) -> float:
        """At how many standard deviations of the normal scale a latency lies. Raises InvalidArgument for a single quantile."""
        value = log(seconds)
        if not self._slopes:
            raise _bad("one quantile makes no distribution")
        segment = min(max(bisect_left(self._logs, value) - 1, 0), len(self._slopes) - 1)
        slope = self._slopes[segment]
        return self._at[segment] + ((value - self._logs[segment]) / slope if slope else 0.0)

    def share_above(self, seconds: float) -> float:
        """The part of the attempts that takes longer."""
        return _NORMAL.cdf(-self.deviation(seconds)) if seconds > 0 else 1.0

    def attempt(self, rng: Random) -> float:
        """The time of one attempt."""
        return self.quantile(rng.random())

    def request(self, rng: Random, legs: int) -> DrawnTimes:
        """Independent of each other."""
        return DrawnTimes([self.quantile(rng.random()) for _ in range(legs)], self)


class MeasuredLatency:
    """As a histogram counted it, attempts independent of each other. Nothing is longer than the longest that was measured."""

    def __init__(self, histogram: LogHistogram) -> None:
        if not histogram.count:
            raise _bad("the measured distribution holds no values")
        buckets = histogram.buckets()
        self.histogram = histogram
        self._bounds = [bounds_of(bucket) for bucket, _ in buckets]
        self._seen = list(accumulate(count for _, count in buckets))

    def __repr__(self) -> str:
        return f"MeasuredLatency({self.histogram!r})"

    @property
    def samples(self) -> int | None:
        """Values in the histogram."""
        return self.histogram.count

    def quantile(self, fraction: float) -> float:
        """The latency that this part of the attempts does not exceed."""
        rank = fraction * self._seen[-1]
        place = min(bisect_left(self._seen, rank), len(self._seen) - 1)
        low, high = self._bounds[place]
        before = self._seen[place - 1] if place else 0
        return min(low + (high - low) * (rank - before) / (self._seen[place] - before), self.histogram.maximum or high)

    def attempt(self, rng: Random) -> float:
        """The time of one attempt."""
        return self.quantile(rng.random())

    def request(self, rng: Random, legs: int) -> DrawnTimes:
        """Independent of each other."""
        return DrawnTimes([self.quantile(rng.random()) for _ in range(legs)], self)


class LegVectors:
    """The legs of whole requests, as they were measured: keeps what the legs of one request have in common.

    beyond_s: what each request took beyond its slowest leg; empty: nothing. A request of more legs than were measured is put
    together from several; one of fewer takes a part of one.
    """

    def __init__(self, vectors: Sequence[Sequence[float]], beyond_s: Sequence[float] = ()) -> None:
        if beyond_s and len(beyond_s) != len(vectors):
            raise _bad(f"{len(vectors)} requests cannot take {len(beyond_s)} times beyond their slowest legs")
        found = zip(vectors, beyond_s or [0.0] * len(vectors), strict=True)
        self._requests = [(tuple(legs), beyond) for legs, beyond in found if legs]
        if not self._requests:
            raise _bad("no measured request has a leg")
        if any(not 0 <= seconds <= LONGEST_S for legs, beyond in self._requests for seconds in (*legs, beyond)):
            raise _bad(f"a measured leg takes between 0 and {LONGEST_S:g} s")

    def __repr__(self) -> str:
        return f"LegVectors({len(self._requests)} requests, {self.samples} legs)"

    @property
    def samples(self) -> int | None:
        """Legs measured."""
        return sum(len(legs) for legs, _ in self._requests)

    def attempt(self, rng: Random) -> float:
        """The time of any leg of any request."""
        return rng.choice(rng.choice(self._requests)[0])

    def request(self, rng: Random, legs: int) -> DrawnTimes:
        """Those of one measured request, or of as many as it takes."""
        found: list[float] = []
        beyond_s = 0.0
        while len(found) < legs:
            measured, beyond = rng.choice(self._requests)
            wanted = legs - len(found)
            found.extend(measured if len(measured) <= wanted else rng.sample(measured, wanted))
            beyond_s = max(beyond_s, beyond)
        return DrawnTimes(found, self, beyond_s)


def parse_length(text: str, field: str) -> float:
    """The seconds in a text such as "50ms". Raises InvalidArgument with that field."""
    found = _LENGTH.fullmatch("".join(text.lower().split()))
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds <= LONGEST_S:
        message = (
            f'not a length of time: {text[:100]!r}; expected one above 0 and within an hour, such as "50ms", "500us" or "2s"'
        )
        raise InvalidArgument(message, ErrorDetails(field=field))
    return seconds


def parse_latency(text: str) -> GivenLatency:
    """The distribution in a text such as "p50=5ms,p99=10ms". Raises InvalidArgument with field "distribution"."""
    points: list[tuple[float, float]] = []
    for part in text.lower().split(","):
        found = _POINT.fullmatch("".join(part.split()))
        if found is None:
            raise _bad(f'not a quantile: {part.strip()[:100]!r}; a distribution is written as "p50=5ms,p99=10ms"')
        points.append((float(found[1] + "e-2"), parse_length(found[2], "distribution")))
    return GivenLatency(points)


def _bad(message: str) -> InvalidArgument:
    return InvalidArgument(message, ErrorDetails(field="distribution"))
