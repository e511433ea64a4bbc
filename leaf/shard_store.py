"""The shards of a leaf in its engine: what is kept of each, how entries change it, how keys are read.

Everything here is synchronous and quick: bounded chunks, no waiting. State changes only in `apply`, which writes what
`operations.apply_entries` says, and when a snapshot takes its place. Methods that return Changes leave it to the committer to
write them, in order with all else that must be durable.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final, cast

from kvshard.errors import DataLoss, ErrorDetails, InvalidArgument, NotReady
from kvshard.model import ShardRead, ShardReadReply, ShardScan, ShardScanReply
from leaf import layout
from leaf.count_rows import read_counts
from leaf.dedup_rows import DedupRows
from leaf.engine import Engine
from leaf.entry_codec import EntryRows, epoch_of
from leaf.key_cache import KeyCache
from leaf.key_reader import READ_CHUNK_KEYS, KeyReader
from leaf.layout import INLINE_MAX_BYTES, Changes, Header
from leaf.log import LogWindow
from leaf.log_rows import read_tail
from leaf.operations import (
    EXPIRES_MAX_MS,
    NO_COUNTS,
    Counts,
    DropCollection,
    Split,
    WriteOperation,
    apply_entries,
    soonest_expiry,
)
from leaf.recovery import Held
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import DedupRecord, Entry
from leaf.scan_reader import ScanReader
from leaf.snapshots import SnapshotSource, StagedSnapshot
from leaf.split_rows import SplitRows, SplitState

_UNKNOWN: Final = object()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What the disk holds of a replica, apart from its rows.

    epoch: the one saved last. entries: the end of the log, those in (base_seqno, last]. dedup: the table at `applied`.
    has_staging: a snapshot was being installed; what there is is nothing whole.
    """

    epoch: int
    base_seqno: int
    base_epoch: int
    applied: int
    entries: list[Entry]
    dedup: DedupTable
    has_staging: bool


@dataclass(slots=True)
class ShardState:
    """What is kept in memory of one shard. Replaced when a snapshot is installed.

    counts is replaced, never changed, so that other threads may read it.
    generation: how many snapshots were installed. trim_through: entries after it are held for other replicas.
    remembered: headers of keys that entries in flight write, as `remember` was told; always equal to what the engine holds.
    expires_from: no expiry row is earlier. The engine keeps tombstones of those that were removed, a look from the first on
    would pass over all of them.
    is_staging: a snapshot is arriving, there is no state. splits: what has left the shard, and what is to.
    """

    applied: int
    counts: dict[int, Counts]
    window: LogWindow
    dedup_rows: DedupRows
    generation: int
    trim_through: int
    remembered: dict[int, dict[bytes, Header | None]] = field(default_factory=dict)
    expires_from: int = 0
    is_staging: bool = False
    splits: SplitState = field(default_factory=SplitState)


class ShardStore:
    """All shards of one leaf. Methods run on the event loop, save where `index_feed.py` calls the reading ones on threads.

    cache: of keys that were read; what changes a shard's rows is told to it here, and nowhere else.
    """

    def __init__(self, engine: Engine, cache: KeyCache | None = None) -> None:
        self.engine = engine
        self.cache = cache if cache is not None else KeyCache()
        self._reader = KeyReader(engine, self.cache)
        self._scanner = ScanReader(engine, self._reader)
        self.rows = EntryRows()
        self.splits = SplitRows(engine)
        self._states: dict[int, ShardState] = {}

    def __repr__(self) -> str:
        return f"ShardStore({self.engine!r}, shards={sorted(self._states)})"

    def has(self, shard: int) -> bool:
        """Whether the shard is loaded."""
        return shard in self._states

    def state(self, shard: int) -> ShardState:
        """The shard's state in memory. Raises NotReady before it is loaded."""
        state = self._states.get(shard)
        if state is None:
            raise NotReady(f"shard {shard} is not loaded", ErrorDetails(shards=(shard,)))
        return state

    def _whole(self, shard: int) -> ShardState:
        state = self.state(shard)
        if state.is_staging:
            raise NotReady(f"the replica of shard {shard} is being filled", ErrorDetails(shards=(shard,)))
        return state

    # -- what the disk holds --------------------------------------------------------------------------------------------

    def held(self, shard: int) -> Held:
        """The identity of what the disk holds."""
        has_history = self._number(shard, layout.APPLIED) > 0 or bool(self.engine.scan(*layout.log_range(shard, 0), 1).rows)
        incarnation = (self.engine.get(layout.meta_key(shard, layout.INCARNATION)) or b"").decode()
        return Held(incarnation, has_history, self.engine.get(layout.meta_key(shard, layout.STAGING)) is None)

    @staticmethod
    def incarnation_row(shard: int, incarnation: str) -> tuple[bytes, bytes]:
        """The row that gives the shard's data its identity."""
        return layout.meta_key(shard, layout.INCARNATION), incarnation.encode()

    def load(self, shard: int) -> Loaded:
        """Read what a replica begins with. Raises DataLoss when the log is damaged, StorageError."""
        self.cache.forget_shard(shard)
        applied = self._number(shard, layout.APPLIED)
        row = self.engine.get(layout.meta_key(shard, layout.TRIMMED))
        trimmed = layout.unpack_position(row) if row else (0, 0)
        tail = read_tail(self.engine, shard, trimmed, applied)
        dedup_rows = DedupRows(shard)
        dedup = dedup_rows.load(self.engine)
        window = LogWindow(trimmed[0], tail.base_seqno)
        for entry, size in zip(tail.entries, tail.sizes, strict=True):
            window.append(entry.seqno, size)
        has_staging = self.engine.get(layout.meta_key(shard, layout.STAGING)) is not None
        counts, generation = read_counts(self.engine, shard), self._number(shard, layout.GENERATION)
        splits = self.splits.load(shard)
        self._states[shard] = ShardState(
            applied, counts, window, dedup_rows, generation, tail.base_seqno, is_staging=has_staging, splits=splits
        )
        epoch = self._number(shard, layout.EPOCH)
        return Loaded(epoch, tail.base_seqno, tail.base_epoch, applied, tail.entries, dedup, has_staging)

    def _number(self, shard: int, name: bytes) -> int:
        row = self.engine.get(layout.meta_key(shard, name))
        return layout.unpack_number(row) if row else 0

    def history(self, shard: int) -> str:
        """Names the past of the shard's data: it changes when the data is created anew or replaced by a snapshot."""
        return f"{self.held(shard).incarnation}/{self.state(shard).generation}"

    def wipe(self, shard: int) -> Changes:
        """Remove everything of a shard that is not served any more, and what was being made of it for a split."""
        self._states.pop(shard, None)
        self.cache.forget_shard(shard)
        changes = Changes()
        self.splits.wipe(shard, changes)
        for tag in layout.ALL_TAGS:
            changes.delete_range(*layout.shard_range(tag, shard))
        return changes

    # -- the log --------------------------------------------------------------------------------------------------------

    def append(self, shard: int, entries: Sequence[Entry]) -> Changes:
        """Add entries to the log."""
        window = self.state(shard).window
        changes = Changes()
        for entry in entries:
            row = self.rows.row_of(entry)
            window.append(entry.seqno, len(row))
            changes.put(layout.log_key(shard, entry.seqno), row)
        return changes

    def truncate(self, shard: int, after: int) -> Changes:
        """Take back the entries after a seqno; none of them is applied."""
        state = self.state(shard)
        assert after >= state.applied, f"shard {shard}: applied entries after {after} are taken back"
        state.window.truncate(after)
        state.remembered.clear()
        changes = Changes()
        changes.delete_range(*layout.log_range(shard, after))
        return changes

    def epoch_changes(self, shard: int, epoch: int) -> Changes:
        """Remember the epoch."""
        changes = Changes()
        changes.put(layout.meta_key(shard, layout.EPOCH), layout.pack_number(epoch))
        return changes

    def trim_point(self, shard: int, indexed_through: int | None) -> int | None:
        """The seqno through which `trim_log` is worth its while now, if any. indexed_through: of the least of the indexes."""
        state = self.state(shard)
        return state.window.trim_point(min(state.applied, state.trim_through), indexed_through)

    def trim_log(self, shard: int, through: int) -> None:
        """Remove the log's entries through a seqno, but none that is not applied or is held for other replicas."""
        state = self.state(shard)
        through = min(through, state.applied, state.trim_through)
        if through <= state.window.trimmed:
            return
        row = self.engine.get(layout.log_key(shard, through))
        if row is None:
            raise DataLoss(f"entry {through} of the log of shard {shard} is missing", ErrorDetails(shards=(shard,)))
        batch = self.engine.new_batch()
        batch.delete_range(layout.log_key(shard, state.window.trimmed), layout.log_key(shard, through + 1))
        batch.put(layout.meta_key(shard, layout.TRIMMED), layout.pack_position(through, epoch_of(row)))
        # Marked before the rows go: a reader on another thread that finds none must see why.
        state.window.trim(through)
        self.engine.write(batch)

    # -- the state ------------------------------------------------------------------------------------------------------

    def apply(self, shard: int, entries: Sequence[Entry], dedup: DedupTable) -> None:
        """Write what the entries change, with the counts and the applied seqno, in one unsynced batch.

        dedup: the table with these entries in it already; what they changed of it is written too.
        """
        state = self.state(shard)
        assert not state.is_staging, f"shard {shard}: entries are applied while a snapshot arrives"
        assert entries[0].seqno == state.applied + 1, f"shard {shard}: {entries[0].seqno} after {state.applied}"
        assert not any(isinstance(entry.payload, Split) for entry in entries[:-1]), f"shard {shard}: entries after a split"
        splits = state.splits
        if splits.late and any(isinstance(entry.payload, DropCollection) for entry in entries):
            # The drop removes rows that are still to be copied. It takes a drop while a replica that was not ready for a split
            # catches up on it; then the loop is held for as long as the copy takes.
            state.counts = self.splits.finish_late(shard, splits, state.counts)
        batch = self.engine.new_batch()
        learned: dict[int, dict[bytes, Header | None]] = {}

        def headers(collection_id: int, keys: Sequence[bytes]) -> Sequence[Header | None]:
            found = self._recall(shard, state.remembered.get(collection_id), collection_id, keys)
            if splits.shadow is not None:
                learned.setdefault(collection_id, {}).update(zip(keys, found, strict=True))
            return found

        counts = apply_entries(shard, entries, headers, state.counts, batch)
        counts = self.splits.follow(shard, splits, entries, learned, counts, dedup, batch)
        state.dedup_rows.write(entries, dedup, batch)
        last = entries[-1].seqno
        # Before the rows are there: a reader on another thread that sees them must not look behind them.
        state.expires_from = min(state.expires_from, soonest_expiry(entries))
        batch.put(layout.meta_key(shard, layout.APPLIED), layout.pack_number(last))
        self.engine.write(batch)
        self._note_applied(shard, state, entries)
        state.counts = counts
        state.applied = last

    def _note_applied(self, shard: int, state: ShardState, entries: Sequence[Entry]) -> None:
        """What these entries change is in the engine: keep equal to it what is remembered of it."""
        cache = self.cache
        for entry in entries:
            match entry.payload:
                case WriteOperation(collection_id, keys, values, expiries):
                    cache.note_write(shard, collection_id, keys, values, entry.seqno, expiries, INLINE_MAX_BYTES)
                case DropCollection(collection_id):
                    state.remembered.pop(collection_id, None)
                    cache.forget_collection(shard, collection_id)
                case Split():
                    state.remembered.clear()
                    cache.forget_shard(shard)

    def open_snapshot(self, shard: int) -> SnapshotSource:
        """A view of the state as it is now. Raises StorageError."""
        state = self.state(shard)
        assert not state.is_staging, f"shard {shard} has no state to send"
        return SnapshotSource(self.engine.snapshot(), shard, state.counts, self._filter(state))

    def stage_snapshot(self, shard: int) -> StagedSnapshot:
        """Begin to replace the state by a snapshot: it is gone when this returns. Raises StorageError.

        Nothing waits for the disk: batches survive a crash in order, so wherever a staged row is, the mark is too.
        """
        state = self.state(shard)
        # Marked before the rows go: a reader on another thread that misses them must see why.
        state.is_staging = True
        state.remembered.clear()
        self.cache.forget_shard(shard)
        batch = self.engine.new_batch()
        batch.put(layout.meta_key(shard, layout.STAGING), b"")
        for tag in layout.STATE_TAGS:
            batch.delete_range(*layout.shard_range(tag, shard))
        self.splits.wipe(shard, batch)
        self.engine.write(batch)
        state.splits = SplitState()

        def install(seqno: int, epoch: int, dedup: Sequence[DedupRecord], forgotten_through: int) -> Changes:
            return self._install(shard, seqno, epoch, dedup, forgotten_through)

        return StagedSnapshot(self.engine, shard, install)

    def _install(self, shard: int, seqno: int, epoch: int, dedup: Sequence[DedupRecord], forgotten_through: int) -> Changes:
        """What was staged is the state now, after entry (epoch, seqno), where the log goes on."""
        generation = self.state(shard).generation + 1
        changes = Changes()
        changes.delete_range(*layout.log_range(shard, 0))
        changes.put(layout.meta_key(shard, layout.TRIMMED), layout.pack_position(seqno, epoch))
        changes.put(layout.meta_key(shard, layout.APPLIED), layout.pack_number(seqno))
        changes.put(layout.meta_key(shard, layout.GENERATION), layout.pack_number(generation))
        dedup_rows = DedupRows(shard)
        dedup_rows.replace(dedup, forgotten_through, changes)
        changes.delete(layout.meta_key(shard, layout.STAGING))
        counts, splits = read_counts(self.engine, shard), self.splits.load(shard)
        window = LogWindow(seqno, seqno)
        self._states[shard] = ShardState(seqno, counts, window, dedup_rows, generation, trim_through=seqno, splits=splits)
        return changes

    def remember(self, shard: int, collection_id: int, headers: Mapping[bytes, Header | None]) -> None:
        """Keep the headers that were just read of keys about to be written, so that `apply` need not read them again.

        The first entry applied to a key takes its header away: the next one finds another in the engine.
        """
        self.state(shard).remembered.setdefault(collection_id, {}).update(headers)

    def _recall(
        self, shard: int, remembered: dict[bytes, Header | None] | None, collection_id: int, keys: Sequence[bytes]
    ) -> Sequence[Header | None]:
        if remembered:
            # All of them are taken away, also when one is unknown: what stayed would be older than these entries.
            known = list(map(remembered.pop, keys, repeat(_UNKNOWN)))
            if _UNKNOWN not in known:
                return cast("list[Header | None]", known)
        return self.headers(shard, collection_id, keys)

    def _filter(self, state: ShardState) -> Callable[[bytes], bool] | None:
        """Tells the shard's keys from those that have left it; None: all that are stored are its own."""
        if not state.splits.has_leftovers:
            return None
        last_slot, slot_of = state.splits.last_slot, self.splits.slot_of
        return lambda key: slot_of(key) <= last_slot

    def filter_of(self, shard: int) -> Callable[[bytes], bool] | None:
        """Tells the shard's keys from those that have left it and are not removed yet; None: there are none of those."""
        return self._filter(self.state(shard))

    def copy_chunk(self, shard: int) -> None:
        """Copy the next piece of what is to leave the shard, or has left it. Raises StorageError."""
        state = self.state(shard)
        state.counts = self.splits.copy(shard, state.splits, state.counts)

    def clean_chunk(self, shard: int, child: int) -> bool:
        """Remove the next piece of what has left the shard for a child. Returns whether that was all. Raises StorageError."""
        state = self.state(shard)
        state.counts = self.splits.clean(shard, state.splits, child, state.counts)
        return all(each.part.child != child for each in state.splits.departed)

    def counts(self, shard: int, collection_id: int) -> Counts:
        """Documents and bytes of a collection."""
        return self.state(shard).counts.get(collection_id, NO_COUNTS)

    def headers(self, shard: int, collection_id: int, keys: Sequence[bytes]) -> list[Header | None]:
        """The headers of stored keys, expired ones too; parallel to the keys. Raises StorageError."""
        return self._reader.headers(shard, collection_id, keys)

    def large_value(self, shard: int, collection_id: int, key: bytes, version: int) -> bytes | None:
        """The value that stands apart, if it is still the one of this version. Raises StorageError."""
        return self._reader.large_value(shard, collection_id, key, version)

    def read_cached(self, request: ShardRead, seqno: int, age_ms: int) -> ShardReadReply | None:
        """Answer a read of keys all read lately; None: `read` has to. seqno, age_ms: of the reply. Raises NotReady."""
        shard, collection_id, keys = request.shard, request.collection_id, request.keys
        state = self._whole(shard)
        if len(keys) > READ_CHUNK_KEYS:
            return None  # The deadline is to be looked at meanwhile.
        found = self.cache.find_all(shard, collection_id, keys, request.max_bytes)
        if found is None:
            return None
        values, versions = found
        documents = state.counts.get(collection_id, NO_COUNTS).documents
        return ShardReadReply(values, versions, documents=documents, seqno=seqno, age_ms=age_ms)

    def read(
        self,
        request: ShardRead,
        now_ms: int,
        check: Callable[[], object] = lambda: None,
        *,
        seqno: int = 0,
        age_ms: int = 0,
    ) -> ShardReadReply:
        """Answer a read; keys beyond the reply's bound get an error of their own. Raises NotReady, StorageError.

        check: called between chunks; may raise. seqno, age_ms: for the reply.
        """
        shard, collection_id = request.shard, request.collection_id
        state = self._whole(shard)
        # Rows that have left the shard, and go without a word to the cache, are not to come into it.
        may_keep = not state.splits.has_leftovers
        columns = self._reader.read(
            shard, collection_id, request.keys, now_ms, may_keep=may_keep, check=check, max_bytes=request.max_bytes
        )
        documents = state.counts.get(collection_id, NO_COUNTS).documents
        expiries = columns.expires_at_ms()
        return ShardReadReply(columns.values, columns.versions, expiries, columns.errors, documents, seqno, age_ms)

    def scan(self, request: ShardScan, now_ms: int, *, seqno: int = 0, age_ms: int = 0) -> ShardScanReply:
        """Answer a scan with one chunk. seqno, age_ms: for the reply.

        Raises InvalidArgument for a limit below 1, NotReady, DataLoss, StorageError.
        """
        if request.limit < 1:
            raise InvalidArgument(f"limit must be at least 1, not {request.limit}", ErrorDetails(field="limit", limit=1))
        state = self._whole(request.shard)
        documents = state.counts.get(request.collection_id, NO_COUNTS).documents
        return self._scanner.read(request, now_ms, self._filter(state), documents, seqno=seqno, age_ms=age_ms)

    def due(self, shard: int, now_ms: int, limit: int) -> list[bytes]:
        """Keys of the expiry rows whose time has come, the oldest first."""
        from_ms = self.state(shard).expires_from
        if now_ms < from_ms:
            return []  # As nearly always: every leg of a search asks.
        begin, end = layout.expiry_range(shard, from_ms, now_ms)
        return [key for key, _ in self.engine.scan(begin, end, limit).rows]

    def note_due(self, shard: int, now_ms: int, due: Sequence[bytes]) -> None:
        """Begin later looks where `due`, called with this instant in the same turn of the event loop, found the first row; or
        where the first one behind it lies."""
        state = self.state(shard)
        if now_ms < state.expires_from:
            return
        if not due:
            begin, end = layout.expiry_range(shard, now_ms + 1, EXPIRES_MAX_MS)
            due = [key for key, _ in self.engine.scan(begin, end, 1).rows]
        state.expires_from = layout.expiry_of(due[0])[0] if due else EXPIRES_MAX_MS

    def forget_expiries(self, row_keys: Sequence[bytes]) -> None:
        """Remove expiry rows whose keys are gone (a dropped collection's)."""
        batch = self.engine.new_batch()
        for row_key in row_keys:
            batch.delete(row_key)
        self.engine.write(batch)
