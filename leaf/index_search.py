"""Answers one ShardSearch on a thread: parse, find the hits, count, highlight; the deadline is looked at in between."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from threading import Lock
from typing import Final

import tantivy
from tantivy import Query

from kvshard.aggregations.partial import Partial
from kvshard.clock import Clock
from kvshard.clustermap import TOKEN_SLOTS, Collection
from kvshard.errors import Cancelled, DeadlineExceeded, ErrorDetails
from kvshard.meaning import meant
from kvshard.model import NearestRecord, ShardHit, ShardSearch, ShardSearchReply, changed
from kvshard.query import MatchAll, Node
from kvshard.schema import Schema
from kvshard.search_accounts import ScoreExplanation
from kvshard.sorting import parse_sort
from kvshard.suggest_messages import SuggestPart
from kvshard.vectors import vector_of
from leaf.aggregations import Aggregator
from leaf.highlights import Highlighter, shown_as
from leaf.hit_finder import READ_CHUNK, FoundHits, HitFinder
from leaf.leg_group import LegGroup, LegGroups
from leaf.log_source import LogSource
from leaf.precedence import FREE_TRACK, RunApart, Track, plain
from leaf.scoring import Weighed, weighed
from leaf.search_checks import check_request
from leaf.search_plan import CompiledSearch, SearchPlan, SearchPlans
from leaf.search_profile import UNTIMED, Phases
from leaf.suggest import Suggester
from leaf.text_index import TextIndex, tantivy_failures
from leaf.text_search import FacetCounts, Found, IndexView
from leaf.told_hits import explained_hits, profile_of
from leaf.unseen import UnseenWrites

GONE_MARGIN: Final = 8
"""Nearest documents looked at beyond those wanted: some may have been deleted since the last refresh."""

IMPATIENT_SHARE: Final = 0.5
"""Of its time a search lets short ones go first at the beginning; what is left by then it needs for itself."""


@dataclass(slots=True)
class _Begun:
    """A search whose first hits are being looked for, or have been. indexed_through, unseen_since: as the index was before.

    is_joint: other legs of the search say what of it is wanted.
    """

    index: TextIndex
    phases: Phases
    plan: SearchPlan
    compiled: CompiledSearch
    ranked: Weighed
    view: IndexView
    finder: HitFinder
    expired_at_ms: int | None
    last_slot: int
    indexed_through: int
    unseen_since: float | None
    is_joint: bool

    @property
    def searcher(self) -> tantivy.Searcher:
        """The snapshot that is searched."""
        return self.view.searcher


class SearchJob:
    """One search. `run` and `look` belong to search threads; `cancel` may be called from anywhere.

    group: the legs of the same search, None: it is on its own.
    """

    def __init__(
        self,
        request: ShardSearch,
        collection: Collection,
        source: LogSource,
        clock: Clock,
        deadline: float,
        unseen: UnseenWrites,
        plans: SearchPlans | None = None,
    ) -> None:
        self._request = request
        self._collection = collection
        self._schema: Schema = collection.schema
        self._source = source
        self._clock = clock
        self._deadline = deadline
        self._unseen = unseen
        self._plans = plans or SearchPlans()
        self._is_cancelled = False
        self._track: Track = FREE_TRACK
        self._patient_until = deadline - (deadline - clock.monotonic()) * IMPATIENT_SHARE
        self._sorts = parse_sort(request.sort)
        self._group: LegGroup | None = None
        self._index: TextIndex | None = None
        self._looks = Lock()
        self._begun: _Begun | Exception | None = None
        self._has_begun = False

    def __repr__(self) -> str:
        return f"SearchJob(shard {self._request.shard}, {self._collection.name}, {self._request.tree or self._request.query!r})"

    @property
    def group(self) -> tuple[int, str]:
        """The same for the legs of one search."""
        part = self._request.suggest
        query = self._request.tree or self._request.query
        if self._request.aggregations:
            # The same query without them may be a short one.
            query = f"{self._request.aggregations} of {query}"
        return self._collection.id, query if part is None else f"suggest {part.text}"

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        self._is_cancelled = True

    def bind(
        self,
        index: TextIndex,
        groups: LegGroups,
        call_soon: Callable[[Callable[[], object]], object],
        track: Track = FREE_TRACK,
    ) -> None:
        """Search this index, beside the other legs of the search that are bound within this pass of the event loop.

        track: what it will run on.
        """
        self._track = track
        self._index, self._begun, self._has_begun, self._group = index, None, False, None
        if self._request.together:
            self._group = groups.group_of(self._request, self, call_soon)

    def look(self) -> None:
        """Find the first hits, unless that is done. What fails is kept for `run`."""
        assert self._index is not None, "it is bound before"
        with self._looks:
            if not self._has_begun:
                try:
                    self._begun = self._begin(self._index)
                except RunApart:
                    raise
                except Exception as error:  # another leg must not end by it, whatever it is
                    self._begun = error
                self._has_begun = True

    def run(self, index: TextIndex | None = None) -> ShardSearchReply:
        """The answer. Raises a KvShardError, or IndexFailed when tantivy does. index: where none is bound."""
        if index is not None and index is not self._index:
            self._index, self._begun, self._has_begun = index, None, False
        assert self._index is not None, "it is bound before"
        try:
            return self._run(self._index)
        except RunApart:
            self._begun, self._has_begun = None, False
            raise

    def _run(self, index: TextIndex) -> ShardSearchReply:
        self._check()
        if self._request.suggest is not None:
            return self._suggest(self._request.suggest, index)
        self.look()
        if self._group is not None:
            self._group.look_ahead()
        begun, self._begun = self._begun, None
        if isinstance(begun, Exception):
            raise begun
        assert begun is not None, "a search that is bound runs once"
        return self._finish(begun)

    def _begin(self, index: TextIndex) -> _Begun:
        """Everything up to the first hits."""
        self._check()
        request = self._request
        phases = Phases(self._clock.monotonic) if request.profile else UNTIMED
        check_request(request, self._schema)
        plan = self._plans.of(request, self._collection)
        indexed_through = index.indexed_through  # before the snapshot: never more than it holds
        unseen_since = self._unseen.oldest_after(indexed_through)  # before it too: what is forgotten by then, it shows
        last_slot = self._last_slot(index)
        phases.end("parse")
        with tantivy_failures():
            statistics, expired_at_ms = index.statistics, self._expired_at_ms()
            searcher, compiler = statistics.searcher, index.compiler
            compiled = plan.compiled(compiler, statistics.fields, searcher, request.statistics, self._check)

            def restricted(query: Query) -> Query:
                return compiler.restricted(query, compiled.filters, expired_at_ms, last_slot)

            ranked = weighed(compiled, statistics, request, restricted, last_slot, self._check)
            phases.end("compile")
            self._check()
            view = IndexView(
                self._track.searcher(searcher), statistics.fields, self._schema, index.parse, self._check, ranked.exact
            )
            finder = HitFinder(request, self._sorts, view, self._source, self._collection.id, self._check, phases.end)
            group, is_joint = self._group, False
            if group is not None and not compiled.has_one_score:
                scores = finder.look_ahead(ranked.query, lambda: group.bar)
                is_joint = scores is not None
                group.best.note(request.shard, scores or ())
                phases.end("find")
        return _Begun(
            index,
            phases,
            plan,
            compiled,
            ranked,
            view,
            finder,
            expired_at_ms,
            last_slot,
            indexed_through,
            unseen_since,
            is_joint,
        )

    def _finish(self, begun: _Begun) -> ShardSearchReply:
        """The answer of a search that has begun."""
        request, index, view, phases, query = self._request, begun.index, begun.view, begun.phases, begun.ranked.query
        phases.go_on()
        with tantivy_failures():
            found = begun.finder.find(query, begun.compiled.has_one_score)
            exact = begun.ranked.exact
            if self._group is not None and begun.is_joint and exact is not None and not exact.is_bounded:
                self._group.best.note(request.shard, [hit.score for hit in found.hits])
            self._check()
            facets = view.facets(query, request.facets, request.facet_limit or 10)
            if request.facets:
                phases.end("facets")
            aggregations = self._aggregate(index, begun.searcher, query)
            if request.aggregations:
                phases.end("aggregations")
            hits = shown_as(
                request,
                found.hits,
                lambda: Highlighter(request, begun.compiled.node, found.hits, index, plain(begun.searcher)),
                self._check,
            )
            phases.end("highlight")
            nearest: tuple[list[ShardHit], int] = [], 0
            if request.nearest is not None:
                nearest = self._find_nearest(begun, request.nearest)
                phases.end("nearest")
            if request.explain:
                hits = explained_hits(
                    request.sort, hits, index, plain(begun.searcher), begun.compiled, begun.ranked, self._check
                )
                phases.end("explain")
            reply = self._reply(found, hits, facets, aggregations, nearest, begun)
            if request.profile:
                nodes = [begun.compiled.node, *begun.plan.filters]
                reply = changed(reply, profile=profile_of(reply, nodes, index, plain(begun.searcher), phases.took, self._check))
        return reply

    def _aggregate(self, index: TextIndex, searcher: tantivy.Searcher, query: Query) -> dict[str, Partial]:
        if not self._request.aggregations:
            return {}

        synonyms = tuple(self._request.synonyms)

        def compiled(node: Node) -> Query:
            node = meant(node, self._schema, synonyms)
            return index.compiler.compile(node, [], None, searcher=searcher, check=self._check)

        aggregator = Aggregator(searcher, index.fields, self._schema, compiled, self._check)
        return aggregator.run(query, self._request.aggregations)

    def _find_nearest(self, begun: _Begun, wanted: NearestRecord) -> tuple[list[ShardHit], int]:
        """The nearest with their documents as they are now, and how many documents have a vector."""
        among = begun.index.compiler.restricted(Query.all_query(), begun.compiled.filters, begun.expired_at_ms, begun.last_slot)
        rows, vector = begun.index.vectors[wanted.field], vector_of(wanted.vector)
        near, total = rows.nearest(begun.searcher, among, vector, wanted.k + GONE_MARGIN, self._check)
        hits: list[ShardHit] = []
        for first in range(0, len(near), READ_CHUNK):
            self._check()
            chunk = near[first : first + READ_CHUNK]
            hits += [hit for hit in begun.finder.documents([Found(*each) for each in chunk]) if hit is not None]
        if self._request.explain:
            text = f"nearness of {wanted.field} to the vector"
            hits = [changed(hit, explanation=ScoreExplanation(hit.score, text)) for hit in hits]
        return shown_as(self._request, hits[: wanted.k], None, self._check), total

    def _suggest(self, part: SuggestPart, index: TextIndex) -> ShardSearchReply:
        check_request(self._request, self._schema)
        plan = self._plans.of(self._request, self._collection)
        indexed_through, last_slot = index.indexed_through, self._last_slot(index)
        with tantivy_failures():
            searcher, compiler, everything = index.searcher(), index.compiler, MatchAll()
            live = compiler.compile(everything, plan.filters, self._expired_at_ms(), last_slot, None, searcher, self._check)
            suggested = Suggester(self._schema, index.fields, searcher, live, self._check).suggest(part)
        documents = self._source.live_documents(self._request.shard, self._collection.id)
        return ShardSearchReply([], 0, documents, indexed_through=indexed_through, suggested=suggested)

    def _reply(
        self,
        found: FoundHits,
        hits: list[ShardHit],
        facets: dict[str, FacetCounts],
        aggregations: dict[str, Partial],
        nearest: tuple[list[ShardHit], int],
        begun: _Begun,
    ) -> ShardSearchReply:
        own, exact, unseen_since = begun.ranked.own, begun.ranked.exact, begun.unseen_since
        is_bounded = exact is not None and exact.is_bounded
        return ShardSearchReply(
            hits=hits,
            total=found.total,
            documents=self._source.live_documents(self._request.shard, self._collection.id),
            facets={name: counts.values for name, counts in facets.items()},
            facet_errors={name: counts.error for name, counts in facets.items() if counts.error},
            indexed_through=begun.indexed_through,
            has_more=found.has_more,
            is_total_exact=found.is_total_exact,
            # Rounded up: what is unseen is never as good as nothing.
            unseen_age_ms=0 if unseen_since is None else max(1, ceil((self._clock.monotonic() - unseen_since) * 1_000)),
            aggregations=aggregations,
            statistics=None if own is None else changed(own, through=begun.indexed_through),
            is_bounded=is_bounded,
            nearest=nearest[0],
            nearest_total=nearest[1],
            complete_to=None if is_bounded else found.complete_to,
        )

    def _last_slot(self, index: TextIndex) -> int:
        own_slot = self._source.last_slot(self._request.shard)
        return own_slot if index.last_slot > own_slot else TOKEN_SLOTS - 1

    def _check(self) -> None:
        self._track.between(self._patient_until)
        if self._is_cancelled:
            raise Cancelled("the search was cancelled")
        if self._clock.monotonic() >= self._deadline:
            raise DeadlineExceeded("the deadline passed during a search", ErrorDetails(shards=(self._request.shard,)))

    def _expired_at_ms(self) -> int | None:
        now_ms = self._clock.wall_ms()
        has_expired = self._source.has_expired_unswept(self._request.shard, self._collection.id, now_ms)
        return now_ms if has_expired else None
