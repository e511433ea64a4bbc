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
"""Shares of wins: below the one hedges must be more patient, from the other on they are worth their haste again, at once. A
hedge after three medians that wins less often than it loses was sent against a slow answer, not against a leaf that stands
still: in a healthy cluster a third of them won, and they raised the p99 of reads of eight legs from 3.2 to 4.0 ms. Where leaves
stand still most of those win."""

POOR_MIN = 10
"""Hedges that have ended before their wins may count as poor: of ten that win nine times out of ten fewer than four win once in
a hundred thousand times. (It takes HEDGES_MIN before they count as fair: of ten that win three times of ten six win by chance
once in twenty times.)"""

CLEAR_MIN = 8
WINS_CLEAR = 0.75
"""So many hedges, of which so many won, end patience sooner: of eight that win one in four times six win once in 240 times,
and what that costs are the ten hedges that it takes to become patient again. Where there are few requests (searches: four
hedges a second at 2 % pauses), HEDGES_MIN took five seconds, in which each pause cost six medians instead of three."""

PATIENCE = (1.0, 2.0, 4.0)
"""Of the least delay, step by step. Six medians instead of three are beyond nearly all answers of a healthy cluster; what is
late even then is mostly a hiccup of the machine, in which hedges lose just as often, and prolong it: a hedge in a thousand legs
was 0.4 ms of the p99. Twelve medians are still a small part of a pause."""

SLOW_SHARE = 0.02
"""Of the first attempts: where so many take longer than the first step of patience, these are no hiccups of a healthy cluster
(in which one in two hundred does), but slow requests, and what they wait for is worth asking elsewhere."""

LONGEST_LOOKS = 20
"""So long the longest patience lasts. Requests that are slow, but not slower than it, would never be hedged again otherwise,
and nobody would see that their hedges win."""

MEDIAN_GROWTH = 2.0
"""The median, against its usual, from which on everything counts as slow."""

GROWTH = 1.5
RETURN = 0.1
"""A budget whose hedges were missed, or win though it made them wait longer than the least delay, grows by a half, to twice
itself in two looks, and keeps what it has got while they win as often; one that is left alone goes back to where it began, a
tenth of the way. (At 5 % of requests x10 the delay of a budget of 5 % was 2.3 ms, that of 7.5 % 1.2 ms, three medians, and
hedges won nine times out of ten in both.)"""

USUAL_WEIGHT = 0.05
"""Of a look in the usual median: it follows in some twenty looks, so a new normal is normal after half a minute."""


@dataclass(slots=True)
class Observed:
    """What happened since the last look.

    telling_won, telling_wasted: of those that won or did not, hedges that say something of our haste: after a delay of our own,
    between leaves that nothing was known against. missed: hedges that were refused for the budget. stretched: hedges sent that
    it had made wait longer than the least delay. kind: the busiest of leg. median: of its first attempts, in seconds; None:
    unknown.
    """

    won: int = 0
    wasted: int = 0
    telling_won: int = 0
    telling_wasted: int = 0
    missed: int = 0
    stretched: int = 0
    shed: int = 0
    kind: str = ""
    median: float | None = None


class Patience:
    """How much longer than usual hedges wait, since those before did not win. factor: of the least delay, one of PATIENCE."""

    def __init__(self) -> None:
        self._step = 0
        self._won = 0
        self._ended = 0
        self._looks = 0

    def __repr__(self) -> str:
        return f"Patience({self.factor:g}, {self._won} of {self._ended} won)"

    @property
    def factor(self) -> float:
        """1.0: as long as usual."""
        return PATIENCE[self._step]

    def delay(self, least: float, slow: float) -> float:
        """Seconds before a hedge, at least. least: the usual one. slow: what all but SLOW_SHARE of the first attempts take."""
        return least if slow > PATIENCE[1] * least else self.factor * least

    def look(self, won: int, wasted: int) -> None:
        """So many hedges have ended since the last look."""
        self._won += won
        self._ended += won + wasted
        self._looks += 1
        if self._ended >= POOR_MIN and self._won < WINS_POOR * self._ended:
            self._take(min(self._step + 1, len(PATIENCE) - 1))
        elif self._step and self._ended >= CLEAR_MIN and self._won >= WINS_CLEAR * self._ended:
            self._take(0)
        elif self._ended >= HEDGES_MIN:
            self._take(0 if self._won >= WINS_FAIR * self._ended else self._step)
        elif self._looks >= LONGEST_LOOKS and self.factor == PATIENCE[-1]:
            self._take(self._step - 1)

    def _take(self, step: int) -> None:
        self._step, self._won, self._ended, self._looks = step, 0, 0, 0


class BudgetTuner:
    """One budget. fraction: what it is now. patience: of its hedges.

    Invariant: least <= fraction <= most.
    """

    def __init__(self, settings: HedgeSettings) -> None:
        self.fraction = self._first = settings.budget_first
        self.patience = Patience()
        self.most = settings.budget_most
        self.least = min(BUDGET_LEAST, self.most)
        self._won = 0
        self._wasted = 0
        self._usual: dict[str, float] = {}

    def __repr__(self) -> str:
        bounds = f"{self.least:.3f} to {self.most:.3f}"
        return f"BudgetTuner({self.fraction:.3f} of {bounds}, {self.patience}, usual={self._usual})"

    def look(self, seen: Observed) -> float:
        """The fraction from now on. Once every INTERVAL_S."""
        self._won += seen.won
        self._wasted += seen.wasted
        self.patience.look(seen.telling_won, seen.telling_wasted)
        is_slow = self._is_slow(seen.kind, seen.median)
        ended = self._won + self._wasted
        share = self._won / ended if ended >= HEDGES_MIN else None
        is_too_small = bool(seen.missed) if share is None else share >= WINS_HIGH and seen.missed + seen.stretched > 0
        if is_slow or seen.shed or (share is not None and share < WINS_LOW):
            self.fraction /= 2
        elif is_too_small:
            self.fraction *= GROWTH
        elif share is None or share < WINS_HIGH or self.fraction < self._first:
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
