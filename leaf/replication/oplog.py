"""The part of a shard's log that a replica holds in memory: what is not yet committed, and what others may still need.

Beyond the bounds the oldest committed entries go (`Retention`); a replica that needs them gets a snapshot instead.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from leaf.replication.messages import Entry

RETAINED_ENTRIES: Final = 4_096
"""A few seconds of writes: a replica that was away for the time of a restart goes on from the log."""

RETAINED_BYTES: Final = 8 * 1024 * 1024
"""Per shard; eight shards then hold 64 MB of log at most while nobody catches up."""

PINNED_FACTOR: Final = 8
"""While a snapshot is under way the log after it is kept up to so many times the bounds, else the learner would start again."""


@dataclass(frozen=True, slots=True)
class Retention:
    """Bounds on the committed entries that are kept."""

    entries: int = RETAINED_ENTRIES
    bytes: int = RETAINED_BYTES


class ReplicatedLog:
    """Entries (base, last], without a gap, epochs never falling.

    base: the position before the first entry held; its epoch is known, so that a successor can be matched. last: seqno of the
    newest entry.
    """

    def __init__(self, base_seqno: int, base_epoch: int, entries: Iterable[Entry] = ()) -> None:
        self.base_seqno = base_seqno
        self.base_epoch = base_epoch
        self.last = base_seqno
        self.bytes = 0
        self._entries: list[Entry] = []
        for entry in entries:
            self.append(entry)

    def __repr__(self) -> str:
        return f"ReplicatedLog(({self.base_seqno}, {self.last}], epoch={self.last_epoch})"

    @property
    def last_epoch(self) -> int:
        """Epoch of the newest entry."""
        return self._entries[-1].epoch if self._entries else self.base_epoch

    def epoch_at(self, seqno: int) -> int | None:
        """Epoch of an entry, or of the base; None where the log does not reach."""
        index = seqno - self.base_seqno - 1
        if index == -1:
            return self.base_epoch
        return self._entries[index].epoch if 0 <= index < len(self._entries) else None

    def entry(self, seqno: int) -> Entry:
        """The entry at a seqno that is held."""
        assert self.base_seqno < seqno <= self.last
        return self._entries[seqno - self.base_seqno - 1]

    def append(self, entry: Entry) -> None:
        """Add the next entry."""
        assert entry.seqno == self.last + 1, f"{entry.seqno} does not follow {self!r}"
        assert entry.epoch >= self.last_epoch, f"epoch {entry.epoch} after {self!r}"
        self._entries.append(entry)
        self.last = entry.seqno
        self.bytes += entry.size

    def between(self, after: int, through: int) -> tuple[Entry, ...]:
        """The entries (after, through]; after must not lie before the base."""
        assert after >= self.base_seqno
        return tuple(self._entries[after - self.base_seqno : through - self.base_seqno])

    def batch(self, after: int, max_entries: int, max_bytes: int) -> tuple[Entry, ...]:
        """The entries that follow `after`, at least one if there is one, within the bounds."""
        found = self.between(after, min(self.last, after + max_entries))
        size = 0
        for index, entry in enumerate(found):
            size += entry.size
            if size > max_bytes and index:
                return found[:index]
        return found

    def conflict_hint(self, seqno: int) -> int:
        """Given that the entry at a seqno is not the primary's: the last position before the run of entries of its epoch."""
        epoch = self.epoch_at(seqno)
        while seqno > self.base_seqno and self.epoch_at(seqno) == epoch:
            seqno -= 1
        return seqno

    def truncate(self, after: int) -> tuple[Entry, ...]:
        """Remove and return the entries after a seqno."""
        assert after >= self.base_seqno
        removed = self.between(after, self.last)
        del self._entries[after - self.base_seqno :]
        self.last = after
        self.bytes -= sum(entry.size for entry in removed)
        return removed

    def trim_point(self, committed: int, committed_bytes: int, pinned: int | None, retention: Retention) -> int:
        """The seqno through which entries may go now; the base when none need to.

        committed_bytes: of the entries through `committed`. pinned: a learner needs those after it, unless they are too many.
        """
        kept = committed - self.base_seqno
        if kept <= retention.entries and committed_bytes <= retention.bytes:
            return self.base_seqno
        if pinned is None:
            return self._point(kept, committed_bytes, retention.entries, retention.bytes)
        most, most_bytes = PINNED_FACTOR * retention.entries, PINNED_FACTOR * retention.bytes
        if kept > most or committed_bytes > most_bytes:
            return self._point(kept, committed_bytes, most, most_bytes)
        # Not for a few: see _point.
        return min(pinned, committed) if pinned - self.base_seqno > retention.entries // 2 else self.base_seqno

    def _point(self, kept: int, kept_bytes: int, most: int, most_bytes: int) -> int:
        """Where to cut so many committed entries so that half of what is allowed stays: a cut copies the list."""
        count = kept - most // 2 if kept > most else 0
        if kept_bytes > most_bytes:
            surplus = kept_bytes - most_bytes // 2
            for index in range(kept):
                surplus -= self._entries[index].size
                if surplus <= 0:
                    count = max(count, index + 1)
                    break
        return self.base_seqno + count

    def trim(self, through: int) -> None:
        """Forget the entries through a seqno."""
        count = through - self.base_seqno
        if count <= 0:
            return
        epoch = self.epoch_at(through)
        assert epoch is not None
        self.bytes -= sum(entry.size for entry in self._entries[:count])
        del self._entries[:count]
        self.base_seqno, self.base_epoch = through, epoch
