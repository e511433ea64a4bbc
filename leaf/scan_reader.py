"""Answers scans: a chunk of a shard's rows of one collection becomes columns of live keys."""

from collections.abc import Callable, Sequence
from typing import Final

from kvshard.limits import KEY_MAX_BYTES
from kvshard.model import ShardScan, ShardScanReply
from leaf import layout
from leaf.engine import Engine
from leaf.key_reader import KeyReader, damaged
from leaf.layout import HEADER_BYTES, INLINE_MAX_BYTES, unpack_header

SCAN_REPLY_MAX_BYTES: Final = 4 * 1024 * 1024
SCAN_REPLY_MAX_KEYS: Final = 4_096
"""Of one chunk of a scan: the loop is held for a few milliseconds, and a merge over many shards holds one chunk of each."""

Row = tuple[bytes, bytes]
IsOwn = Callable[[bytes], bool]


class ScanReader:
    """Reads chunks of scans. large: reads the values that stand apart."""

    def __init__(self, engine: Engine, large: KeyReader) -> None:
        self._engine = engine
        self._large = large

    def __repr__(self) -> str:
        return f"ScanReader({self._engine!r})"

    def read(
        self, request: ShardScan, now_ms: int, is_own: IsOwn | None, documents: int, *, seqno: int = 0, age_ms: int = 0
    ) -> ShardScanReply:
        """One chunk. is_own: tells the shard's keys from those that have left it; None: all are its own.

        documents, seqno, age_ms: for the reply. Raises StorageError, DataLoss.
        """
        prefix = layout.value_prefix(request.shard, request.collection_id)
        # A start longer than any key is legal; the key that it would resume after is just not there.
        start = prefix + request.start[: KEY_MAX_BYTES + 1]
        end = prefix + request.end if request.end is not None else layout.end_of(prefix)
        max_bytes = min(request.max_bytes or SCAN_REPLY_MAX_BYTES, SCAN_REPLY_MAX_BYTES)
        # Without their values the rows are small, but they are read with them: that is what is bounded then.
        read_bytes = SCAN_REPLY_MAX_BYTES if request.keys_only else max_bytes
        rows, has_more = self._engine.scan(start, end, min(request.limit, SCAN_REPLY_MAX_KEYS), read_bytes)
        at = len(prefix)
        columns = _plain_columns(rows, at, max_bytes) if is_own is None and not request.keys_only else None
        too_much = None
        if columns is None:
            columns, too_much = self._columns(request, rows, at, now_ms, is_own, max_bytes)
        resume = rows[-1][0][at:] + b"\0" if has_more else b""
        if too_much is not None:
            has_more, resume = True, too_much
        keys, values, versions, expiries = columns
        return ShardScanReply(keys, values, versions, expiries, has_more, resume, documents, seqno, age_ms)

    def _columns(
        self, request: ShardScan, rows: Sequence[Row], at: int, now_ms: int, is_own: IsOwn | None, room: int
    ) -> tuple["_Columns", bytes | None]:
        """(keys, values, versions, expires_at_ms) of the live rows, and the key at which there is no room for its value."""
        keys: list[bytes] = []
        values: list[bytes] = []
        versions: list[int] = []
        expiries: list[int] = []
        for row_key, row in rows:
            version, expires_at_ms, size = unpack_header(row)
            key = row_key[at:]
            if (expires_at_ms and expires_at_ms <= now_ms) or (is_own is not None and not is_own(key)):
                continue
            if not request.keys_only:
                if size > room and keys:
                    return (keys, values, versions, expiries), key
                values.append(self._value(request, key, row))
                room -= size
            keys.append(key)
            versions.append(version)
            expiries.append(expires_at_ms)
        return (keys, values, versions, expiries), None

    def _value(self, request: ShardScan, key: bytes, row: bytes) -> bytes:
        version, _, size = unpack_header(row)
        if size <= INLINE_MAX_BYTES:
            return row[HEADER_BYTES:]
        value = self._large.large_value(request.shard, request.collection_id, key, version)
        if value is None:
            raise damaged(request.shard)
        return value


_Columns = tuple[list[bytes], list[bytes], list[int], list[int]]


def _plain_columns(rows: Sequence[Row], at: int, max_bytes: int) -> _Columns | None:
    """The columns where every value is small, lives for ever, and there is room for all: the common case, in half the time."""
    if not rows:
        return [], [], [], []
    versions, expiries, sizes = zip(*[unpack_header(row) for _, row in rows], strict=True)
    if any(expiries) or max(sizes) > INLINE_MAX_BYTES or sum(sizes) > max_bytes:
        return None
    keys, values = [row_key[at:] for row_key, _ in rows], [row[HEADER_BYTES:] for _, row in rows]
    return keys, values, list(versions), list(expiries)
