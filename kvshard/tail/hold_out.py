"""Which requests are held out: not hedged while a healthy answer may still come, so that the rest can be compared with them.

One in a hundred of the requests that might be hedged, but at most about one a second: the comparison needs so many samples, not
such a part of them, and a request that is held out is as slow as all would be without hedging. One in a hundred of 330 a second
were most of what lay above the p99.9 of a cluster with pauses. Wide requests are held out less often, too.

Both arms of the comparison are thinned alike, so that neither has more of the wide requests, nor of the busy seconds.

A leaf that hangs for good must not cost a request that is held out half of its deadline, though: after `held_out_delay` it is
hedged as the others are. What hedging saves is at most so much too small, for those requests only.

Pure: imports only the standard library.
"""

HOLD_OUT_SHARE = 0.01
"""Of the requests that might be hedged: a hundred a second give a hundred samples of them in less than two minutes."""

HOLD_OUT_PER_S = 1.0
"""At most, about: the same hundred samples in the same time, whatever the load."""

HOLD_OUT_LEGS = 8
"""Requests with more legs are held out less often, by as much: a request of a hundred legs meets a slow leaf ten times as
often, and held out as often it would spoil the p99.9 of all (the what-if model: 9 ms against 45 at 2 % pauses)."""

HOLD_OUT_S = 0.5
HOLD_OUT_DELAYS = 10.0
"""The delay of a request that is held out, at least; ten times what the others wait if its kind is slow. The comparison is to
see pauses of a collector, a disk or a scheduler whole, and one caller in a hundred may meet a leaf that accepts and never
answers."""


def held_out_delay(delay: float) -> float:
    """Seconds before a request that is held out is hedged; delay: of its like that are not."""
    return max(HOLD_OUT_S, HOLD_OUT_DELAYS * delay)


class Comparison:
    """How large a part of the requests takes part in the comparison. It follows the rate with a delay of a second."""

    def __init__(self) -> None:
        self._second = 0
        self._count = 0
        self._part = 1.0

    def __repr__(self) -> str:
        return f"Comparison(part={self._part:.3f}, {self._count} in this second)"

    def part(self, legs: int, now: float) -> float:
        """A request with so many legs that might be hedged begins: the probability with which it takes part.

        HOLD_OUT_SHARE of those that do are held out.
        """
        second = int(now)
        if second != self._second:
            rate = self._count if second == self._second + 1 else 0
            self._part = min(1.0, HOLD_OUT_PER_S / (HOLD_OUT_SHARE * rate)) if rate else 1.0
            self._second, self._count = second, 0
        self._count += 1
        return self._part * HOLD_OUT_LEGS / legs if legs > HOLD_OUT_LEGS else self._part
