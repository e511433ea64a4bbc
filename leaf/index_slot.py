"""The life of one index: opened or rebuilt, then kept up with the committed log, a bounded step at a time.

All work is done by `step`, on the indexing thread. What the event loop reads of a slot (`phase`, `index`, `covers`, `due_at`)
are single attributes that the step sets last, so it never sees a half made change.

    OPENING -> SERVING                    the folder is whole
    OPENING -> REBUILDING -> SERVING      it is missing, damaged, or of another schema
    SERVING -> REBUILDING                 the log it needs is compacted away, or damage showed

While a collection is to get another schema, it has a second slot for that one (`is_beside`), which no search sees yet.

When the shard is split (`split`), the child's index is forked off this one once it holds the split's entry: a copy that shares
the files, each without the other's documents. Until they are removed here, searches leave them out. The slot of the child waits
meanwhile (`is_awaited`); should the fork fail, it builds its index from the values.

One that has been quiet for WRITER_IDLE_S has its writer closed, and then its small segments merged (`leaf/force_merge.py`).

An index that cannot be written is tried again with growing pauses; meanwhile searches see its last commit.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Final, TypeAlias

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import Collection
from kvshard.errors import KvShardError
from kvshard.model import NEVER
from leaf.force_merge import MERGE_WAIT_S, ForceMerge, MergeTurn, Stage
from leaf.log_source import LogSource
from leaf.operations import DropCollection, Operation, WriteOperation
from leaf.text_index import IndexFailed, TextIndex
from leaf.unseen import UnseenWrites

ENTRIES_MAX: Final = 128
"""Log entries of one pull; the source bounds their bytes (8 MB)."""

STEP_MAX_DOCUMENTS: Final = 4_000
"""Documents between two commits, about half a second of work: so long the other indexes of the leaf have to wait."""

REBUILD_CHUNK: Final = 512
REBUILD_SLICE_S: Final = 0.1
"""A rebuild step goes on with chunks of documents for so long; between two steps the other indexes get their turn."""

BESIDE_INTERVAL_S: Final = 2.0
"""Between two refreshes of an index that no search sees yet: at the switch it lacks no more than this."""

REFRESH_AHEAD_PART: Final = 0.2
"""Of the interval: by so much at most a refresh begins early because the one before took its time. Where refreshes take longer,
the disk is what there is too little of, and to begin them ever earlier would only take more of it."""

WRITER_IDLE_S: Final = 5.0
"""A writer holds some MB and a thread; one that had nothing to do for so long is closed. Opening one takes about 1 ms."""

PAUSE_FIRST_S: Final = 0.25
PAUSE_MAX_S: Final = 30.0
"""Between tries of what fails; a disk that is full stays so for a while."""

DAMAGE_QUIET_S: Final = 60.0
"""After a rebuild, searches that fail are not taken as damage for so long: should a query itself make tantivy fail, it must
not keep the index in rebuilds for ever."""

POISON_FREE_BYTES: Final = 64 * 1024 * 1024
"""With less room on the disk a failing write says nothing about its document."""

SlotKey: TypeAlias = tuple[int, int, int]
"""(shard, collection id, schema version)."""

Changes: TypeAlias = dict[bytes, tuple[bytes, int] | None]

logger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Fork:
    """The index of a part that leaves the shard with an entry: where it is to be, and which slots it holds."""

    path: Path
    child: int
    first_slot: int
    last_slot: int
    seqno: int


class Phase(Enum):
    """Where a slot is in its life."""

    OPENING = "opening"
    REBUILDING = "rebuilding"
    SERVING = "serving"


class IndexSlot:
    """The index of one collection in one shard, or what will become it."""

    def __init__(
        self,
        path: Path,
        shard: int,
        collection: Collection,
        source: LogSource,
        clock: Clock,
        merge_turn: MergeTurn | None = None,
    ) -> None:
        """merge_turn: shared by the indexes of a leaf."""
        self.shard = shard
        self.collection = collection
        self.phase = Phase.OPENING
        self.index: TextIndex | None = None
        self.is_awaited = False
        self.is_beside = False
        self.forks: tuple[Fork, ...] = ()
        self.unseen = UnseenWrites()
        self.rebuilt = 0
        self._is_current = False
        self._forkable_after = 0
        self._path = path
        self._source = source
        self._clock = clock
        self._failures = 0
        self._not_before = 0.0
        self._refreshed_at = float("-inf")
        self._refresh_s = 0.0
        self._written_at = float("-inf")
        self._is_behind = False
        self._damaged: TextIndex | None = None
        self._rebuilt_at = float("-inf")
        self._rebuilding: TextIndex | None = None
        self._rebuild_through = 0
        self._rebuild_from = b""
        self._merge = ForceMerge(shard, collection.id, source, clock, merge_turn or MergeTurn())
        self._log = logger.bind(shard=shard, collection=collection.name)

    def __repr__(self) -> str:
        return f"IndexSlot(shard {self.shard}, {self.collection.name}, {self.phase.value}, {self.index!r})"

    def covers(self, seqno: int) -> bool:
        """Whether searches see everything through the seqno."""
        return self.phase is Phase.SERVING and self.index is not None and self.index.indexed_through >= seqno

    def indexed_through(self) -> int:
        """The seqno beyond which the log must be kept; 0 until the index serves."""
        index = self.index
        return index.indexed_through if self.phase is Phase.SERVING and index is not None else 0

    @property
    def key(self) -> SlotKey:
        """Its name among the slots of a leaf."""
        return self.shard, self.collection.id, self.collection.version

    @property
    def is_ready(self) -> bool:
        """Whether it serves, and has caught up with the log at least once since it does."""
        return self.phase is Phase.SERVING and self._is_current

    @property
    def misfits(self) -> dict[str, int]:
        """Field -> documents whose value was left out of it."""
        index = self.index or self._rebuilding
        return {} if index is None else dict(index.misfits)

    @property
    def needs_no_log(self) -> bool:
        """Whether it waits for its turn to be built: it will begin with the documents as they are then."""
        return self.is_beside and self.phase is not Phase.SERVING and self._rebuilding is None

    @property
    def has_begun(self) -> bool:
        """Whether a rebuild has read documents."""
        return self._rebuilding is not None

    @property
    def has_writer(self) -> bool:
        """Whether a writer is open."""
        index = self.index or self._rebuilding
        return index is not None and index.has_writer

    def split(self, fork: Fork) -> None:
        """A part has left the shard, and its index is to be forked off. On the event loop."""
        self.forks += (fork,)

    def due_at(self, applied: int, wanted: int, interval_s: float) -> float | None:
        """When the next step is due; None: not until something happens. wanted: a search waits for this seqno (0: none)."""
        if self.is_awaited and self.phase is Phase.OPENING:
            return None
        if self.phase is not Phase.SERVING or self._damaged is not None or self._is_behind:
            return self._not_before
        if not self.covers(wanted) or self.forks or self._is_uncut():
            return self._not_before
        if not self.covers(applied):
            interval_s = max(interval_s, BESIDE_INTERVAL_S) if self.is_beside else interval_s
            # So that a write is seen after the interval, and not after the interval and two refreshes: it may have come just
            # when the last one had looked at the log, and the next one has to end.
            ahead_s = min(2 * self._refresh_s, interval_s * REFRESH_AHEAD_PART)
            return max(self._not_before, self._refreshed_at + interval_s - ahead_s)
        idle_at = self._idle_at(self._clock.monotonic())
        return None if idle_at is None else max(self._not_before, idle_at)

    def _idle_at(self, now: float) -> float | None:
        """When there is something to do although nothing is to be indexed."""
        if self._merge.stage is Stage.MERGING:
            return self._written_at + MERGE_WAIT_S
        if self.has_writer and self._merge.stage is Stage.NONE:
            return self._written_at + WRITER_IDLE_S
        merge_at = self._merge.due_at(now)
        return None if merge_at is None else max(merge_at, self._written_at + WRITER_IDLE_S)

    def _is_uncut(self) -> bool:
        """Whether the index may hold documents that have left the shard."""
        index = self.index
        return index is not None and index.last_slot > self._source.last_slot(self.shard)

    def report_damage(self, index: TextIndex) -> bool:
        """A search found this index damaged. True if it will be rebuilt."""
        if index is not self.index:
            return True  # it is being replaced already
        if self._clock.monotonic() < self._rebuilt_at + DAMAGE_QUIET_S:
            return False
        self._damaged = index
        return True

    def step(self, should_stop: Callable[[], bool]) -> None:
        """Do the next bounded piece of work. Runs on the indexing thread; never raises but for cancellation and the like."""
        try:
            self._step(should_stop)
        except IndexFailed as error:
            self._pause(str(error))
            if error.is_damage:
                self._begin_rebuild(str(error))
        except KvShardError as error:
            self._pause(error.message)
        except Exception as error:
            self._log.exception("indexing failed")
            self._pause(repr(error))
        else:
            self._failures = 0

    def close(self) -> None:
        """Free the writer. Runs on the indexing thread."""
        self._merge.end()
        for index in (self.index, self._rebuilding):
            if index is not None:
                index.discard_changes()

    def _step(self, should_stop: Callable[[], bool]) -> None:
        damaged, self._damaged = self._damaged, None
        if damaged is not None and damaged is self.index:
            self._begin_rebuild("a search found it damaged")
        if self.phase is Phase.OPENING:
            self._open()
        elif self.phase is Phase.REBUILDING:
            self._rebuild(should_stop)
        elif self.index is not None:
            applied = self._source.applied_seqno(self.shard)
            if self.forks and self.index.indexed_through >= self.forks[0].seqno:
                self._fork(self.index, self.forks[0])
            elif self._is_uncut() and not self.forks:
                self._merge.note_change()
                self.index.cut(self._source.last_slot(self.shard))
                self.index.commit(self.index.indexed_through)
                self._written_at = self._clock.monotonic()
            elif self.index.indexed_through < applied:
                self._catch_up(self.index, applied, should_stop)
            else:
                self._idle(self.index, applied)

    def _idle(self, index: TextIndex, applied: int) -> None:
        now = self._clock.monotonic()
        idle_at = self._idle_at(now)
        if idle_at is None or now < idle_at:
            self._not_before = now + 0.005  # woken for a seqno that the source does not show yet
        elif index.has_writer and self._merge.stage is not Stage.FILLING:
            index.close_writer()
            self._merge.end()
        elif index.indexed_through == applied:
            self._merge.step(index)
            if self._merge.stage is Stage.MERGING:
                self._written_at = self._clock.monotonic()
        else:
            self._merge.give_up()  # What it holds cannot be told from the documents as they are.

    def _fork(self, index: TextIndex, fork: Fork) -> None:
        self._merge.end()  # Its writer is closed for that.
        try:
            # Of what had left before a rebuild ended it has read only a part.
            if fork.seqno > self._forkable_after and not fork.path.exists():
                index.fork(fork.path, fork.first_slot, fork.last_slot, fork.seqno, self._source.slot_of)
        except IndexFailed as error:
            self._log.warning("the index of a split's child will be built from its values", child=fork.child, error=str(error))
        self.forks = tuple(each for each in self.forks if each is not fork)

    def _open(self) -> None:
        try:
            self.index = TextIndex.open(self._path, self.collection.schema, self._source.slot_of)
        except IndexFailed as error:
            if not error.is_damage:
                raise
            self._begin_rebuild(str(error))
            return
        if self.index.indexed_through > self._source.applied_seqno(self.shard):
            # The shard's data was replaced by older data; the index speaks of documents that never were.
            self._begin_rebuild("it is ahead of the log")
            return
        self._is_current = self.index.indexed_through == self._source.applied_seqno(self.shard)
        self._written_at = self._clock.monotonic()  # Who starts has other things to do than to merge.
        self.phase = Phase.SERVING

    def _begin_rebuild(self, reason: str) -> None:
        if self._path.exists():
            self._log.warning("search index is rebuilt", reason=reason)
        self.phase = Phase.REBUILDING
        self.close()
        self.index = None
        self.rebuilt = 0
        self._rebuilding = None
        self._is_behind = self._is_current = False

    def _rebuild(self, should_stop: Callable[[], bool]) -> None:
        until = self._clock.monotonic() + REBUILD_SLICE_S
        while self.phase is Phase.REBUILDING and not should_stop():
            self._rebuild_chunk()
            if self._clock.monotonic() >= until:
                return

    def _rebuild_chunk(self) -> None:
        if self._rebuilding is None:
            # Noted before the first document is read: what changes during the scan is replayed from the log.
            self._rebuild_through = self._source.applied_seqno(self.shard)
            self._rebuild_from = b""
            last_slot = self._source.last_slot(self.shard)
            self._rebuilding = TextIndex.create(self._path, self.collection.schema, self._source.slot_of, last_slot)
        index = self._rebuilding
        try:
            documents = self._source.scan_documents(self.shard, self.collection.id, self._rebuild_from, REBUILD_CHUNK)
            if documents:
                index.write({key: (value, expires_at_ms) for key, value, _, expires_at_ms in documents})
                self._rebuild_from = documents[-1][0] + b"\0"
                self.rebuilt += len(documents)
                return
            self._forkable_after = self._source.applied_seqno(self.shard)
            index.commit(self._rebuild_through)
        except IndexFailed:
            self.close()
            self._rebuilding, self.rebuilt = None, 0  # from the start
            raise
        now = self._clock.monotonic()
        self._rebuilt_at = self._written_at = now
        self._rebuilding = None
        self._merge.note_change()
        self.index = index
        self._is_current = self._rebuild_through == self._source.applied_seqno(self.shard)
        self.phase = Phase.SERVING

    def _catch_up(self, index: TextIndex, applied: int, should_stop: Callable[[], bool]) -> None:
        through, documents, pulled_at = index.indexed_through, 0, self._clock.monotonic()
        is_careful = self._failures >= 2
        try:
            while through < applied and documents < STEP_MAX_DOCUMENTS and not should_stop():
                pulled_at = self._clock.monotonic()
                entries = self._source.committed_entries(self.shard, through, ENTRIES_MAX)
                if entries is None:
                    self._begin_rebuild("the log it needs is compacted away")
                    return
                if not entries:
                    break
                documents += self._write_entries(index, entries, is_careful)
                through = entries[-1][0]
            if documents:
                self._written_at = self._clock.monotonic()
            index.commit(through)
        except IndexFailed:
            index.discard_changes()  # all since the last commit is read from the log again
            raise
        self._is_behind = through < applied
        if not self._is_behind:
            self._refreshed_at = self._clock.monotonic()
            self._refresh_s = self._refreshed_at - pulled_at
            self._is_current = True

    def _write_entries(self, index: TextIndex, entries: Sequence[tuple[int, Operation]], is_careful: bool) -> int:
        was_dropped, changes = fold(entries, self.collection.id)
        if was_dropped or changes:
            self._merge.note_change()
        if was_dropped:
            index.clear()
        if is_careful:
            self._write_one_by_one(index, changes)
        else:
            index.write(changes)
        return len(changes)

    def _write_one_by_one(self, index: TextIndex, changes: Changes) -> None:
        """Commit each document by itself and leave out the one that makes tantivy's writer fail."""
        poison = 0
        for key, change in changes.items():
            try:
                index.write({key: change})
                index.commit(index.indexed_through)
            except IndexFailed as error:
                if error.is_damage or shutil.disk_usage(self._path).free < POISON_FREE_BYTES:
                    raise
                poison += 1
                self._log.error("document cannot be indexed", key=key, error=str(error))
        if poison and poison == len(changes):
            raise IndexFailed("no document can be written", is_damage=True)

    def _pause(self, reason: str) -> None:
        pause = min(PAUSE_FIRST_S * 2**self._failures, PAUSE_MAX_S)
        self._failures = min(self._failures + 1, 16)
        self._not_before = self._clock.monotonic() + pause
        self._log.warning("indexing is tried again", reason=reason, pause_s=pause, failures=self._failures)


def fold(entries: Sequence[tuple[int, Operation]], collection_id: int) -> tuple[bool, Changes]:
    """What the entries leave of a collection: was it dropped first, and the last state of each key written after that."""
    changes: Changes = {}
    was_dropped = False
    for _, operation in entries:
        if isinstance(operation, DropCollection):
            if operation.collection_id == collection_id:
                was_dropped = True
                changes.clear()
        elif isinstance(operation, WriteOperation) and operation.collection_id == collection_id:
            expiries = operation.expires_at_ms
            for at, (key, value) in enumerate(zip(operation.keys, operation.values, strict=True)):
                changes[key] = None if value is None else (value, expiries[at] if expiries else NEVER)
    return was_dropped, changes
