"""Snapshots of a shard's state: read from one consistent view at the sender, put in the place of the state at the receiver.

A snapshot is the rows of the state (`layout.STATE_TAGS`) as they are, in chunks of bounded size. What else makes a replica, the
dedup table and the position in the log, comes with the last chunk and is written by `install`.

The receiver's old state goes when the first chunk comes, and a mark says so until the snapshot is installed: a process that
finds the mark when it starts knows that what it has is nothing whole.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Final, TypeAlias

from kvshard.errors import DataLoss, ErrorDetails
from leaf import layout
from leaf.engine import Engine, View
from leaf.layout import HEADER_BYTES, Changes
from leaf.operations import NO_COUNTS, Counts
from leaf.replication.messages import DedupRecord

CHUNK_MAX_BYTES: Final = 1024 * 1024
CHUNK_MAX_ROWS: Final = 1_024
"""Of one chunk: reading it takes 2 ms, staging it 1.5. An event loop waits so long even for a thread that reads, for a thread
may keep Python's lock for 5 ms. One large value may go beyond."""

CHUNK_INTERVAL_S: Final = 0.014
"""Between two chunks that a leaf sends, of all its snapshots together: 73,000 small rows a second, or 70 MB/s of large ones. At
full speed, four times that, a catch-up took both ends' processors and the disk from the callers."""

SYNC_BYTES: Final = 4 * 1024 * 1024
"""Of staged rows not synced yet: else the fsync of the last chunk writes the whole shard, and all others wait for it."""

_ROW_BYTES: Final = 1 + 4 + 4 + HEADER_BYTES
"""What a stored key's row has besides key and value."""

Row: TypeAlias = tuple[bytes, bytes]
Install: TypeAlias = Callable[[int, int, Sequence[DedupRecord], int], Changes]
"""(seqno, epoch, dedup records, forgotten_through) -> what makes the staged rows the state."""


class Pace:
    """When the next chunk of a snapshot may be read. One for all snapshots that a leaf sends."""

    def __init__(self, interval_s: float = CHUNK_INTERVAL_S) -> None:
        self._interval_s = interval_s
        self._free_at = float("-inf")

    def __repr__(self) -> str:
        return f"Pace(free_at={self._free_at})"

    def take(self, now: float) -> float:
        """Take the next turn; returns the seconds until it comes."""
        turn = max(now, self._free_at)
        self._free_at = turn + self._interval_s
        return turn - now


class SnapshotSource:
    """The state of a shard at one instant, read chunk by chunk, once and in order. Used from one thread at a time, any one.

    total_bytes: about what all chunks will have, for a progress bar.
    """

    def __init__(
        self, view: View, shard: int, counts: Mapping[int, Counts], is_own: Callable[[bytes], bool] | None = None
    ) -> None:
        """is_own: tells the shard's keys from those that have left it and are not removed yet; None: all are its own."""
        self.total_bytes = sum(each.bytes + each.documents * _ROW_BYTES for each in counts.values())
        self._view = view
        self._shard = shard
        self._is_own = is_own
        # With keys that have left, stored counts may count these too: what is sent is counted instead.
        self._counts = dict.fromkeys(counts, NO_COUNTS) if is_own is not None else None
        tags = layout.STATE_TAGS if is_own is None else layout.STATE_TAGS.replace(b"c", b"")
        self._ranges = [layout.shard_range(tag, shard) for tag in tags]

    def __repr__(self) -> str:
        return f"SnapshotSource({self._view!r}, total_bytes={self.total_bytes})"

    def read(self, cursor: object) -> tuple[list[Row], bytes | None]:
        """(rows, cursor of the next chunk or None) after a cursor (None: from the begin). Raises StorageError."""
        assert cursor is None or isinstance(cursor, bytes)
        rows: list[Row] = []
        room, left = CHUNK_MAX_BYTES, CHUNK_MAX_ROWS
        for begin, end in self._ranges:
            if cursor is not None and cursor >= end:
                continue
            start = begin if cursor is None else max(begin, cursor + b"\0")
            found, has_more = self._view.scan(start, end, left, room)
            rows += found if self._is_own is None else self._own(found)
            left -= len(found)
            room -= sum([len(key) + len(value) for key, value in found])
            if has_more or room <= 0 or left <= 0:
                # Perhaps nothing follows: then the last chunk is empty.
                return rows, found[-1][0]
        rows += [(layout.counts_key(self._shard, each), layout.pack_counts(*n)) for each, n in (self._counts or {}).items()]
        return rows, None

    def _own(self, found: Sequence[Row]) -> list[Row]:
        """The rows of the shard's own keys among these; counts those that are keys."""
        assert self._is_own is not None
        assert self._counts is not None
        kept: list[Row] = []
        for row_key, row in found:
            tag = row_key[:1]
            if tag == b"r":
                kept.append((row_key, row))
                continue
            collection_id, key = layout.expiry_of(row_key)[1:] if tag == b"x" else layout.key_of_place(row_key)
            if not self._is_own(key):
                continue
            kept.append((row_key, row))
            if tag == b"v":
                documents, size = self._counts.get(collection_id, NO_COUNTS)
                self._counts[collection_id] = Counts(documents + 1, size + len(key) + layout.header_of(row)[2])
        return kept

    def close(self) -> None:
        """Let the view go."""
        self._view.close()


class StagedSnapshot:
    """A snapshot that is arriving, its rows already where they will be read. Made by `ShardStore.stage_snapshot`."""

    def __init__(self, engine: Engine, shard: int, install: Install) -> None:
        self.bytes = 0
        self._unsynced = 0
        self._engine = engine
        self._shard = shard
        self._install = install
        self._prefixes = frozenset(layout.shard_range(tag, shard)[0] for tag in layout.STATE_TAGS)

    def __repr__(self) -> str:
        return f"StagedSnapshot(shard={self._shard}, bytes={self.bytes})"

    def add(self, rows: object) -> int:
        """Write a chunk, unsynced. Returns its bytes. Raises StorageError, or DataLoss when these are no rows of this state."""
        assert isinstance(rows, list | tuple)
        batch = self._engine.new_batch()
        prefixes, put, size = self._prefixes, batch.put, 0
        for key, value in rows:
            if key[:5] not in prefixes:
                text = f"a snapshot of shard {self._shard} holds a row that is none of its state"
                raise DataLoss(text, ErrorDetails(shards=(self._shard,)))
            put(key, value)
            size += len(key) + len(value)
        self._engine.write(batch)
        self.bytes += size
        self._unsynced += size
        return size

    def wants_sync(self) -> bool:
        """Whether so much was written that it should be synced now; then counts anew."""
        is_due = self._unsynced >= SYNC_BYTES
        if is_due:
            self._unsynced = 0
        return is_due

    def install(self, seqno: int, epoch: int, dedup: Sequence[DedupRecord], forgotten_through: int) -> Changes:
        """All rows are here: they are the state after entry (epoch, seqno). Returns what makes it last, for the committer."""
        return self._install(seqno, epoch, dedup, forgotten_through)
