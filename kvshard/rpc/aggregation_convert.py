"""Aggregations and their answers, from and to the messages of the public service."""

from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Any

from kvshard.aggregations.model import (
    DEFAULT_ORDER,
    DEFAULT_PERCENTS,
    DEFAULT_SIZE,
    KINDS,
    Aggregation,
    Bound,
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
from kvshard.aggregations.results import (
    AggregationResult,
    Bucket,
    BucketKey,
    BucketsResult,
    CardinalityResult,
    PercentilesResult,
    StatsResult,
    instant,
    micros_of,
)
from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.v1 import aggregations_pb2 as pb


def aggregations_to_proto(aggregations: Mapping[str, Aggregation]) -> list[pb.Aggregation]:
    """The messages of aggregations by name. Raises InvalidArgument where one is of a wrong type."""
    try:
        return [_to_proto(name, each) for name, each in aggregations.items()]
    except (TypeError, ValueError, AttributeError) as error:
        message = f'aggs is a dict of names and aggregations such as Terms("tag"): {error}'
        raise InvalidArgument(message, ErrorDetails(field="aggs")) from None


def _to_proto(name: str, aggregation: Aggregation) -> pb.Aggregation:
    if not isinstance(aggregation, KINDS):
        raise TypeError(f"{name!r} is of type {type(aggregation).__name__}")
    message = pb.Aggregation(name=name, aggregations=aggregations_to_proto(children(aggregation)))
    match aggregation:
        case Terms(field, size, order, least):
            message.terms.CopyFrom(pb.TermsAggregation(field=field, size=size, order=order, min_doc_count=least))
        case Ranges(field, ranges):
            ends = [pb.AggregationRange(**{"from": _end_text(low), "to": _end_text(high)}) for low, high in ranges]
            message.ranges.CopyFrom(pb.RangesAggregation(field=field, ranges=ends))
        case Histogram(field, interval, offset, least):
            grid = pb.HistogramAggregation(field=field, interval=interval, offset=offset, min_doc_count=least)
            message.histogram.CopyFrom(grid)
        case DateHistogram(field, period, least):
            message.date_histogram.CopyFrom(pb.DateHistogramAggregation(field=field, interval=period, min_doc_count=least))
        case Missing(field):
            message.missing.field = field
        case Filter(query):
            message.filter.CopyFrom(pb.FilterAggregation(query=query))
        case Filters(queries):
            named = [pb.NamedQuery(name=each, query=query) for each, query in queries.items()]
            message.filters.CopyFrom(pb.FiltersAggregation(queries=named))
        case Stats(field):
            message.stats.field = field
        case Percentiles(field, percents):
            message.percentiles.CopyFrom(pb.PercentilesAggregation(field=field, percents=percents))
        case Cardinality(field):
            message.cardinality.field = field
    return message


def _end_text(end: Bound) -> str:
    return "" if end is None else end if isinstance(end, str) else repr(end)


def aggregations_from_proto(messages: Iterable[pb.Aggregation], place: str = "aggregations") -> dict[str, Aggregation]:
    """The aggregations by name. Raises InvalidArgument where a name stands twice or a kind is missing."""
    found: dict[str, Aggregation] = {}
    for message in messages:
        if message.name in found:
            raise _refused(f"the name {message.name[:64]!r} stands twice", place)
        found[message.name] = _from_proto(message, f"{place}.{message.name[:64]}")
    return found


def _from_proto(message: pb.Aggregation, place: str) -> Aggregation:
    kind = message.WhichOneof("kind")
    aggs = aggregations_from_proto(message.aggregations, f"{place}.aggs")
    match kind:
        case "terms":
            terms = message.terms
            size = terms.size if terms.HasField("size") else DEFAULT_SIZE
            return Terms(terms.field, size, terms.order or DEFAULT_ORDER, terms.min_doc_count or 1, aggs)
        case "ranges":
            ranges: list[tuple[Bound, Bound]] = [
                (getattr(each, "from") or None, each.to or None) for each in message.ranges.ranges
            ]
            return Ranges(message.ranges.field, ranges, aggs)
        case "histogram":
            grid = message.histogram
            return Histogram(grid.field, grid.interval, grid.offset, grid.min_doc_count, aggs)
        case "date_histogram":
            periods = message.date_histogram
            return DateHistogram(periods.field, periods.interval, periods.min_doc_count, aggs)
        case "missing":
            return Missing(message.missing.field, aggs)
        case "filter":
            return Filter(message.filter.query, aggs)
        case "filters":
            queries = {each.name: each.query for each in message.filters.queries}
            if len(queries) < len(message.filters.queries):
                raise _refused("a name stands twice", f"{place}.queries")
            return Filters(queries, aggs)
        case _:
            return _metric_from_proto(message, bool(aggs), place)


def _metric_from_proto(message: pb.Aggregation, has_children: bool, place: str) -> Aggregation:
    kind = message.WhichOneof("kind")
    if kind is not None and has_children:
        raise _refused(f"{kind} has no buckets, and nothing inside them", f"{place}.aggs")
    match kind:
        case "stats":
            return Stats(message.stats.field)
        case "percentiles":
            return Percentiles(message.percentiles.field, tuple(message.percentiles.percents) or DEFAULT_PERCENTS)
        case "cardinality":
            return Cardinality(message.cardinality.field)
        case _:
            raise _refused(f"{place} does not say what to compute", place)


def _refused(message: str, field: str) -> InvalidArgument:
    return InvalidArgument(message, ErrorDetails(field=field))


def results_to_proto(results: Mapping[str, AggregationResult]) -> list[pb.AggregationResult]:
    """The messages of answers by name."""
    return [_result_to_proto(name, result) for name, result in results.items()]


def _result_to_proto(name: str, result: AggregationResult) -> pb.AggregationResult:
    match result:
        case BucketsResult():
            buckets = map(_bucket_to_proto, result.buckets)
            found = pb.BucketsResult(buckets=buckets, error_bound=result.error_bound, others=result.others)
            return pb.AggregationResult(name=name, buckets=found)
        case StatsResult():
            stats = pb.StatsResult(
                count=result.count,
                sum=result.sum,
                min=result.min,
                max=result.max,
                mean=result.mean,
                variance=result.variance,
            )
            return pb.AggregationResult(name=name, stats=stats)
        case PercentilesResult():
            values = [pb.Percentile(percent=percent, value=value) for percent, value in result.values.items()]
            percentiles = pb.PercentilesResult(
                values=values, relative_error=result.relative_error, absolute_error_us=result.absolute_error
            )
            return pb.AggregationResult(name=name, percentiles=percentiles)
        case CardinalityResult():
            number = pb.CardinalityResult(value=result.value, standard_error=result.standard_error)
            return pb.AggregationResult(name=name, cardinality=number)


def _bucket_to_proto(bucket: Bucket) -> pb.Bucket:
    key: dict[str, Any]
    match bucket.key:
        case bool():
            key = {"boolean": bucket.key}
        case int():
            key = {"integer": bucket.key}
        case float():
            key = {"number": bucket.key}
        case str():
            key = {"text": bucket.key}
        case datetime():
            key = {"date_us": micros_of(bucket.key)}
    inside = results_to_proto(bucket.aggregations)
    return pb.Bucket(**key, count=bucket.count, error_bound=bucket.error_bound, aggregations=inside)


def results_from_proto(messages: Iterable[pb.AggregationResult]) -> dict[str, AggregationResult]:
    """The answers by name."""
    return {message.name: _result_from_proto(message) for message in messages}


def _result_from_proto(message: pb.AggregationResult) -> AggregationResult:
    match message.WhichOneof("result"):
        case "stats":
            stats = message.stats
            ends = (_optional(stats, name) for name in ("min", "max", "mean", "variance"))
            return StatsResult(stats.count, stats.sum, *ends)
        case "percentiles":
            values = {each.percent: _optional(each, "value") for each in message.percentiles.values}
            return PercentilesResult(values, message.percentiles.relative_error, message.percentiles.absolute_error_us)
        case "cardinality":
            return CardinalityResult(message.cardinality.value, message.cardinality.standard_error)
        case _:
            buckets = tuple(map(_bucket_from_proto, message.buckets.buckets))
            return BucketsResult(buckets, message.buckets.error_bound, message.buckets.others)


def _optional(message: pb.StatsResult | pb.Percentile, name: str) -> float | None:
    return float(getattr(message, name)) if message.HasField(name) else None  # type: ignore[arg-type]


def _bucket_from_proto(message: pb.Bucket) -> Bucket:
    kind = message.WhichOneof("key") or "text"
    key: BucketKey = instant(message.date_us) if kind == "date_us" else getattr(message, kind)
    return Bucket(key, message.count, results_from_proto(message.aggregations), message.error_bound)
