"""What a part of the documents (a slice of a shard, a shard, several shards) says to an aggregation, so that parts can be
merged.

Pure: imports only the base of the structs.
"""

from typing import TypeAlias, Union

from msgspec import Struct

Key: TypeAlias = int | float | str
"""Names a bucket: a value (dates in microseconds since 1970, booleans 0 and 1), a position in the histogram, the start of a
period, the number of a range, the name of a filter."""


class Rows(Struct, frozen=True, tag="rows", gc=False, array_like=True):
    """Buckets in columns parallel to the keys. children: name -> what is inside each bucket.

    errors: the most by which each count may be too low; empty: all are exact. error: the most that a key which is not listed
    may have. others: documents in buckets that are not listed, a document once for each.
    """

    keys: list[Key]
    counts: list[int]
    children: "dict[str, list[Partial]]" = {}
    errors: list[int] = []
    error: int = 0
    others: int = 0


class Moments(Struct, frozen=True, tag="moments", gc=False, array_like=True):
    """Of values: how many, their sum, ends, mean, and the sum of the squared distances from it."""

    count: int = 0
    total: float = 0.0
    minimum: float | None = None
    maximum: float | None = None
    mean: float = 0.0
    squares: float = 0.0


class Spread(Struct, frozen=True, tag="spread", gc=False, array_like=True):
    """Counts of values by code, see `spread`. shift: bits that were cut off the codes. is_grid: codes are the values
    themselves."""

    counts: dict[int, int] = {}
    shift: int = 0
    is_grid: bool = False
    minimum: float | None = None
    maximum: float | None = None


class Distinct(Struct, frozen=True, tag="distinct", gc=False, array_like=True):
    """The hashes of the values, ascending; or when there are too many, the registers of a HyperLogLog."""

    hashes: list[int] = []
    registers: bytes = b""


Partial = Union[Rows, Moments, Spread, Distinct]  # noqa: UP007  # msgspec resolves the name in quotes above
