"""Which statistics the legs of a search are to rank by, and what an answer's scores then rest on.

The shell around `router/statistics.py`: asks shards for what is not known, and learns from what they answer. A search never
fails for want of statistics: what cannot be learnt in a part of its time it does without, and says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection
from kvshard.limits import STATISTICS_MAX_TERMS
from kvshard.model import ShardSearchReply, ShardTerms, ShardTermsReply, TermStatistics
from kvshard.query.scored import ScoredText, scored_texts
from kvshard.rpc.leaf_client import LeafClient
from kvshard.scatter.leg import How
from kvshard.scatter.leg_result import LegResult
from kvshard.scatter.requests import SearchQuery
from kvshard.scatter.scatter import Scatter
from kvshard.sorting import SCORE, parse_sort
from kvshard.telemetry import RouterMetrics, ScrapedFamily
from router.statistics import Kind, KnownStatistics, Summed, Verdict, is_sum_of, verdict

PATIENCE: Final = 0.3
"""Of a search's time: how long it waits for statistics. The rest is for the search itself."""


@dataclass(frozen=True, slots=True)
class StatisticsUsed:
    """What the scores of an answer rest on. kind None: it has none. extra_trips: round trips for statistics alone.

    bounded: shards that had too many documents of nearly the same score to look at all of them. whole: the statistics, for the
    pages behind; None: each shard had its own.
    """

    kind: Kind | None = None
    age_s: float = 0.0
    extra_trips: int = 0
    bounded: int = 0
    whole: TermStatistics | None = field(default=None, compare=False)


NO_SCORES: Final = StatisticsUsed()


@dataclass(frozen=True, slots=True)
class Ranking:
    """How the legs of a search are to rank. used None: each as it is (LOCAL), or it has no scores; is_alone: there is one.

    pinned: by what an earlier page ranked, and how old that is in seconds.
    """

    is_scored: bool
    used: Summed | None = None
    is_alone: bool = False
    extra_trips: int = 0
    texts: tuple[ScoredText, ...] = ()
    floors: Mapping[int, int] = field(default_factory=dict)
    pinned: tuple[TermStatistics, float] | None = None

    @property
    def shipped(self) -> TermStatistics | None:
        """What goes with the legs."""
        if self.pinned is not None:
            return self.pinned[0]
        return None if self.used is None else self.used.whole


def statistics_of(collection: Collection) -> int:
    """The number that a collection's statistics are kept under: by another schema, texts have other terms."""
    return collection.version << 32 | collection.id


class Rankings:
    """Chooses the statistics of searches. One for a router process."""

    def __init__(self, leaves: LeafClient, scatter: Scatter, clock: Clock, metrics: RouterMetrics | None = None) -> None:
        self.known = KnownStatistics()
        self._leaves = leaves
        self._scatter = scatter
        self._clock = clock
        self._metrics = metrics

    async def of(
        self,
        cluster_map: ClusterMap,
        collection: Collection,
        query: SearchQuery,
        request_print: bytes,
        how: How,
        deadline: float,
    ) -> Ranking:
        """The statistics for a search, asked for where they are not known. request_print: of what decides its terms."""
        if query.limit == 0 or all(key.name != SCORE for key in parse_sort(query.sort)):
            return Ranking(is_scored=False)
        if query.is_local:
            return Ranking(is_scored=True)
        if len(cluster_map.shards) == 1:
            return Ranking(is_scored=True, is_alone=True)
        texts = scored_texts(query.node(collection.schema), collection.schema)
        if len(texts) > STATISTICS_MAX_TERMS:
            return Ranking(is_scored=True)
        kept_under = statistics_of(collection)
        shards = {shard: config.cuts for shard, config in cluster_map.shards.items()}
        floors = {shard: self.floor(shard, query) for shard in shards}
        now = self._clock.monotonic()
        unknown = self.known.unknown_texts(kept_under, texts)
        terms = self.known.terms_of(kept_under, request_print, texts)
        lacking = self.known.lacking(kept_under, terms, shards, now, floors)
        trips = 0
        if unknown or lacking:
            trips = 1
            asked = shards if unknown else lacking.keys()
            requests = [
                ShardTerms(
                    shard=shard,
                    epoch=cluster_map.shards[shard].epoch,
                    collection_id=collection.id,
                    texts=list(unknown),
                    terms=lacking.get(shard, {}),
                    cuts=shards[shard],
                    schema_version=collection.version,
                    min_seqno=floors[shard],
                )
                for shard in sorted(asked)
            ]
            await self._ask(kept_under, requests, unknown, how, now + (deadline - now) * PATIENCE)
            terms = self.known.terms_of(kept_under, request_print, texts)
        return Ranking(True, self.known.summed(kept_under, terms, shards), False, trips, tuple(texts), floors)

    def floor(self, shard: int, query: SearchQuery) -> int:
        """The seqno of a shard whose effects a search must see: the replica that promised it may not be the one asked now."""
        return max(self._scatter.heard.refreshed.of(shard), query.min_versions.of(shard))

    async def _ask(
        self, kept_under: int, requests: Sequence[ShardTerms], unknown: Sequence[ScoredText], how: How, deadline: float
    ) -> None:
        leaves = self._leaves
        legs: list[LegResult[ShardTermsReply]] = await self._scatter.gather(
            "TermStats", leaves.term_statistics, requests, deadline, how, leaves.start
        )
        now = self._clock.monotonic()
        for request, leg in zip(requests, legs, strict=True):
            if leg.answer is None:
                continue
            reply = leg.answer.reply
            self.known.learn_texts(kept_under, unknown, reply.texts)
            self.known.learn(kept_under, request.shard, request.cuts or 0, reply.statistics, now, request.min_seqno)

    def judged(
        self,
        cluster_map: ClusterMap,
        collection: Collection,
        request_print: bytes,
        ranking: Ranking,
        replies: Mapping[int, ShardSearchReply],
    ) -> tuple[StatisticsUsed, bool]:
        """What an answer's scores rest on, and whether it is worth asking again. Learns from the answers."""
        if not ranking.is_scored:
            return NO_SCORES, False
        bounded = sum(reply.is_bounded for reply in replies.values())
        now = self._clock.monotonic()
        answered = {shard: reply.statistics for shard, reply in replies.items()}
        if ranking.pinned is not None:
            self._learn(cluster_map, collection, ranking, answered, now)
            whole, age_s = ranking.pinned
            present = [own for own in answered.values() if own is not None]
            is_exact = len(present) == len(replies) == len(cluster_map.shards) and is_sum_of(whole, present)
            kind = Kind.EXACT if is_exact else Kind.CACHED
            return StatisticsUsed(kind, 0.0 if is_exact else age_s, bounded=bounded, whole=whole), False
        if ranking.is_alone:
            told = list(answered.values())
            kind = Kind.LOCAL if None in told else Kind.EXACT
            return StatisticsUsed(kind, bounded=bounded, whole=told[0] if len(told) == 1 else None), False
        if ranking.used is None:
            return StatisticsUsed(Kind.LOCAL), False
        found: Verdict = verdict(ranking.used, answered, now)
        self._learn(cluster_map, collection, ranking, answered, now)
        if found.missing:
            self.known.learn_query(statistics_of(collection), request_print, found.missing, ranking.texts)
        used = StatisticsUsed(found.kind, found.age_s, ranking.extra_trips, bounded, ranking.shipped)
        return used, found.is_stale

    def _learn(
        self,
        cluster_map: ClusterMap,
        collection: Collection,
        ranking: Ranking,
        answered: Mapping[int, TermStatistics | None],
        now: float,
    ) -> None:
        """Keep what the shards told of their own."""
        for shard, own in answered.items():
            config = cluster_map.shards.get(shard)
            if own is not None and config is not None:
                self.known.learn(statistics_of(collection), shard, config.cuts, own, now, ranking.floors.get(shard, 0))

    def accounted(self, used: StatisticsUsed, trips: int) -> StatisticsUsed:
        """The account of an answer for which so many extra trips were made before it was asked for a second time."""
        if self._metrics is not None:
            if used.kind is not None:
                self._metrics.ranked.labels(used.kind.value).inc()
            if used.extra_trips or trips:
                self._metrics.statistics_trips.inc(used.extra_trips + trips)
        return replace(used, extra_trips=used.extra_trips + trips) if trips else used

    def families(self) -> list[ScrapedFamily]:
        """What is known, as metrics."""
        known = self.known
        rows = [(("terms",), float(known.terms)), (("numbers",), float(known.cells)), (("texts",), float(known.texts))]
        text = "Statistics that the router keeps for scores: terms, their numbers in all shards, texts cut into terms."
        return [ScrapedFamily("kvshard_router_statistics_kept", text, ("what",), rows)]
