"""How the hedge budget tunes itself: less when hedges do not help or the cluster suffers, more when they are missed.

Hedges that do not win are load without use; a median that doubles, or leaves that shed load, say that everything is slow, and
then more load makes it worse. So the budget falls fast (it is halved) and rises slowly, as congestion windows do (Jacobson,
1988).

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass

from kvshard.tail.hedging import BUDGET_LEAST, HedgeSettings

INTERVAL_S = 1.0
"""Between two looks: long enough for a few hedges to end, and half of the latency that a sick cluster is noticed by."""

HEDGES_MIN = 20
"""Hedges that have ended before their share of wins says something: of 20 fewer than 2 wins by chance are one in 25,000 at a
half."""

WINS_LOW = 0.1
WINS_HIGH = 0.75
"""Shares of hedges that won: below the one the budget is halved, from the other on it may grow. Hedges against the slow answers
of healthy leaves win half of the time: they are no reason for more."""

MEDIAN_GROWTH = 2.0
"""The median, against its usual, from which on everything counts as slow."""

GROWTH = 1.5
RETURN = 0.1
"""A budget whose hedges were missed grows by a half, to twice itself in two looks; one that is left alone goes back to where it
began, a tenth of the way."""

USUAL_WEIGHT = 0.05
"""Of a look in the usual median: it follows in some twenty looks, so a new normal is normal after half a minute."""


@dataclass(slots=True)
class Observed:
    """What happened since the last look. kind: the busiest of leg. median: of its first attempts, in seconds; None: unknown."""

    won: int = 0
    wasted: int = 0
    missed: int = 0
    shed: int = 0
    kind: str = ""
    median: float | None = None


class BudgetTuner:
    """One budget. fraction: what it is now. Invariant: least <= fraction <= most."""

    def __init__(self, settings: HedgeSettings) -> None:
        self.fraction = self._first = settings.budget_first
        self.most = settings.budget_most
        self.least = min(BUDGET_LEAST, self.most)
        self._won = 0
        self._wasted = 0
        self._usual: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"BudgetTuner({self.fraction:.3f} of {self.least:.3f} to {self.most:.3f}, usual={self._usual})"

    def look(self, seen: Observed) -> float:
        """The fraction from now on. Once every INTERVAL_S."""
        self._won += seen.won
        self._wasted += seen.wasted
        is_slow = self._is_slow(seen.kind, seen.median)
        ended = self._won + self._wasted
        share = self._won / ended if ended >= HEDGES_MIN else None
        if is_slow or seen.shed or (share is not None and share < WINS_LOW):
            self.fraction /= 2
        elif seen.missed and (share is None or share >= WINS_HIGH):
            self.fraction *= GROWTH
        else:
            self.fraction += (self._first - self.fraction) * RETURN
        self.fraction = min(self.most, max(self.least, self.fraction))
        if share is not None:
            self._won = self._wasted = 0
        return self.fraction

    def _is_slow(self, kind: str, median: float | None) -> bool:
        """Against the usual of that kind: where the mix of requests changes, nothing has become slow."""
        if median is None:
            return False
        usual = self._usual.get(kind)
        self._usual[kind] = median if usual is None else usual + (median - usual) * USUAL_WEIGHT
        return usual is not None and median >= MEDIAN_GROWTH * usual
