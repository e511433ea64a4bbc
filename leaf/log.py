"""Which part of a shard's log is kept on the disk.

The log serves the search indexes (they are fed from it) and replicas that catch up. Rule of the trim point, the highest seqno
that may go:

    - never an entry that is not applied: a restart needs it; nor one that the machine holds for other replicas (`oplog.py`);
    - never one that an index has not made durable, unless the log outgrew LOG_MAX_BYTES or LOG_MAX_ENTRIES (such an index is
      rebuilt from the values, which costs time but no data);
    - of the rest keep the newest RETAINED_ENTRIES, but no more than RETAINED_BYTES.

Pure: imports only the standard library.
"""

from collections import deque
from itertools import islice
from typing import Final

RETAINED_ENTRIES: Final = 4_096
"""A few seconds of writes: an index that was closed, or a replica that restarts, goes on from the log in most cases."""

RETAINED_BYTES: Final = 4 * 1024 * 1024
"""Eight shards then keep 32 MB of log, and the machine as much as it holds in memory, if that is more: with a million small
keys it would else take more of the disk than these."""

LOG_MAX_BYTES: Final = 512 * 1024 * 1024
"""Of one shard. To read more log than this takes longer than to rebuild an index from the values."""

LOG_MAX_ENTRIES: Final = 1_000_000
"""Of one shard, the same for small entries; and their sizes are kept in memory, 36 bytes each."""

TRIM_STEP: Final = 1_024
"""Entries that one trim removes at least: each leaves a range tombstone, which every scan of the log has to pass."""

TRIM_STEP_BYTES: Final = 2 * 1024 * 1024
"""Or these bytes at least, so that a log of few large entries is trimmed too."""


class LogWindow:
    """Positions and sizes of the entries that are kept.

    Invariant: trimmed <= last, and the sizes are those of the newest `len(sizes)` entries; entries before them, left from an
    earlier run of the process, count 0 bytes.
    """

    def __init__(self, trimmed: int, last: int) -> None:
        assert 0 <= trimmed <= last
        self.trimmed = trimmed
        self.last = last
        self.bytes = 0
        self._sizes: deque[int] = deque()

    def __repr__(self) -> str:
        return f"LogWindow(trimmed={self.trimmed}, last={self.last}, bytes={self.bytes})"

    def append(self, seqno: int, size: int) -> None:
        """An entry was added."""
        assert seqno == self.last + 1, f"{seqno} does not follow {self.last}"
        self.last = seqno
        self.bytes += size
        self._sizes.append(size)

    def truncate(self, after: int) -> None:
        """The entries after a seqno were taken back."""
        assert after >= self.trimmed, f"entries after {after} are taken back, {self!r}"
        while self._sizes and self.last > after:
            self.bytes -= self._sizes.pop()
            self.last -= 1
        self.last = min(self.last, after)

    def trim_point(self, released: int, indexed_through: int | None) -> int | None:
        """The seqno through which entries are to be removed now; None: nothing worth it.

        released: entries after it are needed here or by other replicas. indexed_through: the lowest one among the shard's
        indexes, None without any.
        """
        if self.last - self.trimmed < TRIM_STEP and self.bytes < TRIM_STEP_BYTES:
            return None
        point, freed = self._beyond(RETAINED_ENTRIES, RETAINED_BYTES)
        has_outgrown = self.bytes > LOG_MAX_BYTES or len(self._sizes) > LOG_MAX_ENTRIES
        if indexed_through is not None and indexed_through < point and not has_outgrown:
            point, freed = indexed_through, self._bytes_through(indexed_through)
        if released < point:
            point, freed = released, self._bytes_through(released)
        is_worth_it = point - self.trimmed >= TRIM_STEP or freed >= TRIM_STEP_BYTES
        return point if is_worth_it and point > self.trimmed else None

    def trim(self, through: int) -> None:
        """The entries through a seqno were removed."""
        assert self.trimmed <= through <= self.last
        self.trimmed = through
        while len(self._sizes) > self.last - through:
            self.bytes -= self._sizes.popleft()

    def _beyond(self, entries: int, size_limit: int) -> tuple[int, int]:
        """(seqno, bytes through it) of the newest entry outside a window of so many entries and bytes."""
        kept_bytes = 0
        for kept, size in enumerate(reversed(self._sizes)):
            if kept == entries or kept_bytes + size > size_limit:
                return self.last - kept, self.bytes - kept_bytes
            kept_bytes += size
        return max(self.trimmed, self.last - entries), 0

    def _bytes_through(self, seqno: int) -> int:
        known_from = self.last - len(self._sizes)
        return sum(islice(self._sizes, max(0, seqno - known_from)))
