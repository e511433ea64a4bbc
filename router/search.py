"""Search: scattered to every shard, gathered into one page of the best hits, with total, facets and coverage.

Paging: a token holds where the last hit of a page stands in the order of all shards (its sort values, score and key); the next
page asks every shard for the hits behind that place. It costs no more than the one before it, and writes or splits between two
pages move nothing: a hit that is there all along is on one page exactly. Scores have no index to begin in the middle of: a
ranking is gone through from its first hit on for each page, which is why its depth is bounded.
"""

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import NamedTuple

from kvshard.aggregations.partial import Partial
from kvshard.aggregations.results import AggregationResult
from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection
from kvshard.collapsing import GroupSize, group_sizes
from kvshard.errors import ErrorDetails, FailedPrecondition, InvalidArgument, Unavailable
from kvshard.model import UNKNOWN_AGE, ShardHit, ShardSearchReply
from kvshard.query.lowering import Documents
from kvshard.rpc.leaf_client import LeafClient
from kvshard.scatter.coverage import Coverage, KnownCounts
from kvshard.scatter.fusion import leg_query, page_of
from kvshard.scatter.gather import verdict
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.leg import MAP_READ_TIMEOUT_S, How
from kvshard.scatter.merge import MergedFacet, MergedHits, merge_facet
from kvshard.scatter.min_versions import MinVersions
from kvshard.scatter.requests import ReadPolicy, SearchQuery, being_indexed, check_limit, fitted
from kvshard.scatter.routes import MapSource, resolve
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import SearchPosition, TokenCodec
from kvshard.search_accounts import ProfiledLeg
from kvshard.sorting import parse_sort
from kvshard.telemetry import RouterMetrics
from router.indexing_progress import IndexingProgress
from router.like_documents import LikeDocuments
from router.ranking import NO_SCORES, Ranking, Rankings, StatisticsUsed
from router.search_aggregations import aggregated
from router.search_legs import Asked, SearchLeg, SearchLegs, Sought, replies_of
from router.search_pages import SearchPages, check_depth, print_of, seeing

PAGE_MAX_BYTES = 48 * 1024 * 1024
"""Documents of one page: 1,000 hits may be 8 GB. A page that would exceed it ends early, and its token goes on from there."""

AGAIN_FACTOR = 3.0
"""A search is done once more for newer statistics where at least so many times the time that it took is left."""


@dataclass(frozen=True, slots=True)
class Found:
    """A page. hits: with the shard each lives in. next_token: empty when there are no more.

    unseen_age_ms: of the oldest committed write that it does not show, 0: there is none; None: a shard could not tell.
    profiles: of each leg, where they were asked for. parts: what each shard said to the aggregations. token_behind: the token
    of a page that begins behind so many of the hits, at least one.
    """

    hits: list[tuple[int, ShardHit]]
    total: int
    coverage: Coverage
    facets: list[MergedFacet]
    next_token: bytes
    unseen_age_ms: int | None = None
    statistics: StatisticsUsed = NO_SCORES
    aggregations: dict[str, AggregationResult] = field(default_factory=dict)
    parts: list[dict[str, Partial]] = field(default_factory=list)
    profiles: list[ProfiledLeg] = field(default_factory=list)
    is_total_exact: bool = True
    group_sizes: Sequence[GroupSize] = ()
    token_behind: Callable[[int], bytes] = lambda count: b""


class _Gathered(NamedTuple):
    """What the shards answered, merged; and what its scores rest on."""

    asked: Asked
    replies: Mapping[int, ShardSearchReply]
    page: MergedHits
    total: int
    statistics: StatisticsUsed


class SearchOperation:
    """Search in domain terms."""

    def __init__(
        self,
        maps: MapSource,
        leaves: LeafClient,
        scatter: Scatter,
        known: KnownCounts,
        tokens: TokenCodec,
        clock: Clock,
        documents: LikeDocuments | None = None,
        rankings: Rankings | None = None,
        metrics: RouterMetrics | None = None,
    ) -> None:
        self._maps = maps
        self._documents = documents
        self._scatter = scatter
        self._known = known
        self._pages = SearchPages(tokens, clock)
        self._clock = clock
        self._progress = IndexingProgress(leaves, clock)
        self._legs = SearchLegs(maps, leaves, scatter, clock)
        self._rankings = rankings or Rankings(leaves, scatter, clock)
        self._metrics = metrics

    async def search(
        self,
        collection_name: str,
        query: SearchQuery,
        token: bytes,
        policy: ReadPolicy,
        deadline: float,
        times: ReadTimes | None = None,
        shown_elsewhere: bytes = b"",
    ) -> Found:
        """One page of hits. times: the account of the read. shown_elsewhere: as in `Sought`.

        Raises Unavailable when the coverage falls short and the policy does not accept a part.
        """
        check_limit(query.limit)  # Before the collection is looked up: the cheapest check first.
        cluster_map, collection = await resolve(self._maps, collection_name)
        documents = None
        if self._documents is not None:
            documents = await self._documents.read(collection.name, query.options, policy, deadline)
        how = self._scatter.how_to_read(policy, collection)
        while True:
            cluster_map, collection, asked = await self._fitted(cluster_map, collection, query, documents)
            sought = self._sought(collection, query, asked, token, how, deadline, times)._replace(
                shown_elsewhere=shown_elsewhere
            )
            cluster_map = await self._knowing(cluster_map, query.min_versions)
            gathered = await self._gathered(cluster_map, sought, asked)
            if gathered is not None:
                return await self._found(sought, gathered, asked, policy)
            cluster_map = self._maps.current  # The schema was changed meanwhile.

    def _sought(
        self,
        collection: Collection,
        query: SearchQuery,
        asked: SearchQuery,
        token: bytes,
        how: How,
        deadline: float,
        times: ReadTimes | None,
    ) -> Sought:
        """The search that goes to the shards. asked: what is asked of them but for where the page begins."""
        sorts = parse_sort(query.sort)
        request_print = print_of(query, sorts, collection)
        position = self._pages.position(token, collection, request_print)
        check_depth(position, query, sorts)
        return Sought(collection, leg_query(seeing(asked, position)), request_print, position, how, deadline, times)

    async def _found(self, sought: Sought, gathered: _Gathered, query: SearchQuery, policy: ReadPolicy) -> Found:
        """The answer, of what was gathered."""
        replies, page = gathered.replies, gathered.page
        coverage = self._coverage(sought, gathered, policy)
        parts = [reply.aggregations for reply in replies.values()]
        is_collapsed = bool(query.shape.collapse)

        def token_behind(count: int) -> bytes:
            return self._pages.token_behind(sought, page.hits[:count], coverage, replies, gathered.statistics)

        return Found(
            hits=page.hits,
            total=gathered.total,
            coverage=coverage,
            facets=[merge_facet(name, list(replies.values()), query.facet_limit) for name in query.facets],
            next_token=token_behind(len(page.hits)) if page.has_more and page.hits else b"",
            token_behind=token_behind,
            statistics=gathered.statistics,
            unseen_age_ms=unseen_age_ms([reply.unseen_age_ms for reply in replies.values()]),
            aggregations=await aggregated(query.aggregations, parts, sought.collection.schema),
            parts=parts,
            profiles=_profiles([*gathered.asked.legs, *gathered.asked.replaced]) if query.is_profile_wanted else [],
            is_total_exact=all(reply.is_total_exact for reply in replies.values()),
            group_sizes=group_sizes((hit for _, hit in page.hits), replies) if is_collapsed else (),
        )

    async def _knowing(self, cluster_map: ClusterMap, wanted: MinVersions) -> ClusterMap:
        """A map with the shards of which writes are wanted: one may be newer than this map. Raises InvalidArgument."""
        if any(shard not in cluster_map.shards for shard in wanted.shards):
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(MAP_READ_TIMEOUT_S):
                    await self._maps.refresh()
            cluster_map = self._maps.current
        for shard in wanted.shards:
            if shard not in cluster_map.shards:
                text = f"min_versions is of another cluster: here there is no shard {shard}"
                raise InvalidArgument(text, ErrorDetails(field="min_versions", shards=(shard,)))
        return cluster_map

    async def _fitted(
        self, cluster_map: ClusterMap, collection: Collection, query: SearchQuery, documents: Documents | None
    ) -> tuple[ClusterMap, Collection, SearchQuery]:
        """The search by the collection's schema, with the map and the collection in it. documents: see SearchQuery.for_legs."""
        collection = cluster_map.collection_by_id(collection.id) or collection
        try:
            return cluster_map, collection, fitted(query, collection, documents)
        except (InvalidArgument, FailedPrecondition):
            # A field that is missing may just have been added through another router: the map is read anew once.
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(MAP_READ_TIMEOUT_S):
                    cluster_map = await self._maps.refresh()
            collection = cluster_map.collection_by_id(collection.id) or collection
        try:
            return cluster_map, collection, fitted(query, collection, documents)
        except FailedPrecondition:
            if collection.change is None:
                raise
            raise being_indexed(collection, await self._progress.of(cluster_map, collection)) from None

    async def _gathered(self, cluster_map: ClusterMap, sought: Sought, query: SearchQuery) -> _Gathered | None:
        """Ask every shard; once more where the answers show that the statistics they were given are out of date.

        None: as of `SearchLegs.ask`.
        """
        rankings, legs, began = self._rankings, self._legs, self._clock.monotonic()
        collection, _, request_print, position, how, deadline, *_ = sought
        trips, is_whole = 0, False
        while True:
            ranking = self._pinned(position)
            if ranking is None:
                ranking = await rankings.of(cluster_map, collection, sought.query, request_print, how, deadline)
            asked = await legs.ask(cluster_map, sought, ranking, is_whole)
            if asked is None:
                return None
            cluster_map = asked.cluster_map
            gathered, is_stale = self._merged(asked, sought, ranking, query)
            now = self._clock.monotonic()
            if is_stale and not trips and deadline - now >= AGAIN_FACTOR * (now - began):
                trips = gathered.statistics.extra_trips + 1
                continue
            if asked.is_few:
                legs.short.note(collection.id, gathered.page.is_short)
            if gathered.page.is_short and asked.is_few:
                if self._metrics is not None:
                    self._metrics.short_pages.inc()
                further = await legs.ask_again(asked, sought)
                if further is None:
                    trips, is_whole = trips + gathered.statistics.extra_trips, True
                    continue
                gathered, _ = self._merged(further, sought, ranking, query)
            return gathered._replace(statistics=rankings.accounted(gathered.statistics, trips))

    def _merged(self, asked: Asked, sought: Sought, ranking: Ranking, query: SearchQuery) -> tuple[_Gathered, bool]:
        """The answers put together, and whether it is worth asking again for newer statistics."""
        replies = replies_of(asked.legs)
        used, is_stale = self._rankings.judged(asked.cluster_map, sought.collection, sought.request_print, ranking, replies)
        page, total = page_of(replies, query, PAGE_MAX_BYTES)
        return _Gathered(asked, replies, page, total, used), is_stale

    def _pinned(self, position: SearchPosition) -> Ranking | None:
        """How the pages before ranked; None if that is not known."""
        if position.statistics is None:
            return None
        age_s = max(self._clock.wall_ms() - position.statistics_at_ms, 0) / 1_000
        return Ranking(is_scored=True, pinned=(position.statistics, age_s))

    def _coverage(self, sought: Sought, gathered: _Gathered, policy: ReadPolicy) -> Coverage:
        answered = {shard: reply.documents for shard, reply in gathered.replies.items()}
        self._known.learn_all(sought.collection.id, answered)
        known = self._known.of(sought.collection.id)
        return verdict(gathered.asked.legs, answered, known, policy, sought.position.is_incomplete)


def unseen_age_ms(ages: Sequence[int]) -> int | None:
    """The greatest of what the legs tell; None when one of them does not know."""
    return None if UNKNOWN_AGE in ages else max(ages, default=0)


def _profiles(legs: Iterable[SearchLeg]) -> list[ProfiledLeg]:
    """Of the legs that were answered, by a leaf that knows profiles, in shard order."""
    told = [(leg.shard, leg.leaf, leg.answer.reply.profile) for leg in legs if leg.answer is not None]
    return sorted(
        [ProfiledLeg(shard, leaf, profile) for shard, leaf, profile in told if profile is not None], key=itemgetter(0)
    )
