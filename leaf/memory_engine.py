"""The engine's twin in memory: for tests and simulation. It can crash, and then keeps what a real one might have kept."""

import threading
from bisect import bisect_left, insort
from collections.abc import Sequence

from leaf.engine import SCAN_MAX_BYTES, Engine, Rows, StorageError, View
from leaf.layout import Batch

_Change = tuple[bytes, bytes | None, bytes | None]
"""(key, value, None): put. (key, None, None): delete. (begin, None, end): delete a range."""


class MemoryBatch:
    """Changes in order."""

    def __init__(self) -> None:
        self.changes: list[_Change] = []

    def put(self, key: bytes, value: bytes, /) -> None:
        """Set a row."""
        self.changes.append((key, value, None))

    def delete(self, key: bytes, /) -> None:
        """Remove a row."""
        self.changes.append((key, None, None))

    def delete_range(self, begin: bytes, end: bytes, /) -> None:
        """Remove the rows in [begin, end)."""
        self.changes.append((begin, None, end))

    def __repr__(self) -> str:
        return f"MemoryBatch({len(self.changes)} changes)"


class _Table:
    """Rows with their keys in order."""

    def __init__(self, rows: dict[bytes, bytes] | None = None) -> None:
        self.rows = dict(rows or {})
        self.keys = sorted(self.rows)

    def make(self, changes: Sequence[_Change]) -> None:
        for key, value, end in changes:
            if value is not None:
                if key not in self.rows:
                    insort(self.keys, key)
                self.rows[key] = value
            elif end is None:
                if self.rows.pop(key, None) is not None:
                    del self.keys[bisect_left(self.keys, key)]
            else:
                first, last = bisect_left(self.keys, key), bisect_left(self.keys, end)
                for gone in self.keys[first:last]:
                    del self.rows[gone]
                del self.keys[first:last]

    def scan(self, start: bytes, end: bytes, limit: int, max_bytes: int) -> Rows:
        found: list[tuple[bytes, bytes]] = []
        size = 0
        first, last = bisect_left(self.keys, start), bisect_left(self.keys, end)
        for position in range(first, last):
            if len(found) >= limit or size >= max_bytes:
                return Rows(found, True)
            key = self.keys[position]
            value = self.rows[key]
            found.append((key, value))
            size += len(key) + len(value)
        return Rows(found, False)


class _MemoryView(View):
    """A copy."""

    def __init__(self, table: _Table) -> None:
        self._table: _Table | None = table

    def get(self, key: bytes) -> bytes | None:
        """The row's value, or None."""
        return self._open().rows.get(key)

    def scan(self, start: bytes, end: bytes, limit: int, max_bytes: int = SCAN_MAX_BYTES) -> Rows:
        """Rows in [start, end), ascending."""
        return self._open().scan(start, end, limit, max_bytes)

    def close(self) -> None:
        """Let the view go."""
        self._table = None

    def _open(self) -> _Table:
        if self._table is None:
            raise StorageError("the view is closed")
        return self._table


class MemoryEngine(Engine):
    """Rows in a dict. `crash` gives the engine that a reopened disk would show: any prefix of the unsynced batches survives."""

    def __init__(self, rows: dict[bytes, bytes] | None = None) -> None:
        self._lock = threading.Lock()
        self._table = _Table(rows)
        self._durable = dict(self._table.rows)
        self._unsynced: list[list[_Change]] = []
        self._is_closed = False
        self.flushes = 0
        self.writes = 0

    def __repr__(self) -> str:
        return f"MemoryEngine({len(self._table.keys)} rows, {len(self._unsynced)} unsynced batches)"

    @property
    def unsynced(self) -> int:
        """Batches that a crash may lose."""
        return len(self._unsynced)

    def rows(self) -> dict[bytes, bytes]:
        """All rows, as reads see them."""
        with self._lock:
            return dict(self._table.rows)

    def crash(self, kept: int = 0) -> "MemoryEngine":
        """What a machine that dies now leaves behind if the first `kept` unsynced batches reached its disk."""
        with self._lock:
            table = _Table(self._durable)
            for changes in self._unsynced[:kept]:
                table.make(changes)
            return MemoryEngine(table.rows)

    def get(self, key: bytes) -> bytes | None:
        """The row's value, or None."""
        with self._lock:
            self._check_open()
            return self._table.rows.get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of several rows, parallel to the keys."""
        with self._lock:
            self._check_open()
            return [self._table.rows.get(key) for key in keys]

    def new_batch(self) -> Batch:
        """An empty batch, for `write`."""
        return MemoryBatch()

    def write(self, batch: Batch) -> None:
        """Make a batch's changes, together."""
        assert isinstance(batch, MemoryBatch)
        with self._lock:
            self._check_open()
            self._table.make(batch.changes)
            self._unsynced.append(list(batch.changes))
            self.writes += 1

    def flush_wal(self) -> None:
        """Let every batch written before survive a crash."""
        with self._lock:
            self._check_open()
            durable = _Table(self._durable)
            for changes in self._unsynced:
                durable.make(changes)
            self._durable = durable.rows
            self._unsynced.clear()
            self.flushes += 1

    def scan(self, start: bytes, end: bytes, limit: int, max_bytes: int = SCAN_MAX_BYTES) -> Rows:
        """Rows in [start, end), ascending."""
        with self._lock:
            self._check_open()
            return self._table.scan(start, end, limit, max_bytes)

    def snapshot(self) -> View:
        """A view of all rows as they are now."""
        with self._lock:
            self._check_open()
            return _MemoryView(_Table(self._table.rows))

    def compact(self) -> None:
        """Nothing: only the newest rows are kept."""
        self._check_open()

    def size_bytes(self) -> int:
        """Bytes of all rows."""
        with self._lock:
            self._check_open()
            return sum(len(key) + len(value) for key, value in self._table.rows.items())

    def close(self) -> None:
        """Any later call raises."""
        self._is_closed = True

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageError("the engine is closed")
