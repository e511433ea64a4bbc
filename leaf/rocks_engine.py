"""The engine on RocksDB (rocksdict). The one door to that binding.

The binding holds Python's lock through a synced write, but not through `flush_wal`; so batches are written unsynced and the
flush is called on a thread (see `committer.py`).
"""

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, cast

import rocksdict
import structlog

from leaf.engine import SCAN_MAX_BYTES, Engine, Rows, StorageError, View
from leaf.layout import Batch

BLOCK_CACHE_BYTES: Final = 32 * 1024 * 1024
"""An idle leaf must stay under 90 MB; the operating system's page cache holds the files besides."""

BLOCK_BYTES: Final = 4 * 1024
"""A key that is in no cache costs the unpacking of its block: among a million keys of 100 bytes 5 us, and 8 us in blocks of
8 KB, which save 2 % of the disk."""

WRITE_BUFFER_BYTES: Final = 16 * 1024 * 1024
WRITE_BUFFERS: Final = 4
"""Four buffers absorb a burst of 64 MB before a write would wait, with the event loop, for a flush to disk."""

LEVEL_ZERO_SLOWDOWN_FILES: Final = 64
LEVEL_ZERO_STOP_FILES: Final = 128
"""Generous: a write that RocksDB stops would stop the event loop with it. 128 files are 2 GB that compaction may lag behind."""

BLOOM_BITS_PER_KEY: Final = 10
"""One read in a hundred of an absent key goes to disk."""

WAL_MAX_BYTES: Final = 128 * 1024 * 1024
"""What a restart replays at most."""

VIEW_READAHEAD_BYTES: Final = 1024 * 1024
"""A view is read from one end to the other."""

SKIP_MAX: Final = 20_000
"""Removed rows that a scan passes over before it looks twice: 3 to 7 ms with Python's lock held, on whatever thread."""

SCAN_SLICE_ROWS: Final = 64
"""Rows that a scan takes before it adds up their bytes: so many more than wanted are read at most, 1 MiB."""

TIDY_PAUSE_S: Final = 5.0
"""Between two compactions that scans ask for: one that an open view keeps from removing anything must not be asked for at once
again, for it reads and writes all the files of its range."""

INFO_LOG_MAX_BYTES: Final = 1024 * 1024
INFO_LOGS_KEPT: Final = 3
"""RocksDB's own text log: enough for a look after a fault, not a second data set."""

_TOO_MANY_SKIPPED: Final = "Result incomplete"
"""How the binding's error begins for a scan that stopped at SKIP_MAX."""

_log = structlog.get_logger(__name__)


def _options() -> rocksdict.Options:
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(BLOCK_CACHE_BYTES))
    table.set_block_size(BLOCK_BYTES)
    table.set_bloom_filter(BLOOM_BITS_PER_KEY, False)
    table.set_data_block_index_type(rocksdict.DataBlockIndexType.binary_and_hash())
    # Index and filter blocks count in the cache's bound, else memory would grow with the data. They are cut into partitions: a
    # filter of more than half a megabyte would not fit one of the cache's 64 segments, and be read anew for every key (60 us).
    table.set_cache_index_and_filter_blocks(True)
    table.set_index_type(rocksdict.BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(True)
    table.set_metadata_block_size(4 * 1024)
    table.set_pin_top_level_index_and_filter(True)
    table.set_pin_l0_filter_and_index_blocks_in_cache(True)
    options = rocksdict.Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(WRITE_BUFFERS)
    options.set_memtable_whole_key_filtering(True)
    options.set_memtable_prefix_bloom_ratio(0.05)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_bottommost_compression_type(rocksdict.DBCompressionType.zstd())
    options.set_level_zero_slowdown_writes_trigger(LEVEL_ZERO_SLOWDOWN_FILES)
    options.set_level_zero_stop_writes_trigger(LEVEL_ZERO_STOP_FILES)
    options.set_max_total_wal_size(WAL_MAX_BYTES)
    # A torn tail is what kill -9 or a power cut leaves; damage before it ends the replay there, never in its middle.
    options.set_wal_recovery_mode(rocksdict.DBRecoveryMode.point_in_time())
    options.set_max_log_file_size(INFO_LOG_MAX_BYTES)
    options.set_keep_log_file_num(INFO_LOGS_KEPT)
    return options


class RocksEngine(Engine):
    """RocksDB in a folder.

    is_synced False makes flush_wal do nothing: fast, but a machine that dies loses acknowledged writes.
    """

    def __init__(self, path: Path, is_synced: bool = True) -> None:
        self._path = path
        self._is_synced = is_synced
        self._tidier = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tidy")
        self._tidying: Future[None] | None = None
        self._tidy_not_before = 0.0
        self._tidy_lock = threading.Lock()
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._db = rocksdict.Rdict(str(path), _options())
        except Exception as error:
            raise StorageError(f"cannot open {path}: {error}") from error

    def __repr__(self) -> str:
        return f"RocksEngine({str(self._path)!r}, is_synced={self._is_synced})"

    def get(self, key: bytes) -> bytes | None:
        """The row's value, or None."""
        try:
            return cast("bytes | None", self._db.get(key))
        except Exception as error:
            raise StorageError(str(error)) from error

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of several rows, parallel to the keys."""
        if len(keys) < 2:  # The binding's multi-get costs two single ones to begin with.
            return [self.get(key) for key in keys]
        try:
            return cast("list[bytes | None]", self._db.get(cast(Any, keys)))
        except Exception as error:
            raise StorageError(str(error)) from error

    def new_batch(self) -> Batch:
        """An empty batch, for `write`."""
        return cast(Batch, rocksdict.WriteBatch(raw_mode=True))

    def write(self, batch: Batch) -> None:
        """Make a batch's changes, together."""
        try:
            self._db.write(cast(Any, batch))
        except Exception as error:
            raise StorageError(str(error)) from error

    def flush_wal(self) -> None:
        """Block until every batch written before is on the disk."""
        try:
            self._db.flush_wal(self._is_synced)
        except Exception as error:
            raise StorageError(str(error)) from error

    def scan(self, start: bytes, end: bytes, limit: int, max_bytes: int = SCAN_MAX_BYTES) -> Rows:
        """Rows in [start, end), ascending. Many removed rows that lie in the way are tidied up for the next scans."""
        if start >= end or limit <= 0:
            return Rows([], start < end)
        rows, is_stuck = self._scan(start, end, limit, max_bytes, SKIP_MAX)
        if not is_stuck:
            return rows
        begin = rows.rows[-1][0] + b"\0" if rows.rows else start
        size = sum([len(key) + len(value) for key, value in rows.rows])
        if len(rows.rows) >= limit or size >= max_bytes:
            return rows
        rest, _ = self._scan(begin, end, limit - len(rows.rows), max_bytes - size, 0)
        self._tidy(begin, rest.rows[0][0] if rest.rows else end)
        return Rows(rows.rows + rest.rows, rest.has_more)

    def _scan(self, start: bytes, end: bytes, limit: int, max_bytes: int, skip_max: int) -> tuple[Rows, bool]:
        """(rows, whether too many removed rows lie behind them). skip_max 0: as many as there are."""
        found: list[tuple[bytes, bytes]] = []
        bounds = rocksdict.ReadOptions()
        bounds.set_iterate_upper_bound(end)
        bounds.set_max_skippable_internal_keys(skip_max)
        size, is_at_end = 0, False
        try:
            rows = cast("Iterator[tuple[bytes, bytes]]", self._db.items(from_key=start, read_opt=bounds))
            while len(found) < limit and size < max_bytes and not is_at_end:
                before = len(found)
                wanted = min(SCAN_SLICE_ROWS, limit - before)
                found.extend(islice(rows, wanted))  # What came before an error stays.
                is_at_end = len(found) < before + wanted
                size += sum(map(len, chain.from_iterable(found[before:])))
            if size > max_bytes and _cut(found, max_bytes):
                return Rows(found, True), False
            if not is_at_end and next(rows, None) is not None:
                return Rows(found, True), False
            self._check_end(found[-1][0] + b"\0" if found else start, bounds)
        except Exception as error:
            if skip_max and str(error).startswith(_TOO_MANY_SKIPPED):
                return Rows(found, True), True
            raise StorageError(str(error)) from error
        return Rows(found, False), False

    def _tidy(self, begin: bytes, end: bytes) -> None:
        """Have removed rows of a range taken out of the files, on a thread: the binding gives Python's lock away for that."""
        with self._tidy_lock:
            is_busy = self._tidying is not None and not self._tidying.done()
            if not is_busy and time.monotonic() >= self._tidy_not_before:
                self._tidy_not_before = time.monotonic() + TIDY_PAUSE_S
                self._tidying = self._tidier.submit(self._compact, begin, end)

    def _compact(self, begin: bytes, end: bytes) -> None:
        try:
            self._compact_range(begin, end)
        except Exception as error:  # What is not tidied up is merely slow; if the disk is why, the next write will say so.
            _log.warning("removed rows are not tidied up", reason=str(error))

    def _compact_range(self, begin: bytes | None, end: bytes | None) -> None:
        options = rocksdict.CompactOptions()
        # Else files that hold nothing but removed rows are merely moved to the last level, as they are.
        options.set_bottommost_level_compaction(rocksdict.BottommostLevelCompaction.force())
        options.set_exclusive_manual_compaction(False)  # Writes must not pile up behind it.
        self._db.compact_range(begin, end, compact_opt=options)

    def compact(self) -> None:
        """Take out of the files what was removed or overwritten. Blocks; Python's lock is given away for that."""
        try:
            self._db.flush()
            self._compact_range(None, None)
        except Exception as error:
            raise StorageError(str(error)) from error

    def _check_end(self, after: bytes, bounds: rocksdict.ReadOptions) -> None:
        """Raise if rows that cannot be read are why nothing was found here; `items` ends without a word then."""
        end = self._db.iter(bounds)
        end.seek(after)
        if not end.valid():
            end.status()

    def snapshot(self) -> View:
        """A view of all rows as they are now."""
        options = rocksdict.ReadOptions()
        cast(Any, options).fill_cache(False)  # What is read once must not push out what is read often.
        options.set_readahead_size(VIEW_READAHEAD_BYTES)
        try:
            return _RocksView(self._db.iter(options))
        except Exception as error:
            raise StorageError(str(error)) from error

    def size_bytes(self) -> int:
        """Bytes on disk."""
        try:
            return sum(file.stat().st_size for file in self._path.iterdir())
        except FileNotFoundError:  # A file that compaction removed meanwhile: the next look is right.
            return self._db.property_int_value("rocksdb.total-sst-files-size") or 0
        except OSError as error:
            raise StorageError(str(error)) from error

    def close(self) -> None:
        """Release files."""
        try:
            self._tidier.shutdown(wait=True)
            self._db.close()
        except rocksdict.DbClosedError:
            pass
        except Exception as error:
            raise StorageError(str(error)) from error


def _cut(rows: list[tuple[bytes, bytes]], max_bytes: int) -> bool:
    """Take out what lies behind the row that reaches max_bytes. Returns whether that is anything."""
    size = 0
    for index, (key, value) in enumerate(rows, 1):
        size += len(key) + len(value)
        if size >= max_bytes:
            is_cut = index < len(rows)
            del rows[index:]
            return is_cut
    return False


class _RocksView(View):
    """An iterator: it sees what there was when it was made. The binding's own snapshots do not, they read the newest rows."""

    def __init__(self, rows: rocksdict.RdictIter) -> None:
        self._rows: rocksdict.RdictIter | None = rows

    def __repr__(self) -> str:
        return f"RocksView(is_open={self._rows is not None})"

    def get(self, key: bytes) -> bytes | None:
        """The row's value, or None."""
        rows = self._open()
        try:
            rows.seek(key)
            if rows.valid():
                return cast(bytes, rows.value()) if rows.key() == key else None
            rows.status()
        except Exception as error:
            raise StorageError(str(error)) from error
        return None

    def scan(self, start: bytes, end: bytes, limit: int, max_bytes: int = SCAN_MAX_BYTES) -> Rows:
        """Rows in [start, end), ascending."""
        rows = self._open()
        found: list[tuple[bytes, bytes]] = []
        if start >= end or limit <= 0:
            return Rows(found, start < end)
        size = 0
        key_of, value_of, go_on, is_valid, add = rows.key, rows.value, rows.next, rows.valid, found.append
        try:
            rows.seek(start)
            while is_valid():
                key = cast(bytes, key_of())
                if key >= end:
                    return Rows(found, False)
                if len(found) >= limit or size >= max_bytes:
                    return Rows(found, True)
                value = cast(bytes, value_of())
                add((key, value))
                size += len(key) + len(value)
                go_on()
            rows.status()  # Raises when damage is why there are no more.
        except Exception as error:
            raise StorageError(str(error)) from error
        return Rows(found, False)

    def close(self) -> None:
        """Let the view go."""
        self._rows = None

    def _open(self) -> rocksdict.RdictIter:
        if self._rows is None:
            raise StorageError("the view is closed")
        return self._rows
