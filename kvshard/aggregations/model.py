"""What may be asked of all documents that a search finds: the aggregations.

Two kinds. A *bucket* aggregation sorts the documents into buckets and counts each; in each of its buckets further aggregations
may be asked for (`aggs`), one level deep. A *metric* is a figure over the values of a field. A document with several values in
a field counts once for each of its distinct values, in a bucket once.

They are structs of msgspec's, since legs carry them as they are.

Pure: imports only the base of the structs.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, TypeAlias, Union

from msgspec import Struct

Bound: TypeAlias = str | int | float | None
"""An end of a range: a number, or text as in a query (`2020-01-31`); None: open."""

DEFAULT_SIZE: Final = 10
DEFAULT_ORDER: Final = "-count"
DEFAULT_PERCENTS: Final = (50.0, 95.0, 99.0)


class Terms(Struct, frozen=True, tag="terms"):
    """The values of a keyword, integer, boolean or date field, a bucket each. size: buckets wanted, 1 to 10,000.

    order: "count", "key", or a metric inside as "name" or "name.mean"; "-" in front for descending. Equal ones by key.
    min_doc_count: values with fewer documents are left out.
    """

    field: str
    size: int = DEFAULT_SIZE
    order: str = DEFAULT_ORDER
    min_doc_count: int = 1
    aggs: "dict[str, Aggregation]" = {}


class Ranges(Struct, frozen=True, tag="ranges"):
    """A bucket for each range (lower, upper) of a field of numbers or dates: lower <= value < upper. They may overlap."""

    field: str
    ranges: list[tuple[Bound, Bound]]
    aggs: "dict[str, Aggregation]" = {}


class Histogram(Struct, frozen=True, tag="histogram"):
    """Buckets of equal width over an integer or float field; the key is the lower end: floor((v - offset) / interval) *
    interval + offset.

    min_doc_count: 0 shows the empty ones in between, too.
    """

    field: str
    interval: float
    offset: float = 0.0
    min_doc_count: int = 0
    aggs: "dict[str, Aggregation]" = {}


class DateHistogram(Struct, frozen=True, tag="date_histogram"):
    """Buckets over a date field. interval: "day", "week" (from Monday), "month", "quarter" or "year" of the calendar in UTC, or
    a length such as "90m": a number and ms, s, m, h or d, counted from 1970.

    min_doc_count: 0 shows the empty ones in between, too.
    """

    field: str
    interval: str
    min_doc_count: int = 0
    aggs: "dict[str, Aggregation]" = {}


class Missing(Struct, frozen=True, tag="missing"):
    """One bucket: the documents without a value in a field."""

    field: str
    aggs: "dict[str, Aggregation]" = {}


class Filter(Struct, frozen=True, tag="filter"):
    """One bucket: the documents that match a query string besides."""

    query: str
    aggs: "dict[str, Aggregation]" = {}


class Filters(Struct, frozen=True, tag="filters"):
    """A bucket for each query string, by name; they may overlap."""

    queries: dict[str, str]
    aggs: "dict[str, Aggregation]" = {}


class Stats(Struct, frozen=True, tag="stats"):
    """Count, sum, least, largest, mean and variance of the values of an integer, float, boolean or date field, as doubles."""

    field: str


class Percentiles(Struct, frozen=True, tag="percentiles"):
    """The values that these percentages of a field's values do not exceed. The answer states its error."""

    field: str
    percents: tuple[float, ...] = DEFAULT_PERCENTS


class Cardinality(Struct, frozen=True, tag="cardinality"):
    """How many different values a field has. Exact for some thousands; the answer states the standard error beyond."""

    field: str


BucketAggregation: TypeAlias = Terms | Ranges | Histogram | DateHistogram | Missing | Filter | Filters
Metric: TypeAlias = Stats | Percentiles | Cardinality
Aggregation = Union[  # noqa: UP007  # msgspec resolves the name in quotes above
    Terms, Ranges, Histogram, DateHistogram, Missing, Filter, Filters, Stats, Percentiles, Cardinality
]
BUCKETED: Final = (Terms, Ranges, Histogram, DateHistogram, Missing, Filter, Filters)
KINDS: Final = (*BUCKETED, Stats, Percentiles, Cardinality)


NOTHING: Final[Mapping[str, Aggregation]] = MappingProxyType({})
"""No aggregations."""


def fields_of(aggregations: Mapping[str, Aggregation]) -> set[str]:
    """The fields that these and what is inside them look at; of filters none."""
    own = {each.field for each in aggregations.values() if not isinstance(each, Filter | Filters)}
    return own.union(*(fields_of(children(each)) for each in aggregations.values()))


def children(aggregation: Aggregation) -> dict[str, Aggregation]:
    """The aggregations inside each bucket; none in a metric."""
    return aggregation.aggs if isinstance(aggregation, BUCKETED) else {}
