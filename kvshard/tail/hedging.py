"""What a caller may ask of hedging and of the choice of a replica: the syntax, and what it means as data.

    policy   = "auto" | "off" | interval | "min(" interval "," interval ")" | "max(" interval "," interval ")"
    interval = length | quantile
    length   = number ("us" | "ms" | "s")       10ms, 0.5s
    quantile = "p" number                       p99, p99.9: that part of the first attempts has ended

Pure: imports only the standard library and other pure files.
"""

import re
from dataclasses import dataclass
from enum import Enum

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.tail.latency import LatencyPool

LONGEST_DELAY_S = 60.0
"""A hedge that starts later than any sensible deadline is a slip of the unit."""

_LENGTH = re.compile(r"(\d+(?:\.\d+)?)(us|ms|s)")
_QUANTILE = re.compile(r"p(\d{1,2}(?:\.\d+)?)")
_COMBINED = re.compile(r"(min|max)\(([^,()]*),([^,()]*)\)")
_SECONDS = {"us": 1e-6, "ms": 1e-3, "s": 1.0}
_SYNTAX = 'expected "auto", "off", a delay such as "10ms", a quantile such as "p99", or "min(a,b)" / "max(a,b)" of two of them'


@dataclass(frozen=True, slots=True)
class Auto:
    """The service decides, from what it measures and within its budget."""


@dataclass(frozen=True, slots=True)
class Off:
    """Never hedge."""


@dataclass(frozen=True, slots=True)
class FixedDelay:
    """Hedge after this long."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Quantile:
    """Hedge after that quantile of the first attempts' latency; 0 < fraction < 1."""

    fraction: float


Interval = FixedDelay | Quantile


@dataclass(frozen=True, slots=True)
class Shorter:
    """min(a, b): the shorter of the two."""

    first: Interval
    second: Interval


@dataclass(frozen=True, slots=True)
class Longer:
    """max(a, b): the longer of the two."""

    first: Interval
    second: Interval


HedgePolicy = Auto | Off | Interval | Shorter | Longer


def policy_text(policy: HedgePolicy) -> str:
    """A policy as `parse_policy` reads it."""
    match policy:
        case Auto():
            return "auto"
        case Off():
            return "off"
        case FixedDelay(seconds):
            return f"{seconds * 1e3:.6g}ms"
        case Quantile(fraction):
            return f"p{fraction * 100:.10g}"
        case Shorter(first, second):
            return f"min({policy_text(first)},{policy_text(second)})"
        case Longer(first, second):
            return f"max({policy_text(first)},{policy_text(second)})"


class Refusal(Enum):
    """Why a hedge was not sent."""

    NOT_IDEMPOTENT = "not_idempotent"
    NO_CANDIDATE = "no_candidate"
    BUDGET = "budget"
    LATE_ROUTER = "late_router"
    DEADLINE = "deadline"
    PUSHBACK = "pushback"
    STORM = "storm"
    QUEUE = "queue"


BUDGET_MAX = 0.5
"""Of the first attempts: beyond half as much again hedging is no remedy, but the load."""

ATTEMPTS_MAX = 3
"""Attempts of a leg at most: the first one, its hedge, and one more where that hangs too."""

BUDGET_FIRST = 0.05
BUDGET_LEAST = 0.01
BUDGET_MOST = 0.1
"""Where a budget that tunes itself begins, and how far it goes."""


@dataclass(frozen=True, slots=True)
class HedgeSettings:
    """How reads are hedged that do not say it themselves.

    budget: extra requests at most, as a part of the first attempts; None: it tunes itself between BUDGET_LEAST and BUDGET_MOST.
    max_attempts: attempts of a leg at most, the first one included.
    """

    policy: HedgePolicy = Auto()
    budget: float | None = None
    max_attempts: int = ATTEMPTS_MAX

    @property
    def budget_first(self) -> float:
        """What it begins with."""
        return BUDGET_FIRST if self.budget is None else self.budget

    @property
    def budget_most(self) -> float:
        """What it never exceeds."""
        return BUDGET_MOST if self.budget is None else self.budget


def policy_delay(policy: HedgePolicy, pool: LatencyPool, budget: float, now: float) -> float | None:
    """Seconds after which a spare replica is asked too, by what the pool has seen; None: never."""
    match policy:
        case Auto():
            return pool.delay(1 - budget, now)
        case Off():
            return None
        case FixedDelay(seconds):
            return seconds
        case Quantile(fraction):
            return pool.quantile(fraction, now)
        case Shorter(first, second):
            return min(_length(first, pool, now), _length(second, pool, now))
        case Longer(first, second):
            return max(_length(first, pool, now), _length(second, pool, now))


def _length(interval: Interval, pool: LatencyPool, now: float) -> float:
    return interval.seconds if isinstance(interval, FixedDelay) else pool.quantile(interval.fraction, now)


class ReplicaChoice(Enum):
    """Which replica gets the first attempt."""

    ADAPTIVE = "adaptive"
    RANDOM = "random"
    PRIMARY = "primary"


def parse_policy(text: str) -> HedgePolicy:
    """The policy that a request names; empty means "auto". Raises InvalidArgument with field "options.hedge"."""
    compact = "".join(text.lower().split())
    if compact in ("", "auto"):
        return Auto()
    if compact == "off":
        return Off()
    combined = _COMBINED.fullmatch(compact)
    if combined is None:
        return _interval(compact, text)
    first, second = _interval(combined[2], text), _interval(combined[3], text)
    return Shorter(first, second) if combined[1] == "min" else Longer(first, second)


def _interval(part: str, text: str) -> Interval:
    if length := _LENGTH.fullmatch(part):
        seconds = float(length[1]) * _SECONDS[length[2]]
        if seconds > LONGEST_DELAY_S:
            raise _bad(f"a hedge delay of {part} is longer than {LONGEST_DELAY_S:g} s")
        return FixedDelay(seconds)
    quantile = _QUANTILE.fullmatch(part)
    if quantile is None:
        raise _bad(f"not a hedging policy: {text[:100]!r}; {_SYNTAX}")
    fraction = float(quantile[1] + "e-2")
    if fraction <= 0:
        raise _bad(f"{part} is no quantile to wait for; the smallest is above p0")
    return Quantile(fraction)


def _bad(message: str) -> InvalidArgument:
    return InvalidArgument(message, ErrorDetails(field="options.hedge"))


def parse_replica_choice(text: str) -> ReplicaChoice:
    """The choice that a request names; empty means "adaptive". Raises InvalidArgument with field "options.replica_choice"."""
    try:
        return ReplicaChoice(text.strip().lower() or "adaptive")
    except ValueError:
        known = ", ".join(f'"{choice.value}"' for choice in ReplicaChoice)
        message = f"not a replica choice: {text[:100]!r}; expected {known}"
        raise InvalidArgument(message, ErrorDetails(field="options.replica_choice")) from None
