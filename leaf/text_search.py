"""One search over one index snapshot: which documents match, and in which order.

The order is that of `kvshard/sorting.py`, which ends with the key. tantivy itself breaks ties by where a document happens to
lie, which changes with every merge and differs between replicas. So what tantivy finds is taken for what it is sure about:
groups of documents that are equal by the first sort key. Those that are on the page whole are put in order here; of one that
reaches beyond the page, the first ones are searched for by the other sort keys, as a query of their own.

Where a page begins behind a position, the documents behind it are a query of their own too, or several in turn: those equal to
it by all sort keys but the last, then by all but the last two, and so on. So a page costs the same wherever it begins.

Scores are the exception: no query tells which documents have a score (which score is the right one, `leaf/scoring.py` knows).
The window that is ranked is widened until the score drops behind the page, at most to TIE_WINDOW hits. If more documents than
that have the same score, those that tantivy found first compete for the page, unless the equal ones are the first of all
matches by key as well. `*`, and whatever else gives all its matches one score, is exact without any bound.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, Final, TypeAlias

import tantivy
from tantivy import Occur, Order, Query

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.limits import SEARCH_MAX_DEPTH
from kvshard.model import SearchAfter, SortValue
from kvshard.schema import KEYWORD, Schema
from kvshard.sorting import KEY as BY_KEY
from kvshard.sorting import SCORE, SortKey, Sorts, place_of
from leaf.index_fields import KEY, decode_sort_value, key_bytes, keyword_of, keyword_term, searched, sorted_by
from leaf.order_queries import OrderQueries
from leaf.scoring import ExactScores

TIE_WINDOW: Final = 20_000
"""Twice the page depth (SEARCH_MAX_DEPTH); reading the keys of so many equal documents takes about 40 ms."""

_WINDOW_MARGIN: Final = 32
"""Hits taken beyond the page: most ties at its end are over by then, and they cost less than a second search."""

_WINDOW_GROWTH: Final = 8
"""How much further each look for the end of a tie goes: few looks, and most ties end within the second one."""

_TIES_MANY: Final = 256
"""Equal hits at the end of a window that make it likely that most of all matches are equal to them."""

_TAKEN_SHARE: Final = 4
"""A page is looked for behind a quarter of the hits that earlier ones had: several shards share them, rarely equally."""

_KEY_ORDER_COST: Final = 12
"""Stored keys that can be read while tantivy finds the next one in key order in one segment: some 25 us and 2 us."""

_KEYS_CHUNK: Final = 1_000
"""Keys read between two looks at whether the search is still wanted: some 3 ms."""

_FACET_SEGMENT_FACTOR: Final = 10
_FACET_SEGMENT_MARGIN: Final = 1_000
"""Values counted per segment beyond those returned: facets of up to 1,000 different values are exact by that. Of more, those
returned are counted anew, at some 20 us each."""


_Address: TypeAlias = tantivy.DocAddress
_Hit: TypeAlias = tuple[Any, _Address]
"""A raw sort value or a score, and where the document lies."""


@dataclass(frozen=True, slots=True)
class Found:
    """A document found. values: of the fields among the sort keys. score: 0 where the sort has none."""

    key: bytes
    score: float = 0.0
    values: tuple[SortValue, ...] = ()

    @property
    def after(self) -> SearchAfter:
        """The position behind it."""
        return SearchAfter(list(self.values), self.score, self.key)


@dataclass(frozen=True, slots=True)
class Page:
    """Part of the order, how many documents match in all (or at least), and whether more of them come behind these.

    complete_to: as in ShardSearchReply, where hits were left out. next_score: of the first one behind these, if it was found.
    """

    found: list[Found]
    total: int
    has_more: bool
    is_total_exact: bool = True
    complete_to: float | None = None
    next_score: float | None = None


@dataclass(frozen=True, slots=True)
class FacetCounts:
    """The values of one field, exactly. error: the most that a value may have which is missing here."""

    values: dict[str, int]
    error: int


class IndexView:
    """A snapshot of an index, to be searched on one thread.

    parse: tantivy's query parser. check: called between two calls of tantivy, which cannot be stopped; ends the search by
    raising. exact: the right scores; None: tantivy's are. joint: what other legs have found; None: nobody asks.
    """

    def __init__(
        self,
        searcher: tantivy.Searcher,
        fields: tantivy.Schema,
        schema: Schema,
        parse: Callable[[str], Query],
        check: Callable[[], object] = lambda: None,
        exact: ExactScores | None = None,
    ) -> None:
        self.searcher = self._searcher = searcher
        self._fields = fields
        self._schema = schema
        self._check = check
        self._exact = exact
        self._parts = OrderQueries(fields, schema, parse)
        self._whole: Query | None = None
        self._total: int | None = None
        self._least = 0
        self._count_up_to: int | None = None
        self._has_one_score = False
        self._taken = 0
        self._ahead: tuple[Query, list[_Hit]] | None = None
        self._bar: Callable[[], float] | None = None
        self._complete_to: float | None = None

    @property
    def parts(self) -> OrderQueries:
        """Makes queries for parts of what a query matches."""
        return self._parts

    def count(self, query: Query) -> int:
        """How many documents match."""
        return _total(self._searcher.search(query, 1))

    def page(
        self,
        query: Query,
        sorts: Sorts,
        limit: int,
        after: SearchAfter | None = None,
        taken: int = 0,
        has_one_score: bool = False,
        count_up_to: int | None = None,
    ) -> Page:
        """The first `limit` documents behind a position, or of all.

        taken: as in ShardSearch. has_one_score: the query is known to give all its matches the same score. count_up_to: a total
        beyond that need not be exact. Raises InvalidArgument where the position lies too deep in a ranking.
        """
        if self._ahead is None or self._ahead[0] is not query:
            self._begin(query, taken, count_up_to)
        self._has_one_score, self._complete_to = has_one_score, None
        found = self._rows(query, sorts, after, limit + 1)
        least = max(self._least, len(found))
        next_score = found[limit].score if len(found) > limit else None
        has_more = len(found) > limit or self._complete_to is not None
        is_enough = self._total is None and count_up_to is not None and least > count_up_to
        total = least if is_enough else self.count(query) if self._total is None else self._total
        return Page(found[:limit], total, has_more, not is_enough, self._complete_to, next_score)

    def look_ahead(
        self,
        query: Query,
        limit: int,
        bar: Callable[[], float],
        after: SearchAfter | None = None,
        taken: int = 0,
        count_up_to: int | None = None,
    ) -> list[float] | None:
        """What the best matches score at least; `page` with the same arguments goes on from here. None: not known beforehand.

        bar: the score by then which whatever is on the page reaches.
        """
        if self._exact is None or self._exact.keeps_order:
            return None
        self._begin(query, taken, count_up_to)
        hits = self._search(query, self._first_window(limit + 1, after))
        self._ahead, self._bar = (query, hits), bar
        return self._exact.least_scores(hits, None if after is None else after.score, limit)

    def _begin(self, query: Query, taken: int, count_up_to: int | None) -> None:
        self._whole, self._total, self._least, self._ahead = query, None, 0, None
        self._taken, self._count_up_to = taken, count_up_to

    def _first_window(self, count: int, after: SearchAfter | None) -> int:
        """Of a ranking: the hits that are looked at first for so many."""
        return min(count + _WINDOW_MARGIN + (0 if after is None else self._taken // _TAKEN_SHARE), TIE_WINDOW)

    def facets(self, query: Query, names: list[str], limit: int) -> dict[str, FacetCounts]:
        """Count the matches of each value of keyword fields."""
        if not names:
            return {}
        segment_size = limit * _FACET_SEGMENT_FACTOR + _FACET_SEGMENT_MARGIN
        wanted = {name: {"terms": {"field": searched(name), "size": limit, "segment_size": segment_size}} for name in names}
        answer = self._searcher.aggregate(query, wanted)
        found = {name: _facet_counts(answer[name]) for name in names}
        for name, counts in found.items():
            if answer[name].get("doc_count_error_upper_bound"):
                # Segments have left out values that others list: whoever adds up facets takes what is listed for exact.
                found[name] = replace(counts, values={value: self._having_value(query, name, value) for value in counts.values})
        return found

    def _having_value(self, query: Query, name: str, value: str) -> int:
        """How many matches have this value of a keyword field."""
        self._check()
        having = Query.term_query(self._fields, searched(name), keyword_term(value), "basic")
        return self.count(Query.boolean_query([(Occur.Must, query), (Occur.Must, Query.const_score_query(having, 0.0))]))

    def values_of(self, name: str, keys: Sequence[bytes]) -> dict[bytes, SortValue]:
        """The first value of a field that is no text, of each of these documents."""
        if not keys:
            return {}
        among = self._parts.of_keys(Query.all_query(), keys)
        hits = self._searcher.search(among, len(keys), count=False, order_by_field=sorted_by(name), order=Order.Asc).hits
        values = (decode_sort_value(self._schema[name], value) for value, _ in hits)
        return dict(zip(self._keys([address for _, address in hits]), values, strict=True))

    def group_sizes(self, query: Query, name: str, values: Sequence[SortValue]) -> dict[SortValue, int]:
        """How many matches have each of these values of a keyword or an integer field."""
        sizes: dict[SortValue, int] = {}
        if None in values:
            sizes[None] = self.count(self._parts.missing(query, name))
        given = [value for value in values if value is not None]
        if not given:
            return sizes
        self._check()
        terms = {"terms": {"field": sorted_by(name), "size": len(given), "segment_size": len(given)}}
        answer = self._searcher.aggregate(self._parts.any_of(query, name, given), {"groups": terms})
        for bucket in answer["groups"]["buckets"]:
            key = bucket["key"]
            sizes[keyword_of(key) if isinstance(key, str) else int(key)] = int(bucket["doc_count"])
        return sizes

    def _rows(self, query: Query, sorts: Sorts, after: SearchAfter | None, count: int) -> list[Found]:
        """The first matches by these sort keys, then by key."""
        if count <= 0:
            return []
        self._check()
        if not sorts or sorts[0].name == BY_KEY:
            return self._rows_by_key(query, bool(sorts) and sorts[0].is_descending, after, count)
        if sorts[0].name == SCORE:
            return self._rows_by_score(query, sorts[1:], after, count)
        return self._rows_by_field(query, sorts, after, count)

    def _rows_by_key(self, query: Query, is_descending: bool, after: SearchAfter | None, count: int) -> list[Found]:
        if after is not None:
            query = self._parts.keys_beyond(query, after.key, is_descending)
        return [Found(key) for key in self._first_keys(query, count, is_descending)]

    def _rows_by_field(self, query: Query, sorts: Sorts, after: SearchAfter | None, count: int) -> list[Found]:
        head, rest, name = sorts[0], sorts[1:], sorts[0].name
        if after is None:
            if not head.is_missing_first:
                return self._sorted(query, sorts, count)  # tantivy puts those without a value last, in either direction
            rows = self._having(query, name, None, rest, None, count)
            return rows + self._sorted(self._parts.present(query, name), sorts, count - len(rows))
        value = after.values[0]
        rows = self._having(query, name, value, rest, SearchAfter(after.values[1:], after.score, after.key), count)
        if value is not None or head.is_missing_first:
            rows += self._sorted(self._parts.beyond(query, head, value), sorts, count - len(rows))
        if value is not None and not head.is_missing_first:
            rows += self._having(query, name, None, rest, None, count - len(rows))
        return rows

    def _having(
        self, query: Query, name: str, value: SortValue, rest: Sorts, after: SearchAfter | None, count: int
    ) -> list[Found]:
        """The first of those that have this value, by the other sort keys."""
        if count <= 0:
            return []
        rows = self._rows(self._parts.having(query, name, value), rest, after, count)
        return [replace(row, values=(value, *row.values)) for row in rows]

    def _sorted(self, query: Query, sorts: Sorts, count: int) -> list[Found]:
        """The first matches by these sort keys, of which the first is a field; those without a value of that come last."""
        if count <= 0:
            return []
        self._check()
        head, window = sorts[0], count + _WINDOW_MARGIN
        order = Order.Desc if head.is_descending else Order.Asc
        hits = self._search(query, window, sorted_by(head.name), order)
        whole = _whole_groups(hits, window)
        if whole >= count:
            return self._described(query, hits[:whole], sorts)[:count]
        rows = self._described(query, hits[:whole], sorts)
        if whole == len(hits):
            return rows
        value = decode_sort_value(self._schema[head.name], hits[whole][0])
        return rows + self._having(query, head.name, value, sorts[1:], None, count - len(rows))

    def _rows_by_score(self, query: Query, rest: Sorts, after: SearchAfter | None, count: int) -> list[Found]:
        """The best matches, equal ones by the other sort keys."""
        if self._has_one_score:
            return self._rows_of_one_score(query, rest, after, count)
        if self._exact is not None and not self._exact.keeps_order:
            return self._rows_by_exact_score(self._exact, query, rest, after, count)
        window = self._first_window(count, after)
        while True:
            self._check()
            hits = self._ranked(query, window)
            is_everything = len(hits) < window
            whole = hits[: _whole_groups(hits, window)]
            is_behind = after is None or not hits or hits[-1][0] <= after.score
            rows = self._best(query, whole, rest, after, count) if is_behind else []
            if is_everything or len(rows) >= count:
                return rows
            if is_behind and not rest and len(hits) - len(whole) >= _TIES_MANY:
                ties = self._tied(query, hits[-1][0], after, count - len(rows))
                if ties is not None:
                    return rows + ties
            if window == TIE_WINDOW:
                return self._best_of_window(query, hits, rest, after, count)
            window = min(window * _WINDOW_GROWTH, TIE_WINDOW)

    def _rows_by_exact_score(
        self, exact: ExactScores, query: Query, rest: Sorts, after: SearchAfter | None, count: int
    ) -> list[Found]:
        """The same where tantivy's order is not the right one."""
        window = self._first_window(count, after)
        ahead, self._ahead = self._ahead, None
        bar = -inf if self._bar is None else self._bar()
        while True:
            self._check()
            hits, ahead = self._search(query, window) if ahead is None else ahead[1], None
            is_everything = len(hits) < window
            ordered = exact.order(hits, is_everything, None if after is None else after.score, count, bar)
            rows = self._best(query, ordered.hits[: ordered.certain], rest, after, count)
            if ordered.is_cut and len(rows) < count:
                self._complete_to = bar
            if is_everything or ordered.is_cut or len(rows) >= count:
                return rows
            if window == TIE_WINDOW:
                exact.is_bounded = True
                return self._best_of_window(query, list(ordered.hits), rest, after, count)
            window = min(window * _WINDOW_GROWTH, TIE_WINDOW)

    def _rows_of_one_score(self, query: Query, rest: Sorts, after: SearchAfter | None, count: int) -> list[Found]:
        hits = self._search(query, 1)
        if not hits or (after is not None and hits[0][0] > after.score):
            return []
        score = hits[0][0]
        behind = after if after is not None and score == after.score else None
        return [replace(row, score=score) for row in self._rows(query, rest, behind, count)]

    def _best(self, query: Query, hits: list[_Hit], rest: Sorts, after: SearchAfter | None, count: int) -> list[Found]:
        """The first ones of a ranking behind a position. hits: ranked; those equal to the last one wanted are all there."""
        sorts = (SortKey(SCORE, is_descending=True), *rest)
        first = 0 if after is None else bisect_left(hits, -after.score, key=lambda hit: -hit[0])
        last = first if after is None else bisect_right(hits, -after.score, key=lambda hit: -hit[0])
        end = min(last + count, len(hits))
        while 0 < end < len(hits) and hits[end][0] == hits[end - 1][0]:
            end += 1
        rows = self._described(query, hits[first:end], sorts)
        if after is not None:
            place = place_of(sorts)
            begin = place(after.values, after.score, after.key)
            rows = [row for row in rows if place(row.values, row.score, row.key) > begin]
        return rows[:count]

    def _best_of_window(
        self, query: Query, hits: list[_Hit], rest: Sorts, after: SearchAfter | None, count: int
    ) -> list[Found]:
        """What the largest window tells."""
        rows = self._best(query, hits, rest, after, count)
        if after is not None and len(rows) < count:
            message = f"the page lies more than {SEARCH_MAX_DEPTH} hits deep in a ranking; sort by fields, or narrow the query"
            raise InvalidArgument(message, ErrorDetails(field="token", limit=SEARCH_MAX_DEPTH))
        return rows

    def _tied(self, query: Query, score: float, after: SearchAfter | None, count: int) -> list[Found] | None:
        """The first of all that have this score, by key; None if there are not so many among the first of all matches."""
        among = query
        if after is not None and after.score == score:
            among = self._parts.keys_beyond(query, after.key, is_descending=False)
        keys = self._first_keys(among, 2 * count + _WINDOW_MARGIN, is_descending=False)
        scores = self._scores(query, keys)
        rows = [Found(key, score) for key in keys if scores.get(key) == score]
        return rows[:count] if len(rows) >= count else None

    def _ranked(self, query: Query, count: int) -> list[_Hit]:
        """The best matches with their scores, best first; not where the right scores make another order."""
        hits = self._search(query, count)
        return hits if self._exact is None else self._exact.scored(hits)

    def _scores(self, query: Query, keys: Sequence[bytes]) -> dict[bytes, float]:
        """The scores of those of these documents that match."""
        if not keys:
            return {}
        hits = self._searcher.search(self._parts.of_keys(query, keys), len(keys), count=False).hits
        if self._exact is not None:
            hits = self._exact.scored(hits)
        return dict(zip(self._keys([address for _, address in hits]), (float(score) for score, _ in hits), strict=True))

    def _described(self, query: Query, hits: Sequence[tuple[Any, _Address]], sorts: Sorts) -> list[Found]:
        """These documents in order. hits: each with its raw value of the first sort key."""
        addresses = [address for _, address in hits]
        keys = self._keys(addresses)
        head = sorts[0]
        columns: list[Sequence[SortValue]] = []
        scores: Sequence[float] = [0.0] * len(keys)
        for each in sorts:
            if each.name == SCORE and each is head:
                scores = [float(score) for score, _ in hits]
            elif each.name == SCORE:
                known = self._scores(query, keys)
                scores = [known.get(key, 0.0) for key in keys]
            elif each.is_field and each is head:
                columns.append([decode_sort_value(self._schema[each.name], value) for value, _ in hits])
            elif each.is_field:
                columns.append(self._values(each.name, keys, addresses))
        values = zip(*columns, strict=True) if columns else [()] * len(keys)
        rows = [Found(key, score, tuple(row)) for key, score, row in zip(keys, scores, values, strict=True)]
        place = place_of(sorts)
        rows.sort(key=lambda row: place(row.values, row.score, row.key))
        return rows

    def _values(self, name: str, keys: Sequence[bytes], addresses: list[_Address]) -> list[SortValue]:
        """The values of a field, of these documents."""
        if not addresses:
            return []
        if self._schema[name] != KEYWORD:
            return list(self._searcher.fast_field_values(sorted_by(name), addresses))
        # tantivy gives texts only as what it sorts by.
        among = self._parts.of_keys(Query.all_query(), keys)
        hits = self._searcher.search(among, len(keys), count=False, order_by_field=sorted_by(name), order=Order.Asc).hits
        found = {(address.segment_ord, address.doc): value for value, address in hits}
        raw = [found.get((address.segment_ord, address.doc)) for address in addresses]
        return [decode_sort_value(KEYWORD, value) for value in raw]

    def _first_keys(self, query: Query, count: int, is_descending: bool) -> list[bytes]:
        """The first keys of all that the query matches, in order."""
        total = self._total if query is self._whole and self._total is not None else self.count(query)
        if query is self._whole:
            self._total = total
        if not total:
            return []
        if total > TIE_WINDOW or total > min(count, total) * max(self._searcher.num_segments, 1) * _KEY_ORDER_COST:
            order = Order.Desc if is_descending else Order.Asc
            hits = self._searcher.search(query, min(count, total), count=False, order_by_field=KEY, order=order).hits
            return [key_bytes(key) for key, _ in hits]
        keys = self._keys([address for _, address in self._searcher.search(query, total, count=False).hits])
        return sorted(keys, reverse=is_descending)[:count]

    def _search(self, query: Query, count: int, field: str | None = None, order: Order = Order.Desc) -> list[_Hit]:
        """The hits of one search; that of the whole query tells the total by the way."""
        is_whole = query is self._whole and self._total is None
        is_counted = is_whole and (self._count_up_to is None or self._count_up_to >= count)
        result = self._searcher.search(query, count, count=is_counted, order_by_field=field, order=order)
        if is_counted:
            self._total = _total(result)
        elif is_whole:
            self._least = len(result.hits)
            self._total = self._least if self._least < count else None
        return result.hits

    def _keys(self, addresses: list[_Address]) -> list[bytes]:
        """The keys of these documents."""
        read = self._searcher.doc
        keys: list[bytes] = []
        for first in range(0, len(addresses), _KEYS_CHUNK):
            self._check()
            keys += [key_bytes(str(read(address).get_first(KEY))) for address in addresses[first : first + _KEYS_CHUNK]]
        return keys


def _whole_groups(hits: Sequence[_Hit], window: int) -> int:
    """How many hits of a window have all their equals in it: the last ones may have some beyond its end."""
    if len(hits) < window:
        return len(hits)
    last, end = hits[-1][0], len(hits)
    while end and hits[end - 1][0] == last:
        end -= 1
    return end


def _total(result: tantivy.SearchResult) -> int:
    count: int = result.count  # type: ignore[attr-defined]  # missing in tantivy's stubs
    return count


def _facet_counts(answer: dict[str, object]) -> FacetCounts:
    buckets = answer["buckets"]
    assert isinstance(buckets, list)
    values = {keyword_of(bucket["key"]): int(bucket["doc_count"]) for bucket in buckets}
    error = int(str(answer.get("doc_count_error_upper_bound") or 0))
    if answer.get("sum_other_doc_count"):
        # A value that did not make it counts at most as much as the last one that did.
        error += min(values.values(), default=0)
    return FacetCounts(values, error)
