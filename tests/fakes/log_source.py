"""A shard's log and documents in memory: implements leaf.log_source.LogSource."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from kvshard import hashing
from kvshard.clustermap import TOKEN_SLOTS
from leaf.operations import DropCollection, Operation, Split, WriteOperation


@dataclass
class FakeShard:
    """One shard. documents: (collection_id, key) -> (value, version, expires_at_ms)."""

    entries: list[tuple[int, Operation]] = field(default_factory=list)
    documents: dict[tuple[int, bytes], tuple[bytes, int, int]] = field(default_factory=dict)
    applied: int = 0
    trimmed: int = 0
    last_slot: int = TOKEN_SLOTS - 1


class FakeLogSource:
    """Shards in memory. wall_ms: the time by which documents expire. failure: raised by every read of the log while set.

    looks: at the applied seqno.
    scan_gate: scans of documents wait until it is set; read_gate: reads of documents, of which `reads` have begun.
    """

    def __init__(self, wall_ms: Callable[[], int] = lambda: 0) -> None:
        self.shards: dict[int, FakeShard] = {}
        self.failure: Exception | None = None
        self.scans = 0
        self.pulls = 0
        self.looks = 0
        self.has_failed = threading.Event()
        self.has_scan_begun = threading.Event()
        self.scan_gate = threading.Event()
        self.scan_gate.set()
        self.reads = 0
        self.has_read_begun = threading.Event()
        self.read_gate = threading.Event()
        self.read_gate.set()
        self._wall_ms = wall_ms

    def __repr__(self) -> str:
        shards = {shard: (state.applied, len(state.documents)) for shard, state in self.shards.items()}
        return f"FakeLogSource(shard -> (applied, documents): {shards}, scans={self.scans}, pulls={self.pulls})"

    def write(self, shard: int, collection_id: int, values: dict[bytes, bytes | None], expires_at_ms: int = 0) -> int:
        """Commit and apply one entry; returns its seqno."""
        expiries = [expires_at_ms] * len(values) if expires_at_ms else []
        return self.commit(shard, WriteOperation(collection_id, list(values), list(values.values()), expiries))

    def commit(self, shard: int, operation: Operation) -> int:
        """Commit and apply an operation; returns its seqno."""
        state = self.shards.setdefault(shard, FakeShard())
        seqno = state.applied + 1
        state.entries.append((seqno, operation))
        if isinstance(operation, DropCollection):
            state.documents = {at: row for at, row in state.documents.items() if at[0] != operation.collection_id}
        if isinstance(operation, WriteOperation):
            for at, (key, value) in enumerate(zip(operation.keys, operation.values, strict=True)):
                if value is None:
                    state.documents.pop((operation.collection_id, key), None)
                else:
                    expires_at_ms = operation.expires_at_ms[at] if operation.expires_at_ms else 0
                    state.documents[operation.collection_id, key] = (value, seqno, expires_at_ms)
        state.applied = seqno
        return seqno

    def split(self, shard: int, child: int, at_slot: int) -> int:
        """Commit and apply a split; returns its seqno. The child's log begins behind it."""
        state = self.shards[shard]
        seqno = self.commit(shard, Split(child, at_slot, state.last_slot))
        moved = {at: row for at, row in state.documents.items() if self.slot_of(at[1]) >= at_slot}
        self.shards[child] = FakeShard([], moved, seqno, seqno, state.last_slot)
        state.documents = {at: row for at, row in state.documents.items() if at not in moved}
        state.last_slot = at_slot - 1
        return seqno

    def trim(self, shard: int) -> None:
        """Forget the whole log of a shard."""
        state = self.shards[shard]
        state.trimmed = state.applied
        state.entries.clear()

    def committed_entries(self, shard: int, after_seqno: int, max_entries: int) -> list[tuple[int, Operation]] | None:
        self.pulls += 1
        if self.failure is not None:
            self.has_failed.set()
            raise self.failure
        state = self.shards.setdefault(shard, FakeShard())
        if after_seqno < state.trimmed:
            return None
        first = after_seqno - state.trimmed
        return state.entries[first : first + max_entries]

    def scan_documents(
        self, shard: int, collection_id: int, start_key: bytes, limit: int
    ) -> list[tuple[bytes, bytes, int, int]]:
        self.has_scan_begun.set()
        self.scan_gate.wait()
        self.scans += 1
        if self.failure is not None:
            raise self.failure
        state = self.shards.setdefault(shard, FakeShard())
        keys = sorted(key for at, key in list(state.documents) if at == collection_id and key >= start_key)
        return [(key, *state.documents[collection_id, key]) for key in keys[:limit]]

    def applied_seqno(self, shard: int) -> int:
        self.looks += 1
        return self.shards.setdefault(shard, FakeShard()).applied

    def last_slot(self, shard: int) -> int:
        return self.shards.setdefault(shard, FakeShard()).last_slot

    def slot_of(self, key: bytes) -> int:
        return hashing.slot(key, 0)

    def history(self, shard: int) -> str:
        return "one"

    def read_documents(self, shard: int, collection_id: int, keys: list[bytes]) -> list[tuple[bytes, int, int] | None]:
        self.reads += 1
        self.has_read_begun.set()
        self.read_gate.wait()
        state = self.shards.setdefault(shard, FakeShard())
        rows = [state.documents.get((collection_id, key)) for key in keys]
        return [None if row is None or 0 < row[2] <= self._wall_ms() else row for row in rows]

    def has_expired_unswept(self, shard: int, collection_id: int, now_ms: int) -> bool:
        state = self.shards.setdefault(shard, FakeShard())
        return any(at == collection_id and 0 < row[2] <= now_ms for (at, _), row in state.documents.items())

    def live_documents(self, shard: int, collection_id: int) -> int:
        state = self.shards.setdefault(shard, FakeShard())
        return sum(1 for at, _ in state.documents if at == collection_id)
