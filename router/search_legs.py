"""The legs of a search: what each shard is asked, all of them at once; and once more, of a page that came up short.

A page takes few of its hits from each shard, so each is asked for few (`kvshard/scatter/hits_asked.py`). When that was not
enough, the shards that may have more are asked again, each for all that the page could take of it. What they answer then stands
in the place of their first hits as a whole: whichever replica answers, and whatever was written since, no hit is lost or there
twice. Facets, aggregations and totals stay those of the first answer.
"""

from collections.abc import Sequence
from random import Random
from typing import NamedTuple

from kvshard import limits
from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection
from kvshard.errors import ShardMoved
from kvshard.model import UNKNOWN_AGE, ShardSearch, ShardSearchReply, changed
from kvshard.rpc.leaf_client import Answer, LeafClient
from kvshard.scatter.fusion import nearest_record
from kvshard.scatter.hits_asked import ShortPages, hits_asked
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.leg import How
from kvshard.scatter.leg_result import LegResult
from kvshard.scatter.merge import used_up
from kvshard.scatter.moved import Rounds
from kvshard.scatter.requests import SearchQuery, check_shards
from kvshard.scatter.routes import MapSource
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import SearchPosition
from kvshard.sorting import is_by_score, parse_sort
from router.ranking import Ranking

FACET_EXTRA_VALUES = 10
"""Values asked of each shard beyond half as many again: the overall favourites are rarely missed then, see error_bound."""

FACET_LEAST_VALUES = 200
"""Values asked of each shard at least: facets of so many different ones are exact, at 0.4 ms of the router for 8 shards."""

SearchLeg = LegResult[ShardSearchReply]


class Sought(NamedTuple):
    """A search under way. query: as its legs carry it, fit to the collection's schema. times: the account of the read.

    shown_elsewhere: of a collapsed search over several collections, digests of the groups that are on its pages so far.
    """

    collection: Collection
    query: SearchQuery
    request_print: bytes
    position: SearchPosition
    how: How
    deadline: float
    times: ReadTimes | None
    shown_elsewhere: bytes = b""


class Asked(NamedTuple):
    """The legs of a search, by this map. requests: what each was asked. is_few: for fewer hits than the page takes.

    replaced: legs whose shards were asked again; in `legs` stands what came of that.
    """

    cluster_map: ClusterMap
    requests: Sequence[ShardSearch]
    legs: Sequence[SearchLeg]
    is_few: bool
    replaced: tuple[SearchLeg, ...] = ()


def replies_of(legs: Sequence[SearchLeg]) -> dict[int, ShardSearchReply]:
    """The replies of the shards that answered."""
    return {leg.shard: leg.answer.reply for leg in legs if leg.answer is not None}


class SearchLegs:
    """Sends the legs of searches."""

    def __init__(self, maps: MapSource, leaves: LeafClient, scatter: Scatter, clock: Clock) -> None:
        self.short = ShortPages()
        self._maps = maps
        self._leaves = leaves
        self._scatter = scatter
        self._clock = clock
        self._rng = Random()

    async def ask(self, cluster_map: ClusterMap, sought: Sought, ranking: Ranking, is_whole: bool) -> Asked | None:
        """Ask every shard; all of them anew when one was split meanwhile: its documents would be missing, or counted twice.

        is_whole: each for all the hits that the page could take of it. None: the collection has another schema in the newest
        map, so the query is to be read anew.
        """
        collection = sought.collection
        rounds = Rounds(self._maps, self._clock, sought.deadline, self._rng)
        is_few = not is_whole and _is_shared(sought.query) and self.short.may_ask_few(collection.id)
        while True:
            requests = self._requests(cluster_map, sought, ranking, is_few)
            legs = await self._send(requests, sought)
            newer = await rounds.next() if _has_moved(legs) else None
            if newer is None:
                return Asked(cluster_map, requests, legs, is_few)
            cluster_map = newer
            if (newer.collection_by_id(collection.id) or collection).version != collection.version:
                return None

    async def ask_again(self, asked: Asked, sought: Sought) -> Asked | None:
        """Ask the shards once more that may have hits for a page which came up short; each for all that it could take of it.

        None: one was split meanwhile, so that all of them are to be asked anew.
        """
        query, sorts = sought.query, parse_sort(sought.query.sort)
        open_ended = {request.shard: request for request in asked.requests}
        while True:
            short = [shard for shard in used_up(replies_of(asked.legs), sorts, query.limit) if shard in open_ended]
            if not short:
                return asked
            requests = [_whole_leg(open_ended.pop(shard), query.limit) for shard in short]
            legs = await self._send(requests, sought)
            if _has_moved(legs):
                return None
            since = {leg.shard: leg for leg in legs}
            replaced = [leg for leg in asked.legs if leg.shard in since]
            kept = [_replaced(leg, since[leg.shard]) if leg.shard in since else leg for leg in asked.legs]
            asked = asked._replace(legs=kept, replaced=(*asked.replaced, *replaced))

    def _requests(self, cluster_map: ClusterMap, sought: Sought, ranking: Ranking, is_few: bool) -> list[ShardSearch]:
        query, wanted = sought.query, sought.query.min_versions
        # Writes that a search was promised to see: the replica that made the promise may not be the one asked now.
        refreshed = self._scatter.heard.refreshed
        known = cluster_map.shards
        shards = sorted(known) if query.shards is None else check_shards(query.shards, known)
        configs = [known[shard] for shard in shards]
        leg = _leg_of(sought, ranking, len(shards), is_few)
        hits = [query.limit] * len(shards)
        if is_few:
            widths = [config.last_slot - config.first_slot + 1 for config in configs]
            hits = hits_asked(query.limit, widths, is_next_told=leg.together > 0)
        return [
            changed(
                leg,
                shard=config.id,
                epoch=config.epoch,
                limit=limit,
                min_seqno=max(refreshed.of(config.id), wanted.of(config.id)),
                cuts=config.cuts,
            )
            for config, limit in zip(configs, hits, strict=True)
        ]

    async def _send(self, requests: Sequence[ShardSearch], sought: Sought) -> list[SearchLeg]:
        leaves = self._leaves
        legs = await self._scatter.gather("Search", leaves.search, requests, sought.deadline, sought.how, leaves.start)
        if sought.times is not None:
            sought.times.add(legs, self._clock.monotonic())
        return legs


def _leg_of(sought: Sought, ranking: Ranking, shards: int, is_few: bool) -> ShardSearch:
    """What all of so many legs have in common."""
    query, position = sought.query, sought.position
    facet_limit = query.facet_limit
    if shards > 1:
        facet_limit = max(facet_limit + facet_limit // 2 + FACET_EXTRA_VALUES, FACET_LEAST_VALUES)
    shown = position.shown + sought.shown_elsewhere
    may_leave_out = is_few and ranking.shipped is not None and is_by_score(parse_sort(query.sort))
    return ShardSearch(
        shard=0,
        epoch=0,
        collection_id=sought.collection.id,
        query=query.query,
        tree=query.tree,
        filters=query.filters,
        limit=query.limit,
        sort=query.sort,
        facets=query.facets,
        facet_limit=min(limits.FACET_MAX_VALUES, facet_limit),
        highlight=query.highlight,
        refresh=query.is_refresh_wanted,
        keys_only=query.is_keys_only,
        after=position.after,
        taken=position.taken,
        fuzziness=query.fuzziness,
        aggregations=query.aggregations,
        nearest=None if query.nearest is None else nearest_record(query.nearest),
        explain=query.is_explanation_wanted,
        profile=query.is_profile_wanted,
        synonyms=list(query.synonyms),
        shape=changed(query.shape, shown=shown) if shown else query.shape,
        schema_version=sought.collection.version,
        statistics=ranking.shipped,
        is_alone=ranking.is_alone,
        together=query.limit if may_leave_out else 0,
    )


def _is_shared(query: SearchQuery) -> bool:
    """Whether the shards share the hits of the page. Of a group, each of them may have a document that comes first there."""
    return query.limit > 1 and query.nearest is None and not query.shape.collapse


def _has_moved(legs: Sequence[SearchLeg]) -> bool:
    return any(isinstance(leg.error, ShardMoved) for leg in legs)


def _whole_leg(request: ShardSearch, limit: int) -> ShardSearch:
    """The leg of a shard that may have all the hits of a page. What was counted need not be counted again."""
    shape = changed(request.shape, count_up_to=0)
    return changed(request, limit=limit, together=0, facets=[], aggregations={}, shape=shape)


def _replaced(first: SearchLeg, since: SearchLeg) -> SearchLeg:
    """What a shard has answered in the end: the second time, but for what was counted the first time."""
    if first.answer is None or since.answer is None:
        return since
    before, answer = first.answer.reply, since.answer
    reply = changed(
        answer.reply,
        total=max(before.total, len(answer.reply.hits)),
        is_total_exact=before.is_total_exact,
        facets=before.facets,
        facet_errors=before.facet_errors,
        aggregations=before.aggregations,
        unseen_age_ms=_older(before.unseen_age_ms, answer.reply.unseen_age_ms),
    )
    return since._replace(answer=Answer(reply, answer.queue_us, answer.service_us, answer.in_flight))


def _older(*ages_ms: int) -> int:
    return UNKNOWN_AGE if UNKNOWN_AGE in ages_ms else max(ages_ms)
