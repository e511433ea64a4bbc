"""What fan-out does to the tail, live: the p99 of gathered answers over the p99 of their legs, by fan-out class.

A leg is measured as it was sent, with all defences in force, and so is the gathered answer: what the quotient says is how much
slower the slowest of n is than one, and a router that hedges well keeps it near 1.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from kvshard.tail.histogram import LogHistogram, SlidingHistogram

SLICE_S = 10.0
SLICES = 6
"""The window is a minute: at a hundred reads a second it holds sixty beyond the p99."""

MIN_SAMPLES = 100
"""With fewer values a p99 is only the largest of them, and no figure is shown."""

CLASSES = ((1, "1"), (4, "2-4"), (16, "5-16"), (64, "17-64"))
"""Fan-out classes: (largest fan-out, name). The rest is LARGEST."""

LARGEST = "65+"


@dataclass(frozen=True, slots=True)
class GatheredTail:
    """The gathered answers of one method and fan-out class in the window. Seconds.

    amplification_p99: None while there are fewer than MIN_SAMPLES answers or legs, as is gathered_p99.
    """

    method: str
    fan_out: str
    reads: int
    gathered_p99: float | None
    amplification_p99: float | None


@dataclass(frozen=True, slots=True)
class LegTail:
    """The legs of one method in the window. Seconds."""

    method: str
    legs: int
    p99: float | None


class _Window:
    """A sliding histogram that knows when it was last used: without new values nothing in it grows old."""

    __slots__ = ("_histogram", "_last")

    def __init__(self) -> None:
        self._histogram = SlidingHistogram(SLICE_S, SLICES)
        self._last = float("-inf")

    def record(self, value: float, now: float) -> None:
        self._histogram.record(value, now)
        self._last = now

    def record_all(self, values: Sequence[float], now: float) -> None:
        self._histogram.record_all(values, now)
        self._last = now

    def snapshot(self, now: float) -> LogHistogram:
        """A copy; safe in another thread than that which records, since it changes nothing."""
        return LogHistogram() if now - self._last > SLICE_S * SLICES else self._histogram.snapshot()


class Amplification:
    """Latencies of legs and of gathered answers over a sliding window."""

    def __init__(self) -> None:
        self._gathered: dict[tuple[str, str], _Window] = {}
        self._legs: dict[str, _Window] = {}
        self._windows: dict[tuple[str, int], tuple[_Window, _Window]] = {}

    def record(self, method: str, fan_out: int, answered_s: float, legs_us: Sequence[int], now: float) -> None:
        """A read has ended: how long its caller waited, and how long each of its legs took."""
        windows = self._windows.get((method, fan_out))
        if windows is None:
            windows = self._windows_of(method, fan_out)
        gathered, legs = windows
        gathered.record(answered_s, now)
        if len(legs_us) == 1:
            legs.record(legs_us[0] * 1e-6, now)
        else:
            legs.record_all([leg_us * 1e-6 for leg_us in legs_us], now)

    def _windows_of(self, method: str, fan_out: int) -> tuple[_Window, _Window]:
        """Of the gathered answers and of the legs. There are at most as many fan-outs of a method as shards."""
        gathered = self._gathered.setdefault((method, fan_out_class(fan_out)), _Window())
        found = self._windows[method, fan_out] = (gathered, self._legs.setdefault(method, _Window()))
        return found

    def gathered(self, now: float) -> list[GatheredTail]:
        """What the window holds, by method and class."""
        legs = {tail.method: tail.p99 for tail in self.legs(now)}
        found = []
        for (method, name), window in sorted(self._gathered.copy().items()):
            held = window.snapshot(now)
            p99, leg_p99 = _p99(held), legs.get(method)
            quotient = p99 / leg_p99 if p99 is not None and leg_p99 else None
            found.append(GatheredTail(method, name, held.count, p99, quotient))
        return found

    def legs(self, now: float) -> list[LegTail]:
        """What the window holds, by method."""
        held = {method: window.snapshot(now) for method, window in sorted(self._legs.copy().items())}
        return [LegTail(method, histogram.count, _p99(histogram)) for method, histogram in held.items()]


def fan_out_class(fan_out: int) -> str:
    """The class of a read with so many legs."""
    for largest, name in CLASSES:
        if fan_out <= largest:
            return name
    return LARGEST


def _p99(histogram: LogHistogram) -> float | None:
    return histogram.quantile(0.99) if histogram.count >= MIN_SAMPLES else None
