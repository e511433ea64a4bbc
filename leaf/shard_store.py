"""The state of a leaf's shards in its engine: applying log entries, reading keys, trimming the log.

Everything here is synchronous and quick: bounded chunks, no waiting. State changes only in `apply`, which writes what
`operations.apply_entries` says.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from kvshard.errors import DataLoss, ErrorDetails, ErrorRecord, InvalidArgument, NotReady, ResourceExhausted, record_of
from kvshard.limits import KEY_MAX_BYTES
from kvshard.model import ABSENT, NEVER, ShardRead, ShardReadReply, ShardScan, ShardScanReply
from leaf import layout
from leaf.engine import Engine
from leaf.entry_codec import decode_entry
from leaf.layout import HEADER_BYTES, INLINE_MAX_BYTES, VERSION_BYTES, Batch, Header, header_of, unpack_header
from leaf.log import LogWindow
from leaf.operations import NO_COUNTS, Counts, DropCollection, Entry, apply_entries, soonest_expiry

READ_CHUNK_KEYS: Final = 512
"""Rows of one multi-get: at most 8 MiB, since large values stand apart."""

READ_REPLY_MAX_BYTES: Final = 32 * 1024 * 1024
"""Values of one read reply: with its framing it stays under the message limit."""

SCAN_REPLY_MAX_BYTES: Final = 4 * 1024 * 1024
SCAN_REPLY_MAX_KEYS: Final = 4_096
"""Of one chunk of a scan: the loop is held for a few milliseconds, and a merge over many shards holds one chunk of each."""

REPLAY_CHUNK_ENTRIES: Final = 256
"""Entries applied between two looks at the event loop while a replica recovers."""

_APPLIED: Final = b"applied"
_TRIMMED: Final = b"trimmed"
_INCARNATION: Final = b"incarnation"


@dataclass(slots=True)
class ShardState:
    """What is kept in memory of one shard. counts is replaced, never changed, so that other threads may read it.

    remembered: headers of keys that entries in flight write, as `remember` was told; always equal to what the engine holds.
    expires_from: no expiry row is earlier. The engine keeps tombstones of those that were removed, a look from the first on
    would pass over all of them.
    """

    applied: int
    counts: dict[int, Counts]
    window: LogWindow
    remembered: dict[int, dict[bytes, Header | None]] = field(default_factory=dict)
    expires_from: int = 0


class ShardStore:
    """All shards of one leaf. Methods run on the event loop, save where `index_feed.py` calls the reading ones on threads."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
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

    def incarnation(self, shard: int) -> str:
        """The identity of the shard's data; empty when there is none."""
        return (self.engine.get(layout.meta_key(shard, _INCARNATION)) or b"").decode()

    def has_history(self, shard: int) -> bool:
        """Whether the shard's log ever had an entry."""
        first, end = layout.log_key(shard, 0), layout.log_key(shard, 2**64 - 1)
        return self._number(shard, _APPLIED) > 0 or bool(self.engine.scan(first, end, 1).rows)

    @staticmethod
    def incarnation_row(shard: int, incarnation: str) -> tuple[bytes, bytes]:
        """The row that gives the shard's data its identity."""
        return layout.meta_key(shard, _INCARNATION), incarnation.encode()

    def load(self, shard: int) -> None:
        """Read the shard's marks and counts; then `replay` until it is done."""
        applied = self._number(shard, _APPLIED)
        prefix = layout.counts_prefix(shard)
        counts: dict[int, Counts] = {}
        start, has_more = prefix, True
        while has_more:
            rows, has_more = self.engine.scan(start, layout.end_of(prefix), READ_CHUNK_KEYS)
            counts |= {layout.collection_of_counts(key): Counts(*layout.unpack_counts(value)) for key, value in rows}
            start = rows[-1][0] + b"\0" if rows else start
        trimmed = self._number(shard, _TRIMMED)
        self._states[shard] = ShardState(applied, counts, LogWindow(min(trimmed, applied), applied))

    def _number(self, shard: int, name: bytes) -> int:
        row = self.engine.get(layout.meta_key(shard, name))
        return layout.unpack_number(row) if row else 0

    def replay(self, shard: int) -> bool:
        """Apply a chunk of the log's entries above the applied seqno. Returns whether there may be more."""
        state = self.state(shard)
        first = state.applied + 1
        rows = self.engine.scan(layout.log_key(shard, first), layout.log_key(shard, 2**64 - 1), REPLAY_CHUNK_ENTRIES)
        entries = [decode_entry(row) for _, row in rows.rows]
        if [entry.seqno for entry in entries] != list(range(first, first + len(entries))):
            raise DataLoss(f"the log of shard {shard} has a gap after {state.applied}", ErrorDetails(shards=(shard,)))
        for entry, (_, row) in zip(entries, rows.rows, strict=True):
            state.window.append(entry.seqno, len(row))
        if entries:
            self.apply(shard, entries)
        return rows.has_more

    def apply(self, shard: int, entries: Sequence[Entry]) -> None:
        """Write what the entries change, with the counts and the applied seqno, in one unsynced batch."""
        state = self.state(shard)
        assert entries[0].seqno == state.applied + 1, f"shard {shard}: {entries[0].seqno} after {state.applied}"
        batch = self.engine.new_batch()

        def headers(collection_id: int, keys: Sequence[bytes]) -> Sequence[Header | None]:
            return self._recall(shard, state.remembered.get(collection_id), collection_id, keys)

        counts = apply_entries(shard, entries, headers, state.counts, batch)
        last = entries[-1].seqno
        # Before the rows are there: a reader on another thread that sees them must not look behind them.
        state.expires_from = min(state.expires_from, soonest_expiry(entries))
        batch.put(layout.meta_key(shard, _APPLIED), layout.pack_number(last))
        self.engine.write(batch)
        for entry in entries:
            if isinstance(entry.operation, DropCollection):
                state.remembered.pop(entry.operation.collection_id, None)
        state.counts = counts
        state.applied = last

    def remember(self, shard: int, collection_id: int, headers: Mapping[bytes, Header | None]) -> None:
        """Keep the headers that were just read of keys about to be written, so that `apply` need not read them again.

        The first entry applied to a key takes its header away: the next one finds another in the engine.
        """
        self.state(shard).remembered.setdefault(collection_id, {}).update(headers)

    def _recall(
        self, shard: int, remembered: dict[bytes, Header | None] | None, collection_id: int, keys: Sequence[bytes]
    ) -> Sequence[Header | None]:
        if not remembered:
            return self.headers(shard, collection_id, keys)
        found = {key: remembered.pop(key) for key in keys if key in remembered}
        unknown = [key for key in keys if key not in found]
        if unknown:
            found.update(zip(unknown, self.headers(shard, collection_id, unknown), strict=True))
        return [found[key] for key in keys]

    def counts(self, shard: int, collection_id: int) -> Counts:
        """Documents and bytes of a collection."""
        return self.state(shard).counts.get(collection_id, NO_COUNTS)

    def headers(self, shard: int, collection_id: int, keys: Sequence[bytes]) -> list[Header | None]:
        """The headers of stored keys, expired ones too; parallel to the keys."""
        prefix = layout.value_prefix(shard, collection_id)
        found: list[Header | None] = []
        for first in range(0, len(keys), READ_CHUNK_KEYS):
            rows = self.engine.get_many([prefix + key for key in keys[first : first + READ_CHUNK_KEYS]])
            found += [header_of(row) if row is not None else None for row in rows]
        return found

    def large_value(self, shard: int, collection_id: int, key: bytes, version: int) -> bytes | None:
        """The value that stands apart, if it is still the one of this version."""
        row = self.engine.get(layout.large_prefix(shard, collection_id) + key)
        return row[VERSION_BYTES:] if row is not None and layout.unpack_number(row) == version else None

    def read(self, request: ShardRead, now_ms: int) -> ShardReadReply:
        """Answer a read; keys beyond the reply's bound get an error of their own."""
        shard, collection_id, keys = request.shard, request.collection_id, request.keys
        prefix = layout.value_prefix(shard, collection_id)
        values: list[bytes | None] = []
        versions: list[int] = []
        expiries: dict[int, int] = {}
        errors: dict[int, ErrorRecord] = {}
        room, inline_max = READ_REPLY_MAX_BYTES, INLINE_MAX_BYTES
        add_value, add_version = values.append, versions.append
        for first in range(0, len(keys), READ_CHUNK_KEYS):
            rows = self.engine.get_many([prefix + key for key in keys[first : first + READ_CHUNK_KEYS]])
            for index, row in enumerate(rows, first):
                if row is None:
                    add_value(None)
                    add_version(ABSENT)
                    continue
                version, expires_at_ms, size = unpack_header(row)
                if expires_at_ms == NEVER and size <= inline_max and size <= room:  # Nearly all: one test each.
                    room -= size
                    add_value(row[HEADER_BYTES:])
                    add_version(version)
                    continue
                value: bytes | None
                if expires_at_ms and expires_at_ms <= now_ms:
                    value, version = None, ABSENT
                elif size > room:
                    value, version, errors[index] = None, ABSENT, _too_much()
                elif size <= INLINE_MAX_BYTES:
                    value = row[HEADER_BYTES:]
                else:
                    value = self.large_value(shard, collection_id, keys[index], version)
                    if value is None:
                        version, errors[index] = ABSENT, record_of(_damaged(shard))
                if value is not None:
                    room -= size
                    if expires_at_ms:
                        expiries[index] = expires_at_ms
                add_value(value)
                add_version(version)
        column = [expiries.get(index, NEVER) for index in range(len(keys))] if expiries else []
        return ShardReadReply(values, versions, column, errors, self.counts(shard, collection_id).documents)

    def scan(self, request: ShardScan, now_ms: int) -> ShardScanReply:
        """Answer a scan with one chunk."""
        if request.limit < 1:
            raise InvalidArgument(f"limit must be at least 1, not {request.limit}", ErrorDetails(field="limit", limit=1))
        prefix = layout.value_prefix(request.shard, request.collection_id)
        # A start longer than any key is legal; the key that it would resume after is just not there.
        start = prefix + request.start[: KEY_MAX_BYTES + 1]
        end = prefix + request.end if request.end is not None else layout.end_of(prefix)
        limit = min(request.limit, SCAN_REPLY_MAX_KEYS)
        chunk = self.engine.scan(start, end, limit, SCAN_REPLY_MAX_BYTES)
        documents = self.counts(request.shard, request.collection_id).documents
        reply = ShardScanReply([], [], [], [], chunk.has_more, b"", documents)
        room = SCAN_REPLY_MAX_BYTES
        for row_key, row in chunk.rows:
            version, expires_at_ms, size = unpack_header(row)
            key = row_key[len(prefix) :]
            if expires_at_ms and expires_at_ms <= now_ms:
                continue
            if not request.keys_only:
                if size > room and reply.keys:
                    return ShardScanReply(reply.keys, reply.values, reply.versions, reply.expires_at_ms, True, key, documents)
                reply.values.append(self._scanned_value(request, key, row))
                room -= size
            reply.keys.append(key)
            reply.versions.append(version)
            reply.expires_at_ms.append(expires_at_ms)
        resume = chunk.rows[-1][0][len(prefix) :] + b"\0" if chunk.has_more else b""
        return ShardScanReply(reply.keys, reply.values, reply.versions, reply.expires_at_ms, chunk.has_more, resume, documents)

    def _scanned_value(self, request: ShardScan, key: bytes, row: bytes) -> bytes:
        version, _, size = header_of(row)
        if size <= INLINE_MAX_BYTES:
            return row[HEADER_BYTES:]
        value = self.large_value(request.shard, request.collection_id, key, version)
        if value is None:
            raise _damaged(request.shard)
        return value

    def due(self, shard: int, now_ms: int, limit: int) -> list[bytes]:
        """Keys of the expiry rows whose time has come, the oldest first."""
        begin, end = layout.expiry_range(shard, self.state(shard).expires_from, now_ms)
        return [key for key, _ in self.engine.scan(begin, end, limit).rows]

    def note_due(self, shard: int, now_ms: int, due: Sequence[bytes]) -> None:
        """Begin later looks where `due`, called with this instant in the same turn of the event loop, found the first row."""
        state = self.state(shard)
        first_ms = layout.expiry_of(due[0])[0] if due else now_ms + 1
        state.expires_from = max(state.expires_from, first_ms)

    def forget_expiries(self, row_keys: Sequence[bytes]) -> None:
        """Remove expiry rows whose keys are gone (a dropped collection's)."""
        batch = self.engine.new_batch()
        for row_key in row_keys:
            batch.delete(row_key)
        self.engine.write(batch)

    def trim_log(self, shard: int, through: int) -> None:
        """Remove the log's entries through a seqno."""
        state = self.state(shard)
        batch: Batch = self.engine.new_batch()
        batch.delete_range(layout.log_key(shard, state.window.trimmed), layout.log_key(shard, through + 1))
        batch.put(layout.meta_key(shard, _TRIMMED), layout.pack_number(through))
        # Marked before the rows go: a reader on another thread that finds none must see why.
        state.window.trim(through)
        self.engine.write(batch)


def _too_much() -> ErrorRecord:
    text = f"the values of one read may have {READ_REPLY_MAX_BYTES} bytes a shard; ask for fewer keys"
    return record_of(ResourceExhausted(text, ErrorDetails(limit=READ_REPLY_MAX_BYTES)))


def _damaged(shard: int) -> DataLoss:
    return DataLoss(f"a stored value of shard {shard} is missing or damaged", ErrorDetails(shards=(shard,)))
