"""What a replica has in every role: its log and watermarks, what its disk is known to hold, and the callers who wait.

    applied = committed <= durable <= last

Entries through `committed` are in the state; those above it are dirty: nobody may be shown what they write.

Pure: imports only the standard library and other pure files.
"""

import heapq
from collections import deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from enum import Enum
from itertools import repeat
from typing import Final, NamedTuple

from kvshard.clustermap import Replica, ShardConfig
from leaf.replication.actions import (
    Action,
    Answer,
    Append,
    Apply,
    Reason,
    Refuse,
    SaveEpoch,
    Send,
    ServeRead,
    TrimLog,
    Truncate,
)
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import Entry, Message
from leaf.replication.oplog import ReplicatedLog, Retention
from leaf.replication.timings import Timings

APPLY_MAX_ENTRIES: Final = 128
APPLY_MAX_KEYS: Final = 512
APPLY_MAX_BYTES: Final = 512 * 1024
"""Of the entries applied in one step, save for one that is larger: 2 to 4 ms of an event loop (2 to 5 us a key, 30 us an entry
with its writer's answer). A primary may have 8,000 entries or half a million small keys in flight, and learn in one moment that
all of them are committed."""

READERS_MAX: Final = 10_000
"""Reads that wait for a commit; each is a request that the leaf's admission has let in, so this is never the first bound."""


class Role(Enum):
    """What a replica does. CONFIRMING: named primary, its barrier is not committed yet. IDLE: it is in no replica set."""

    IDLE = "idle"
    LEARNER = "learner"
    SECONDARY = "secondary"
    CONFIRMING = "confirming"
    PRIMARY = "primary"
    REMOVED = "removed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Recovered:
    """What the disk gave back. Everything in `log` through `applied` is committed; `dedup` is the table at `applied`."""

    epoch: int
    log: ReplicatedLog
    applied: int
    dedup: DedupTable


class ReadNow(NamedTuple):
    """The state may be read now; see ServeRead."""

    seqno: int
    age_s: float | None


class _Disk(Enum):
    LOG = "log"
    EPOCH = "epoch"
    SNAPSHOT = "snapshot"
    OTHER = "other"


@dataclass(slots=True)
class _Unsynced:
    ticket: int
    kind: _Disk
    value: int


class Core:
    """State and mechanisms that the roles share. `out` gathers the actions of the step under way.

    is_dividing, ready_for: set by the driver. Part of the state has left for another shard which the coordinator does not know
    yet, so that only replicas that took part hold it: nobody new is taken in sync. This replica is ready to divide off that
    shard; the primary is told with every answer to a beacon.
    is_full: set by the driver. The leaf's disk has no room for new writes, so that another replica had better lead; while it
    follows it takes what the primary sends, as long as the disk does.
    divided_off: the shard that has left, which the coordinator does not know yet, as soon as its data is whole on this disk.
    is_behind: the last step left entries unapplied that may be applied, for it had enough of them; a Tick applies more.
    """

    def __init__(
        self,
        shard: int,
        me: Replica,
        timings: Timings,
        boot: int,
        recovered: Recovered,
        retention: Retention,
        now: float,
    ) -> None:
        self.started_at = now
        self.shard = shard
        self.me = me
        self.timings = timings
        self.boot = boot
        self.role = Role.IDLE
        self.config: ShardConfig | None = None
        self.epoch = recovered.epoch
        self.saved_epoch = recovered.epoch
        self.log = recovered.log
        self.dedup = recovered.dedup
        self.committed = recovered.applied
        self.durable = self.log.last
        self.is_whole = True
        self.is_stopping = False
        self.is_full = False
        self.is_dividing = False
        self.ready_for: int | None = None
        self.divided_off: int | None = None
        self.in_flight_bytes = 0
        self.is_behind = False
        self.pinned: int | None = None
        self.snapshots = boot % 1_000_003 * 1_000
        self.out: list[Action] = []
        self.in_flight: dict[tuple[str, int], int] = {}
        self.writers: dict[int, list[tuple[int, int, object]]] = {}
        self._writing: dict[int, int] = {}
        self._retention = retention
        self._ticket = 0
        self._unsynced: deque[_Unsynced] = deque()
        self._dirty: dict[Hashable, int] = {}
        self._all_dirty = 0
        self._readers: dict[int, tuple[tuple[Hashable, ...] | None, bool]] = {}
        self._reader_heap: list[tuple[int, int]] = []
        for entry in self.log.between(self.committed, self.log.last):
            self._note(entry)

    @property
    def applied(self) -> int:
        """The state holds the entries through this seqno; equal to `committed` after each step."""
        return self.committed

    @property
    def last(self) -> int:
        """Seqno of the newest entry of the log."""
        return self.log.last

    @property
    def in_flight_entries(self) -> int:
        """Entries of the log that are not applied."""
        return self.log.last - self.committed

    def send(self, receiver: Replica, message: Message) -> None:
        """Say something to another replica. One whose identity is not known yet cannot be spoken to."""
        if receiver.incarnation:
            self.out.append(Send(receiver, message))

    # -- the log and the disk -------------------------------------------------------------------------------------------

    def _next_ticket(self, kind: _Disk, value: int) -> int:
        self._ticket += 1
        self._unsynced.append(_Unsynced(self._ticket, kind, value))
        return self._ticket

    def save_epoch(self, epoch: int) -> None:
        """Have the disk remember an epoch; `saved_epoch` says when it does."""
        self.out.append(SaveEpoch(self._next_ticket(_Disk.EPOCH, epoch), epoch))

    def append(self, entries: tuple[Entry, ...]) -> None:
        """Add entries to the log."""
        for entry in entries:
            self.log.append(entry)
            self._note(entry)
        self.out.append(Append(self._next_ticket(_Disk.LOG, entries[-1].seqno), entries))

    def _note(self, entry: Entry) -> None:
        self.in_flight_bytes += entry.size
        if entry.keys is None:
            self._all_dirty = entry.seqno
        else:
            self._dirty.update(dict.fromkeys(entry.keys, entry.seqno))
        if entry.request is not None:
            self.in_flight[entry.request.client, entry.request.number] = entry.seqno

    def truncate(self, after: int) -> None:
        """Take back the entries after a seqno: the primary of this epoch has others."""
        assert after >= self.committed, f"{self!r} would take back committed entries after {after}"
        self.log.truncate(after)
        # What is under way to the disk for entries taken back says nothing of those that come in their place.
        for unsynced in self._unsynced:
            if unsynced.kind is _Disk.LOG:
                unsynced.value = min(unsynced.value, after)
        self.durable = min(self.durable, after)
        self.in_flight_bytes = 0
        self._dirty.clear()
        self._all_dirty = 0
        self.in_flight.clear()
        for entry in self.log.between(self.committed, self.log.last):
            self._note(entry)
        self.out.append(Truncate(self._next_ticket(_Disk.OTHER, 0), after))

    def snapshot_ticket(self, seqno: int) -> int:
        """The ticket under which a snapshot becomes the state."""
        return self._next_ticket(_Disk.SNAPSHOT, seqno)

    def replace_state(self, seqno: int, epoch: int) -> None:
        """The state is now that of a snapshot; nothing of it is durable yet."""
        for unsynced in self._unsynced:
            if unsynced.kind is _Disk.LOG:
                unsynced.kind = _Disk.OTHER
        self.log = ReplicatedLog(seqno, epoch)
        self.committed = seqno
        self.durable = 0
        self.in_flight_bytes = 0
        self._dirty.clear()
        self._all_dirty = 0
        self.in_flight.clear()
        self.is_whole = True

    def note_durable(self, ticket: int) -> None:
        """The disk holds everything through a ticket."""
        while self._unsynced and self._unsynced[0].ticket <= ticket:
            done = self._unsynced.popleft()
            if done.kind in (_Disk.LOG, _Disk.SNAPSHOT):
                self.durable = max(self.durable, done.value)
            elif done.kind is _Disk.EPOCH:
                self.saved_epoch = max(self.saved_epoch, done.value)

    def advance(self, through: int, now: float) -> None:
        """Entries through a seqno are committed: apply those that are durable here, and answer who waited for them.

        Not all in one step if they are many: see `is_behind`.
        """
        possible = min(through, self.durable)
        if possible <= self.committed:
            return
        through = self._one_step(possible)
        self.is_behind = through < possible
        entries = self.log.between(self.committed, through)
        begun = before = self.committed
        if through == self.log.last:
            self._dirty.clear()
        for entry in entries:
            self.in_flight_bytes -= entry.size
            if self._dirty:
                for key in entry.keys or ():
                    if self._dirty.get(key) == entry.seqno:
                        del self._dirty[key]
            if entry.request is not None:
                self.in_flight.pop((entry.request.client, entry.request.number), None)
                self.dedup.record(entry.request, entry.seqno, entry.result)
            if entry.keys is None and entry.seqno < through:
                self.out.append(Apply(self.log.between(begun, entry.seqno), self.dedup.copy()))
                begun = entry.seqno
        self.committed = through
        self.out.append(Apply(entries if begun == before else self.log.between(begun, through)))
        if self.writers:
            for entry in entries:
                for token, seqno, result in self.writers.pop(entry.seqno, ()):
                    del self._writing[token]
                    self.out.append(Answer(token, seqno, result))
        self._wake_readers(now)
        committed_bytes = self.log.bytes - self.in_flight_bytes
        point = self.log.trim_point(self.committed, committed_bytes, self.pinned, self._retention)
        if point > self.log.base_seqno:
            self.log.trim(point)
            self.out.append(TrimLog(point))

    def _one_step(self, through: int) -> int:
        """How far of the entries through a seqno one step goes."""
        through = min(through, self.committed + APPLY_MAX_ENTRIES)
        keys = size = 0
        for entry in self.log.between(self.committed, through):
            keys += len(entry.keys or ())
            size += entry.size
            if keys > APPLY_MAX_KEYS or size > APPLY_MAX_BYTES:
                return max(entry.seqno - 1, self.committed + 1)
        return through

    # -- callers --------------------------------------------------------------------------------------------------------

    def await_commit(self, token: int, depends_on: int, seqno: int, result: object) -> None:
        """Answer a writer once the entry `depends_on` is applied; at once if it is."""
        if depends_on <= self.committed:
            self.out.append(Answer(token, seqno, result))
            return
        self.writers.setdefault(depends_on, []).append((token, seqno, result))
        self._writing[token] = depends_on

    def abandon(self) -> None:
        """This replica orders the writes no more: tell the writers that it is open what becomes of theirs."""
        for token in self._writing:
            self.out.append(Refuse(token, Reason.ABANDONED))
        self._writing.clear()
        self.writers.clear()

    def cancel(self, token: int) -> None:
        """The caller of this token waits no more."""
        self._readers.pop(token, None)
        depends_on = self._writing.pop(token, None)
        if depends_on is not None:
            waiting = [each for each in self.writers.pop(depends_on) if each[0] != token]
            if waiting:
                self.writers[depends_on] = waiting

    def latest_write(self, key: Hashable, *, by_name: bool = False) -> int | None:
        """Seqno of the newest entry, not yet applied, that writes the key. by_name: without those that concern every key."""
        named = self._dirty.get(key)
        if by_name or self._all_dirty <= self.committed:
            return named
        return max(named or 0, self._all_dirty)

    @property
    def latest_of_all(self) -> int:
        """Seqno of the newest entry, not yet applied, that concerns every key; 0: there is none."""
        return self._all_dirty if self._all_dirty > self.committed else 0

    def clean_after(self, keys: Iterable[Hashable] | None) -> int:
        """The seqno that must be committed before these keys (None: any) may be read here; 0: they are clean."""
        if self.log.last == self.committed:
            return 0
        if keys is None:
            return self.log.last
        wanted = self._all_dirty if self._all_dirty > self.committed else 0
        if self._dirty:
            wanted = max(wanted, max(map(self._dirty.get, keys, repeat(0)), default=0))
        return wanted

    def writes_any(self, keys: Iterable[Hashable]) -> bool:
        """Whether an entry that is not yet applied writes one of these keys, by name."""
        return not self._dirty.keys().isdisjoint(keys)

    def await_read(self, token: int, keys: tuple[Hashable, ...] | None, is_strong: bool, wanted: int) -> None:
        """Let a read wait for a commit."""
        if len(self._reader_heap) >= READERS_MAX and not self._drop_cancelled():
            self.out.append(Refuse(token, Reason.BUSY))
            return
        self._readers[token] = (keys, is_strong)
        heapq.heappush(self._reader_heap, (wanted, token))

    def _drop_cancelled(self) -> bool:
        """Forget readers that gave up, if that makes room for many: it costs as much as all that wait."""
        if len(self._readers) > READERS_MAX // 2:
            return False
        self._reader_heap = [each for each in self._reader_heap if each[1] in self._readers]
        heapq.heapify(self._reader_heap)
        return True

    def _wake_readers(self, now: float) -> None:
        while self._reader_heap and self._reader_heap[0][0] <= self.committed:
            _, token = heapq.heappop(self._reader_heap)
            reader = self._readers.pop(token, None)
            if reader is not None:
                # What the read had to wait for is committed; entries that came later do not concern it.
                self.finish_read(token, reader[1], now)

    def finish_read(self, token: int, is_strong: bool, now: float) -> None:
        """Answer a read for which no entry is dirty any more."""
        allowed = self.try_read((), is_strong, now)
        if isinstance(allowed, ReadNow):
            self.out.append(ServeRead(token, allowed.seqno, allowed.age_s))
        else:
            self.out.append(Refuse(token, allowed or Reason.NOT_READY))

    def refuse_readers(self, reason: Reason = Reason.NOT_READY) -> None:
        """Whoever waits here should ask another replica."""
        for token in self._readers:
            self.out.append(Refuse(token, reason))
        self._readers.clear()
        self._reader_heap.clear()

    @property
    def has_readers(self) -> bool:
        """Whether reads wait for a commit."""
        return bool(self._readers)

    def try_read(self, keys: Iterable[Hashable] | None, is_strong: bool, now: float) -> ReadNow | Reason | None:
        """Whether keys (None: any) may be read now; None: not before a commit that is to be waited for."""
        raise NotImplementedError

    def check_invariants(self) -> None:
        """Raise AssertionError unless what this class promises holds."""
        assert self.committed <= self.durable or self._unsynced, repr(self)
        assert self.durable <= self.log.last, repr(self)
        entries = self.log.between(max(self.committed, self.log.base_seqno), self.log.last)
        assert self.in_flight_bytes == sum(entry.size for entry in entries), repr(self)
        expected: dict[Hashable, int] = {}
        for entry in entries:
            expected.update(dict.fromkeys(entry.keys or (), entry.seqno))
        assert self._dirty == expected, repr(self)
        assert self.log.base_seqno <= self.committed, repr(self)
        waiting = {token: seqno for seqno, writers in self.writers.items() for token, _, _ in writers}
        assert self._writing == waiting, repr(self)
        assert all(self.committed < seqno <= self.log.last for seqno in self.writers), repr(self)
        assert len(self._readers) <= len(self._reader_heap) <= READERS_MAX, repr(self)
        self.dedup.check_invariants()
