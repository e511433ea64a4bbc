"""Suggestions: scattered to every shard, gathered into one list of completions and of corrections.

A text is completed by its last word among the documents that have the words before it. When there are none, as where one of
those is misspelt, the shards are asked once more: with these words corrected, or if nothing corrects them, without them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection
from kvshard.errors import Internal, ShardMoved
from kvshard.model import ShardSearch, ShardSearchReply
from kvshard.query import prepare
from kvshard.rpc.leaf_client import LeafClient
from kvshard.scatter.coverage import Coverage, KnownCounts
from kvshard.scatter.gather import verdict
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.leg import How
from kvshard.scatter.leg_result import LegResult
from kvshard.scatter.moved import Rounds
from kvshard.scatter.requests import ReadPolicy
from kvshard.scatter.routes import MapSource, resolve
from kvshard.scatter.scatter import Scatter
from kvshard.suggest_messages import SuggestPart, SuggestReply
from kvshard.suggestions import (
    Completions,
    CorrectedWord,
    SuggestQuery,
    asked_again,
    check_suggest,
    completions_asked,
    corrected,
    is_last_word,
    merge_completions,
    merge_words,
)
from kvshard.synonyms import rules_for


@dataclass(frozen=True, slots=True)
class Suggested:
    """What was found. corrected: the text with its words corrected; empty when there is nothing to correct."""

    completions: Completions
    words: list[CorrectedWord]
    corrected: str
    coverage: Coverage


@dataclass(frozen=True, slots=True)
class _Asked:
    """What stays the same in both rounds."""

    collection: Collection
    query: SuggestQuery
    policy: ReadPolicy
    how: How
    deadline: float
    times: ReadTimes | None
    synonyms: list[str]


class SuggestOperation:
    """Suggest in domain terms."""

    def __init__(self, maps: MapSource, leaves: LeafClient, scatter: Scatter, known: KnownCounts, clock: Clock) -> None:
        self._maps = maps
        self._leaves = leaves
        self._scatter = scatter
        self._known = known
        self._clock = clock
        self._rng = Random()

    async def suggest(
        self,
        collection_name: str,
        query: SuggestQuery,
        policy: ReadPolicy,
        deadline: float,
        times: ReadTimes | None = None,
    ) -> Suggested:
        """What the text may go on as, or may have meant. Raises Unavailable when the coverage falls short of the policy."""
        cluster_map, collection = await resolve(self._maps, collection_name)
        fields = check_suggest(query, collection.name, collection.schema)
        filters = [prepare(text, collection.schema, f"filters[{at}]") for at, text in enumerate(query.filters)]
        synonyms = rules_for(collection.synonyms, filters)
        how = self._scatter.how_to_read(policy, collection)
        asked = _Asked(collection, query, policy, how, deadline, times, synonyms)
        part = SuggestPart(query.text, fields, completions_asked(query.limit, len(cluster_map.shards)))
        replies, coverage = await self._ask(cluster_map, part, asked)
        completions, words = merge_completions(replies, query.limit), merge_words(replies)
        if completions.texts:
            # The word that is being typed is no mistake as long as some word begins so.
            words = [word for word in words if not is_last_word(query.text, word)]
        again = None if completions.texts else asked_again(part, words)
        if again is not None:
            replies, second = await self._ask(cluster_map, again, asked)
            completions = merge_completions(replies, query.limit)
            coverage = min(coverage, second, key=lambda each: (each.is_complete, each.fraction))
        return Suggested(completions, words, corrected(query.text, words) if words else "", coverage)

    async def _ask(self, cluster_map: ClusterMap, part: SuggestPart, asked: _Asked) -> tuple[list[SuggestReply], Coverage]:
        """What the shards answer; all of them anew when one was split meanwhile: its documents would be counted twice."""
        rounds = Rounds(self._maps, self._clock, asked.deadline, self._rng)
        while True:
            legs = await self._send(cluster_map, part, asked)
            newer = await rounds.next() if any(isinstance(leg.error, ShardMoved) for leg in legs) else None
            if newer is None:
                break
            cluster_map = newer
        answered = [leg for leg in legs if leg.answer is not None]
        documents = {leg.shard: leg.reply.documents for leg in answered}
        collection_id = asked.collection.id
        for shard, count in documents.items():
            self._known.learn(collection_id, shard, count)
        coverage = verdict(legs, documents, self._known.of(collection_id), asked.policy, False)
        return [_suggested(leg) for leg in answered], coverage

    async def _send(self, cluster_map: ClusterMap, part: SuggestPart, asked: _Asked) -> Sequence[LegResult[ShardSearchReply]]:
        leaves, how = self._leaves, asked.how
        requests = [
            ShardSearch(
                shard=shard,
                epoch=config.epoch,
                collection_id=asked.collection.id,
                query="",
                filters=asked.query.filters,
                limit=0,
                min_seqno=self._scatter.heard.refreshed.of(shard),
                cuts=config.cuts,
                suggest=part,
                synonyms=asked.synonyms,
            )
            for shard, config in sorted(cluster_map.shards.items())
        ]
        legs = await self._scatter.gather("Suggest", leaves.search, requests, asked.deadline, how, leaves.start)
        if asked.times is not None:
            asked.times.add(legs, self._clock.monotonic())
        return legs


def _suggested(leg: LegResult[ShardSearchReply]) -> SuggestReply:
    if leg.reply.suggested is None:
        raise Internal(f"leaf {leg.leaf} knows no suggestions: it runs an older version")
    return leg.reply.suggested
