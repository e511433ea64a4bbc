"""Search: scattered to every shard, gathered into one page of the best hits, with total, facets and coverage.

Paging: a token holds, for each shard, the rank of its last hit that a page took; the next page asks every shard for the hits
after that. So a page costs each shard its offset + limit, which is why the depth is bounded. If a shard was split between two
pages, its heirs are asked again for the hits that were taken, to see which of them has which.
"""

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random
from typing import NamedTuple

from kvshard import limits
from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap
from kvshard.errors import ErrorDetails, InvalidArgument, ShardMoved, Unavailable
from kvshard.model import ShardHit, ShardSearch, ShardSearchReply
from kvshard.rpc.leaf_client import LeafClient
from kvshard.scatter.coverage import Coverage, KnownCounts
from kvshard.scatter.gather import verdict
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.leg import MAP_READ_TIMEOUT_S, How
from kvshard.scatter.leg_result import LegResult
from kvshard.scatter.merge import MergedFacet, MergedHits, merge_facet, merge_hits
from kvshard.scatter.min_versions import MinVersions
from kvshard.scatter.moved import Rounds, heirs
from kvshard.scatter.requests import ReadPolicy, SearchQuery, check_limit, check_search, check_shards
from kvshard.scatter.routes import MapSource, resolve
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import SearchPosition, TokenCodec, fingerprint
from kvshard.scatter.watermarks import Watermarks

PAGE_MAX_BYTES = 48 * 1024 * 1024
"""Documents of one page: 1,000 hits may be 8 GB. A page that would exceed it ends early, and its token goes on from there."""

PATIENCE = 0.5
"""Of a search's time: how long one that may go on without a shard waits to learn where its page begins there. The rest is for
the page itself."""

FACET_EXTRA_VALUES = 10
"""Values asked of each shard beyond half as many again: the overall favourites are rarely missed then, see error_bound."""


@dataclass(frozen=True, slots=True)
class Found:
    """A page. hits: with the shard each lives in. next_token: empty when there are no more."""

    hits: list[tuple[int, ShardHit]]
    total: int
    coverage: Coverage
    facets: list[MergedFacet]
    next_token: bytes


class _Begun(NamedTuple):
    """Where the page begins in each shard. offsets: hits that earlier pages took of it.

    lost: shards for which that could not be found out, since a leg failed. last_slots: of a shard that was split and is lost,
    where its range ended when its offset was told: the next page has to find out what this one could not.
    """

    offsets: dict[int, int]
    lost: dict[int, LegResult[ShardSearchReply]]
    last_slots: dict[int, int]


class _Asked(NamedTuple):
    """The legs of a search, by this map; begun: where the page begins."""

    cluster_map: ClusterMap
    begun: _Begun
    legs: list[LegResult[ShardSearchReply]]


class _Sending(NamedTuple):
    """How the legs of a search are sent. may_lack_shards: see ReadPolicy. times: the account of the read."""

    how: How
    may_lack_shards: bool
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
    ) -> None:
        self._maps = maps
        self._leaves = leaves
        self._scatter = scatter
        self._known = known
        self._tokens = tokens
        self._clock = clock
        self._rng = Random()

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
        check_search(query, collection.name, collection.schema)
        request_print = fingerprint(query.fingerprint_parts())
        position = SearchPosition({})
        if token:
            position = self._tokens.decode_search(token, collection.id, request_print)
            _check_depth(position, query.limit)
        cluster_map = await self._knowing(cluster_map, query.min_versions)
        how = self._scatter.how_to_read(policy, collection)
        sending = _Sending(how, policy.may_lack_shards, deadline, times)
        asked = await self._ask(cluster_map, collection.id, query, position, sending)
        legs = asked.legs
        replies = {leg.shard: leg.answer.reply for leg in legs if leg.answer is not None}
        coverage = self._coverage(collection.id, legs, replies, policy, position)
        page = merge_hits(replies, asked.begun.offsets, query.sort, query.limit, PAGE_MAX_BYTES)
        facets = [merge_facet(name, list(replies.values()), query.facet_limit) for name in query.facets]
        next_token = self._next_token(collection.id, request_print, page, coverage, asked)
        return Found(
            hits=page.hits,
            total=sum(reply.total for reply in replies.values()),
            coverage=coverage,
            facets=facets,
            next_token=next_token,
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

    async def _ask(
        self,
        cluster_map: ClusterMap,
        collection_id: int,
        query: SearchQuery,
        position: SearchPosition,
        sending: _Sending,
    ) -> "_Asked":
        """Ask every shard; all of them anew when one was split meanwhile: its documents would be missing, or counted twice."""
        rounds = Rounds(self._maps, self._clock, sending.deadline, self._rng)
        while True:
            known = cluster_map.shards
            shards = sorted(known) if query.shards is None else check_shards(query.shards, known)
            begun = await self._begin(cluster_map, collection_id, query, position, sending)
            legs = [begun.lost[shard] for shard in shards if shard in begun.lost]
            if sending.may_lack_shards or not legs:
                asked = [shard for shard in shards if shard not in begun.lost]
                refreshed = self._scatter.heard.refreshed
                requests = _leg_requests(cluster_map, collection_id, asked, query, begun.offsets, refreshed)
                legs += await self._send(requests, sending)
            newer = await rounds.next() if any(isinstance(leg.error, ShardMoved) for leg in legs) else None
            if newer is None:
                return _Asked(cluster_map, begun, legs)
            cluster_map = newer

    async def _send(self, requests: Sequence[ShardSearch], sending: _Sending) -> list[LegResult[ShardSearchReply]]:
        leaves = self._leaves
        legs = await self._scatter.gather("Search", leaves.search, requests, sending.deadline, sending.how, leaves.start)
        if sending.times is not None:
            sending.times.add(legs, self._clock.monotonic())
        return legs

    async def _begin(
        self,
        cluster_map: ClusterMap,
        collection_id: int,
        query: SearchQuery,
        position: SearchPosition,
        sending: _Sending,
    ) -> _Begun:
        """Where the page begins. Of a shard that was split since the page before, its heirs are asked."""
        begun = _Begun(dict(position.offsets), {}, {})
        if sending.may_lack_shards:
            now = self._clock.monotonic()
            sending = sending._replace(deadline=now + (sending.deadline - now) * PATIENCE)
        for shard, taken in position.offsets.items():
            config = cluster_map.shards.get(shard)
            last_slot = position.last_slots.get(shard)
            if config is None or last_slot is None or config.last_slot == last_slot:
                continue
            shards = [each.id for each in heirs(cluster_map, replace(config, last_slot=last_slot))]
            found = await self._taken_of(shards, taken, cluster_map, collection_id, query, sending)
            if isinstance(found, dict):
                begun.offsets.update(found)
            else:
                begun.lost.update((leg.shard, _as_lost(leg, shard)) for leg in found)
                begun.last_slots[shard] = last_slot
        return begun

    async def _taken_of(
        self,
        shards: Sequence[int],
        taken: int,
        cluster_map: ClusterMap,
        collection_id: int,
        query: SearchQuery,
        sending: _Sending,
    ) -> dict[int, int] | list[LegResult[ShardSearchReply]]:
        """How many hits earlier pages took of each of these shards: the first ones of their common order.

        Their legs, when one of them failed.
        """
        found, left = dict.fromkeys(sorted(shards), 0), taken
        while left > 0:
            limit = min(left, limits.SEARCH_MAX_LIMIT)
            again = replace(query, limit=limit, facets=[], highlight=[], is_keys_only=True)
            requests = _leg_requests(cluster_map, collection_id, list(found), again, found, self._scatter.heard.refreshed)
            legs = await self._send(requests, sending)
            if any(leg.answer is None for leg in legs):
                return legs
            page = merge_hits({leg.shard: leg.reply for leg in legs}, found, query.sort, limit, PAGE_MAX_BYTES)
            if not page.hits:
                break
            found, left = dict(page.offsets), left - len(page.hits)
        return found

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
        self, collection_id: int, request_print: bytes, page: MergedHits, coverage: Coverage, asked: _Asked
    ) -> bytes:
        if not page.has_more:
            return b""
        shards = asked.cluster_map.shards
        ends = {shard: shards[shard].last_slot for shard in page.offsets if shard in shards}
        position = SearchPosition(page.offsets, not coverage.is_complete, {**ends, **asked.begun.last_slots})
        return self._tokens.encode_search(collection_id, request_print, position)


def _as_lost(leg: LegResult[ShardSearchReply], shard: int) -> LegResult[ShardSearchReply]:
    """A shard of which nobody can tell where the page begins counts as one that failed, even if it answered itself."""
    if leg.answer is None:
        return leg
    why = f"what earlier pages took of shard {shard} before it was split cannot be told, since not all of its parts answered"
    return leg._replace(answer=None, error=Unavailable(why, ErrorDetails(shards=(leg.shard,))))


def _check_depth(position: SearchPosition, limit: int) -> None:
    depth = sum(position.offsets.values()) + limit
    if depth > limits.SEARCH_MAX_DEPTH:
        raise InvalidArgument(
            f"a search can be paged through {limits.SEARCH_MAX_DEPTH} hits deep, not {depth}; narrow the query or the filters",
            ErrorDetails(field="token", limit=limits.SEARCH_MAX_DEPTH),
        )


def _leg_requests(
    cluster_map: ClusterMap,
    collection_id: int,
    shards: Sequence[int],
    query: SearchQuery,
    offsets: Mapping[int, int],
    refreshed: Watermarks,
) -> list[ShardSearch]:
    """refreshed: writes that a search was promised to see; the replica that made the promise may not be the one asked now."""
    facet_limit = query.facet_limit
    if len(shards) > 1:
        facet_limit = min(limits.FACET_MAX_VALUES, facet_limit + facet_limit // 2 + FACET_EXTRA_VALUES)
    return [
        ShardSearch(
            shard=shard,
            epoch=cluster_map.shards[shard].epoch,
            collection_id=collection_id,
            query=query.query,
            filters=query.filters,
            offset=offsets.get(shard, 0),
            limit=query.limit,
            sort=query.sort,
            facets=query.facets,
            facet_limit=facet_limit,
            highlight=query.highlight,
            refresh=query.is_refresh_wanted,
            keys_only=query.is_keys_only,
            min_seqno=max(refreshed.of(shard), query.min_versions.of(shard)),
            cuts=cluster_map.shards[shard].cuts,
        )
        for shard in shards
    ]
