"""One shard's replica as a state machine: orders the writes of the shard, and says when they are durable, committed, applied.

This is the form for a shard with a single replica: what is durable here is committed. `step` takes an event and returns what
the shell (`driver.py`) has to do; it neither reads nor waits. States:

    RECOVERING --TakeEpoch--> CONFIRMING --barrier applied--> PRIMARY
    every state --Fail--> FAILED (final; an operator mends the cause and restarts the leaf)

A primary that learns of a newer epoch of its own (TakeEpoch) goes through CONFIRMING again: it serves in an epoch only once
the barrier entry of that epoch is committed.

Pure: imports only the standard library and other pure files.
"""

from collections import deque
from dataclasses import dataclass
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from kvshard.errors import ErrorDetails, KvShardError, NotReady, ResourceExhausted, StaleEpoch, StorageFailed
from kvshard.model import ABSENT, NEVER
from leaf.operations import Barrier, Entry, Operation, WriteOperation

IN_FLIGHT_MAX_BYTES: Final = 64 * 1024 * 1024
"""Keys and values of entries not yet applied: two of the largest batches, so that one is prepared while one is flushed."""

IN_FLIGHT_MAX_ENTRIES: Final = 8_192
"""More small entries than one group commit ever holds; beyond it waiting writers only add memory."""

RETRY_AFTER_MS: Final = 20
"""A few group commits: by then the queue has moved."""


class Role(Enum):
    """What a replica does."""

    RECOVERING = "recovering"
    CONFIRMING = "confirming"
    PRIMARY = "primary"
    FAILED = "failed"


class Latest(NamedTuple):
    """A key as its last entry leaves it, applied or not. version ABSENT: deleted."""

    seqno: int
    version: int
    expires_at_ms: int


@dataclass(frozen=True, slots=True)
class TakeEpoch:
    """The coordinator has recorded a newer epoch with this leaf as primary."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Propose:
    """Add an operation to the log. Legal only while `refusal` gives None. size: its bytes of keys and values."""

    operation: Operation
    size: int


@dataclass(frozen=True, slots=True)
class Persisted:
    """The log is durable through this seqno."""

    seqno: int


@dataclass(frozen=True, slots=True)
class Applied:
    """The state holds every entry through this seqno."""

    seqno: int


@dataclass(frozen=True, slots=True)
class Fail:
    """The replica must stop to take writes."""

    error: KvShardError


Event: TypeAlias = TakeEpoch | Propose | Persisted | Applied | Fail


@dataclass(frozen=True, slots=True)
class Append:
    """Make the entry durable, then report Persisted."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class Apply:
    """Write the entries into the state, in order, then report Applied with the last one's seqno."""

    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """Writers that wait for entries through this seqno may be answered."""

    through: int


@dataclass(frozen=True, slots=True)
class Abandon:
    """Writers that wait get this error; whether their writes survive is unknown."""

    error: KvShardError


Action: TypeAlias = Append | Apply | Acknowledge | Abandon


class Replica:
    """A sole replica.

    Invariants (`check_invariants`):
        applied <= committed = persisted <= last
        in flight = the entries in (applied, last], without a gap
        pending = for each key that entries in flight write, what the last of them leaves
        in PRIMARY and CONFIRMING the newest epoch in the log is the replica's
    """

    def __init__(self, shard: int, applied: int) -> None:
        self.shard = shard
        self.role = Role.RECOVERING
        self.epoch = 0
        self.last = applied
        self.committed = applied
        self.applied = applied
        self.error: KvShardError | None = None
        self.in_flight_bytes = 0
        self._in_flight: deque[tuple[Entry, int]] = deque()
        self._pending: dict[int, dict[bytes, Latest]] = {}
        self._barrier: int | None = None

    def __repr__(self) -> str:
        marks = f"last={self.last}, committed={self.committed}, applied={self.applied}"
        return f"Replica(shard={self.shard}, {self.role.value}, epoch={self.epoch}, {marks})"

    @property
    def next_seqno(self) -> int:
        """The seqno that the next proposed operation gets."""
        return self.last + 1

    def pending(self, collection_id: int) -> dict[bytes, Latest]:
        """The keys of a collection that entries in flight write. Do not change it."""
        return self._pending.get(collection_id, {})

    def check_epoch(self, epoch: int) -> None:
        """Raise unless a request routed by this epoch may be served: StaleEpoch, NotReady, or why it never began to serve."""
        if self.error is not None and (self.epoch == 0 or self._barrier is not None):
            raise self.error
        if self.role in (Role.RECOVERING, Role.CONFIRMING):
            details = ErrorDetails(shards=(self.shard,), retry_after_ms=RETRY_AFTER_MS)
            raise NotReady(f"shard {self.shard} is {self.role.value}", details)
        if epoch != self.epoch:
            text = f"shard {self.shard} is at epoch {self.epoch}, the request at {epoch}"
            raise StaleEpoch(text, ErrorDetails(shards=(self.shard,)))

    def refusal(self, size: int) -> KvShardError | None:
        """Why an operation of so many bytes cannot be proposed now; None when it can."""
        if self.error is not None:
            return self.error
        if self.role is not Role.PRIMARY:
            return NotReady(f"shard {self.shard} is {self.role.value}", ErrorDetails(shards=(self.shard,)))
        is_full = self.in_flight_bytes > 0 and self.in_flight_bytes + size > IN_FLIGHT_MAX_BYTES
        if is_full or len(self._in_flight) >= IN_FLIGHT_MAX_ENTRIES:
            text = f"shard {self.shard} has {len(self._in_flight)} writes ({self.in_flight_bytes} bytes) in flight"
            details = ErrorDetails(limit=IN_FLIGHT_MAX_BYTES, shards=(self.shard,), retry_after_ms=RETRY_AFTER_MS)
            return ResourceExhausted(text, details)
        return None

    def step(self, event: Event, now: float) -> list[Action]:
        """Take an event in, give back what is to be done. now: monotonic seconds (leases of replicated shards need it)."""
        match event:
            case Propose(operation, size):
                assert self.role is Role.PRIMARY, f"{self!r} was asked to propose"
                return self._append(operation, size)
            case Persisted(seqno):
                return self._on_persisted(seqno)
            case Applied(seqno):
                return self._on_applied(seqno)
            case TakeEpoch(epoch):
                return self._on_epoch(epoch)
            case Fail(error):
                return self._on_fail(error)

    def _append(self, operation: Operation, size: int) -> list[Action]:
        seqno = self.next_seqno
        entry = Entry(self.epoch, seqno, operation)
        self.last = seqno
        self._in_flight.append((entry, size))
        self.in_flight_bytes += size
        if isinstance(operation, WriteOperation):
            self._note_pending(seqno, operation)
        return [Append(entry)]

    def _note_pending(self, seqno: int, operation: WriteOperation) -> None:
        pending = self._pending.setdefault(operation.collection_id, {})
        put, deleted = Latest(seqno, seqno, NEVER), Latest(seqno, ABSENT, NEVER)
        if operation.expires_at_ms:
            for key, value, expires_at_ms in zip(operation.keys, operation.values, operation.expires_at_ms, strict=True):
                pending[key] = deleted if value is None else Latest(seqno, seqno, expires_at_ms)
        else:
            for key, value in zip(operation.keys, operation.values, strict=True):
                pending[key] = deleted if value is None else put

    def _on_persisted(self, seqno: int) -> list[Action]:
        assert self.committed < seqno <= self.last, f"{self!r} persisted {seqno}"
        if self.role is Role.FAILED:
            return []
        first = self.committed
        self.committed = seqno
        return [Apply(tuple(entry for entry, _ in self._in_flight if first < entry.seqno <= seqno))]

    def _on_applied(self, seqno: int) -> list[Action]:
        assert self.applied < seqno <= self.committed, f"{self!r} applied {seqno}"
        while self._in_flight and self._in_flight[0][0].seqno <= seqno:
            entry, size = self._in_flight.popleft()
            self.in_flight_bytes -= size
            if isinstance(entry.operation, WriteOperation):
                self._forget_pending(entry.seqno, entry.operation)
        self.applied = seqno
        if self._barrier is not None and seqno >= self._barrier:
            self._barrier = None
            if self.role is Role.CONFIRMING:
                self.role = Role.PRIMARY
        return [Acknowledge(seqno)]

    def _forget_pending(self, seqno: int, operation: WriteOperation) -> None:
        pending = self._pending[operation.collection_id]
        for key in operation.keys:
            latest = pending.get(key)
            if latest is not None and latest.seqno == seqno:
                del pending[key]
        if not pending:
            del self._pending[operation.collection_id]

    def _on_epoch(self, epoch: int) -> list[Action]:
        if self.role is Role.FAILED or epoch <= self.epoch:
            return []
        self.epoch = epoch
        self.role = Role.CONFIRMING
        actions = self._append(Barrier(), 0)
        self._barrier = self.last
        return actions

    def _on_fail(self, error: KvShardError) -> list[Action]:
        if self.role is Role.FAILED:
            return []
        self.role = Role.FAILED
        self.error = error
        return [Abandon(error)]

    def check_invariants(self) -> None:
        """Raise AssertionError unless the invariants of the class hold."""
        assert self.applied <= self.committed <= self.last, repr(self)
        seqnos = [entry.seqno for entry, _ in self._in_flight]
        assert seqnos == list(range(self.applied + 1, self.last + 1)), repr(self)
        assert self.in_flight_bytes == sum(size for _, size in self._in_flight), repr(self)
        expected: dict[int, dict[bytes, int]] = {}
        for entry, _ in self._in_flight:
            assert entry.epoch <= self.epoch, repr(self)
            if isinstance(entry.operation, WriteOperation):
                expected.setdefault(entry.operation.collection_id, {}).update(dict.fromkeys(entry.operation.keys, entry.seqno))
        found = {c: {key: latest.seqno for key, latest in keys.items()} for c, keys in self._pending.items()}
        assert found == expected, repr(self)
        assert (self.role is Role.FAILED) == (self.error is not None), repr(self)
        assert self.role is not Role.PRIMARY or self._barrier is None, repr(self)


def storage_failed(shard: int, reason: str, *, maybe_applied: bool = False) -> StorageFailed:
    """The error of a replica whose disk refused a write."""
    details = ErrorDetails(shards=(shard,), maybe_applied=maybe_applied)
    return StorageFailed(f"shard {shard} stopped: its storage failed: {reason}", details)
