"""What the search indexes read of a leaf's shards: the committed log and the stored documents.

Implements the indexer's `LogSource`. The methods are called on the indexer's threads while the event loop writes, so a key may
change between two reads of one call; each returned document is one that was stored at some instant of the call.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from kvshard.clock import Clock
from kvshard.errors import ErrorDetails, NotReady, StorageFailed
from leaf import layout
from leaf.engine import StorageError
from leaf.entry_codec import decode_operation
from leaf.key_reader import READ_CHUNK_KEYS
from leaf.layout import HEADER_BYTES, INLINE_MAX_BYTES, header_of
from leaf.operations import Operation
from leaf.shard_store import ShardState, ShardStore

LOG_CHUNK_BYTES: Final = 8 * 1024 * 1024
"""Log rows of one answer; decoded they take about three times as much."""

DOCUMENTS_CHUNK_BYTES: Final = 16 * 1024 * 1024
"""Values of one answer of scan_documents, one large value over it at most."""

LARGE_TRIES: Final = 16
"""A large value that is overwritten between the read of its header and its own is read again; so often in turn is a storm."""

EXPIRED_LOOK: Final = 256
"""Due expiry rows looked at; beyond it the answer is the cautious one."""


class IndexFeed:
    """The `LogSource` over a ShardStore."""

    def __init__(self, store: ShardStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock

    def __repr__(self) -> str:
        return f"IndexFeed({self._store!r})"

    def committed_entries(self, shard: int, after_seqno: int, max_entries: int) -> list[tuple[int, Operation]] | None:
        """Applied entries with seqno > after_seqno, ascending, at most max_entries; None if some of them are compacted away."""
        with self._steady(shard) as state:
            applied = state.applied
            if after_seqno >= applied:
                return []
            begin, end = layout.log_key(shard, after_seqno + 1), layout.log_key(shard, applied + 1)
            rows = self._store.engine.scan(begin, end, max_entries, LOG_CHUNK_BYTES).rows
        entries = [decode_operation(row) for _, row in rows]
        # The log has no gaps: if its first entry is not the one asked for, that one was trimmed, or never was in this log,
        # which began with a snapshot.
        if not entries or entries[0][0] != after_seqno + 1:
            return None
        return entries

    def scan_documents(
        self, shard: int, collection_id: int, start_key: bytes, limit: int
    ) -> list[tuple[bytes, bytes, int, int]]:
        """Stored (key, value, version, expires_at_ms) with key >= start_key, ascending, at most limit; empty: no more."""
        prefix = layout.value_prefix(shard, collection_id)
        start, end = prefix + start_key, layout.end_of(prefix)
        found: list[tuple[bytes, bytes, int, int]] = []
        room, has_more = DOCUMENTS_CHUNK_BYTES, True
        with self._steady(shard):
            is_own = self._store.filter_of(shard)
            while has_more and not found:
                rows, has_more = self._store.engine.scan(start, end, limit)
                for row_key, row in rows:
                    key = row_key[len(prefix) :]
                    if is_own is not None and not is_own(key):
                        continue
                    document = self._document(shard, collection_id, key, row)
                    if document is not None:
                        found.append((key, *document))
                        room -= len(document[0])
                        if room <= 0:
                            has_more = False
                            break
                start = rows[-1][0] + b"\0" if rows else end
        return found

    def applied_seqno(self, shard: int) -> int:
        """The last applied seqno; every entry through it is visible to the other methods."""
        return self._store.state(shard).applied

    def last_slot(self, shard: int) -> int:
        """The end of the shard's range in the applied state, if a split has cut it; else the last slot of all."""
        return self._store.state(shard).splits.last_slot

    def slot_of(self, key: bytes) -> int:
        """The token slot of a key."""
        return self._store.splits.slot_of(key)

    def history(self, shard: int) -> str:
        """Names the past of the shard's data: it changes when the data is created anew or replaced by a snapshot."""
        with self._steady(shard):
            return self._store.history(shard)

    def read_documents(self, shard: int, collection_id: int, keys: Sequence[bytes]) -> list[tuple[bytes, int, int] | None]:
        """Live (value, version, expires_at_ms) of each key now, None where there is none; parallel to the keys."""
        prefix = layout.value_prefix(shard, collection_id)
        now_ms = self._clock.wall_ms()
        found: list[tuple[bytes, int, int] | None] = []
        with self._steady(shard):
            for first in range(0, len(keys), READ_CHUNK_KEYS):
                chunk = keys[first : first + READ_CHUNK_KEYS]
                rows = self._store.engine.get_many([prefix + key for key in chunk])
                for key, row in zip(chunk, rows, strict=True):
                    document = self._document(shard, collection_id, key, row)
                    is_live = document is not None and not 0 < document[2] <= now_ms
                    found.append(document if is_live else None)
        return found

    def has_expired_unswept(self, shard: int, collection_id: int, now_ms: int) -> bool:
        """Whether the collection may hold documents whose time has passed but which are not deleted yet."""
        with self._steady(shard):
            due = self._store.due(shard, now_ms, EXPIRED_LOOK)
        return len(due) == EXPIRED_LOOK or any(layout.expiry_of(row_key)[1] == collection_id for row_key in due)

    def live_documents(self, shard: int, collection_id: int) -> int:
        """Documents of the collection in this shard, for coverage."""
        return self._store.counts(shard, collection_id).documents

    @contextmanager
    def _steady(self, shard: int) -> Iterator[ShardState]:
        """What is read inside belongs to one history of the shard, else NotReady. Raises StorageFailed for StorageError."""
        state = self._store.state(shard)
        try:
            yield state
        except StorageError as error:
            raise StorageFailed(f"the storage of shard {shard} failed: {error}", ErrorDetails(shards=(shard,))) from error
        # Afterwards: the mark is set before rows go, and an installed snapshot comes with another state.
        if state.is_staging or self._store.state(shard) is not state:
            raise NotReady(f"the replica of shard {shard} is being filled", ErrorDetails(shards=(shard,)))

    def _document(self, shard: int, collection_id: int, key: bytes, row: bytes | None) -> tuple[bytes, int, int] | None:
        for _ in range(LARGE_TRIES):
            if row is None:
                return None
            version, expires_at_ms, size = header_of(row)
            if size <= INLINE_MAX_BYTES:
                return row[HEADER_BYTES:], version, expires_at_ms
            value = self._store.large_value(shard, collection_id, key, version)
            if value is not None:
                return value, version, expires_at_ms
            row = self._store.engine.get(layout.value_prefix(shard, collection_id) + key)
        raise NotReady(f"a key of shard {shard} changes too fast to be read", ErrorDetails(shards=(shard,)))
