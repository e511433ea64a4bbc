"""Merging what the shards answered into one ordered answer: scans, hits, facets.

Rule of a scan: a row may be emitted only when no shard can still deliver a smaller key, that is when its key lies below the
point up to which every unfinished shard has delivered (the smallest `resume`). Rows below that point are sorted as one list:
each shard's part is sorted already, and Python's sort merges sorted runs in C, several times faster than a heap of Python
objects would.

Rule of hits: by score descending, then key ascending; or by the sort value, missing ones last in either direction, then key
ascending. Leaves deliver in that order, so a lazy k-way merge looks at no more hits than the page needs.

Pure: imports only the standard library and other pure files.
"""

import heapq
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import total_ordering
from itertools import repeat
from operator import itemgetter

from kvshard.model import ShardHit, ShardScanReply, ShardSearchReply

Row = tuple[bytes, bytes, int, int]
"""Key, value, version, expires_at_ms."""

_key_of_row: Callable[[Row], bytes] = itemgetter(0)


@dataclass(slots=True)
class _Cursor:
    """How far one shard has delivered. Everything of it below `frontier` is in `rows` or was emitted.

    rows[position:] are still to be emitted. is_finished: nothing will follow (the end was reached, or the shard failed).
    """

    frontier: bytes
    rows: list[Row] = field(default_factory=list)
    position: int = 0
    is_finished: bool = False
    is_fetching: bool = False

    @property
    def buffered(self) -> int:
        return len(self.rows) - self.position


class ScanMerge:
    """Merges the chunks of many shards in key order. Chunks are fetched by the caller: `wanted` says which are due.

    Bound: the next chunk is fetched once less than half of one is left, so at most three chunks a shard are held: in the ready
    rows, buffered, and on the way.
    """

    def __init__(self, shards: Iterable[int], start: bytes, chunk_rows: int) -> None:
        self._cursors = {shard: _Cursor(start) for shard in shards}
        self._chunk_rows = chunk_rows
        self._ready: list[Row] = []
        self._ready_position = 0

    def __repr__(self) -> str:
        open_shards = {
            shard: (c.frontier, c.buffered, c.is_fetching) for shard, c in self._cursors.items() if not c.is_finished
        }
        return f"ScanMerge(ready={self.ready_rows}, open={open_shards})"

    @property
    def is_done(self) -> bool:
        """True when every row was taken and no shard has more."""
        return not self.ready_rows and all(c.is_finished and not c.buffered for c in self._cursors.values())

    @property
    def ready_rows(self) -> int:
        """Rows that can be taken now."""
        return len(self._ready) - self._ready_position

    def wanted(self) -> list[tuple[int, bytes]]:
        """Shards whose next chunk is due, with the start to ask for; each is named once, until it was added or failed."""
        due: list[tuple[int, bytes]] = []
        for shard, cursor in self._cursors.items():
            if not cursor.is_finished and not cursor.is_fetching and 2 * cursor.buffered < self._chunk_rows:
                cursor.is_fetching = True
                due.append((shard, cursor.frontier))
        return due

    def add(self, shard: int, reply: ShardScanReply) -> bool:
        """Take in a shard's next chunk. False when it did not get any further: asked again it would say the same for ever."""
        cursor = self._cursors[shard]
        cursor.is_fetching = False
        count = len(reply.keys)
        values = reply.values if len(reply.values) == count else repeat(b"", count)
        expiries = reply.expires_at_ms if len(reply.expires_at_ms) == count else repeat(0, count)
        del cursor.rows[: cursor.position]
        cursor.position = 0
        cursor.rows.extend(zip(reply.keys, values, reply.versions, expiries, strict=True))
        cursor.is_finished = not reply.has_more
        before = cursor.frontier
        if reply.has_more:
            after_last = reply.keys[-1] + b"\0" if reply.keys else b""
            cursor.frontier = max(reply.resume, after_last, before)
        self._advance()
        return cursor.is_finished or cursor.frontier > before

    def divide(self, shard: int, heirs: Iterable[int]) -> None:
        """A shard was split while its next chunk was asked for: its heirs, itself among them, go on where it stands.

        What it delivered it delivered for all of them.
        """
        cursor = self._cursors[shard]
        cursor.is_fetching = False
        for heir in heirs:
            self._cursors.setdefault(heir, _Cursor(cursor.frontier))

    def fail(self, shard: int) -> None:
        """Expect nothing more of a shard; what it delivered is kept."""
        cursor = self._cursors[shard]
        cursor.is_fetching = False
        cursor.is_finished = True
        self._advance()

    def take(self, max_rows: int, max_bytes: int) -> list[Row]:
        """The next rows in key order, within both bounds (a single row may exceed max_bytes)."""
        begin = self._ready_position
        end = begin
        size = 0
        last = min(begin + max_rows, len(self._ready))
        while end < last:
            size += len(self._ready[end][0]) + len(self._ready[end][1])
            if size > max_bytes and end > begin:
                break
            end += 1
        rows = self._ready[begin:end]
        self._ready_position = end
        if end == len(self._ready):
            self._ready.clear()
            self._ready_position = 0
            self._advance()
        return rows

    def _advance(self) -> None:
        """Move what has become safe from the cursors to the ready rows, once those were all taken."""
        if self.ready_rows:
            return
        bound = min((c.frontier for c in self._cursors.values() if not c.is_finished), default=None)
        run: list[Row] = []
        for cursor in self._cursors.values():
            end = len(cursor.rows)
            if bound is not None:
                end = bisect_left(cursor.rows, bound, cursor.position, key=_key_of_row)
            run.extend(cursor.rows[cursor.position : end])
            cursor.position = end
        run.sort(key=_key_of_row)
        self._ready = run
        self._ready_position = 0


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
    streams = [zip(repeat(shard), reply.hits) for shard, reply in sorted(replies.items())]
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
