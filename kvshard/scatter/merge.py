"""Merging what the shards answered to a search into one ordered answer: hits, facets. Scans are merged in `scan_merge`.

Rule of hits: by score descending, then key ascending; or by the sort value, missing ones last in either direction, then key
ascending. Leaves deliver in that order, so a lazy k-way merge looks at no more hits than the page needs.

Pure: imports only the standard library and other pure files.
"""

import heapq
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import total_ordering
from itertools import repeat

from kvshard.model import ShardHit, ShardSearchReply


@total_ordering
@dataclass(frozen=True, slots=True, eq=True)
class _Reversed:
    """A value that sorts the other way round."""

    value: int | float | str

    def __lt__(self, other: "_Reversed") -> bool:
        return _is_less(other.value, self.value)


def _is_less(left: int | float | str, right: int | float | str) -> bool:
    """left < right; text after numbers, which only a schema in change can bring together."""
    if isinstance(left, str):
        return isinstance(right, str) and left < right
    return isinstance(right, str) or left < right


def hit_order(sort: str) -> Callable[[ShardHit], tuple[object, ...]]:
    """The sort key of hits for a request's sort ("" by score, "field", "-field")."""
    if not sort:
        return lambda hit: (-hit.score, hit.key)
    if sort.startswith("-"):
        return lambda hit: (1, hit.key) if hit.sort_value is None else (0, _Reversed(hit.sort_value), hit.key)
    return lambda hit: (1, hit.key) if hit.sort_value is None else (0, hit.sort_value, hit.key)


@dataclass(frozen=True, slots=True)
class MergedHits:
    """A page of hits with their shards. offsets: rank of the last hit taken from each shard. has_more: a further page has hits.

    is_cut: the page ends early because the next document would not fit into max_bytes.
    """

    hits: list[tuple[int, ShardHit]]
    offsets: dict[int, int]
    has_more: bool
    is_cut: bool = False


def merge_hits(
    replies: Mapping[int, ShardSearchReply], offsets: Mapping[int, int], sort: str, limit: int, max_bytes: int
) -> MergedHits:
    """The best `limit` hits of all shards. offsets: hits of each shard that earlier pages took."""
    order = hit_order(sort)
    streams = [zip(repeat(shard), reply.hits, strict=False) for shard, reply in sorted(replies.items())]
    page: list[tuple[int, ShardHit]] = []
    reached = dict(offsets)
    size = 0
    is_cut = False
    for shard, hit in heapq.merge(*streams, key=lambda entry: order(entry[1])):
        size += len(hit.document) + len(hit.key)
        is_cut = size > max_bytes and bool(page)
        if is_cut or len(page) >= limit:
            break
        page.append((shard, hit))
        reached[shard] = hit.rank
    has_more = is_cut or any(reply.total > reached.get(shard, 0) for shard, reply in replies.items() if reply.hits)
    return MergedHits(page, reached, has_more, is_cut)


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
