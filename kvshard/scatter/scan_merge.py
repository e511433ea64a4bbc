"""Merging the chunks of many shards into one ordered stream.

A row may be emitted only when no shard can still deliver a smaller key, that is when its key lies below the point up to which
every unfinished shard has delivered (the smallest frontier). Rows below that point are sorted as one list: each shard's part is
sorted already, and Python's sort merges sorted runs in C, several times faster than a heap of Python objects would.

Pure: imports only the standard library and other pure files.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, repeat
from operator import add, itemgetter
from typing import Final, NamedTuple

from kvshard.model import ShardScanReply
from kvshard.scatter.scan_chunks import ROW_COST_BYTES, SHORT_SCAN_KEYS

Row = tuple[bytes, bytes, int, int]
"""Key, value, version, expires_at_ms."""

_key_of_row: Callable[[Row], bytes] = itemgetter(0)


class Rows(NamedTuple):
    """Rows in key order, as columns. cost: bytes that they take in memory, about."""

    keys: Sequence[bytes]
    values: Sequence[bytes]
    versions: Sequence[int]
    expires_at_ms: Sequence[int]
    cost: int


NO_ROWS: Final = Rows((), (), (), (), 0)


class Due(NamedTuple):
    """A chunk to be fetched: from a shard, its keys from `start` on. chunks: how many it has delivered."""

    shard: int
    start: bytes
    chunks: int


@dataclass(slots=True)
class _Cursor:
    """How far one shard has delivered. Everything of it below `frontier` is in `rows`, is ready, or was emitted.

    chunk_rows: of the newest chunk. is_finished: nothing will follow (the end was reached, or the shard failed).
    """

    frontier: bytes
    rows: list[Row] = field(default_factory=list)
    chunks: int = 0
    chunk_rows: int = 0
    is_finished: bool = False
    is_fetching: bool = False


class ScanMerge:
    """Merges chunks in key order. They are fetched by the caller: `wanted` says which are due.

    Bound: the next chunk of a shard is fetched once less than half of the last one is left, so at most three chunks a shard
    are held: in the ready rows, buffered, and on the way.
    """

    def __init__(self, shards: Iterable[int], start: bytes) -> None:
        self._cursors = {shard: _Cursor(start) for shard in shards}
        self._ready: list[Row] = []
        self._bound: bytes | None = start
        self._rows = 0
        self._cost = 0

    def __repr__(self) -> str:
        open_shards = {
            shard: (c.frontier, len(c.rows), c.is_fetching) for shard, c in self._cursors.items() if not c.is_finished
        }
        return f"ScanMerge(ready={self.ready_rows}, open={open_shards})"

    @property
    def is_done(self) -> bool:
        """True when every row was taken and no shard has more."""
        return not self._ready and all(c.is_finished and not c.rows for c in self._cursors.values())

    @property
    def ready_rows(self) -> int:
        """Rows that can be taken now."""
        return len(self._ready)

    @property
    def row_bytes(self) -> int:
        """What a row takes in memory, on average so far; 0 before the first one."""
        return self._cost // self._rows if self._rows else 0

    @property
    def shards(self) -> int:
        """Shards that may have more."""
        return sum(not cursor.is_finished for cursor in self._cursors.values())

    def wanted(self, rows_left: int | None = None, *, is_memory_short: bool = False) -> list[Due]:
        """Chunks that are due; a shard is named once, until its chunk was added or it failed.

        rows_left: how many further rows the scan wants; None: all. is_memory_short: only what the next rows need.
        """
        if rows_left is not None and self.ready_rows >= rows_left:
            return []
        due = [
            (shard, cursor)
            for shard, cursor in self._cursors.items()
            if not cursor.is_finished and not cursor.is_fetching and self._is_due(cursor, is_memory_short)
        ]
        if due and rows_left is not None and rows_left <= SHORT_SCAN_KEYS:
            last = self._last_wanted(rows_left - self.ready_rows)
            if last is not None:
                due = [(shard, cursor) for shard, cursor in due if cursor.frontier <= last]
        for _, cursor in due:
            cursor.is_fetching = True
        return [Due(shard, cursor.frontier, cursor.chunks) for shard, cursor in due]

    def _is_due(self, cursor: _Cursor, is_memory_short: bool) -> bool:
        if is_memory_short:
            return not cursor.rows and not self._ready
        return 2 * len(cursor.rows) < cursor.chunk_rows or not cursor.rows

    def _last_wanted(self, more: int) -> bytes | None:
        """The key behind which a scan that wants so many rows besides the ready ones wants nothing; None: that is not known."""
        known = sorted([row[0] for cursor in self._cursors.values() for row in cursor.rows[:more]])
        return known[more - 1] if len(known) >= more else None

    def add(self, shard: int, reply: ShardScanReply) -> tuple[int, bool]:
        """Take in a shard's next chunk. Returns the bytes that it takes in memory, about, and whether the shard got further.

        One that did not would say the same for ever.
        """
        cursor = self._cursors[shard]
        cursor.is_fetching = False
        count = len(reply.keys)
        values = reply.values if len(reply.values) == count else repeat(b"", count)
        expiries = reply.expires_at_ms if len(reply.expires_at_ms) == count else repeat(0, count)
        cursor.rows.extend(zip(reply.keys, values, reply.versions, expiries, strict=True))
        cursor.chunks += 1
        cursor.chunk_rows = count
        cursor.is_finished = not reply.has_more
        before = cursor.frontier
        if reply.has_more:
            after_last = reply.keys[-1] + b"\0" if reply.keys else b""
            cursor.frontier = max(reply.resume, after_last, before)
        size = sum(map(len, reply.keys)) + (sum(map(len, reply.values)) if values is reply.values else 0)
        cost = size + ROW_COST_BYTES * count
        self._rows += count
        self._cost += cost
        return cost, cursor.is_finished or cursor.frontier > before

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

    def advance(self, enough: int) -> None:
        """Have ready what has become safe, unless so many rows are ready already."""
        if len(self._ready) >= enough:
            return
        bound = min([c.frontier for c in self._cursors.values() if not c.is_finished], default=None)
        if bound == self._bound and bound is not None:
            return  # A shard delivers nothing below its frontier, so nothing new lies below the smallest one.
        self._bound = bound
        run: list[Row] = []
        runs = 0
        for cursor in self._cursors.values():
            rows = cursor.rows
            end = len(rows) if bound is None else bisect_left(rows, bound, key=_key_of_row)
            if end:
                run += rows[:end]
                del rows[:end]
                runs += 1
        if runs > 1:
            run.sort(key=_key_of_row)
        self._ready += run

    def take(self, max_rows: int, max_bytes: int) -> Rows:
        """The next rows in key order, within both bounds (a single row may exceed max_bytes)."""
        run = self._ready[:max_rows]
        if not run:
            return NO_ROWS
        keys, values, versions, expiries = zip(*run, strict=True)
        sizes = list(accumulate(map(add, map(len, keys), map(len, values))))
        end = max(1, bisect_right(sizes, max_bytes))
        del self._ready[:end]
        if end < len(run):
            keys, values, versions, expiries = keys[:end], values[:end], versions[:end], expiries[:end]
        return Rows(keys, values, versions, expiries if any(expiries) else (), sizes[end - 1] + ROW_COST_BYTES * end)
