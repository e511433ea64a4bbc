"""Where the time of a gathered answer went: one row a leg, and which leg was the straggler.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LegTime:
    """One leg. leaf: whose answer was used, empty when the leg failed. total_us: from the first attempt to the outcome.

    queue_us, service_us: of the winning request, as its leaf measured them. ended_at: instant of the outcome on the router's
    monotonic clock, in seconds.
    """

    shard: int
    leaf: str
    attempts: int
    total_us: int
    queue_us: int
    service_us: int
    ended_at: float


@dataclass(frozen=True, slots=True)
class Timing:
    """The ledger of one answer. straggler_shard: the shard whose leg ended last; None when there was no leg."""

    legs: tuple[LegTime, ...]
    total_us: int
    merge_us: int
    straggler_shard: int | None


def timing_of(legs: Iterable[LegTime], total_us: int, merge_us: int) -> Timing:
    """The ledger of these legs, in shard order; of legs that ended together the higher shard is the straggler."""
    rows = tuple(sorted(legs, key=lambda leg: leg.shard))
    straggler = max(rows, key=lambda leg: (leg.ended_at, leg.shard), default=None)
    return Timing(rows, total_us, merge_us, None if straggler is None else straggler.shard)


def micros(seconds: float) -> int:
    """A length in whole microseconds, never negative."""
    return max(0, round(seconds * 1_000_000))
