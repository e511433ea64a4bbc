"""Aggregations in tantivy's terms, and its answers as partial results.

tantivy counts a document once for each value it holds in a field (the index holds each once, see `index_fields`). What needs
all values of a field (percentiles, different values) is asked for as `terms`, which returns each value with its count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from mmh3 import mmh3_x64_128_uintdigest

from kvshard.aggregations.check import order_of, period_of
from kvshard.aggregations.distinct import distinct_of
from kvshard.aggregations.merge import merge_rows
from kvshard.aggregations.model import (
    Aggregation,
    Cardinality,
    DateHistogram,
    Histogram,
    Percentiles,
    Stats,
    Terms,
    children,
)
from kvshard.aggregations.partial import Key, Moments, Partial, Rows
from kvshard.aggregations.periods import DAY_MICROS
from kvshard.aggregations.spread import spread_of
from kvshard.schema import DATE, KEYWORD, Schema
from leaf.index_fields import keyword_of, searched

ALL_VALUES: Final = 65_000
"""tantivy refuses to answer with more buckets than this."""

_HASH_MASK: Final = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Wanted:
    """An aggregation to ask tantivy for. size: of terms, values wanted. is_by_key: of terms, the first by key, not by count."""

    aggregation: Aggregation
    size: int = ALL_VALUES
    is_by_key: bool = False
    has_children: bool = True


def request_of(wanted: Wanted) -> dict[str, Any]:
    """tantivy's request."""
    aggregation = wanted.aggregation
    match aggregation:
        case Stats():
            request: dict[str, Any] = {"extended_stats": {"field": searched(aggregation.field)}}
        case Histogram():
            grid = {"interval": aggregation.interval, "offset": aggregation.offset}
            request = {"histogram": {"field": searched(aggregation.field), **grid, "min_doc_count": 1}}
        case DateHistogram():
            period = period_of(aggregation)
            interval = DAY_MICROS if period.unit else period.micros
            request = {"histogram": {"field": searched(aggregation.field), "interval": interval, "min_doc_count": 1}}
        case Terms() | Percentiles() | Cardinality():
            terms: dict[str, Any] = {"field": searched(aggregation.field), "size": wanted.size, "segment_size": wanted.size}
            if wanted.is_by_key and isinstance(aggregation, Terms):
                terms["order"] = {"_key": "desc" if order_of(aggregation)[2] else "asc"}
            request = {"terms": terms}
        case _:
            raise TypeError("tantivy knows no such aggregation")
    inside = children(aggregation) if wanted.has_children else {}
    if inside:
        request["aggs"] = {f"a{number}": request_of(Wanted(child)) for number, child in enumerate(inside.values())}
    return request


def partial_of(wanted: Wanted, answer: Mapping[str, Any], schema: Schema) -> Partial:
    """The partial result that an answer of tantivy to `request_of` stands for."""
    aggregation = wanted.aggregation
    match aggregation:
        case Stats():
            return _moments(answer)
        case Percentiles():
            counts = {bucket["key"]: bucket["doc_count"] for bucket in answer["buckets"]}
            return spread_of(counts, schema[aggregation.field] == DATE)
        case Cardinality():
            return distinct_of(_hash(bucket["key"]) for bucket in answer["buckets"])
        case _:
            return _rows(wanted, answer, schema)


def _rows(wanted: Wanted, answer: Mapping[str, Any], schema: Schema) -> Rows:
    aggregation, buckets = wanted.aggregation, answer["buckets"]
    counts = [bucket["doc_count"] for bucket in buckets]
    inside = children(aggregation) if wanted.has_children else {}
    columns: dict[str, list[Partial]] = {
        name: [partial_of(Wanted(child), bucket[f"a{number}"], schema) for bucket in buckets]
        for number, (name, child) in enumerate(inside.items())
    }
    if isinstance(aggregation, Terms):
        others, slack = answer.get("sum_other_doc_count") or 0, answer.get("doc_count_error_upper_bound") or 0
        # What did not make it counts at most as much as the last one that did, and what segments left out besides.
        error = 0 if not others or wanted.is_by_key else slack + min(counts, default=0)
        keys = [_term_value(bucket["key"], schema[aggregation.field]) for bucket in buckets]
        return Rows(
            keys, counts, columns, [slack] * len(keys) if others and slack and not wanted.is_by_key else [], error, others
        )
    if isinstance(aggregation, DateHistogram):
        period = period_of(aggregation)
        # Days become weeks, months, quarters and years: several rows may then have one key.
        return merge_rows([Rows([period.start_of(int(bucket["key"])) for bucket in buckets], counts, columns)])
    assert isinstance(aggregation, Histogram), "nothing else has buckets here"
    offset, interval = aggregation.offset, aggregation.interval
    return Rows([round((bucket["key"] - offset) / interval) for bucket in buckets], counts, columns)


def _term_value(term: Any, field_type: str) -> Key:
    return keyword_of(term) if field_type == KEYWORD else int(term)


def _moments(answer: Mapping[str, Any]) -> Moments:
    count = int(answer["count"])
    if not count:
        return Moments()
    squares = (answer["variance_population"] or 0.0) * count
    return Moments(count, answer["sum"], answer["min"], answer["max"], answer["avg"], max(squares, 0.0))


def _hash(value: str | int | float) -> int:
    """64 bits of murmur3; the same in every leaf."""
    return mmh3_x64_128_uintdigest(str(value).encode(), 0) & _HASH_MASK
