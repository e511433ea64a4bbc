"""Merging what the shards answered to a search into one ordered answer: hits, facets. Scans are merged in `scan_merge`.

Hits come in the order of the search (`kvshard/sorting.py`). Leaves deliver in that order, so a lazy k-way merge looks at no
more hits than the page needs. A shard that has more hits than it delivered ends the page behind its last one: what another
shard has further on may not come before what this one has kept back. Unless it says that all it kept back scores less than
something: then hits that do not are not waited for.

A page that ends so before it is full is short. What it lacks is of the shards that have used up their hits by where it would
end if nobody had kept back anything: more hits of theirs can only bring that end nearer.

Of a collapsed search, the first hit of each group is on the page; those that other shards found of it are passed over.

Pure: imports only the standard library and other pure files.
"""

import heapq
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from math import inf

from kvshard.model import ShardHit, ShardSearchReply, SortValue
from kvshard.sorting import PlaceOf, Sorts, place_of


@dataclass(frozen=True, slots=True)
class MergedHits:
    """A page of hits with their shards. has_more: a further page has hits.

    is_cut: the page ends early: the next document would not fit into max_bytes, or a shard kept back what comes next. is_short:
    it is the latter.
    """

    hits: list[tuple[int, ShardHit]]
    has_more: bool
    is_cut: bool = False
    is_short: bool = False


def merge_hits(
    replies: Mapping[int, ShardSearchReply], sorts: Sorts, limit: int, max_bytes: int, is_collapsed: bool = False
) -> MergedHits:
    """The first `limit` hits of all shards."""
    left = {shard: len(reply.hits) for shard, reply in replies.items()}
    page: list[tuple[int, ShardHit]] = []
    groups: set[SortValue] = set()
    size = 0
    is_full = is_cut = False
    # Hits that score less may come behind what was kept back. One that kept back all it has may have anything.
    least = max((_kept_below(reply) for reply in replies.values() if reply.has_more and not reply.hits), default=-inf)
    for shard, hit in _in_order(replies, place_of(sorts)):
        if least > -inf and hit.score < least:
            break
        is_repeated = is_collapsed and hit.group in groups
        if not is_repeated:
            size += len(hit.document) + len(hit.key)
            is_cut = size > max_bytes and bool(page)
            is_full = len(page) >= limit
            if is_cut or is_full:
                break
            page.append((shard, hit))
            groups.add(hit.group)
        left[shard] -= 1
        if not left[shard] and replies[shard].has_more:
            least = max(least, _kept_below(replies[shard]))
    is_short = least > -inf and not is_cut and not is_full and len(page) < limit
    has_more = any(left.values()) or any(reply.has_more for reply in replies.values())
    return MergedHits(page, has_more, is_cut or is_short, is_short)


def used_up(replies: Mapping[int, ShardSearchReply], sorts: Sorts, limit: int) -> list[int]:
    """The shards that may have more hits for the page than they delivered. The search is not collapsed."""
    place = place_of(sorts)
    page = [hit for _, hit in islice(_in_order(replies, place), limit)]
    if len(page) < limit:
        return [shard for shard, reply in replies.items() if reply.has_more]
    last = page[-1]
    end = _place(place, last)

    def may_have_more(reply: ShardSearchReply) -> bool:
        is_before = not reply.hits or _place(place, reply.hits[-1]) < end
        return reply.has_more and is_before and last.score < _kept_below(reply)

    return [shard for shard, reply in replies.items() if may_have_more(reply)]


def _in_order(replies: Mapping[int, ShardSearchReply], place: PlaceOf) -> Iterator[tuple[int, ShardHit]]:
    streams = [zip(repeat(shard), reply.hits, strict=False) for shard, reply in sorted(replies.items())]
    return heapq.merge(*streams, key=lambda entry: _place(place, entry[1]))


def _place(place: PlaceOf, hit: ShardHit) -> tuple[object, ...]:
    return place(hit.sort_values, hit.score, hit.key)


def _kept_below(reply: ShardSearchReply) -> float:
    """All that the shard kept back scores less than this; of one that has more."""
    return inf if reply.complete_to is None else reply.complete_to


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
