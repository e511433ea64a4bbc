"""Merging what the shards answered to a search into one ordered answer: hits, facets. Scans are merged in `scan_merge`.

Hits come in the order of the search (`kvshard/sorting.py`). Leaves deliver in that order, so a lazy k-way merge looks at no
more hits than the page needs. A shard that has more hits than it delivered ends the page behind its last one: what another
shard has further on may not come before what this one has kept back. Of a collapsed search, the first hit of each group is on
the page; those that other shards found of it are passed over.

Pure: imports only the standard library and other pure files.
"""

import heapq
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import repeat

from kvshard.model import ShardHit, ShardSearchReply, SortValue
from kvshard.sorting import Sorts, place_of


@dataclass(frozen=True, slots=True)
class MergedHits:
    """A page of hits with their shards. has_more: a further page has hits.

    is_cut: the page ends early: the next document would not fit into max_bytes, or a shard kept back what comes next.
    """

    hits: list[tuple[int, ShardHit]]
    has_more: bool
    is_cut: bool = False


def merge_hits(
    replies: Mapping[int, ShardSearchReply], sorts: Sorts, limit: int, max_bytes: int, is_collapsed: bool = False
) -> MergedHits:
    """The first `limit` hits of all shards."""
    place = place_of(sorts)
    streams = [zip(repeat(shard), reply.hits, strict=False) for shard, reply in sorted(replies.items())]
    left = {shard: len(reply.hits) for shard, reply in replies.items()}
    page: list[tuple[int, ShardHit]] = []
    groups: set[SortValue] = set()
    size = 0
    # One that kept back all of its hits: nothing can be told to come before them.
    is_cut = any(reply.has_more and not reply.hits for reply in replies.values())
    merged = heapq.merge(*streams, key=lambda entry: place(entry[1].sort_values, entry[1].score, entry[1].key))
    for shard, hit in () if is_cut else merged:
        is_repeated = is_collapsed and hit.group in groups
        if not is_repeated:
            size += len(hit.document) + len(hit.key)
            is_cut = size > max_bytes and bool(page)
            if is_cut or len(page) >= limit:
                break
            page.append((shard, hit))
            groups.add(hit.group)
        left[shard] -= 1
        is_cut = not left[shard] and replies[shard].has_more and len(page) < limit
        if is_cut:
            break
    has_more = is_cut or any(left.values()) or any(reply.has_more for reply in replies.values())
    return MergedHits(page, has_more, is_cut)


@dataclass(frozen=True, slots=True)
class MergedFacet:
    """Values of one field with their counts, most frequent first, ties by value. error_bound: see merge_facet."""

    field: str
    values: list[tuple[str, int]]
    error_bound: int


def merge_facet(name: str, replies: Sequence[ShardSearchReply], limit: int) -> MergedFacet:
    """Add up one facet over the shards.

    error_bound: the most by which a returned count may be too low. A shard that did not list a value may still have up to its
    own facet error of it; a shard that listed it counted it exactly.
    """
    counts: dict[str, int] = {}
    certain: dict[str, int] = {}
    uncertain = 0
    for reply in replies:
        error = reply.facet_errors.get(name, 0)
        uncertain += error
        for value, count in reply.facets.get(name, {}).items():
            counts[value] = counts.get(value, 0) + count
            certain[value] = certain.get(value, 0) + error
    best = heapq.nsmallest(limit, counts.items(), key=lambda item: (-item[1], item[0]))
    return MergedFacet(name, best, max((uncertain - certain[value] for value, _ in best), default=0))
