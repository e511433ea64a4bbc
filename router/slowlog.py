"""The slow log: the slowest reads of the last minutes, with where their time went.

There is no threshold to set: of each method the slowest KEPT_PER_SLICE reads of every SLICE_S are kept, so that there is always
something to look at, and the bar rises by itself. Each method has a bar of its own, or the scans would crowd out the reads of
single keys. A read that is not slow costs one comparison.

Pure: imports only the standard library and other pure files.
"""

from collections import deque
from dataclasses import dataclass, field
from heapq import heappush, heapreplace

from kvshard.scatter.ledger import Timing

METHODS = ("Get", "BatchGet", "Scan", "Search", "Suggest")
"""The reads."""

SLICE_S = 120.0
"""An outlier raises the bar for at most that long."""

SLICES = 5
"""The log reaches back through that many slices, the one under way among them: eight to ten minutes."""

KEPT_PER_SLICE = 20
"""Of one method. With METHODS and SLICES at most 500 reads: 12 MB at LEGS_MAX legs of 400 bytes, usually a tenth of it."""

LEGS_MAX = 64
"""Legs kept of one read, the slowest ones: what made it slow is among them, and the largest map has 4,096 shards."""

DETAIL_MAX_CHARS = 200
"""Of what was asked: a query tells itself by its beginning."""

UNASKED_MIN_S = 0.05
"""A read that ended before it had a leg (a wrong request, mostly) is of interest only if that took longer than this."""


@dataclass(frozen=True, slots=True)
class SlowRead:
    """A read that was slow. at_ms: wall-clock instant of its end. detail: what was asked. code: canonical status name."""

    at_ms: int
    method: str
    collection: str
    detail: str
    code: str
    timing: Timing


@dataclass(slots=True)
class _Slice:
    """The slowest reads of one slice: a heap, the least slow of them first. bar_s: what a read must exceed to get in."""

    number: int
    bar_s: float = -1.0
    reads: list[tuple[float, int, SlowRead]] = field(default_factory=list)


class SlowLog:
    """The slowest reads, by method and slice of time."""

    def __init__(self) -> None:
        self._slices: dict[str, deque[_Slice]] = {method: deque() for method in METHODS}
        self._count = 0

    def __len__(self) -> int:
        return sum(len(slice_.reads) for slices in self._slices.values() for slice_ in slices)

    def wants(self, method: str, took_s: float, now: float) -> bool:
        """Whether a read that took that long belongs in the log; ask before making its timing."""
        slices = self._slices[method]
        return not slices or took_s > slices[-1].bar_s or slices[-1].number != int(now / SLICE_S)

    def add(self, read: SlowRead, took_s: float, now: float) -> None:
        """Take a read in; the least slow one of its slice makes room where that is full."""
        slice_ = self._slice(self._slices[read.method], now)
        self._count += 1  # Sets those apart that took equally long.
        entry = (took_s, self._count, read)
        if len(slice_.reads) < KEPT_PER_SLICE:
            heappush(slice_.reads, entry)
        elif took_s > slice_.bar_s:
            heapreplace(slice_.reads, entry)
        if len(slice_.reads) == KEPT_PER_SLICE:
            slice_.bar_s = slice_.reads[0][0]

    def slowest(self, limit: int, now: float, method: str = "") -> list[SlowRead]:
        """The slowest reads, of one method or of all, the slowest first."""
        oldest = int(now / SLICE_S) - SLICES
        found = [
            entry
            for name, slices in self._slices.items()
            if method in ("", name)
            for slice_ in slices
            if slice_.number > oldest
            for entry in slice_.reads
        ]
        found.sort(key=lambda entry: (-entry[0], -entry[1]))
        return [read for _, _, read in found[:limit]]

    def clear(self) -> None:
        """Forget everything."""
        for slices in self._slices.values():
            slices.clear()

    def _slice(self, slices: "deque[_Slice]", now: float) -> _Slice:
        number = int(now / SLICE_S)
        while slices and slices[0].number <= number - SLICES:
            slices.popleft()
        if not slices or slices[-1].number != number:
            slices.append(_Slice(number))
        return slices[-1]
