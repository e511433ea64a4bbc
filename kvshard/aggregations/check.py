"""Is what is asked for possible? The checks at the door; each raises InvalidArgument that names the place and the limit.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Final, NoReturn

from kvshard.aggregations.model import (
    BUCKETED,
    Aggregation,
    Bound,
    BucketAggregation,
    Cardinality,
    DateHistogram,
    Filter,
    Filters,
    Histogram,
    Missing,
    Percentiles,
    Ranges,
    Stats,
    Terms,
    children,
)
from kvshard.aggregations.periods import CALENDAR, Period, parse_period
from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.query import interval_of
from kvshard.schema import BOOLEAN, DATE, FLOAT, INTEGER, KEYWORD, Schema
from kvshard.unknown_fields import unknown_field

AGGREGATIONS_MAX: Final = 32
"""Of one search, those inside others included: each is a pass over all matches in every shard."""

BUCKETS_MAX: Final = 10_000
"""Of one answer, those inside others included: about 2 MB on the wire, and nobody looks at more."""

FILTERS_MAX: Final = 64
"""Queries, or ranges, of one aggregation: each is a search of its own in every shard."""

PERCENTS_MAX: Final = 100
NAME_MAX_CHARS: Final = 64

METRIC_NAMES: Final = ("count", "sum", "min", "max", "mean", "variance", "stddev")
"""What buckets can be ordered by of the Stats inside them; without a name it is the mean."""

CheckQuery = Callable[[str, str], object]
"""(query string, where it stands): raises InvalidArgument when it is malformed or does not fit the schema."""

_FIELD_TYPES: Final = {
    Terms: (KEYWORD, INTEGER, BOOLEAN, DATE),
    Ranges: (INTEGER, FLOAT, DATE),
    Histogram: (INTEGER, FLOAT),
    DateHistogram: (DATE,),
    Stats: (INTEGER, FLOAT, BOOLEAN, DATE),
    Percentiles: (INTEGER, FLOAT, DATE),
    Cardinality: (KEYWORD, INTEGER, FLOAT, BOOLEAN, DATE),
}


def check_aggregations(aggregations: Mapping[str, Aggregation], schema: Schema, check_query: CheckQuery) -> None:
    """Raise InvalidArgument unless the aggregations can be computed in a collection with this schema."""
    count = sum(1 + len(children(each)) for each in aggregations.values())
    if count > AGGREGATIONS_MAX:
        message = f"a search has at most {AGGREGATIONS_MAX} aggregations, those inside others included, not {count}"
        _refuse(message, "aggregations", AGGREGATIONS_MAX)
    for name, aggregation in aggregations.items():
        place = _place("aggregations", name)
        _check(aggregation, place, schema, check_query)
        for child_name, child in children(aggregation).items():
            child_place = _place(f"{place}.aggs", child_name)
            if children(child):
                _refuse(f"{child_place} stands inside another one already; it can have none inside itself", child_place, 1)
            _check(child, child_place, schema, check_query)
            if isinstance(aggregation, Terms) and isinstance(child, Terms) and aggregation.size * child.size > BUCKETS_MAX:
                message = f"{aggregation.size} buckets of {child.size} each are more than the {BUCKETS_MAX} of an answer"
                _refuse(message, f"{child_place}.size", BUCKETS_MAX)


def _check(aggregation: Aggregation, place: str, schema: Schema, check_query: CheckQuery) -> None:
    if not isinstance(aggregation, Filter | Filters):
        field_type = _field_type(aggregation.field, place, schema)
        fit = _FIELD_TYPES.get(type(aggregation))
        if fit is not None and field_type not in fit:
            kind = type(aggregation).__struct_config__.tag
            message = f"{aggregation.field} is a {field_type} field; {kind} needs one of {', '.join(fit)}"
            _refuse(message, f"{place}.field")
    match aggregation:
        case Terms():
            _check_terms(aggregation, place)
        case Ranges():
            _check_count(len(aggregation.ranges), "ranges", place)
            bounds_of(aggregation, schema, place)
        case Histogram():
            _check_histogram(aggregation, place)
        case DateHistogram():
            period_of(aggregation, place)
            _check_min_doc_count(aggregation.min_doc_count, 0, place)
        case Percentiles():
            _check_percents(aggregation, place)
        case Filter():
            check_query(aggregation.query, f"{place}.query")
        case Filters():
            _check_count(len(aggregation.queries), "queries", place)
            for name, text in aggregation.queries.items():
                check_query(text, _place(f"{place}.queries", name))
        case Missing() | Stats() | Cardinality():
            pass


def period_of(aggregation: DateHistogram, place: str = "aggregations") -> Period:
    """The period of a date histogram. Raises InvalidArgument."""
    period = parse_period(aggregation.interval)
    if period is None:
        message = (
            f"{aggregation.interval[:40]!r} is no interval: {', '.join(CALENDAR)}, or a length such as 90m (ms, s, m, h, d)"
        )
        _refuse(message, f"{place}.interval")
    return period


def bounds_of(
    aggregation: Ranges, schema: Schema, place: str = "aggregations"
) -> list[tuple[int | float | None, int | float | None]]:
    """The ends of the ranges as numbers, dates in microseconds; a day stands for its first instant. Raises InvalidArgument."""
    field_type = schema[aggregation.field]
    found = []
    for number, (lower, upper) in enumerate(aggregation.ranges):
        where = f"{place}.ranges[{number}]"
        ends = (_bound(lower, field_type, where), _bound(upper, field_type, where))
        if ends[0] is not None and ends[1] is not None and ends[0] >= ends[1]:
            _refuse(f"the range {lower} to {upper} is empty: the upper end is excluded", where)
        found.append(ends)
    return found


def check_bucket_count(count: float, place: str, field: str = "") -> None:
    """Raise InvalidArgument when there would be more buckets than an answer may have."""
    if count > BUCKETS_MAX:
        message = f"{place} would have {count:,.0f} buckets; an answer has at most {BUCKETS_MAX:,}"
        _refuse(f"{message}; widen the interval, or narrow the query" if field else message, f"{place}{field}", BUCKETS_MAX)


def order_of(aggregation: Terms) -> tuple[str, str, bool]:
    """("count" | "key" | name of a child, its figure, is descending)."""
    name, _, figure = aggregation.order.removeprefix("-").partition(".")
    return name, figure, aggregation.order.startswith("-")


def _check_terms(aggregation: Terms, place: str) -> None:
    if not 1 <= aggregation.size <= BUCKETS_MAX:
        _refuse(f"{place}.size must be 1 to {BUCKETS_MAX}, not {aggregation.size}", f"{place}.size", BUCKETS_MAX)
    _check_min_doc_count(aggregation.min_doc_count, 1, place)
    name, figure, _ = order_of(aggregation)
    if name in {"count", "key"} and not figure:
        return
    child = aggregation.aggs.get(name)
    if not _is_figure(child, figure):
        names = [each for each, inside in aggregation.aggs.items() if not isinstance(inside, BUCKETED)]
        known = ", ".join(["count", "key", *names])
        given = repr(aggregation.order[:64])
        message = f"buckets cannot be ordered by {given}; they can by {known}, of stats also by name.min, name.max ..."
        _refuse(message, f"{place}.order")


def _is_figure(child: Aggregation | None, figure: str) -> bool:
    match child:
        case Stats():
            return not figure or figure in METRIC_NAMES
        case Cardinality():
            return not figure
        case Percentiles():
            return not figure or any(f"{percent:g}" == figure for percent in child.percents)
        case _:
            return False


def _check_histogram(aggregation: Histogram, place: str) -> None:
    if not (isfinite(aggregation.interval) and aggregation.interval > 0):
        _refuse(f"{place}.interval must be a number over 0, not {aggregation.interval}", f"{place}.interval")
    if not isfinite(aggregation.offset):
        _refuse(f"{place}.offset must be a finite number, not {aggregation.offset}", f"{place}.offset")
    _check_min_doc_count(aggregation.min_doc_count, 0, place)


def _check_percents(aggregation: Percentiles, place: str) -> None:
    if not 1 <= len(aggregation.percents) <= PERCENTS_MAX:
        message = f"{place}.percents has 1 to {PERCENTS_MAX} numbers, not {len(aggregation.percents)}"
        _refuse(message, f"{place}.percents", PERCENTS_MAX)
    for percent in aggregation.percents:
        if not 0 <= percent <= 100:
            _refuse(f"a percentage is 0 to 100, not {percent}", f"{place}.percents", 100)


def _check_min_doc_count(count: int, least: int, place: str) -> None:
    if count < least:
        _refuse(f"{place}.min_doc_count must be at least {least}, not {count}", f"{place}.min_doc_count")


def _check_count(count: int, what: str, place: str) -> None:
    if not 1 <= count <= FILTERS_MAX:
        _refuse(f"{place}.{what} has 1 to {FILTERS_MAX} entries, not {count}", f"{place}.{what}", FILTERS_MAX)


def _bound(given: Bound, field_type: str, where: str) -> int | float | None:
    if given is None or given == "":
        return None
    if isinstance(given, float) and given.is_integer() and field_type == INTEGER:
        given = int(given)
    interval = interval_of(field_type, given if isinstance(given, str) else f"{given!r}")
    if interval is None or isinstance(interval.first, str):
        _refuse(f"{str(given)[:40]!r} is no {field_type}", where)
    return interval.first


def _field_type(name: str, place: str, schema: Schema) -> str:
    field_type = schema.get(name)
    if field_type is None:
        _refuse(unknown_field(name, schema), f"{place}.field")
    return field_type


def _place(where: str, name: str) -> str:
    if not 1 <= len(name) <= NAME_MAX_CHARS:
        _refuse(f"a name in {where} has 1 to {NAME_MAX_CHARS} characters, not {len(name)}", where, NAME_MAX_CHARS)
    return f"{where}.{name}"


def _refuse(message: str, field: str, limit: int | None = None) -> NoReturn:
    raise InvalidArgument(message, ErrorDetails(field=field, limit=limit))


__all__ = ["BucketAggregation", "bounds_of", "check_aggregations", "check_bucket_count", "order_of", "period_of"]
