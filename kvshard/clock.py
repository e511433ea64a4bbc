"""The one door to time.

Everything that decides takes `now` as an argument; everything that awaits holds a `Clock`, so that tests and simulation can
put a clock of their own in its place.
"""

import time
from typing import Protocol


class Clock(Protocol):
    """Where the time comes from."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back: for deadlines and durations."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since 1970: only for the expiry of keys and for people."""
        ...


class SystemClock:
    """The machine's clocks."""

    monotonic = staticmethod(time.monotonic)
    """Seconds since an arbitrary start. The function itself: it is asked several times for every leg."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970."""
        return time.time_ns() // 1_000_000
