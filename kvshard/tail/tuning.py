"""How hedging tunes itself: a smaller budget when hedges do not help or the cluster suffers, a larger one when they are missed;
and more patience while they do not win.

Hedges that do not win are load without use; a median that doubles, or leaves that shed load, say that everything is slow, and
then more load makes it worse. So the budget falls fast (it is halved) and rises slowly, as congestion windows do (Jacobson,
1988).

Patience is a factor of the least delay. Where nothing stalls, a leg is late because its router, its leaf or the processors
have a queue, and its answer comes before that of a hedge, which stands in the same queue: in a healthy cluster most hedges
lose, and what they cost raises its p99 by a quarter. A leg that is late because its leaf stands still can wait for as long
again.

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

WINS_POOR = 0.4
WINS_FAIR = 0.6
"""Shares of wins: below the one hedges must be patient, from the other on they are worth their haste again, at once. A hedge
after three medians that wins less often than it loses was sent against a slow answer, not against a leaf that stands still: in
a healthy cluster a third of them won, and they raised the p99 of reads of eight legs from 3.2 to 4.0 ms, which hedges after six
medians do not (3.6 against 3.6 ms). Where leaves stand still most of those win."""

PATIENCE_MAX = 2.0
"""Of the least delay: six medians instead of three are beyond nearly all answers of a healthy cluster, and still a small part
of a pause."""

MEDIAN_GROWTH = 2.0
"""The median, against its usual, from which on everything counts as slow."""

GROWTH = 1.5
RETURN = 0.1
"""A budget whose hedges were missed grows by a half, to twice itself in two looks, and keeps what it has got while they win as
often; one that is left alone goes back to where it began, a tenth of the way."""

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
    """One budget. fraction: what it is now. patience: factor of the least delay.

    Invariants: least <= fraction <= most; patience is 1 or PATIENCE_MAX.
    """

    def __init__(self, settings: HedgeSettings) -> None:
        self.fraction = self._first = settings.budget_first
        self.patience = 1.0
        self.most = settings.budget_most
        self.least = min(BUDGET_LEAST, self.most)
        self._won = 0
        self._wasted = 0
        self._usual: dict[str, float] = {}

    def __repr__(self) -> str:
        bounds = f"{self.least:.3f} to {self.most:.3f}"
        return f"BudgetTuner({self.fraction:.3f} of {bounds}, patience={self.patience:.2f}, usual={self._usual})"

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
        elif share is None or share < WINS_HIGH or self.fraction < self._first:
            self.fraction += (self._first - self.fraction) * RETURN
        self.fraction = min(self.most, max(self.least, self.fraction))
        if share is not None:
            self._won = self._wasted = 0
            self._judge(share)
        return self.fraction

    def _judge(self, share: float) -> None:
        """share: of the hedges that ended, those that won."""
        if share < WINS_POOR:
            self.patience = PATIENCE_MAX
        elif share >= WINS_FAIR:
            self.patience = 1.0

    def _is_slow(self, kind: str, median: float | None) -> bool:
        """Against the usual of that kind: where the mix of requests changes, nothing has become slow."""
        if median is None:
            return False
        usual = self._usual.get(kind)
        self._usual[kind] = median if usual is None else usual + (median - usual) * USUAL_WEIGHT
        return usual is not None and median >= MEDIAN_GROWTH * usual
