"""When requests are to start: seeded Poisson arrivals whose rate may change over time.

The schedule is made before the run and obeyed whatever the service does: a slow answer delays no later request (open loop), so
that the wait that a slow service causes is measured and not omitted.

Pure: imports only the standard library.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from random import Random
from typing import Protocol


class Shape(Protocol):
    """A rate over time. seconds: its length. peak: its highest rate."""

    @property
    def seconds(self) -> float:
        """Length of the shape."""

    @property
    def peak(self) -> float:
        """Highest rate, in requests a second."""

    def rate_at(self, at: float) -> float:
        """Requests a second, that many seconds after the start."""


@dataclass(frozen=True, slots=True)
class Steady:
    """The same rate all the time."""

    rate: float
    seconds: float

    @property
    def peak(self) -> float:
        """Highest rate."""
        return self.rate

    def rate_at(self, at: float) -> float:
        """Requests a second."""
        return self.rate


@dataclass(frozen=True, slots=True)
class Ramp:
    """From one rate to another, evenly."""

    first: float
    last: float
    seconds: float

    @property
    def peak(self) -> float:
        """Highest rate."""
        return max(self.first, self.last)

    def rate_at(self, at: float) -> float:
        """Requests a second."""
        return self.first + (self.last - self.first) * min(1.0, max(0.0, at / self.seconds))


@dataclass(frozen=True, slots=True)
class Steps:
    """One rate after the other, each for step_s."""

    rates: tuple[float, ...]
    step_s: float

    @property
    def seconds(self) -> float:
        """Length of all steps."""
        return len(self.rates) * self.step_s

    @property
    def peak(self) -> float:
        """Highest rate."""
        return max(self.rates)

    def rate_at(self, at: float) -> float:
        """Requests a second."""
        return self.rates[min(len(self.rates) - 1, max(0, int(at / self.step_s)))]


@dataclass(frozen=True, slots=True)
class Spike:
    """A base rate, and `factor` times as much between two instants."""

    base: float
    factor: float
    seconds: float
    begin_s: float
    end_s: float

    @property
    def peak(self) -> float:
        """Highest rate."""
        return self.base * max(1.0, self.factor)

    def rate_at(self, at: float) -> float:
        """Requests a second."""
        return self.base * self.factor if self.begin_s <= at < self.end_s else self.base


def poisson(shape: Shape, rng: Random) -> Iterator[float]:
    """Instants of arrival in seconds from the start, ascending: a Poisson process, thinned where the rate is below its peak."""
    assert shape.peak > 0, "a shape has requests"
    at = rng.expovariate(shape.peak)
    while at < shape.seconds:
        if rng.random() * shape.peak < shape.rate_at(at):
            yield at
        at += rng.expovariate(shape.peak)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A request that is to start. at: seconds from the start of the run. kind: what is asked. seed: of its own choices."""

    at: float
    kind: str
    seed: int


def schedule(shape: Shape, kinds: Sequence[tuple[str, float]], rng: Random) -> list[Arrival]:
    """All arrivals of a run. kinds: what is asked, and how often relative to the others; each arrival draws one."""
    assert kinds, "there is something to ask"
    names = [name for name, _ in kinds]
    weights = list(accumulate(weight for _, weight in kinds))
    return [Arrival(at, rng.choices(names, cum_weights=weights)[0], rng.getrandbits(32)) for at in poisson(shape, rng)]
