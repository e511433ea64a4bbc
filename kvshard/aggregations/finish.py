"""From what all shards said together to the answer: ordered, filled up, cut, and the keys as the caller knows them.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TypeAlias

from kvshard.aggregations.check import BUCKETS_MAX, bounds_of, check_bucket_count, order_of, period_of
from kvshard.aggregations.distinct import STANDARD_ERROR, count_of, is_exact
from kvshard.aggregations.model import (
    Aggregation,
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
)
from kvshard.aggregations.partial import Distinct, Key, Moments, Partial, Rows, Spread
from kvshard.aggregations.results import (
    AggregationResult,
    Bucket,
    BucketKey,
    BucketsResult,
    CardinalityResult,
    PercentilesResult,
    StatsResult,
    instant,
)
from kvshard.aggregations.spread import grid_error, percentiles, relative_error
from kvshard.schema import BOOLEAN, DATE, Schema

_Child: TypeAlias = Mapping[str, Partial]


def finish_all(
    aggregations: Mapping[str, Aggregation], partials: Mapping[str, Partial], schema: Schema
) -> dict[str, AggregationResult]:
    """The answers, by name. Raises InvalidArgument when they have more buckets than an answer may have."""
    results = {name: finish(each, partials.get(name), schema, f"aggregations.{name}") for name, each in aggregations.items()}
    check_bucket_count(sum(map(_buckets, results.values())), "the answer")
    return results


def finish(aggregation: Aggregation, partial: Partial | None, schema: Schema, place: str = "aggregations") -> AggregationResult:
    """The answer to one aggregation; of no documents when the partial is None."""
    match aggregation:
        case Stats():
            return _stats(partial if isinstance(partial, Moments) else Moments())
        case Percentiles():
            return _percentiles(aggregation, partial if isinstance(partial, Spread) else Spread())
        case Cardinality():
            distinct = partial if isinstance(partial, Distinct) else Distinct()
            return CardinalityResult(count_of(distinct), 0.0 if is_exact(distinct) else STANDARD_ERROR)
        case _:
            return _Buckets(aggregation, partial if isinstance(partial, Rows) else Rows([], []), schema, place).result()


class _Buckets:
    """The buckets of one aggregation."""

    def __init__(self, aggregation: BucketAggregation, rows: Rows, schema: Schema, place: str) -> None:
        self._aggregation = aggregation
        self._rows = rows
        self._schema = schema
        self._place = place
        self._at = {key: place for place, key in enumerate(rows.keys)}

    def result(self) -> BucketsResult:
        match self._aggregation:
            case Terms():
                return self._terms(self._aggregation)
            case Histogram():
                return self._histogram(self._aggregation)
            case DateHistogram():
                return self._date_histogram(self._aggregation)
            case Ranges():
                bounds = bounds_of(self._aggregation, self._schema)
                is_date = self._schema[self._aggregation.field] == DATE
                return self._all(range(len(bounds)), lambda number: _range_text(*bounds[int(number)], is_date))
            case Filters():
                return self._all(list(self._aggregation.queries), str)
            case Missing():
                return self._all([0], lambda _: "missing")
            case Filter():
                return self._all([0], lambda _: "matching")

    def _terms(self, aggregation: Terms) -> BucketsResult:
        field_type = self._schema[aggregation.field]
        rows = self._rows
        places = [at for at, count in enumerate(rows.counts) if count >= aggregation.min_doc_count]
        kept = self._ordered(aggregation, places)[: aggregation.size]
        made = [self._bucket(rows.keys[at], _value_of(rows.keys[at], field_type)) for at in kept]
        others = rows.others + sum(rows.counts) - sum(bucket.count for bucket in made)
        return BucketsResult(tuple(made), rows.error, others)

    def _ordered(self, aggregation: Terms, places: list[int]) -> list[int]:
        keys, counts = self._rows.keys, self._rows.counts
        name, figure, is_descending = order_of(aggregation)
        places.sort(key=lambda at: keys[at], reverse=name == "key" and is_descending)
        if name == "key":
            return places
        if name == "count":
            return sorted(places, key=lambda at: -counts[at] if is_descending else counts[at])
        child, column = aggregation.aggs[name], self._rows.children.get(name, [])
        figures = {at: _figure(finish(child, column[at], self._schema), figure) for at in places}
        found = [(value, at) for at, value in figures.items() if value is not None]
        found.sort(key=lambda each: -each[0] if is_descending else each[0])
        return [at for _, at in found] + [at for at in places if figures[at] is None]

    def _histogram(self, aggregation: Histogram) -> BucketsResult:
        positions = sorted(int(key) for key, count in self._counted() if count >= max(aggregation.min_doc_count, 1))
        if positions and aggregation.min_doc_count == 0:
            check_bucket_count(positions[-1] - positions[0] + 1, self._place, ".interval")
            positions = list(range(positions[0], positions[-1] + 1))
        check_bucket_count(len(positions), self._place, ".interval")
        return self._all(positions, lambda at: int(at) * aggregation.interval + aggregation.offset)

    def _date_histogram(self, aggregation: DateHistogram) -> BucketsResult:
        period = period_of(aggregation)
        starts = sorted(int(key) for key, count in self._counted() if count >= max(aggregation.min_doc_count, 1))
        if starts and aggregation.min_doc_count == 0:
            check_bucket_count((starts[-1] - starts[0]) / period.micros * 0.9, self._place, ".interval")
            filled = [starts[0]]
            while filled[-1] < starts[-1] and len(filled) <= BUCKETS_MAX:
                filled.append(period.after(filled[-1]))
            starts = filled
        check_bucket_count(len(starts), self._place, ".interval")
        return self._all(starts, lambda start: _value_of(start, DATE))

    def _counted(self) -> list[tuple[Key, int]]:
        return list(zip(self._rows.keys, self._rows.counts, strict=True))

    def _all(self, keys: Sequence[Key], name_of: Callable[[Key], BucketKey]) -> BucketsResult:
        """A bucket for each of these keys, empty where no document is in it."""
        return BucketsResult(tuple(self._bucket(key, name_of(key)) for key in keys))

    def _bucket(self, key: Key, shown: BucketKey) -> Bucket:
        at = self._at.get(key)
        rows = self._rows
        inside = {
            name: finish(child, None if at is None else rows.children[name][at], self._schema, f"{self._place}.aggs.{name}")
            for name, child in self._aggregation.aggs.items()
        }
        if at is None:
            return Bucket(shown, 0, inside)
        return Bucket(shown, rows.counts[at], inside, rows.errors[at] if rows.errors else 0)


def _stats(moments: Moments) -> StatsResult:
    if not moments.count:
        return StatsResult(0, 0.0, None, None, None, None)
    variance = max(moments.squares, 0.0) / moments.count
    return StatsResult(moments.count, moments.total, moments.minimum, moments.maximum, moments.mean, variance)


def _percentiles(aggregation: Percentiles, spread: Spread) -> PercentilesResult:
    values = percentiles(spread, aggregation.percents)
    return PercentilesResult(dict(zip(aggregation.percents, values, strict=True)), relative_error(spread), grid_error(spread))


def _figure(result: AggregationResult, figure: str) -> float | None:
    """What buckets are ordered by."""
    match result:
        case StatsResult():
            value = getattr(result, figure or "mean")
            return None if value is None else float(value)
        case PercentilesResult():
            return next(value for percent, value in result.values.items() if not figure or f"{percent:g}" == figure)
        case CardinalityResult():
            return result.value
        case BucketsResult():
            raise TypeError("buckets are not ordered by buckets")


def _value_of(key: Key, field_type: str) -> BucketKey:
    if field_type == BOOLEAN:
        return bool(key)
    return _date(int(key)) if field_type == DATE else key


def _date(micros: int) -> BucketKey:
    """Instants before the year 1, which a time zone can make of one in it, stay numbers."""
    try:
        return instant(micros)
    except OverflowError:
        return micros


def _range_text(lower: float | None, upper: float | None, is_date: bool) -> str:
    low, high = (_end_text(end, is_date) for end in (lower, upper))
    return f"{'(' if lower is None else '['}{low}, {high})"


def _end_text(end: float | None, is_date: bool) -> str:
    if end is None:
        return "*"
    found = _date(int(end)) if is_date else end
    return found.isoformat() if isinstance(found, datetime) else f"{found}".removesuffix(".0")


def _buckets(result: AggregationResult) -> int:
    if not isinstance(result, BucketsResult):
        return 0
    return sum(1 + sum(map(_buckets, bucket.aggregations.values())) for bucket in result.buckets)
