"""The embedded coordinator: one SQLite file, shared by the processes of one machine; no server to start.

All of SQLite happens on one private thread a handle (`_Store`, which is synchronous), so the event loop never waits for a disk
or a lock. Write transactions begin IMMEDIATE, one writer at a time across processes; the write-ahead log with synchronous=FULL
makes a commit whole and durable or absent, whenever a process is killed.

Watches poll `PRAGMA data_version`, which changes when another connection has committed; writes of the same handle wake its
watches at once. Leases end by the wall clock, the only one that processes share across restarts; whoever writes, reads or
polls next after that deletes their keys.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from kvshard.clock import Clock
from kvshard.coordination.base import (
    ABSENT,
    Compare,
    Coordinator,
    CoordinatorUnavailable,
    Delete,
    Event,
    HistoryCompacted,
    KeyValue,
    LeaseExpired,
    Put,
    Snapshot,
    TxnResult,
    check_txn,
)

POLL_INTERVAL_S = 0.05
"""How late a watch may learn of another process's write. A poll with its two thread switches takes under 0.5 ms, so an idle
watch costs 1 % of a core; a router that meets a new epoch before its watch does refreshes by itself."""

BUSY_TIMEOUT_S = 5.0
"""Wait for another process's write transaction, which lasts about one fsync; a disk that takes longer has failed."""

HISTORY_REVISIONS = 10_000
"""Revisions that watches can still read: a follower must fall behind by this many, minutes of steady writing, before it has
to read everything anew. Costs a few MB."""

PENDING_MAX = 1_000
"""Calls that may wait for the thread. At one fsync each the last one waits for seconds: an error is better then."""

SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS kv (
    key TEXT PRIMARY KEY, value BLOB NOT NULL, revision INTEGER NOT NULL, lease INTEGER
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS kv_by_lease ON kv (lease) WHERE lease IS NOT NULL;
CREATE TABLE IF NOT EXISTS history (
    revision INTEGER NOT NULL, position INTEGER NOT NULL, key TEXT NOT NULL, value BLOB, PRIMARY KEY (revision, position)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lease (
    id INTEGER PRIMARY KEY AUTOINCREMENT, ttl_ms INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS state (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
INSERT OR IGNORE INTO state VALUES ('revision', 0), ('compacted', 0);
"""
T = TypeVar("T")

_IS_ALIVE = "NOT EXISTS (SELECT 1 FROM lease WHERE lease.id = kv.lease AND lease.expires_at_ms <= ?)"
_READING = "BEGIN"
_WRITING = "BEGIN IMMEDIATE"  # takes the write lock at once: upgrading a reader later may fail without waiting


@dataclass(frozen=True, slots=True)
class _Stamp:
    """State of the file as one connection sees it: equal stamps mean that nothing was committed in between."""

    connection: int
    data_version: int
    own_commits: int


class _Store:
    """The file, from the one thread that may touch it. Every method is a whole transaction."""

    def __init__(self, path: Path, clock: Clock, history_revisions: int) -> None:
        self._path = path
        self._clock = clock
        self._history_revisions = history_revisions
        self._open: sqlite3.Connection | None = None
        self._connections = 0
        self._commits = 0

    def get(self, key: str) -> KeyValue | None:
        self._collect_leases_if_free()
        query = f"SELECT key, value, revision FROM kv WHERE key = ? AND {_IS_ALIVE}"
        row = self._connection().execute(query, (key, self._clock.wall_ms())).fetchone()
        return KeyValue(*row) if row else None

    def get_prefix(self, prefix: str) -> Snapshot:
        self._collect_leases_if_free()
        with self._transaction(_READING) as db:
            revision = _state(db, "revision")
            # The first condition finds the place in the index, the second ends at the last key that really has the prefix.
            query = f"SELECT key, value, revision FROM kv WHERE key >= ? AND substr(key, 1, ?) = ? AND {_IS_ALIVE} ORDER BY key"
            rows = db.execute(query, (prefix, len(prefix), prefix, self._clock.wall_ms())).fetchall()
        return Snapshot(revision, tuple(KeyValue(*row) for row in rows))

    def txn(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> TxnResult:
        self._collect_leases()
        with self._transaction(_WRITING if writes else _READING) as db:
            for compare in compares:
                row = db.execute("SELECT revision FROM kv WHERE key = ?", (compare.key,)).fetchone()
                if (row[0] if row else ABSENT) != compare.revision:
                    return TxnResult(False, _state(db, "revision"))
            alive = "SELECT 1 FROM lease WHERE id = ? AND expires_at_ms > ?"
            for lease in {write.lease for write in writes if isinstance(write, Put) and write.lease is not None}:
                # Compared with the clock once more: the lease may have ended while this transaction waited for its turn.
                if db.execute(alive, (lease, self._clock.wall_ms())).fetchone() is None:
                    raise LeaseExpired(f"lease {lease} has ended")
            return TxnResult(True, self._write(db, writes))

    def grant_lease(self, ttl_ms: int) -> int:
        self._collect_leases()
        with self._transaction(_WRITING) as db:
            values = (ttl_ms, self._clock.wall_ms() + ttl_ms)
            lease = db.execute("INSERT INTO lease (ttl_ms, expires_at_ms) VALUES (?, ?)", values).lastrowid
        assert lease is not None
        return lease

    def keep_alive(self, lease: int) -> None:
        self._collect_leases()
        with self._transaction(_WRITING) as db:
            now = self._clock.wall_ms()
            renew = "UPDATE lease SET expires_at_ms = ? + ttl_ms WHERE id = ? AND expires_at_ms > ?"
            renewed = db.execute(renew, (now, lease, now))
            if renewed.rowcount != 1:
                raise LeaseExpired(f"lease {lease} has ended")

    def revoke_lease(self, lease: int) -> None:
        with self._transaction(_WRITING) as db:
            self._end_lease(db, lease)

    def changes(self, prefix: str, after_revision: int, seen: _Stamp | None) -> tuple[_Stamp, int, list[Event]]:
        """The changes under a prefix after a revision, and the revision through which they are all; cheap if there are none."""
        self._collect_leases_if_free()
        stamp = self._stamp()
        if stamp == seen:
            return stamp, after_revision, []
        with self._transaction(_READING) as db:
            compacted = _state(db, "compacted")
            if after_revision < compacted:
                raise HistoryCompacted(f"changes after revision {after_revision} are gone, they begin after {compacted}")
            revision = _state(db, "revision")
            query = "SELECT key, value, revision FROM history WHERE revision > ? AND substr(key, 1, ?) = ?"
            rows = db.execute(f"{query} ORDER BY revision, position", (after_revision, len(prefix), prefix)).fetchall()
        return stamp, max(revision, after_revision), [Event(*row) for row in rows]

    def close(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def guarded(self, work: Callable[[], T]) -> T:
        """Run work; whatever SQLite refuses becomes CoordinatorUnavailable, and the next call opens the file anew."""
        try:
            return work()
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self.close()
            self._open = None
            raise CoordinatorUnavailable(f"{self._path}: {error}") from error

    def _connection(self) -> sqlite3.Connection:
        if self._open is None:
            self._open = _connect(self._path)
            self._connections += 1
        return self._open

    def _stamp(self) -> _Stamp:
        version = self._connection().execute("PRAGMA data_version").fetchone()[0]
        return _Stamp(self._connections, version, self._commits)

    @contextlib.contextmanager
    def _transaction(self, begin: str) -> Iterator[sqlite3.Connection]:
        db = self._connection()
        db.execute(begin)
        try:
            yield db
        except BaseException:
            with contextlib.suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise
        db.execute("COMMIT")
        self._commits += begin == _WRITING

    def _write(self, db: sqlite3.Connection, writes: Sequence[Put | Delete]) -> int:
        """Make writes as the store's next revision, which it returns; deleting only what is absent makes none."""
        revision = _state(db, "revision") + 1
        position = 0
        for write in writes:
            if isinstance(write, Put):
                row = (write.key, write.value, revision, write.lease)
                db.execute("INSERT OR REPLACE INTO kv (key, value, revision, lease) VALUES (?, ?, ?, ?)", row)
            elif db.execute("DELETE FROM kv WHERE key = ?", (write.key,)).rowcount == 0:
                continue
            value = write.value if isinstance(write, Put) else None
            db.execute("INSERT INTO history VALUES (?, ?, ?, ?)", (revision, position, write.key, value))
            position += 1
        if position == 0:
            return revision - 1
        db.execute("UPDATE state SET value = ? WHERE name = 'revision'", (revision,))
        oldest = revision - self._history_revisions
        if oldest > 0:
            db.execute("DELETE FROM history WHERE revision <= ?", (oldest,))
            db.execute("UPDATE state SET value = max(value, ?) WHERE name = 'compacted'", (oldest,))
        return revision

    def _end_lease(self, db: sqlite3.Connection, lease: int) -> None:
        keys = [key for (key,) in db.execute("SELECT key FROM kv WHERE lease = ? ORDER BY key", (lease,))]
        self._write(db, [Delete(key) for key in keys])
        db.execute("DELETE FROM lease WHERE id = ?", (lease,))

    def _collect_leases_if_free(self) -> None:
        """The same before something is only read: while another process holds the write lock, the queries hide what has ended.

        Else nobody could read the map while the file cannot be written to.
        """
        if not self._has_ended_leases():
            return
        db = self._connection()
        db.execute("PRAGMA busy_timeout = 0")
        try:
            self._collect_leases()
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise
        finally:
            db.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")

    def _collect_leases(self) -> None:
        """End the leases whose time is over. The look is cheap; only when there is one, the write lock is taken."""
        if not self._has_ended_leases():
            return
        with self._transaction(_WRITING) as db:
            ended = "SELECT id FROM lease WHERE expires_at_ms <= ? ORDER BY id"
            for (lease,) in db.execute(ended, (self._clock.wall_ms(),)).fetchall():
                self._end_lease(db, lease)

    def _has_ended_leases(self) -> bool:
        ended = "SELECT 1 FROM lease WHERE expires_at_ms <= ? LIMIT 1"
        return self._connection().execute(ended, (self._clock.wall_ms(),)).fetchone() is not None


def _state(db: sqlite3.Connection, name: str) -> int:
    value: int = db.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()[0]
    return value


def _connect(path: Path) -> sqlite3.Connection:
    """Open the file, creating it if need be."""
    db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
    try:
        _switch_to_wal(db)
        db.execute("PRAGMA synchronous = FULL")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version == 0:
            db.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;")
        elif version != SCHEMA_VERSION:
            raise sqlite3.DatabaseError(f"its format is {version}, this version of kvshard reads {SCHEMA_VERSION}")
    except BaseException:
        db.close()
        raise
    return db


def _switch_to_wal(db: sqlite3.Connection) -> None:
    """Turn the write-ahead log on. SQLite does not wait for locks here, so processes that start together must try again."""
    until = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > until:
                raise
            time.sleep(0.01)


class EmbeddedCoordinator(Coordinator):
    """A handle on a coordinator file. Any number of handles, in any number of processes, may share the file."""

    def __init__(self, path: Path, clock: Clock, history_revisions: int = HISTORY_REVISIONS) -> None:
        self._path = path
        self._store = _Store(path, clock, history_revisions)
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="coordinator")
        self._pending = 0
        self._sleeping_watches: set[asyncio.Future[None]] = set()
        self._is_closed = False

    def __repr__(self) -> str:
        return f"EmbeddedCoordinator({str(self._path)!r}{', closed' if self._is_closed else ''})"

    async def get(self, key: str) -> KeyValue | None:
        """The key as it is now, or None."""
        return await self._run(lambda: self._store.get(key))

    async def get_prefix(self, prefix: str) -> Snapshot:
        """All keys that begin with prefix, at one revision."""
        return await self._run(lambda: self._store.get_prefix(prefix))

    async def txn(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> TxnResult:
        """Make all writes if every compare holds, else none."""
        check_txn(compares, writes)
        return await self._run_write(lambda: self._store.txn(compares, writes))

    async def grant_lease(self, ttl_s: float) -> int:
        """A new lease that ends after ttl_s seconds unless it is kept alive."""
        return await self._run(lambda: self._store.grant_lease(round(ttl_s * 1000)))

    async def keep_alive(self, lease: int) -> None:
        """Renew a lease for its full length."""
        await self._run(lambda: self._store.keep_alive(lease))

    async def revoke_lease(self, lease: int) -> None:
        """End a lease now and delete its keys."""
        await self._run_write(lambda: self._store.revoke_lease(lease))

    async def watch(self, prefix: str, after_revision: int) -> AsyncIterator[list[Event]]:
        """Yield every later change of the keys under prefix."""
        stamp: _Stamp | None = None
        while True:
            # Set before the look, so that a write during it is not slept through.
            wake = self._wake_up_call()
            try:
                stamp, after_revision, events = await self._changes(prefix, after_revision, stamp)
                if events:
                    yield events
                else:
                    await wake
            finally:
                self._sleeping_watches.discard(wake)
                wake.cancel()

    async def close(self) -> None:
        """Close the file and end the thread; calls and watches that are under way raise CoordinatorUnavailable."""
        if self._is_closed:
            return
        self._is_closed = True
        self._wake_watches()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        self._thread.shutdown(wait=False)

    async def _changes(self, prefix: str, after_revision: int, seen: _Stamp | None) -> tuple[_Stamp, int, list[Event]]:
        return await self._run(lambda: self._store.changes(prefix, after_revision, seen))

    def _wake_up_call(self) -> asyncio.Future[None]:
        """Done at this handle's next write, or when it is time to poll."""
        loop = asyncio.get_running_loop()
        wake: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(POLL_INTERVAL_S, _finish, wake)
        wake.add_done_callback(lambda _: timer.cancel())
        self._sleeping_watches.add(wake)
        return wake

    def _wake_watches(self) -> None:
        for wake in self._sleeping_watches:
            _finish(wake)

    async def _run_write(self, work: Callable[[], T]) -> T:
        try:
            return await self._run(work)
        finally:
            self._wake_watches()

    async def _run(self, work: Callable[[], T]) -> T:
        if self._is_closed:
            raise CoordinatorUnavailable("the coordinator handle is closed")
        if self._pending >= PENDING_MAX:
            raise CoordinatorUnavailable(f"{PENDING_MAX} calls wait already")
        self._pending += 1
        call = asyncio.get_running_loop().run_in_executor(self._thread, self._store.guarded, work)
        call.add_done_callback(self._on_done)
        # A caller that gives up does not take the call back: it may have begun, and its outcome is then unknown.
        return await asyncio.shield(call)

    def _on_done(self, call: "asyncio.Future[T]") -> None:
        self._pending -= 1
        if not call.cancelled():
            call.exception()  # marks it as seen where the caller has gone


def _finish(wake: asyncio.Future[None]) -> None:
    if not wake.done():
        wake.set_result(None)
