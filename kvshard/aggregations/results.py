"""What aggregations answer.

Pure: imports only the standard library.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from math import sqrt
from typing import Final, TypeAlias, Union

BucketKey: TypeAlias = str | int | float | bool | datetime


@dataclass(frozen=True, slots=True)
class Bucket:
    """key: the value, the lower end, the start, or the name of the filter; of a range as in "[2000, 2010)".

    count: documents. error_bound: the most by which the count may be too low; 0: exact. aggregations: what is inside, by name.
    """

    key: BucketKey
    count: int
    aggregations: "Mapping[str, AggregationResult]" = field(default_factory=dict)
    error_bound: int = 0


@dataclass(frozen=True, slots=True)
class BucketsResult:
    """Buckets in the order asked for. result["rpc"]: the bucket with this key.

    error_bound: the most documents that a value which is missing from the list may have beyond its place there; 0: the list is
    exact. others: documents of the buckets that are not listed, a document once for each of its values.
    """

    buckets: tuple[Bucket, ...]
    error_bound: int = 0
    others: int = 0

    def __iter__(self) -> Iterator[Bucket]:
        return iter(self.buckets)

    def __len__(self) -> int:
        return len(self.buckets)

    def __getitem__(self, key: BucketKey) -> Bucket:
        for bucket in self.buckets:
            if bucket.key == key:
                return bucket
        raise KeyError(key)


@dataclass(frozen=True, slots=True)
class StatsResult:
    """Of the values; None where there are none. Of dates: microseconds since 1970 (see `instant`). variance: of a
    population."""

    count: int
    sum: float
    min: float | None
    max: float | None
    mean: float | None
    variance: float | None

    @property
    def stddev(self) -> float | None:
        """The standard deviation, of a population."""
        return None if self.variance is None else sqrt(self.variance)


@dataclass(frozen=True, slots=True)
class PercentilesResult:
    """Percent -> the least value that so many percent of the values do not exceed; None where there are no values.

    relative_error: the most by which a value is off, as a part of it. absolute_error: the same for dates, in microseconds, in
    which they are given (see `instant`). Both 0: exact.
    """

    values: Mapping[float, float | None]
    relative_error: float = 0.0
    absolute_error: int = 0

    def __getitem__(self, percent: float) -> float | None:
        return self.values[percent]


@dataclass(frozen=True, slots=True)
class CardinalityResult:
    """How many different values. standard_error: of the count, as a part of it: it is within two of them in 95 % of the cases;
    0: exact."""

    value: int
    standard_error: float = 0.0

    @property
    def is_exact(self) -> bool:
        """Whether the count is exact."""
        return not self.standard_error


AggregationResult: TypeAlias = Union[BucketsResult, StatsResult, PercentilesResult, CardinalityResult]  # noqa: UP007


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def micros_of(date: datetime) -> int:
    """The microseconds since 1970 of a date."""
    return (date - _EPOCH) // timedelta(microseconds=1)


def instant(micros: float) -> datetime:
    """The date of microseconds since 1970. Raises OverflowError outside the years 1 to 9999."""
    return _EPOCH + timedelta(microseconds=micros)
