"""Counts of positive values in logarithmic buckets: quantiles within half a percent, exact merging, cheap recording.

Each octave is cut into SUB_BUCKETS equal parts, as in HdrHistogram (Gil Tene), so that a bucket is relatively at most
1 / SUB_BUCKETS wide, and its middle is off by half of that. The unit is the caller's; latencies are recorded in seconds.

Pure: imports only the standard library.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from math import frexp, ldexp

SUB_BUCKETS = 128
"""Parts of an octave: quantiles are off by at most 0.4 %, less than two runs on one machine differ; 1 us to 60 s has 3,300."""

PENDING_MAX = 256
"""Values that wait to be counted: 6 kB, and counting them takes 50 us."""

SNAPSHOT_TRIES = 100
"""Looks at a histogram that another thread is just changing. It takes microseconds, 20 times a second at most."""


class LogHistogram:
    """Counts by bucket. Only buckets that hold something take memory. Values that are not positive count as the smallest."""

    __slots__ = ("_counts", "count", "maximum", "total")

    def __init__(self, counts: Mapping[int, int] | None = None, total: float = 0.0, maximum: float = 0.0) -> None:
        self._counts: dict[int, int] = dict(counts or {})
        self.count = sum(self._counts.values())
        self.total = total
        self.maximum = maximum

    def __repr__(self) -> str:
        return f"LogHistogram(count={self.count}, p50={self.quantile(0.5)}, maximum={self.maximum})"

    def record(self, value: float, count: int = 1) -> None:
        """Count a value."""
        self.add(bucket_of(value), value, count)

    def add(self, bucket: int, value: float, count: int = 1) -> None:
        """Count a value of which the bucket is known."""
        counts = self._counts
        counts[bucket] = counts.get(bucket, 0) + count
        self.count += count
        self.total += value * count
        if value > self.maximum:
            self.maximum = value

    def add_all(self, buckets: Sequence[int], values: Sequence[float]) -> None:
        """Count values of which the buckets are known."""
        counts = self._counts
        for bucket, count in Counter(buckets).items():
            counts[bucket] = counts.get(bucket, 0) + count
        self.count += len(values)
        self.total += sum(values)
        self.maximum = max(self.maximum, max(values, default=0.0))

    def merge(self, other: "LogHistogram") -> None:
        """Count all that the other has counted."""
        counts = self._counts
        for bucket, count in other._counts.items():
            counts[bucket] = counts.get(bucket, 0) + count
        self.count += other.count
        self.total += other.total
        self.maximum = max(self.maximum, other.maximum)

    def subtract(self, other: "LogHistogram") -> None:
        """Take back what was merged before. The maximum stays."""
        counts = self._counts
        for bucket, count in other._counts.items():
            left = counts[bucket] - count
            assert left >= 0, "only what was merged can be taken back"
            if left:
                counts[bucket] = left
            else:
                del counts[bucket]
        self.count -= other.count
        self.total = self.total - other.total if self.count else 0.0

    def quantile(self, fraction: float) -> float | None:
        """The value that this part of the values does not exceed; the middle of its bucket. None when there are none."""
        return next(iter(self.quantiles((fraction,))), None)

    def quantiles(self, fractions: Iterable[float]) -> list[float]:
        """The same for several, ascending, in one pass; empty when there are no values."""
        if not self.count:
            return []
        found: list[float] = []
        buckets = iter(sorted(self._counts.items()))
        seen, bucket = 0, 0
        for fraction in fractions:
            rank = min(self.count, max(1, -(-int(fraction * self.count * 1_000_000) // 1_000_000)))
            while seen < rank:
                bucket, count = next(buckets)
                seen += count
            found.append(min(middle_of(bucket), self.maximum) if self.maximum else middle_of(bucket))
        return found

    @property
    def mean(self) -> float | None:
        """Of the values as they were recorded; None when there are none."""
        return self.total / self.count if self.count else None

    def buckets(self) -> list[tuple[int, int]]:
        """(bucket, count), ascending."""
        return sorted(self._counts.items())

    def copy(self) -> "LogHistogram":
        """One that goes on by itself."""
        return LogHistogram(self._counts, self.total, self.maximum)

    def as_record(self) -> dict[str, object]:
        """Plain data for JSON; `from_record` reads it."""
        return {"buckets": [list(each) for each in self.buckets()], "total": self.total, "maximum": self.maximum}

    @classmethod
    def from_record(cls, record: Mapping[str, object]) -> "LogHistogram":
        """What `as_record` wrote. Raises KeyError, TypeError, ValueError for anything else."""
        buckets, total, maximum = record["buckets"], record["total"], record["maximum"]
        if not isinstance(buckets, list) or not isinstance(total, (int, float)) or not isinstance(maximum, (int, float)):
            raise TypeError("not a histogram's record")
        return cls({int(bucket): int(count) for bucket, count in buckets}, float(total), float(maximum))


class SlidingHistogram:
    """A histogram of the values of the last `slices` x `slice_s` seconds, give or take one slice.

    Values are kept as they come and counted PENDING_MAX at a time, or when somebody looks: there are some for every request.
    Only one thread may record; others may take a `snapshot`.
    """

    __slots__ = ("_ends_at", "_newest", "_older", "_pending", "_settled", "_slice", "_slice_s", "_slices", "_sum")

    def __init__(self, slice_s: float, slices: int) -> None:
        assert slice_s > 0, "a slice has a length"
        assert slices >= 1, "there is a slice"
        self._sum = LogHistogram()
        self._newest = LogHistogram()
        self._slice_s = slice_s
        self._slices = slices
        self._slice = 0
        self._ends_at = slice_s
        self._older: deque[tuple[int, LogHistogram]] = deque()
        self._pending: list[float] = []
        self._settled = 0

    @property
    def sum(self) -> LogHistogram:
        """What is held."""
        self._settle()
        return self._sum

    @property
    def newest(self) -> LogHistogram:
        """What the slice under way holds."""
        self._settle()
        return self._newest

    @property
    def count(self) -> int:
        """How many values are held."""
        return self._sum.count + len(self._pending)

    def record(self, value: float, now: float) -> None:
        """Count a value that came now."""
        if now >= self._ends_at:
            self.advance(now)
        pending = self._pending
        pending.append(value)
        if len(pending) >= PENDING_MAX:
            self._settle()

    def record_all(self, values: Sequence[float], now: float) -> None:
        """Count values that came now."""
        if now >= self._ends_at:
            self.advance(now)
        self._pending += values
        if len(self._pending) >= PENDING_MAX:
            self._settle()

    def snapshot(self) -> LogHistogram:
        """A copy of what is held; safe in another thread than that which records, since it changes nothing."""
        for _ in range(SNAPSHOT_TRIES):
            settled, pending, found = self._settled, tuple(self._pending), self._sum.copy()
            if settled == self._settled and not settled % 2:
                break
        found.add_all(buckets_of(pending), pending)
        return found

    def advance(self, now: float) -> None:
        """Forget what is too old by now."""
        current = int(now / self._slice_s)
        if current == self._slice:
            return
        self._settle()
        if self._newest.count:
            self._older.append((self._slice, self._newest))
            self._newest = LogHistogram()
        self._slice = current
        self._ends_at = (current + 1) * self._slice_s
        self._settled += 1
        while self._older and self._older[0][0] <= current - self._slices:
            self._sum.subtract(self._older.popleft()[1])
        self._settled += 1

    def recent(self, slices: int) -> LogHistogram:
        """What the slice under way and the newest ones before it hold, `slices` in all."""
        found = self.newest.copy()
        for slice, held in reversed(self._older):
            if slice <= self._slice - slices:
                break
            found.merge(held)
        return found

    def _settle(self) -> None:
        """Count what is pending: it came in the slice under way. `_settled` is odd while that goes on."""
        pending = self._pending
        if pending:
            self._settled += 1
            buckets = buckets_of(pending)
            self._newest.add_all(buckets, pending)
            self._sum.add_all(buckets, pending)
            self._pending = []
            self._settled += 1


def bucket_of(value: float) -> int:
    """The bucket of a value."""
    if value < SMALLEST:
        value = SMALLEST
    mantissa, exponent = frexp(value)  # 0.5 <= mantissa < 1
    return exponent * SUB_BUCKETS + int((mantissa - 0.5) * (2 * SUB_BUCKETS))


def buckets_of(values: Sequence[float]) -> list[int]:
    """The bucket of each value, in half the time."""
    if values and min(values) < SMALLEST:
        return list(map(bucket_of, values))
    return [exponent * SUB_BUCKETS + int((mantissa - 0.5) * (2 * SUB_BUCKETS)) for mantissa, exponent in map(frexp, values)]


def bounds_of(bucket: int) -> tuple[float, float]:
    """The bucket's lower bound, inclusive, and its upper one, exclusive."""
    exponent, part = divmod(bucket, SUB_BUCKETS)
    return ldexp(0.5 + part / (2 * SUB_BUCKETS), exponent), ldexp(0.5 + (part + 1) / (2 * SUB_BUCKETS), exponent)


def middle_of(bucket: int) -> float:
    """The value that stands for a bucket."""
    low, high = bounds_of(bucket)
    return (low + high) / 2


SMALLEST = 1e-7
"""A tenth of a microsecond: less than any clock here resolves."""
