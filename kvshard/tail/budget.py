"""The hedge budget: how many extra requests there may be, as a part of the first attempts. A bound, not an aim.

The guarantee, whatever happens and whenever one looks back WINDOW_S from the instant of an extra request (itself included):

    extra requests  <=  fraction * first attempts  +  reserve_per_s * WINDOW_S

A token bucket alone does not give it: what it has saved up and what it earns meanwhile add up. So two rules must both agree:

- the *window*: extra and first attempts of the last WINDOW_S are counted, in slices, rounded to the safe side;
- the *bucket*: each first attempt earns `fraction` of a token, time earns the reserve, and only SAVED_S of income can be saved.
  Without it one bad moment would spend the whole window's allowance, and nothing would be left for the rest of it.

The clock of the bucket is the traffic itself, as in mcrouter's FailoverRateLimiter: when everything is slow and callers wait,
there are fewer first attempts, and so fewer hedges.

Of both a part is kept for hedges that are urgent (`URGENT_SHARE`); the delay is such that it leaves room (`ORDINARY_SHARE`).

Pure: imports only the standard library.
"""

from collections import deque

WINDOW_S = 10.0
"""The window of the guarantee."""

SLICE_S = 0.125
"""Attempts are counted in slices: an eightieth of the window is what rounding to the safe side costs. A power of two, so that
the instants at which slices begin are exact."""

RESERVE_PER_S = 1.0
"""Lets a caller with one request a second hedge at all; at a hundred requests a second it adds one percent."""

SAVED_S = 2.0
"""Of income: enough for the pause of one leaf under steady load, and a fifth of what the window allows."""

URGENT_SHARE = 0.15
"""Of what is saved, and of what the window allows, that only urgent hedges may take. A fast replica has slow answers, too:
where the body of the latency is wide these alone would use up the budget, and nothing would be left when a leaf really
stalls."""

ORDINARY_SHARE = 0.75
"""Of the budget, that is to be late by one delay: what lies between it and what is granted then is for chance. Where as many
are late as the budget has hedges, it refuses many of them, and these wait for half as long again; a delay that is longer by a
few percent costs less (the what-if model at 5 % of requests x10: 370 refusals instead of 7,156)."""

SAVED_MIN = 4.0
"""Tokens that can be saved however little traffic there is: one for each leg that a single request may hedge."""


class HedgeBudget:
    """Counts first attempts and grants extra ones. fraction may be set anew at any time; the newest one holds.

    Invariant (`check_invariants`): 0 <= saved <= its cap; the window's counts are those of its slices.
    """

    def __init__(self, fraction: float, reserve_per_s: float = RESERVE_PER_S) -> None:
        assert fraction >= 0, "a budget is no debt"
        self.fraction = fraction
        self.reserve_per_s = reserve_per_s
        self._slices: deque[list[int]] = deque()
        self._first = 0
        self._extra = 0
        self._saved = 0.0
        self._earned_at: float | None = None

    def __repr__(self) -> str:
        return f"HedgeBudget({self.fraction:.3f}, first={self._first}, extra={self._extra}, saved={self._saved:.2f})"

    @property
    def ordinary(self) -> float:
        """The part of the first attempts that should be late by one delay: see ORDINARY_SHARE."""
        return ORDINARY_SHARE * self.fraction

    def first_attempts(self, now: float, count: int = 1) -> None:
        """First attempts are made now."""
        slice = self._slice(now)
        slice[1] += count
        self._first += count
        self._saved = min(self._cap, self._saved + self.fraction * count)

    def try_take(self, now: float, is_urgent: bool = True) -> bool:
        """Whether an extra request may be sent now; it then counts as sent. is_urgent: what it is for is far later than
        usual."""
        slice = self._slice(now)
        # Of the oldest slice a part has left the window: its extra requests count in full, its first attempts not at all.
        first = self._first - (self._slices[0][1] if self._is_partly_out(now) else 0)
        allowed = self.fraction * first + self.reserve_per_s * WINDOW_S
        kept = 0.0 if is_urgent else URGENT_SHARE
        if self._saved < 1.0 + kept * self._cap or self._extra + 1 > allowed * (1.0 - kept):
            return False
        self._saved -= 1.0
        self._extra += 1
        slice[2] += 1
        return True

    @property
    def _cap(self) -> float:
        """Tokens that can be saved under the traffic of the window."""
        return SAVED_MIN + SAVED_S / WINDOW_S * self.fraction * self._first

    def counts(self, now: float) -> tuple[int, int]:
        """(first attempts, extra requests) of the last WINDOW_S, about."""
        self._slice(now)
        return self._first, self._extra

    def check_invariants(self) -> None:
        """Raises AssertionError when the counts contradict each other."""
        assert self._first == sum(slice[1] for slice in self._slices), self
        assert self._extra == sum(slice[2] for slice in self._slices), self
        assert self._saved >= 0, self

    def _slice(self, now: float) -> list[int]:
        """The slice under way: [its number, first attempts, extra requests]. Forgets those that have left the window."""
        number = int(now / SLICE_S)
        slices = self._slices
        if slices and slices[-1][0] >= number:
            return slices[-1]
        oldest = number - round(WINDOW_S / SLICE_S)
        while slices and slices[0][0] < oldest:
            _, first, extra = slices.popleft()
            self._first -= first
            self._extra -= extra
        self._earn(now)
        slices.append([number, 0, 0])
        return slices[-1]

    def _is_partly_out(self, now: float) -> bool:
        return self._slices[0][0] <= int(now / SLICE_S) - round(WINDOW_S / SLICE_S)

    def _earn(self, now: float) -> None:
        """What time has earned since the last slice. The reserve is never saved beyond SAVED_MIN."""
        if self._earned_at is None:
            self._saved = SAVED_MIN if self.reserve_per_s else 0.0
        elif self._saved < SAVED_MIN:
            self._saved = min(SAVED_MIN, self._saved + self.reserve_per_s * (now - self._earned_at))
        self._earned_at = now
