"""Search: scattered to every shard, gathered into one page of the best hits, with total, facets and coverage.

Paging: a token holds where the last hit of a page stands in the order of all shards (its sort values, score and key); the next
page asks every shard for the hits behind that place. It costs no more than the one before it, and writes or splits between two
pages move nothing: a hit that is there all along is on one page exactly. Scores have no index to begin in the middle of: a
ranking is gone through from its first hit on for each page, which is why its depth is bounded.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from random import Random
from typing import NamedTuple

from kvshard import limits
from kvshard.aggregations.partial import Partial
from kvshard.aggregations.results import AggregationResult
from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection
from kvshard.collapsing import GroupSize, group_sizes, shown_after
from kvshard.errors import ErrorDetails, FailedPrecondition, InvalidArgument, ShardMoved, Unavailable
from kvshard.model import UNKNOWN_AGE, SearchAfter, ShardHit, ShardSearch, ShardSearchReply, changed
from kvshard.query.lowering import Documents
from kvshard.rpc.leaf_client import LeafClient
from kvshard.scatter.coverage import Coverage, KnownCounts
from kvshard.scatter.fusion import leg_query, nearest_record, page_of
from kvshard.scatter.gather import verdict
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.leg import MAP_READ_TIMEOUT_S, How
from kvshard.scatter.leg_result import LegResult
from kvshard.scatter.merge import MergedFacet, MergedHits, merge_facet
from kvshard.scatter.min_versions import MinVersions
from kvshard.scatter.moved import Rounds
from kvshard.scatter.requests import ReadPolicy, SearchQuery, check_limit, check_shards, fitted
from kvshard.scatter.routes import MapSource, resolve
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import SearchPosition, TokenCodec, fingerprint, fits_token
from kvshard.scatter.watermarks import Watermarks
from kvshard.search_accounts import LegProfile
from kvshard.sorting import KEY, Sorts, is_by_score, parse_sort
from router.like_documents import LikeDocuments
from router.ranking import NO_SCORES, Ranking, Rankings, StatisticsUsed
from router.search_aggregations import aggregated

PAGE_MAX_BYTES = 48 * 1024 * 1024
"""Documents of one page: 1,000 hits may be 8 GB. A page that would exceed it ends early, and its token goes on from there."""

AGAIN_FACTOR = 3.0
"""A search is done once more for newer statistics where at least so many times the time that it took is left."""

FACET_EXTRA_VALUES = 10
"""Values asked of each shard beyond half as many again: the overall favourites are rarely missed then, see error_bound."""

FACET_LEAST_VALUES = 200
"""Values asked of each shard at least: facets of so many different ones are exact, at 0.4 ms of the router for 8 shards."""


@dataclass(frozen=True, slots=True)
class Found:
    """A page. hits: with the shard each lives in. next_token: empty when there are no more.

    unseen_age_ms: of the oldest committed write that it does not show, 0: there is none; None: a shard could not tell.
    profiles: (shard, leaf, what it tells) of each leg, where they were asked for. parts: what each shard said to the
    aggregations.
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
    profiles: list[tuple[int, str, LegProfile]] = field(default_factory=list)
    is_total_exact: bool = True
    group_sizes: Sequence[GroupSize] = ()


class _Asked(NamedTuple):
    """The legs of a search, by this map."""

    cluster_map: ClusterMap
    legs: list[LegResult[ShardSearchReply]]


def replies_of(legs: Sequence[LegResult[ShardSearchReply]]) -> dict[int, ShardSearchReply]:
    """The replies of the shards that answered."""
    return {leg.shard: leg.answer.reply for leg in legs if leg.answer is not None}


class _Sending(NamedTuple):
    """How the legs of a search are sent. times: the account of the read."""

    how: How
    deadline: float
    times: ReadTimes | None


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
    ) -> None:
        self._maps = maps
        self._leaves = leaves
        self._documents = documents
        self._scatter = scatter
        self._known = known
        self._tokens = tokens
        self._clock = clock
        self._rng = Random()
        self._rankings = rankings or Rankings(leaves, scatter, clock)

    async def search(
        self,
        collection_name: str,
        query: SearchQuery,
        token: bytes,
        policy: ReadPolicy,
        deadline: float,
        times: ReadTimes | None = None,
    ) -> Found:
        """One page of hits. times: the account of the read.

        Raises Unavailable when the coverage falls short and the policy does not accept a part.
        """
        check_limit(query.limit)  # Before the collection is looked up: the cheapest check first.
        cluster_map, collection = await resolve(self._maps, collection_name)
        documents = None
        if self._documents is not None:
            documents = await self._documents.read(collection.name, query.options, policy, deadline)
        cluster_map, collection, asked = await self._fitted(cluster_map, collection, query, documents)
        sorts = parse_sort(query.sort)
        request_print = _print(query, sorts, collection)
        position = SearchPosition()
        if token:
            position = self._tokens.decode_search(token, collection.id, request_print)
        _check_depth(position, query, sorts)
        cluster_map = await self._knowing(cluster_map, query.min_versions)
        sending = _Sending(self._scatter.how_to_read(policy, collection), deadline, times)
        ranked = await self._ranked(
            cluster_map, collection, leg_query(_seeing(asked, position)), request_print, position, sending
        )
        while ranked is None:  # The schema was changed meanwhile.
            cluster_map, collection, asked = await self._fitted(self._maps.current, collection, query, documents)
            request_print = _print(query, sorts, collection)
            if token:
                self._tokens.decode_search(token, collection.id, request_print)
            ranked = await self._ranked(
                cluster_map, collection, leg_query(_seeing(asked, position)), request_print, position, sending
            )
        (_, legs), statistics = ranked
        query = asked
        replies = replies_of(legs)
        coverage = self._coverage(collection.id, legs, replies, policy, position)
        page, total = page_of(replies, query, PAGE_MAX_BYTES)
        facets = [merge_facet(name, list(replies.values()), query.facet_limit) for name in query.facets]
        parts = [reply.aggregations for reply in replies.values()]
        aggregations = await aggregated(query.aggregations, parts, collection.schema)
        is_collapsed = bool(query.shape.collapse)
        if not token:
            position = replace(position, seen={shard: reply.indexed_through for shard, reply in replies.items()})
        next_token = self._next_token(collection.id, request_print, page, coverage, position, is_collapsed, statistics)
        return Found(
            hits=page.hits,
            total=total,
            coverage=coverage,
            facets=facets,
            next_token=next_token,
            statistics=statistics,
            unseen_age_ms=unseen_age_ms([reply.unseen_age_ms for reply in replies.values()]),
            aggregations=aggregations,
            parts=parts,
            profiles=_profiles(legs) if query.is_profile_wanted else [],
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
        except (InvalidArgument, FailedPrecondition) as error:
            # A field that is missing may just have been added through another router: the map is read anew once.
            with contextlib.suppress(Unavailable, TimeoutError):
                async with asyncio.timeout(MAP_READ_TIMEOUT_S):
                    cluster_map = await self._maps.refresh()
            newer = cluster_map.collection_by_id(collection.id)
            if newer is None or (newer.version, newer.change) == (collection.version, collection.change):
                raise error from None
            return cluster_map, newer, fitted(query, newer, documents)

    async def _ranked(
        self,
        cluster_map: ClusterMap,
        collection: Collection,
        query: SearchQuery,
        request_print: bytes,
        position: SearchPosition,
        sending: _Sending,
    ) -> tuple[_Asked, StatisticsUsed] | None:
        """Ask every shard; once more where the answers show that the statistics they were given are out of date.

        None: as of `_ask`.
        """
        rankings, began, trips = self._rankings, self._clock.monotonic(), 0
        while True:
            ranking = self._pinned(position)
            if ranking is None:
                ranking = await rankings.of(cluster_map, collection, query, request_print, sending.how, sending.deadline)
            asked = await self._ask(cluster_map, collection, query, position, sending, ranking)
            if asked is None:
                return None
            replies = replies_of(asked.legs)
            used, is_stale = rankings.judged(asked.cluster_map, collection, request_print, ranking, replies)
            now = self._clock.monotonic()
            if not is_stale or trips or sending.deadline - now < AGAIN_FACTOR * (now - began):
                return asked, rankings.accounted(used, trips)
            trips, cluster_map = used.extra_trips + 1, asked.cluster_map

    def _pinned(self, position: SearchPosition) -> Ranking | None:
        """How the pages before ranked; None if that is not known."""
        if position.statistics is None:
            return None
        age_s = max(self._clock.wall_ms() - position.statistics_at_ms, 0) / 1_000
        return Ranking(is_scored=True, pinned=(position.statistics, age_s))

    async def _ask(
        self,
        cluster_map: ClusterMap,
        collection: Collection,
        query: SearchQuery,
        position: SearchPosition,
        sending: _Sending,
        ranking: Ranking,
    ) -> _Asked | None:
        """Ask every shard; all of them anew when one was split meanwhile: its documents would be missing, or counted twice.

        None: the collection has another schema in the newest map, so the query is to be read anew.
        """
        rounds = Rounds(self._maps, self._clock, sending.deadline, self._rng)
        while True:
            known = cluster_map.shards
            shards = sorted(known) if query.shards is None else check_shards(query.shards, known)
            refreshed = self._scatter.heard.refreshed
            requests = _leg_requests(cluster_map, collection, shards, query, position, refreshed, ranking)
            legs = await self._send(requests, sending)
            newer = await rounds.next() if any(isinstance(leg.error, ShardMoved) for leg in legs) else None
            if newer is None:
                return _Asked(cluster_map, legs)
            cluster_map = newer
            if (newer.collection_by_id(collection.id) or collection).version != collection.version:
                return None

    async def _send(self, requests: Sequence[ShardSearch], sending: _Sending) -> list[LegResult[ShardSearchReply]]:
        leaves = self._leaves
        legs = await self._scatter.gather("Search", leaves.search, requests, sending.deadline, sending.how, leaves.start)
        if sending.times is not None:
            sending.times.add(legs, self._clock.monotonic())
        return legs

    def _coverage(
        self,
        collection_id: int,
        legs: Sequence[LegResult[ShardSearchReply]],
        replies: Mapping[int, ShardSearchReply],
        policy: ReadPolicy,
        position: SearchPosition,
    ) -> Coverage:
        answered = {shard: reply.documents for shard, reply in replies.items()}
        for shard, documents in answered.items():
            self._known.learn(collection_id, shard, documents)
        return verdict(legs, answered, self._known.of(collection_id), policy, position.is_incomplete)

    def _next_token(
        self,
        collection_id: int,
        request_print: bytes,
        page: MergedHits,
        coverage: Coverage,
        position: SearchPosition,
        is_collapsed: bool,
        ranked: StatisticsUsed,
    ) -> bytes:
        if not page.has_more or not page.hits:
            return b""
        hits = [hit for _, hit in page.hits]
        after = SearchAfter(hits[-1].sort_values, hits[-1].score, hits[-1].key)
        shown = shown_after(position.shown, hits) if is_collapsed else b""
        whole, at_ms = position.statistics, position.statistics_at_ms
        if whole is None and ranked.whole is not None and fits_token(ranked.whole):
            whole, at_ms = ranked.whole, self._clock.wall_ms() - round(ranked.age_s * 1_000)
        taken, is_incomplete = position.taken + len(hits), not coverage.is_complete
        reached = SearchPosition(after, taken, is_incomplete, shown, whole, at_ms, position.seen)
        return self._tokens.encode_search(collection_id, request_print, reached)


def _seeing(query: SearchQuery, position: SearchPosition) -> SearchQuery:
    """The search as it must see at least what its first page saw."""
    if not position.seen:
        return query
    wanted = MinVersions(position.seen)
    wanted.want_all(query.min_versions)
    return replace(query, min_versions=wanted)


def _print(query: SearchQuery, sorts: Sorts, collection: Collection) -> bytes:
    """What a token remembers of the request: a place in one order means nothing in that of another schema.

    An order by fields depends on their types alone, so that a scroll survives that a field is added.
    """
    if is_by_score(sorts):
        order = [f"schema {collection.version}"] if collection.version > 1 else []
    else:
        order = [f"{key.name} {collection.schema.get(key.name, '')}" for key in sorts]
    return fingerprint([*query.fingerprint_parts(), *(text.encode() for text in order)])


def unseen_age_ms(ages: Sequence[int]) -> int | None:
    """The greatest of what the legs tell; None when one of them does not know."""
    return None if UNKNOWN_AGE in ages else max(ages, default=0)


def _profiles(legs: Sequence[LegResult[ShardSearchReply]]) -> list[tuple[int, str, LegProfile]]:
    """(shard, leaf, what it tells) of the legs that were answered, by a leaf that knows profiles, in shard order."""
    told = [(leg.shard, leg.leaf, leg.answer.reply.profile) for leg in legs if leg.answer is not None]
    return sorted([(shard, leaf, profile) for shard, leaf, profile in told if profile is not None], key=itemgetter(0))


def _check_depth(position: SearchPosition, query: SearchQuery, sorts: Sorts) -> None:
    if position.after is not None and query.nearest is not None:
        text = "the nearest are one page; ask for more of them with limit and nearest.k"
        raise InvalidArgument(text, ErrorDetails(field="token"))
    depth = position.taken + query.limit
    if query.shape.collapse and depth > limits.COLLAPSE_MAX_GROUPS:
        raise InvalidArgument(
            f"a collapsed search can be paged through {limits.COLLAPSE_MAX_GROUPS} groups deep, not {depth}; narrow the query, "
            "or ask for a facet",
            ErrorDetails(field="token", limit=limits.COLLAPSE_MAX_GROUPS),
        )
    if is_by_score(sorts) and depth > limits.SEARCH_MAX_DEPTH:
        raise InvalidArgument(
            f"a ranking can be paged through {limits.SEARCH_MAX_DEPTH} hits deep, not {depth}; sort by fields or by {KEY}, "
            "which has no such limit, or narrow the query",
            ErrorDetails(field="token", limit=limits.SEARCH_MAX_DEPTH),
        )


def _leg_requests(
    cluster_map: ClusterMap,
    collection: Collection,
    shards: Sequence[int],
    query: SearchQuery,
    position: SearchPosition,
    refreshed: Watermarks,
    ranking: Ranking,
) -> list[ShardSearch]:
    """refreshed: writes that a search was promised to see; the replica that made the promise may not be the one asked now."""
    facet_limit = query.facet_limit
    nearest = None if query.nearest is None else nearest_record(query.nearest)
    if len(shards) > 1:
        facet_limit = max(facet_limit + facet_limit // 2 + FACET_EXTRA_VALUES, FACET_LEAST_VALUES)
        facet_limit = min(limits.FACET_MAX_VALUES, facet_limit)
    return [
        ShardSearch(
            shard=shard,
            epoch=cluster_map.shards[shard].epoch,
            collection_id=collection.id,
            query=query.query,
            tree=query.tree,
            filters=query.filters,
            limit=query.limit,
            sort=query.sort,
            facets=query.facets,
            facet_limit=facet_limit,
            highlight=query.highlight,
            refresh=query.is_refresh_wanted,
            keys_only=query.is_keys_only,
            min_seqno=max(refreshed.of(shard), query.min_versions.of(shard)),
            cuts=cluster_map.shards[shard].cuts,
            after=position.after,
            taken=position.taken,
            fuzziness=query.fuzziness,
            aggregations=query.aggregations,
            nearest=nearest,
            explain=query.is_explanation_wanted,
            profile=query.is_profile_wanted,
            synonyms=list(query.synonyms),
            shape=changed(query.shape, shown=position.shown) if position.shown else query.shape,
            schema_version=collection.version,
            statistics=ranking.shipped,
            is_alone=ranking.is_alone,
        )
        for shard in shards
    ]
