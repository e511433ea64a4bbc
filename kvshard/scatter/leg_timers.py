"""The timers of reads under way: one for the next leg of each that will be late. Nearly all are cancelled before they are due.

The shortest delay of a hedge is a millisecond, and what an event loop's own timers add to it is half of one on average: as much
as the answer takes. So what is due soon shares one timer of the kernel's (`precise_timer`), which is set for the earliest.
"""

import asyncio
import time
from collections.abc import Callable
from heapq import heappop, heappush
from math import inf
from typing import Protocol

from kvshard.precise_timer import PreciseTimer

SOON_S = 0.02
"""Longer waits may be a millisecond off, and are the loop's affair. It also bounds what is kept here of reads that have ended:
those of so long a time."""


class Timer(Protocol):
    """What `asyncio.TimerHandle` does."""

    def cancel(self) -> None:
        """No call any more; of no effect after it."""
        ...


class _SoonDue:
    """A call that is due soon. call: None once it was made or cancelled."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class LegTimers:
    """Those of one process, on one event loop.

    Invariant: while calls are due soon, the precise timer is set for the earliest or before.
    """

    def __init__(self) -> None:
        self._soon: list[tuple[float, int, _SoonDue]] = []
        self._count = 0
        self._set_for = inf
        self._timer: PreciseTimer | None = None

    def __repr__(self) -> str:
        return f"LegTimers({len(self._soon)} soon)"

    def after(self, seconds: float, call: Callable[[], None]) -> Timer:
        """Call so long from now; if the loop is busy later, but never sooner by more than a loop's own timer may be."""
        if seconds > SOON_S:
            return asyncio.get_running_loop().call_later(seconds, call)
        due = time.monotonic() + seconds
        self._count += 1
        timer = _SoonDue(call)
        heappush(self._soon, (due, self._count, timer))
        if due < self._set_for:
            self._set(due)
        return timer

    def close(self) -> None:
        """No further call of those that are due soon."""
        self._soon.clear()
        self._set_for = inf
        if self._timer is not None:
            self._timer.close()
            self._timer = None

    def _set(self, due: float) -> None:
        if self._timer is None:
            self._timer = PreciseTimer(self._on_due)
        self._set_for = due
        self._timer.set(due)

    def _on_due(self) -> None:
        self._set_for = inf
        soon, now = self._soon, time.monotonic()
        try:
            while soon and (soon[0][0] <= now or soon[0][2].call is None):
                timer = heappop(soon)[2]
                if timer.call is not None:
                    call, timer.call = timer.call, None
                    call()
        finally:
            # Whatever a call raised is the loop's to tell; the others wait for their turn.
            if soon:
                self._set(soon[0][0])
