"""One search over one index snapshot: which documents match, and in which order.

Order: score (or the sort field's value, documents without one last) first, then the key, ascending. tantivy itself breaks ties
by where a document happens to lie, which changes with every merge and differs between replicas. So whenever the end of a page
falls among equal documents, all of them are looked at:

- sorted by a field, the equal ones are a query of their own, sorted by key;
- sorted by score, the window is widened until the score drops, at most to TIE_WINDOW hits. If more documents than that are
  equal, those that tantivy found first compete for the page: the answer is then right, but which of the equal documents are on
  it may change with a merge. `*`, and whatever else gives all its matches one score, is exact without any bound.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

import tantivy
from tantivy import Occur, Query

from kvshard.schema import FLOAT, KEYWORD, Schema
from leaf.index_fields import (
    KEY,
    SortValue,
    decode_sort_value,
    key_bytes,
    keyword_of,
    searched,
    sort_value_type,
    sorted_by,
)

TIE_WINDOW: Final = 20_000
"""Twice the page depth (SEARCH_MAX_DEPTH); reading the keys of so many equal documents takes about 30 ms."""

_WINDOW_MARGIN: Final = 32
"""Hits taken beyond the page: most ties at its end are over by then, and they cost less than a second search."""

_WINDOW_GROWTH: Final = 8
"""How much further each look for the end of a tie goes: few looks, and most ties end within the second one."""

_KEY_ORDER_MAX: Final = 64
"""Hits that are worth asking tantivy for in key order: it takes some 50 us for each, reading a stored key takes 1-5 us."""

_KEYS_CHUNK: Final = 1_000
"""Keys read between two looks at whether the search is still wanted: some 3 ms."""

_FACET_SEGMENT_FACTOR: Final = 10
_FACET_SEGMENT_MARGIN: Final = 1_000
"""Values counted per segment beyond those returned: facets of up to 1,000 different values are exact."""


@dataclass(frozen=True, slots=True)
class Found:
    """A document found. rank: 1-based position in the whole order."""

    key: bytes
    score: float
    sort_value: SortValue
    rank: int


@dataclass(frozen=True, slots=True)
class Page:
    """Part of the order, and how many documents match in all."""

    found: list[Found]
    total: int


@dataclass(frozen=True, slots=True)
class FacetCounts:
    """The values of one field. error: the most by which the count of a value missing here may be too low."""

    values: dict[str, int]
    error: int


@dataclass(frozen=True, slots=True)
class _Group:
    """Equal documents at positions [start, end) of the order. is_whole: all that are equal are in it."""

    start: int
    value: SortValue
    addresses: list[tantivy.DocAddress]
    is_whole: bool

    @property
    def end(self) -> int:
        return self.start + len(self.addresses)


class IndexView:
    """A snapshot of an index, to be searched on one thread.

    check: called between two calls of tantivy, which cannot be stopped; ends the search by raising.
    """

    def __init__(
        self,
        searcher: tantivy.Searcher,
        fields: tantivy.Schema,
        schema: Schema,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._searcher = searcher
        self._fields = fields
        self._schema = schema
        self._check = check

    def count(self, query: Query) -> int:
        """How many documents match."""
        return _total(self._searcher.search(query, 1))

    def page(self, query: Query, sort: str, offset: int, limit: int, has_one_score: bool = False) -> Page:
        """Positions [offset, offset + limit) of the order. sort: as in ShardSearch; not a text field.

        has_one_score: the query is known to give all its matches the same score.
        """
        if sort:
            return self._page_by_field(query, sort, offset, limit)
        if has_one_score:
            return self._page_by_key(query, offset, limit)
        return self._page_by_score(query, offset, limit)

    def facets(self, query: Query, names: list[str], limit: int) -> dict[str, FacetCounts]:
        """Count the matches of each value of keyword fields."""
        if not names:
            return {}
        segment_size = limit * _FACET_SEGMENT_FACTOR + _FACET_SEGMENT_MARGIN
        wanted = {name: {"terms": {"field": searched(name), "size": limit, "segment_size": segment_size}} for name in names}
        answer = self._searcher.aggregate(query, wanted)
        return {name: _facet_counts(answer[name]) for name in names}

    def _page_by_key(self, query: Query, offset: int, limit: int) -> Page:
        result = self._searcher.search(query, 1)
        total = _total(result)
        if total <= offset:
            return Page([], total)
        self._check()
        keys = self._first_keys(query, total, min(offset + limit, total))[offset : offset + limit]
        score = float(result.hits[0][0])
        return Page([Found(key, score, None, offset + index + 1) for index, key in enumerate(keys)], total)

    def _page_by_score(self, query: Query, offset: int, limit: int) -> Page:
        end = offset + limit
        window = end + _WINDOW_MARGIN
        result = self._searcher.search(query, window)
        hits, total = result.hits, _total(result)
        while len(hits) == window and hits[end - 1][0] == hits[-1][0] and window < min(total, TIE_WINDOW):
            self._check()
            window = min(window * _WINDOW_GROWTH, TIE_WINDOW)
            hits = self._searcher.search(query, window, count=False).hits
        found: list[Found] = []
        for group in _groups(hits, end, is_last_whole=True):
            self._check()
            if group.end > offset:
                keys = self._keys_of_equal_scores(query, group, end - group.start, len(group.addresses) == total)
                found += _found(group, keys, offset, end, score=float(group.value or 0.0))
        return Page(found, total)

    def _keys_of_equal_scores(self, query: Query, group: _Group, wanted: int, is_everything: bool) -> list[bytes]:
        """The first keys of a group, ascending; at least `wanted` if it has so many."""
        if len(group.addresses) > 4 * _KEY_ORDER_MAX and wanted <= _KEY_ORDER_MAX:
            in_order = self._in_key_order(query, wanted)
            if is_everything:
                return [key for _, key in in_order]
            members = {(address.segment_ord, address.doc) for address in group.addresses}
            if all((address.segment_ord, address.doc) in members for address, _ in in_order):
                return [key for _, key in in_order]
        return self._keys(group.addresses)

    def _page_by_field(self, query: Query, sort: str, offset: int, limit: int) -> Page:
        end = offset + limit
        name = sort.removeprefix("-")
        order = tantivy.Order.Desc if sort.startswith("-") else tantivy.Order.Asc
        result = self._searcher.search(query, end, order_by_field=sorted_by(name), order=order)
        total = _total(result)
        found: list[Found] = []
        for group in _groups(result.hits, end, is_last_whole=total <= end):
            if group.end <= offset:
                continue
            self._check()
            if group.is_whole:
                keys = self._keys(group.addresses)
            else:
                equal = self._having(query, name, group.value)
                keys = self._first_keys(equal, self.count(equal), end - group.start)
            found += _found(group, keys, offset, end, value=decode_sort_value(self._schema[name], group.value))
        return Page(found, total)

    def _having(self, query: Query, name: str, value: SortValue) -> Query:
        """The matches whose sort value is this one."""
        field = sorted_by(name)
        if value is None:
            return Query.boolean_query([(Occur.Must, query), (Occur.MustNot, Query.exists_query(field))])
        field_type = self._schema[name]
        if field_type == KEYWORD:
            equal = Query.term_query(self._fields, field, value, "basic")
        else:
            exact = float(value) if field_type == FLOAT else int(value)
            equal = Query.range_query(self._fields, field, sort_value_type(field_type), exact, exact)
        return Query.boolean_query([(Occur.Must, query), (Occur.Must, equal)])

    def _first_keys(self, query: Query, total: int, count: int) -> list[bytes]:
        """The first keys of all that the query matches, at least `count` of them."""
        if count <= _KEY_ORDER_MAX or total > TIE_WINDOW:
            return [key for _, key in self._in_key_order(query, count)]
        return self._keys([address for _, address in self._searcher.search(query, total, count=False).hits])

    def _in_key_order(self, query: Query, count: int) -> list[tuple[tantivy.DocAddress, bytes]]:
        hits = self._searcher.search(query, count, count=False, order_by_field=KEY, order=tantivy.Order.Asc).hits
        return [(address, key_bytes(key)) for key, address in hits]

    def _keys(self, addresses: list[tantivy.DocAddress]) -> list[bytes]:
        """The keys of these documents, ascending."""
        read = self._searcher.doc
        keys: list[bytes] = []
        for first in range(0, len(addresses), _KEYS_CHUNK):
            self._check()
            keys += [key_bytes(str(read(address).get_first(KEY))) for address in addresses[first : first + _KEYS_CHUNK]]
        keys.sort()
        return keys


def _groups(hits: list[tuple[SortValue, tantivy.DocAddress]], end: int, is_last_whole: bool) -> Iterator[_Group]:
    """The groups that begin before position `end`, in order."""
    start = 0
    for value, members in groupby(hits, key=itemgetter(0)):
        if start >= end:
            return
        addresses = [address for _, address in members]
        after = start + len(addresses)
        yield _Group(start, value, addresses, is_whole=after < len(hits) or is_last_whole)
        start = after


def _found(group: _Group, keys: list[bytes], offset: int, end: int, score: float = 0.0, value: SortValue = None) -> list[Found]:
    """Those of the group's keys that stand on the page [offset, end)."""
    first = max(offset - group.start, 0)
    on_page = keys[first : end - group.start]
    return [Found(key, score, value, group.start + first + index + 1) for index, key in enumerate(on_page)]


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
