"""Reads the end of a shard's log back from the disk, when its replica is opened."""

from collections import deque
from typing import Final, NamedTuple

from kvshard.errors import DataLoss, ErrorDetails
from leaf import layout
from leaf.engine import Engine
from leaf.entry_codec import decode_entry, epoch_of
from leaf.replication.messages import Entry
from leaf.replication.oplog import RETAINED_BYTES, RETAINED_ENTRIES

CHUNK_ROWS: Final = 512
"""Rows of one read; their bytes are bounded by the engine."""


class Tail(NamedTuple):
    """Entries (base_seqno, last] with the bytes of their rows. base_epoch: epoch of the entry at the base."""

    base_seqno: int
    base_epoch: int
    entries: list[Entry]
    sizes: list[int]


def read_tail(engine: Engine, shard: int, trimmed: tuple[int, int | None], applied: int) -> Tail:
    """What a replica keeps of its log in memory: all that is not applied, and before it what the retention allows.

    trimmed: (seqno, epoch) of the newest entry that was removed. Raises DataLoss unless the log goes without a gap from there
    to the applied seqno or beyond.
    """
    base, epoch = trimmed
    if applied - RETAINED_ENTRIES > base:
        base = applied - RETAINED_ENTRIES
        row = engine.get(layout.log_key(shard, base))
        if row is None:
            raise _gap(shard, base)
        epoch = epoch_of(row)
    kept: deque[tuple[Entry, int]] = deque()
    retained_bytes = 0
    last = base
    start, end = layout.log_range(shard, base)
    has_more = True
    while has_more:
        rows, has_more = engine.scan(start, end, CHUNK_ROWS)
        for _, row in rows:
            entry = decode_entry(row)
            if entry.seqno != last + 1 or entry.epoch < (kept[-1][0].epoch if kept else epoch or 0):
                raise _gap(shard, last + 1)
            last = entry.seqno
            kept.append((entry, len(row)))
            retained_bytes += entry.size if last <= applied else 0
            # The rows of an earlier version of this program do not say the epoch at their base: begin one entry later.
            while retained_bytes > RETAINED_BYTES or (epoch is None and last <= applied):
                first, _ = kept.popleft()
                retained_bytes -= first.size
                base, epoch = first.seqno, first.epoch
        start = rows[-1][0] + b"\0" if rows else end
    if last < applied:
        raise _gap(shard, last + 1)
    return Tail(base, epoch or 0, [entry for entry, _ in kept], [size for _, size in kept])


def _gap(shard: int, seqno: int) -> DataLoss:
    return DataLoss(
        f"the log of shard {shard} is damaged: entry {seqno} is not where it must be", ErrorDetails(shards=(shard,))
    )
