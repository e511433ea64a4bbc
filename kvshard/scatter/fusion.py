"""Nearest neighbours of all shards put in order, and one order made of the text's and the vector's: reciprocal rank fusion.

A BM25 score and a cosine do not compare; their ranks do. A document gets 1 / (RANK_CONSTANT + rank) from each list that it is
in, and the sum is its score (Cormack, Clarke and Buettcher: Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods, SIGIR 2009).

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from heapq import merge
from itertools import islice
from typing import Final

from kvshard.model import NearestRecord, ShardHit, ShardSearchReply, changed
from kvshard.scatter.merge import MergedHits, merge_hits
from kvshard.scatter.requests import SearchQuery
from kvshard.search_accounts import ScoreExplanation
from kvshard.sorting import BY_SCORE, parse_sort
from kvshard.vectors import Nearest, vector_bytes

RANK_CONSTANT: Final = 60
"""From the paper: how little the first ranks are to outweigh the next ones."""

Placed = tuple[int, ShardHit]
"""A hit with the shard it lives in."""


def leg_query(query: SearchQuery) -> SearchQuery:
    """What the legs of a search are to look for: with the nearest, as many hits of the query as are fused with them."""
    if query.nearest is None:
        return query
    k = query.nearest.wanted(query.limit)
    return replace(query, nearest=query.nearest._replace(k=k), limit=0 if query.is_nearest_alone else k)


def nearest_record(nearest: Nearest) -> NearestRecord:
    """As it is sent to a leaf."""
    return NearestRecord(nearest.field, vector_bytes(nearest.vector), nearest.k)


def page_of(replies: Mapping[int, ShardSearchReply], query: SearchQuery, max_bytes: int) -> tuple[MergedHits, int]:
    """The page of a search, of what the shards answered to `leg_query(query)`, and how many documents match."""
    total = sum(reply.total for reply in replies.values())
    if query.nearest is None:
        is_collapsed = bool(query.shape.collapse)
        return merge_hits(replies, parse_sort(query.sort), query.limit, max_bytes, is_collapsed), total
    k = query.nearest.wanted(query.limit)
    nearest = merge_nearest({shard: reply.nearest for shard, reply in replies.items()}, k)
    if query.is_nearest_alone:
        return MergedHits(nearest[: query.limit], False), sum(reply.nearest_total for reply in replies.values())
    texts = merge_hits(replies, BY_SCORE, k, max_bytes).hits
    return MergedHits(fuse(texts, nearest, query.limit), False), total


def merge_nearest(found: Mapping[int, Sequence[ShardHit]], limit: int) -> list[Placed]:
    """The nearest of all shards, which each deliver theirs in order: by score, then key."""
    lists: list[Iterable[Placed]] = [[(shard, hit) for hit in hits] for shard, hits in found.items()]
    return list(islice(merge(*lists, key=lambda placed: (-placed[1].score, placed[1].key)), limit))


def fuse(texts: Sequence[Placed], nearest: Sequence[Placed], limit: int) -> list[Placed]:
    """The best `limit` of two orders, with their sum of reciprocal ranks as score; equal ones by key.

    A document that is in both is taken from the texts, where it may have highlights. What is explained tells both ranks.
    """
    scores: dict[bytes, float] = {}
    hits: dict[bytes, Placed] = {}
    told: dict[bytes, list[ScoreExplanation]] = {}
    for placed, name in ((nearest, "nearest"), (texts, "query")):
        for rank, (shard, hit) in enumerate(placed, 1):
            share = 1 / (RANK_CONSTANT + rank)
            scores[hit.key] = scores.get(hit.key, 0.0) + share
            hits[hit.key] = (shard, hit)
            if hit.explanation is not None:
                text = f"1 / ({RANK_CONSTANT} + rank), by the {name} rank {rank}"
                told.setdefault(hit.key, []).append(ScoreExplanation(share, text, [hit.explanation]))
    best = sorted(scores, key=lambda key: (-scores[key], key))[:limit]
    fused = [(hits[key][0], changed(hits[key][1], score=scores[key])) for key in best]
    if not told:
        return fused
    return [(shard, changed(hit, explanation=_fused(hit.score, told.get(hit.key, [])))) for shard, hit in fused]


def _fused(score: float, shares: list[ScoreExplanation]) -> ScoreExplanation:
    return ScoreExplanation(score, "sum of the reciprocal ranks", shares)
