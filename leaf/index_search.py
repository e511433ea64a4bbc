"""Answers one ShardSearch on a thread: parse, find the hits, count, highlight; the deadline is looked at in between."""

from dataclasses import replace
from functools import partial
from math import ceil
from typing import Final

import tantivy

from kvshard.aggregations.check import check_aggregations
from kvshard.aggregations.partial import Partial
from kvshard.clock import Clock
from kvshard.clustermap import TOKEN_SLOTS, Collection
from kvshard.errors import Cancelled, DeadlineExceeded, ErrorDetails, InvalidArgument
from kvshard.limits import FACET_MAX_VALUES, SEARCH_MAX_LIMIT
from kvshard.meaning import meant
from kvshard.model import NearestRecord, ShardHit, ShardSearch, ShardSearchReply, changed
from kvshard.query import MatchAll, Node, prepare
from kvshard.scatter.shaping import check_shape
from kvshard.schema import KEYWORD, TEXT, Schema, base_type
from kvshard.search_accounts import LegProfile, ScoreExplanation
from kvshard.sorting import SCORE, check_sort, parse_sort
from kvshard.suggest_messages import SuggestPart
from kvshard.unknown_fields import unknown_field
from kvshard.vectors import check_nearest, vector_of
from leaf.aggregations import Aggregator
from leaf.explanations import Explainer
from leaf.highlights import Highlighter, shown_as
from leaf.hit_finder import READ_CHUNK, FoundHits, HitFinder
from leaf.index_fields import KEY, key_text, keyword_of, searched
from leaf.index_statistics import explained
from leaf.likeness import settled
from leaf.log_source import LogSource
from leaf.scoring import Weighed, weighed
from leaf.search_profile import UNTIMED, Phases, profiled_terms
from leaf.suggest import Suggester
from leaf.text_index import TextIndex, tantivy_failures
from leaf.text_search import FacetCounts, Found, IndexView
from leaf.unseen import UnseenWrites
from leaf.weighting import Numbered, Weighting

GONE_MARGIN: Final = 8
"""Nearest documents looked at beyond those wanted: some may have been deleted since the last refresh."""


class SearchJob:
    """One search. `run` belongs to a search thread; `cancel` may be called from anywhere."""

    def __init__(
        self,
        request: ShardSearch,
        collection: Collection,
        source: LogSource,
        clock: Clock,
        deadline: float,
        unseen: UnseenWrites,
    ) -> None:
        self._request = request
        self._collection = collection
        self._schema: Schema = collection.schema
        self._source = source
        self._clock = clock
        self._deadline = deadline
        self._unseen = unseen
        self._is_cancelled = False
        self._sorts = parse_sort(request.sort)

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

    def run(self, index: TextIndex) -> ShardSearchReply:
        """The answer. Raises a KvShardError, or IndexFailed when tantivy does."""
        self._check()
        request = self._request
        self._validate()
        phases = Phases(self._clock.monotonic) if request.profile else UNTIMED
        synonyms = tuple(request.synonyms)
        node = prepare(request.query, self._schema, tree=request.tree)
        node = meant(node, self._schema, synonyms, request.fuzziness)
        filters = [prepare(text, self._schema, f"filters[{at}]") for at, text in enumerate(request.filters)]
        filters = [meant(each, self._schema, synonyms) for each in filters]
        indexed_through = index.indexed_through  # before the snapshot: never more than it holds
        unseen_since = self._unseen.oldest_after(indexed_through)  # before it too: what is forgotten by then, it shows
        own_slot = self._source.last_slot(request.shard)
        last_slot = own_slot if index.last_slot > own_slot else TOKEN_SLOTS - 1
        if request.suggest is not None:
            return self._suggest(request.suggest, index, filters, last_slot)
        phases.end("parse")
        with tantivy_failures():
            statistics, expired_at_ms = index.statistics, self._expired_at_ms()
            searcher = statistics.searcher
            node = settled(node, self._schema, searcher, request.statistics)
            restricted = partial(
                index.compiler.compile, node, filters, expired_at_ms, last_slot, searcher=searcher, check=self._check
            )
            ranked = weighed(index.compiler, statistics, request, node, restricted, last_slot, self._check)
            query = ranked.query
            phases.end("compile")
            self._check()
            view = IndexView(searcher, index.fields, self._schema, index.parse, self._check, ranked.exact)
            finder = HitFinder(request, self._sorts, view, self._source, self._collection.id, self._check, phases.end)
            found = finder.find(query, index.compiler.has_one_score(node))
            self._check()
            facets = view.facets(query, request.facets, request.facet_limit or 10)
            if request.facets:
                phases.end("facets")
            aggregations = self._aggregate(index, searcher, query)
            if request.aggregations:
                phases.end("aggregations")
            hits = shown_as(request, found.hits, lambda: Highlighter(request, node, found.hits, index, searcher), self._check)
            phases.end("highlight")
            nearest: tuple[list[ShardHit], int] = [], 0
            if request.nearest is not None:
                among = index.compiler.compile(MatchAll(), filters, expired_at_ms, last_slot, None, searcher, self._check)
                nearest = self._find_nearest(index, searcher, among, request.nearest, finder)
                phases.end("nearest")
            if request.explain:
                hits = self._explained(hits, index, searcher, ranked, node)
                phases.end("explain")
            reply = self._reply(replace(found, hits=hits), facets, indexed_through, unseen_since, ranked)
            if request.profile:
                reply = self._profiled(reply, phases, index, searcher, [node, *filters])
        return changed(reply, aggregations=aggregations, nearest=nearest[0], nearest_total=nearest[1])

    def _aggregate(self, index: TextIndex, searcher: tantivy.Searcher, query: tantivy.Query) -> dict[str, Partial]:
        if not self._request.aggregations:
            return {}

        synonyms = tuple(self._request.synonyms)

        def compiled(node: Node) -> tantivy.Query:
            node = meant(node, self._schema, synonyms)
            return index.compiler.compile(node, [], None, searcher=searcher, check=self._check)

        aggregator = Aggregator(searcher, index.fields, self._schema, compiled, self._check)
        return aggregator.run(query, self._request.aggregations)

    def _find_nearest(
        self,
        index: TextIndex,
        searcher: tantivy.Searcher,
        among: tantivy.Query,
        wanted: NearestRecord,
        finder: HitFinder,
    ) -> tuple[list[ShardHit], int]:
        """The nearest with their documents as they are now, and how many documents have a vector."""
        rows, vector = index.vectors[wanted.field], vector_of(wanted.vector)
        near, total = rows.nearest(searcher, among, vector, wanted.k + GONE_MARGIN, self._check)
        hits: list[ShardHit] = []
        for first in range(0, len(near), READ_CHUNK):
            self._check()
            chunk = near[first : first + READ_CHUNK]
            hits += [hit for hit in finder.documents([Found(*each) for each in chunk]) if hit is not None]
        if self._request.explain:
            text = f"nearness of {wanted.field} to the vector"
            hits = [changed(hit, explanation=ScoreExplanation(hit.score, text)) for hit in hits]
        return shown_as(self._request, hits[: wanted.k], None, self._check), total

    def _suggest(self, part: SuggestPart, index: TextIndex, filters: list[Node], last_slot: int) -> ShardSearchReply:
        indexed_through = index.indexed_through
        with tantivy_failures():
            searcher = index.searcher()
            live = index.compiler.compile(MatchAll(), filters, self._expired_at_ms(), last_slot, None, searcher, self._check)
            suggested = Suggester(self._schema, index.fields, searcher, live, self._check).suggest(part)
        documents = self._source.live_documents(self._request.shard, self._collection.id)
        return ShardSearchReply([], 0, documents, indexed_through=indexed_through, suggested=suggested)

    def _reply(
        self,
        found: FoundHits,
        facets: dict[str, FacetCounts],
        indexed_through: int,
        unseen_since: float | None,
        ranked: Weighed,
    ) -> ShardSearchReply:
        return ShardSearchReply(
            hits=found.hits,
            total=found.total,
            documents=self._source.live_documents(self._request.shard, self._collection.id),
            facets={name: counts.values for name, counts in facets.items()},
            facet_errors={name: counts.error for name, counts in facets.items() if counts.error},
            indexed_through=indexed_through,
            has_more=found.has_more,
            is_total_exact=found.is_total_exact,
            # Rounded up: what is unseen is never as good as nothing.
            unseen_age_ms=0 if unseen_since is None else max(1, ceil((self._clock.monotonic() - unseen_since) * 1_000)),
            statistics=None if ranked.own is None else changed(ranked.own, through=indexed_through),
            is_bounded=ranked.exact is not None and ranked.exact.is_bounded,
        )

    def _check(self) -> None:
        if self._is_cancelled:
            raise Cancelled("the search was cancelled")
        if self._clock.monotonic() >= self._deadline:
            raise DeadlineExceeded("the deadline passed during a search", ErrorDetails(shards=(self._request.shard,)))

    def _validate(self) -> None:
        request = self._request
        if request.limit < 0 or request.limit > SEARCH_MAX_LIMIT:
            details = ErrorDetails(field="limit", limit=SEARCH_MAX_LIMIT)
            raise InvalidArgument(f"limit must be between 0 and {SEARCH_MAX_LIMIT}", details)
        if request.facet_limit < 0 or request.facet_limit > FACET_MAX_VALUES:
            details = ErrorDetails(field="facet_limit", limit=FACET_MAX_VALUES)
            raise InvalidArgument(f"facet_limit must be between 1 and {FACET_MAX_VALUES}", details)
        check_sort(self._sorts, self._schema)
        check_search_fields(self._schema, request.facets, request.highlight)
        check_aggregations(request.aggregations, self._schema, lambda text, where: prepare(text, self._schema, where))
        if request.nearest is not None:
            check_nearest(self._schema, request.nearest.field, len(request.nearest.vector) // 4, request.nearest.k)
        check_shape(request.shape, self._schema, request.keys_only)

    def _expired_at_ms(self) -> int | None:
        now_ms = self._clock.wall_ms()
        has_expired = self._source.has_expired_unswept(self._request.shard, self._collection.id, now_ms)
        return now_ms if has_expired else None

    def _explained(
        self, hits: list[ShardHit], index: TextIndex, searcher: tantivy.Searcher, ranked: Weighed, node: Node
    ) -> list[ShardHit]:
        """The hits, each with how its score came about."""
        if all(key.name != SCORE for key in self._sorts):
            unscored = ScoreExplanation(0.0, f"sorted by {self._request.sort}, without a score")
            return [changed(hit, explanation=unscored) for hit in hits]
        exact = ranked.exact
        if exact is None:
            weighting = Numbered(index.fields)
            query = index.compiler.scored(node, weighting, searcher, self._check)
            explainer = Explainer(weighting.parts, None, self._shown)
        else:
            query, explainer = exact.numbered, Explainer(exact.parts, exact.statistics, self._shown)
        telling: list[ShardHit] = []
        for hit in hits:
            self._check()
            found = searcher.search(tantivy.Query.term_query(index.fields, KEY, key_text(hit.key), "basic"), 1).hits
            told = explainer.explain(explained(query, searcher, found[0][1]))
            telling.append(changed(hit, explanation=told))
        return telling

    def _profiled(
        self, reply: ShardSearchReply, phases: Phases, index: TextIndex, searcher: tantivy.Searcher, nodes: list[Node]
    ) -> ShardSearchReply:
        """The reply, with what the search did."""
        weighting = Weighting(index.fields)
        for node in nodes:
            index.compiler.scored(node, weighting, searcher, self._check)
        profile = LegProfile(
            terms=profiled_terms(weighting.parts, lambda name, term: int(searcher.doc_freq(searched(name), term)), self._shown),
            phases=phases.took,
            indexed_through=reply.indexed_through,
            segments=searcher.num_segments,
            documents=searcher.num_docs,
            matches=reply.total,
            hits=len(reply.hits),
        )
        return changed(reply, profile=profile)

    def _shown(self, name: str, term: str) -> str:
        return keyword_of(term) if base_type(self._schema[name]) == KEYWORD else term


def check_search_fields(schema: Schema, facets: list[str], highlight: list[str]) -> None:
    """Raise InvalidArgument unless the fields exist and can be counted, highlighted."""
    for name in facets:
        if _type_of(schema, name, "facets") != KEYWORD:
            raise InvalidArgument(f"{name} is no keyword field; only those have facets", ErrorDetails(field="facets"))
    for name in highlight:
        if _type_of(schema, name, "highlight") != TEXT:
            message = f"{name} is no text field; only those are highlighted"
            raise InvalidArgument(message, ErrorDetails(field="highlight"))


def _type_of(schema: Schema, name: str, source: str) -> str:
    field_type = schema.get(name)
    if field_type is None:
        raise InvalidArgument(unknown_field(name, schema), ErrorDetails(field=source))
    return base_type(field_type)
