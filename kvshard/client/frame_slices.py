"""How long the answer to a frame of several keys is waited for before what is missing in it is asked for again.

A frame is answered when all its shards have answered. One that is silent (its primary has just died, or a write of the key is
not committed yet) would hold up the keys of all others for as long as the most patient caller waits. Whoever answers tells of
the keys that it has when the time is over; so the first slice is short, against what callers bear, and long against what
frames usually take, since what is only slow must not have worked for nothing. Each further slice is twice as long.

Pure: imports only the standard library.
"""

USUAL_TIMES = 8.0
"""A slice has room for so many of the frames that came before; the slowest of a thousand takes about that long."""

SLICE_MAX_S = 1.0
"""Also where frames take long: less than it takes to give a shard a new primary."""

DOUBLINGS_MAX = 10
"""Then a slice is longer than any deadline."""

WEIGHT = 0.125
"""Of the newest frame in what frames usually take, as TCP takes it for round trips."""


class FrameSlices:
    """Lengths of slices, by what frames took. least_s: of the first slice."""

    __slots__ = ("_least_s", "_usual_s")

    def __init__(self, least_s: float) -> None:
        assert 0 < least_s <= SLICE_MAX_S
        self._least_s = least_s
        self._usual_s = 0.0

    def __repr__(self) -> str:
        return f"FrameSlices(usual={self._usual_s * 1e3:.1f} ms, first={self.length(1):.3f} s)"

    def note(self, took_s: float) -> None:
        """An answer came after so long, whole or not: where everything is slow, slices have to grow."""
        self._usual_s += WEIGHT * (took_s - self._usual_s)

    def length(self, attempts: int) -> float:
        """Of the slice of this sending, the first one being number 1. Seconds."""
        first = min(max(self._least_s, USUAL_TIMES * self._usual_s), SLICE_MAX_S)
        return first * 2.0 ** min(attempts - 1, DOUBLINGS_MAX)
