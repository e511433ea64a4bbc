"""Finds the hits of one shard and reads their documents; where the search is collapsed, the first hit of each group alone."""

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, nextafter
from typing import Final

import tantivy

from kvshard.collapsing import group_digest, shown_digests
from kvshard.errors import ErrorDetails, ResourceExhausted
from kvshard.limits import BATCH_MAX_BYTES
from kvshard.model import ShardHit, ShardSearch, SortValue, changed
from kvshard.sorting import Sorts, is_by_score
from leaf.log_source import LogSource
from leaf.text_search import Found, IndexView, Page

FILL_ROUNDS: Final = 4
"""A page is filled up this often when documents were deleted since the last refresh. Only a mass delete within half a second
exceeds it, and then the page is shorter than it could be; one without any hit is filled until it has one."""

COLLAPSE_ROUNDS: Final = 32
"""The same for a collapsed page, where the first hits may all be of one group: each round leaves out the groups seen so far."""

READ_CHUNK: Final = 64
"""Documents read between two looks at the deadline."""


@dataclass(frozen=True, slots=True)
class FoundHits:
    """Hits with their documents as they are now. total, complete_to: see ShardSearchReply. has_more: more hits come behind."""

    hits: list[ShardHit]
    total: int
    has_more: bool
    is_total_exact: bool = True
    complete_to: float | None = None


class HitFinder:
    """Finds the hits of one request. check: called in between; ends it by raising. on_phase: told what has ended."""

    def __init__(
        self,
        request: ShardSearch,
        sorts: Sorts,
        view: IndexView,
        source: LogSource,
        collection_id: int,
        check: Callable[[], object],
        on_phase: Callable[[str], object] = lambda phase: None,
    ) -> None:
        self._request = request
        self._sorts = sorts
        self._view = view
        self._source = source
        self._collection_id = collection_id
        self._check = check
        self._on_phase = on_phase
        self._groups = _Groups(request, view) if request.shape.collapse else None
        self._room = BATCH_MAX_BYTES

    def look_ahead(self, query: tantivy.Query, bar: Callable[[], float]) -> list[float] | None:
        """What the first hits score at least; None: not known beforehand. bar: see IndexView.look_ahead."""
        request = self._request
        if self._groups is not None or not is_by_score(self._sorts) or request.limit == 0:
            return None
        return self._view.look_ahead(query, request.limit, bar, request.after, request.taken, request.shape.count_up_to)

    def find(self, query: tantivy.Query, has_one_score: bool) -> FoundHits:
        """The first hits behind the request's position. Raises ResourceExhausted when their documents are too large."""
        request, groups = self._request, self._groups
        if request.limit == 0:
            total = self._view.count(query)
            self._on_phase("find")
            return FoundHits([], total, has_more=False)
        hits: list[ShardHit] = []
        whole: Page | None = None
        after, gone, rounds = request.after, 0, 0
        while True:
            narrowed = query if groups is None else groups.narrowed(query)
            count_up_to = request.shape.count_up_to if whole is None else 0
            page = self._view.page(narrowed, self._sorts, request.limit, after, request.taken, has_one_score, count_up_to)
            whole = whole or page
            self._on_phase("find")
            new, lost, unread = self._read(page.found, request.limit - len(hits))
            hits += new
            gone += lost
            rounds += 1
            self._on_phase("documents")
            is_tired = rounds >= (FILL_ROUNDS if groups is None else COLLAPSE_ROUNDS) and bool(hits)
            if not page.has_more or len(hits) >= request.limit or is_tired or page.complete_to is not None:
                break
            after = page.found[-1].after
        has_more = page.has_more or unread or len(hits) > request.limit
        complete_to = None
        if request.together and groups is None and not unread and len(hits) <= request.limit:
            complete_to = page.complete_to if page.next_score is None else nextafter(page.next_score, inf)
        hits = hits[: request.limit]
        if groups is not None:
            hits = groups.sized(query, hits)
            self._on_phase("groups")
        return FoundHits(hits, max(whole.total - gone, len(hits)), has_more, whole.is_total_exact, complete_to)

    def _read(self, found: list[Found], wanted: int) -> tuple[list[ShardHit], int, bool]:
        """At least `wanted` hits of these if there are so many, how many documents were gone, whether some were not read."""
        hits: list[ShardHit] = []
        gone = first = 0
        while first < len(found) and len(hits) < wanted:
            self._check()
            chunk = self.documents(found[first : first + READ_CHUNK])
            alive = [hit for hit in chunk if hit is not None]
            gone += len(chunk) - len(alive)
            hits += alive if self._groups is None else self._groups.firsts(alive)
            self._room -= sum(len(hit.document) for hit in alive)
            if self._room < 0:
                details = ErrorDetails(field="limit", limit=BATCH_MAX_BYTES)
                raise ResourceExhausted("the documents of one page are too large; ask for fewer, or keys only", details)
            first += len(chunk)
        return hits, gone, first < len(found)

    def documents(self, found: list[Found]) -> list[ShardHit | None]:
        """The documents found, as they are now; None where one is gone."""
        request = self._request
        documents = self._source.read_documents(request.shard, self._collection_id, [each.key for each in found])
        keep_document = not request.keys_only or bool(request.highlight)
        return [
            None
            if document is None
            else ShardHit(
                key=each.key,
                score=each.score,
                document=document[0] if keep_document else b"",
                version=document[1],
                sort_values=list(each.values),
            )
            for each, document in zip(found, documents, strict=True)
        ]


class _Groups:
    """The groups of a collapsed search: those that earlier pages have shown, and those found since."""

    def __init__(self, request: ShardSearch, view: IndexView) -> None:
        self._name = request.shape.collapse
        self._view = view
        self._shown = shown_digests(request.shape.shown)
        self._seen: dict[SortValue, None] = {}

    def narrowed(self, query: tantivy.Query) -> tantivy.Query:
        """The matches of groups that were not seen yet."""
        return self._view.parts.none_of(query, self._name, list(self._seen)) if self._seen else query

    def firsts(self, hits: list[ShardHit]) -> list[ShardHit]:
        """Those of these hits, which come next in the order, that are the first of their groups."""
        values = self._view.values_of(self._name, [hit.key for hit in hits])
        firsts: list[ShardHit] = []
        for hit in hits:
            value = values.get(hit.key)
            if value in self._seen:
                continue
            self._seen[value] = None
            if group_digest(value) not in self._shown:
                firsts.append(changed(hit, group=value))
        return firsts

    def sized(self, query: tantivy.Query, hits: list[ShardHit]) -> list[ShardHit]:
        """The hits with the sizes of their groups."""
        sizes = self._view.group_sizes(query, self._name, [hit.group for hit in hits])
        return [changed(hit, group_size=max(sizes.get(hit.group, 0), 1)) for hit in hits]
