"""One leg's part of the aggregations of a search, on one index snapshot.

Where tantivy's own aggregations are exact they do the work, on the whole shard at once. What returns a row for each value
(terms inside buckets, percentiles, different values) is done in slices of the shard's documents, by token slot, and merged as
the router merges shards: the thread looks at deadline and cancellation in between, and holds the interpreter for a slice at
most. Everything else is a search for each bucket: ranges and filters; histograms over fields of which some document has several
values (it counts once in a bucket), or whose values a double does not hold exactly; and what stands inside such buckets.

What a leg returns is bounded. Beyond the bounds only the buckets with the most documents are returned, with the most that any
other may have; where another order is wanted that would be no answer, and the request is refused.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import ceil, inf, nextafter
from typing import Final, NoReturn

import tantivy
from tantivy import Occur, Query

from kvshard.aggregations.check import BUCKETS_MAX, bounds_of, check_bucket_count, order_of, period_of
from kvshard.aggregations.grid import lower_edge, position_of
from kvshard.aggregations.merge import merge, take, trim
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
    children,
)
from kvshard.aggregations.partial import Distinct, Key, Partial, Rows, Spread
from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.query import Exists, Node, prepare
from kvshard.schema import FLOAT, INTEGER_MAX, INTEGER_MIN, KEYWORD, Schema
from leaf.aggregation_requests import Wanted, partial_of, request_of
from leaf.index_fields import SLOT, keyword_term, searched, slots, sorted_by

TERMS_MAX: Final = 20_000
"""Values of a field that a shard lists, and up to which terms are exact: about 0.5 MB and 20 ms for each shard."""

PARENTS_MAX: Final = 1_000
"""Of the values of a field, buckets in which further ones are searched for: each costs some 50 us for each aggregation
inside."""

SLICE_DOCS: Final = 5_000
"""tantivy's answer of so many rows becomes Python objects in about 10 ms, in which the leaf does nothing else."""

SLICED_BUCKETS: Final = 4_000
"""Buckets with stats inside, 16 figures in each, that become Python objects in about 40 ms: slices have so many again each, so
they double the work for days over ten years, which are fewer."""

MERGED_AT_ONCE: Final = 16
"""Slices: merging goes over all rows so far, so it is not done after each."""

WEIGHT_MAX: Final = 4 * 1024 * 1024
"""Bytes, estimated, of one aggregation of one leg: 32 of them over some shards still fit into the router's memory."""

INNER_ROWS_MIN: Final = 100
"""Of terms inside others, values that are returned of each even when there are too many in all."""

_EXACT_MAX: Final = 2.0**53
"""Up to here doubles, in which tantivy aggregates, hold every integer."""


class Aggregator:
    """Computes aggregations on one snapshot, on one thread. check: called between two calls of tantivy; raises to end it.

    compile_node: makes the query of a node, without the restrictions of the search.
    """

    def __init__(
        self,
        searcher: tantivy.Searcher,
        fields: tantivy.Schema,
        schema: Schema,
        compile_node: Callable[[Node], Query],
        check: Callable[[], object],
    ) -> None:
        self._searcher = searcher
        self._fields = fields
        self._schema = schema
        self._compile_node = compile_node
        self._check = check

    def run(self, query: Query, aggregations: Mapping[str, Aggregation]) -> dict[str, Partial]:
        """What all documents that the query matches say. The aggregations must have been checked against the schema.

        Raises InvalidArgument for what only the data shows to be too much.
        """
        return {name: self._partial(each, query, f"aggregations.{name}") for name, each in aggregations.items()}

    def _partial(self, aggregation: Aggregation, query: Query, place: str) -> Partial:
        self._check()
        match aggregation:
            case Stats() | Percentiles() | Cardinality():
                return self._native(Wanted(aggregation), query, place)
            case Terms():
                return self._terms(aggregation, query, place)
            case Histogram() | DateHistogram():
                return self._histogram(aggregation, query, place)
            case _:
                return self._searched(aggregation, query, self._buckets(aggregation), place)

    def _terms(self, aggregation: Terms, query: Query, place: str) -> Partial:
        is_by_key = order_of(aggregation)[0] == "key" and aggregation.min_doc_count == 1
        wanted = Wanted(aggregation, aggregation.size if is_by_key else TERMS_MAX, is_by_key, has_children=False)
        rows = self._asked(wanted, query)
        assert isinstance(rows, Rows), "terms have buckets"
        is_whole = not rows.others
        if not is_whole and not is_by_key and aggregation.order != "-count":
            self._refuse_order(aggregation, TERMS_MAX, place)
        if not aggregation.aggs or not rows.keys:
            return rows
        if is_whole and self._are_native(aggregation.aggs.values(), query):
            return self._bounded(aggregation, self._native(Wanted(aggregation), query, place, len(rows.keys)), place)
        if not is_by_key and len(rows.keys) > PARENTS_MAX:
            if aggregation.order != "-count":
                self._refuse_order(aggregation, PARENTS_MAX, place)
            rows = trim(rows, PARENTS_MAX)
        return self._bounded(aggregation, self._with_children(aggregation, query, rows, place), place)

    def _with_children(self, aggregation: Terms, query: Query, rows: Rows, place: str) -> Rows:
        columns: dict[str, list[Partial]] = {name: [] for name in aggregation.aggs}
        for key in rows.keys:
            inside = _both(query, self._having(aggregation.field, key))
            for name, child in aggregation.aggs.items():
                columns[name].append(self._partial(child, inside, f"{place}.aggs.{name}"))
        return Rows(rows.keys, rows.counts, columns, rows.errors, rows.error, rows.others)

    def _histogram(self, aggregation: Histogram | DateHistogram, query: Query, place: str) -> Partial:
        low, high, is_single = self._extent(aggregation.field, query)
        if low is None or high is None:
            return Rows([], [])
        is_exact = _is_exact(low, high)
        # Positions are whole numbers that a double must hold, even where only those in use are listed.
        span = _span(aggregation, low, high)
        check_bucket_count(span if aggregation.min_doc_count == 0 or not is_exact else span / 2**52, place, ".interval")
        if not is_exact:
            keys = _grid(aggregation, nextafter(low, -inf), nextafter(high, inf))  # large integers came rounded
            rows = self._searched(aggregation, query, self._intervals(aggregation, keys), place)
            return self._bounded(aggregation, rows, place)
        # Periods longer than a day come as days; what is inside them would have to be merged day by day.
        is_coarse = isinstance(aggregation, DateHistogram) and period_of(aggregation).unit not in {"", "day"}
        is_native = is_single and not (is_coarse and aggregation.aggs) and self._are_native(aggregation.aggs.values(), query)
        found = self._native(Wanted(aggregation, has_children=is_native), query, place, int(min(span, BUCKETS_MAX)))
        assert isinstance(found, Rows), "a histogram has buckets"
        check_bucket_count(len(found.keys), place, ".interval")
        if not is_native:
            found = self._searched(aggregation, query, self._intervals(aggregation, found.keys), place)
        return self._bounded(aggregation, found, place)

    def _searched(self, aggregation: BucketAggregation, query: Query, buckets: Iterator[tuple[Key, Query]], place: str) -> Rows:
        """A search for each bucket; those without documents are left out."""
        rows = Rows([], [], {name: [] for name in aggregation.aggs})
        for key, bucket in buckets:
            self._check()
            inside = _both(query, bucket)
            count = self._count(inside)
            if count:
                rows.keys.append(key)
                rows.counts.append(count)
                for name, child in aggregation.aggs.items():
                    rows.children[name].append(self._partial(child, inside, f"{place}.aggs.{name}"))
        return rows

    def _buckets(self, aggregation: BucketAggregation) -> Iterator[tuple[Key, Query]]:
        match aggregation:
            case Ranges():
                for number, (low, high) in enumerate(bounds_of(aggregation, self._schema)):
                    yield number, self._between(aggregation.field, low, high)
            case Missing():
                exists = self._compile_node(Exists(aggregation.field))
                yield 0, Query.boolean_query([(Occur.Must, Query.all_query()), (Occur.MustNot, exists)])
            case Filter():
                yield 0, self._compile_node(prepare(aggregation.query, self._schema))
            case Filters():
                for name, text in aggregation.queries.items():
                    yield name, self._compile_node(prepare(text, self._schema))
            case _:
                raise TypeError("not a list of queries")

    def _intervals(self, aggregation: Histogram | DateHistogram, keys: Sequence[Key]) -> Iterator[tuple[Key, Query]]:
        if isinstance(aggregation, DateHistogram):
            period = period_of(aggregation)
            for start in map(int, keys):
                yield start, self._between(aggregation.field, start, period.after(start))
            return
        interval, offset = aggregation.interval, aggregation.offset
        for position in map(int, keys):
            low, high = lower_edge(position, interval, offset), lower_edge(position + 1, interval, offset)
            if self._schema[aggregation.field] != FLOAT:
                low, high = ceil(low), ceil(high)
            yield position, self._between(aggregation.field, low, high)

    def _between(self, name: str, low: float | None, high: float | None) -> Query:
        """low <= value < high."""
        if low is None and high is None:
            return self._compile_node(Exists(name))
        if self._schema[name] == FLOAT:
            return Query.range_query(self._fields, searched(name), tantivy.FieldType.Float, low, high, True, high is None)
        if (low is not None and low > INTEGER_MAX) or (high is not None and high <= INTEGER_MIN):
            return Query.empty_query()
        first = None if low is None else max(int(low), INTEGER_MIN)
        last = None if high is None or high > INTEGER_MAX else int(high)
        return Query.range_query(self._fields, searched(name), tantivy.FieldType.Integer, first, last, True, last is None)

    def _having(self, name: str, value: Key) -> Query:
        if self._schema[name] == KEYWORD:
            return Query.term_query(self._fields, searched(name), keyword_term(str(value)), "basic")
        number = int(value)
        return Query.range_query(self._fields, searched(name), tantivy.FieldType.Integer, number, number)

    def _extent(self, name: str, query: Query) -> tuple[float | None, float | None, bool]:
        """The least and the largest value, and whether no document has more than one."""
        wanted = {
            "all": {"stats": {"field": searched(name)}},
            "first": {"value_count": {"field": sorted_by(name)}},
        }
        answer = self._searcher.aggregate(query, wanted)
        values = answer["all"]
        return values["min"], values["max"], int(values["count"]) == int(answer["first"]["value"])

    def _are_native(self, aggregations: Iterable[Aggregation], query: Query) -> bool:
        """Whether tantivy can answer these exactly, in whatever part of the query's matches."""
        return all(self._is_native(each, query) for each in aggregations)

    def _is_native(self, aggregation: Aggregation, query: Query) -> bool:
        match aggregation:
            case Stats() | Percentiles() | Cardinality() | Terms():
                return True
            case Histogram() | DateHistogram():
                low, high, is_single = self._extent(aggregation.field, query)
                if low is None or high is None:
                    return True
                return is_single and _is_exact(low, high) and _span(aggregation, low, high) <= BUCKETS_MAX
            case _:
                return False

    def _native(self, wanted: Wanted, query: Query, place: str, buckets: int = 0) -> Partial:
        """Answered by tantivy, in slices where it returns a row for each value, or figures for each of many buckets."""
        inside = children(wanted.aggregation).values() if wanted.has_children else ()
        is_in_slices = (
            isinstance(wanted.aggregation, Percentiles | Cardinality)
            or any(not isinstance(each, Stats) for each in inside)
            or buckets * len(inside) > SLICED_BUCKETS
        )
        count = self._count(query) if is_in_slices else 0
        if count <= SLICE_DOCS:
            try:
                return self._asked(wanted, query)
            except ValueError as error:
                if "bucket limit" not in str(error):
                    raise
        extent = self._searcher.aggregate(query, {"slot": {"stats": {"field": SLOT}}})["slot"]
        if extent["min"] is None:
            return self._asked(wanted, query)
        first, last = int(extent["min"]), int(extent["max"])
        width = max(1, (last - first + 1) * SLICE_DOCS // max(count, 2 * SLICE_DOCS))
        parts: list[Partial] = []
        for start in range(first, last + 1, width):
            parts += self._slice(wanted, query, start, min(start + width - 1, last), place)
            if len(parts) >= MERGED_AT_ONCE:
                parts = [self._bounded(wanted.aggregation, merge(parts), place)]
        return merge(parts)

    def _slice(self, wanted: Wanted, query: Query, first: int, last: int, place: str) -> list[Partial]:
        """The documents in these slots; halved as long as tantivy calls the answer too large."""
        self._check()
        try:
            return [self._asked(wanted, _both(query, slots(self._fields, first, last)))]
        except ValueError as error:
            if "bucket limit" not in str(error):
                raise
        if first == last:
            message = f"{place} has too many different values in one place of shard; narrow the query"
            raise InvalidArgument(message, ErrorDetails(field=place))
        middle = (first + last) // 2
        return self._slice(wanted, query, first, middle, place) + self._slice(wanted, query, middle + 1, last, place)

    def _asked(self, wanted: Wanted, query: Query) -> Partial:
        return partial_of(wanted, self._searcher.aggregate(query, {"a": request_of(wanted)})["a"], self._schema)

    def _count(self, query: Query) -> int:
        count: int = self._searcher.search(query, 1).count  # type: ignore[attr-defined]  # missing in tantivy's stubs
        return count

    def _bounded(self, aggregation: Aggregation, partial: Partial, place: str) -> Partial:
        """As much of it as a leg may return."""
        if not isinstance(partial, Rows) or not partial.children or _weight(partial) <= WEIGHT_MAX:
            return partial
        rows = Rows(partial.keys, partial.counts, dict(partial.children), partial.errors, partial.error, partial.others)
        for name, child in children(aggregation).items():
            if isinstance(child, Terms):
                rows.children[name] = [self._cut_inner(child, each, f"{place}.aggs.{name}") for each in rows.children[name]]
        while _weight(rows) > WEIGHT_MAX and len(rows.keys) > 1:
            if not isinstance(aggregation, Terms) or aggregation.order != "-count":
                message = f"{place} is too large: {len(rows.keys)} buckets with what is inside them; narrow the query"
                raise InvalidArgument(message, ErrorDetails(field=place, limit=WEIGHT_MAX))
            rows = trim(rows, len(rows.keys) // 2)
        return rows

    def _cut_inner(self, child: Terms, inner: Partial, place: str) -> Partial:
        assert isinstance(inner, Rows), "terms have buckets"
        most = max(INNER_ROWS_MIN, child.size * 3 // 2 + 10)
        if len(inner.keys) <= most:
            return inner
        name, _, is_descending = order_of(child)
        if name == "key" and child.min_doc_count == 1:
            order = sorted(range(len(inner.keys)), key=lambda at: inner.keys[at], reverse=is_descending)
            return take(inner, order[: child.size], 0)
        if child.order != "-count":
            self._refuse_order(child, most, place)
        return trim(inner, most)

    def _refuse_order(self, aggregation: Terms, most: int, place: str) -> NoReturn:
        message = (
            f"{aggregation.field} has more than {most} values in a shard: that many can be ordered by -count or by key alone, "
            f"not by {aggregation.order}; narrow the query"
        )
        raise InvalidArgument(message, ErrorDetails(field=f"{place}.order", limit=most))


def _both(query: Query, other: Query) -> Query:
    return Query.boolean_query([(Occur.Must, query), (Occur.Must, Query.const_score_query(other, 0.0))])


def _is_exact(low: float, high: float) -> bool:
    return low > -_EXACT_MAX and high < _EXACT_MAX


def _span(aggregation: Histogram | DateHistogram, low: float, high: float) -> float:
    """Buckets from the first to the last, empty ones included."""
    interval = aggregation.interval if isinstance(aggregation, Histogram) else period_of(aggregation).micros
    width = (high - low) / interval
    return width + 1 if width < inf else inf


def _grid(aggregation: Histogram | DateHistogram, low: float, high: float) -> list[Key]:
    """The keys of all buckets from the least value to the largest."""
    if isinstance(aggregation, Histogram):
        first = position_of(low, aggregation.interval, aggregation.offset)
        return list(range(first, position_of(high, aggregation.interval, aggregation.offset) + 1))
    period = period_of(aggregation)
    keys: list[Key] = []
    start = period.start_of(int(low))
    while start <= int(high):
        keys.append(start)
        start = period.after(start)
    return keys


def _weight(partial: Partial) -> int:
    """About the bytes of it on the wire."""
    match partial:
        case Rows():
            inside = sum(sum(map(_weight, column)) for column in partial.children.values())
            return 24 * len(partial.keys) + inside
        case Spread():
            return 64 + 12 * len(partial.counts)
        case Distinct():
            return 32 + 9 * len(partial.hashes) + len(partial.registers)
        case _:
            return 64
