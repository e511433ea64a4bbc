"""Reads keys of a shard: from the cache, and what is not there in one call of the engine. Columns in, columns out.

Everything here is synchronous and bounded: what one read may hold of values is READ_REPLY_MAX_BYTES and one chunk more.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from kvshard.errors import DataLoss, ErrorDetails, ErrorRecord, ResourceExhausted, record_of
from kvshard.model import ABSENT, NEVER
from leaf import layout
from leaf.engine import Engine
from leaf.key_cache import KeyCache
from leaf.layout import HEADER_BYTES, INLINE_MAX_BYTES, VERSION_BYTES, Header, header_of, unpack_header

READ_CHUNK_KEYS: Final = 512
"""Rows of one multi-get: at most 8 MiB, since large values stand apart."""

READ_REPLY_MAX_BYTES: Final = 32 * 1024 * 1024
"""Values of one read reply: with its framing it stays under the message limit."""

CHUNK_MAX_BYTES: Final = READ_CHUNK_KEYS * INLINE_MAX_BYTES
"""What the small values of one chunk may have: where there is room for so much, nobody has to add them up."""


class Columns(NamedTuple):
    """Columns parallel to the keys, as in `model.ShardReadReply`. expiries, errors: by index, of those that have one."""

    values: list[bytes | None]
    versions: list[int]
    expiries: dict[int, int]
    errors: dict[int, ErrorRecord]

    def expires_at_ms(self) -> list[int]:
        """The instants as a column; empty when no key expires."""
        return [self.expiries.get(index, NEVER) for index in range(len(self.values))] if self.expiries else []


class KeyReader:
    """Reads through a cache. The caller knows that the shard is whole, and that the keys are read on the event loop."""

    def __init__(self, engine: Engine, cache: KeyCache) -> None:
        self._engine = engine
        self._cache = cache

    def __repr__(self) -> str:
        return f"KeyReader({self._engine!r}, {self._cache!r})"

    def read(
        self,
        shard: int,
        collection_id: int,
        keys: Sequence[bytes],
        now_ms: int,
        *,
        may_keep: bool = True,
        check: Callable[[], object] = lambda: None,
        max_bytes: int = 0,
    ) -> Columns:
        """The live keys among these. Those beyond the reply's bound get an error of their own. Raises StorageError.

        may_keep: what is read may be put into the cache. check: called between chunks; may raise. max_bytes: as in `ShardRead`.
        """
        room = min(max_bytes or READ_REPLY_MAX_BYTES, READ_REPLY_MAX_BYTES)
        if len(keys) <= READ_CHUNK_KEYS:
            return self._read_chunk(shard, collection_id, keys, now_ms, room, may_keep)
        whole = Columns([], [], {}, {})
        for first in range(0, len(keys), READ_CHUNK_KEYS):
            if first:
                check()
            some = keys[first : first + READ_CHUNK_KEYS]
            values, versions, expiries, errors = self._read_chunk(shard, collection_id, some, now_ms, room, may_keep)
            room -= _size(values)
            whole.values.extend(values)
            whole.versions.extend(versions)
            whole.expiries.update((first + index, instant) for index, instant in expiries.items())
            whole.errors.update((first + index, error) for index, error in errors.items())
        return whole

    def _read_chunk(
        self, shard: int, collection_id: int, keys: Sequence[bytes], now_ms: int, room: int, may_keep: bool
    ) -> Columns:
        cache = self._cache
        values, versions, expiries = cache.look_up(shard, collection_id, keys)
        columns = Columns(values, versions, expiries, {})
        large: list[tuple[int, Header]] = []
        if all(values):  # None is not there, nor is an empty value: the common case costs one pass.
            cache.hits += len(values)
        else:
            missing = [index for index, value in enumerate(values) if value is None]
            cache.hits += len(values) - len(missing)
            cache.misses += len(missing)
            if missing:
                large = self._fetch(shard, collection_id, keys, missing, columns, may_keep)
        if expiries:
            for index in [index for index, instant in expiries.items() if instant <= now_ms]:
                values[index], versions[index] = None, ABSENT
                del expiries[index]
        if large or room < CHUNK_MAX_BYTES:
            self._fit(shard, collection_id, keys, [each for each in large if not 0 < each[1][1] <= now_ms], columns, room)
        return columns

    def _fetch(
        self, shard: int, collection_id: int, keys: Sequence[bytes], missing: Sequence[int], columns: Columns, may_keep: bool
    ) -> list[tuple[int, Header]]:
        """Fill in what the engine holds of the missing keys, expired ones too. Returns (index, header) of large values."""
        prefix = layout.value_prefix(shard, collection_id)
        values, versions, expiries, _ = columns
        found_keys: list[bytes] = []
        found_values: list[bytes] = []
        found_versions: list[int] = []
        large: list[tuple[int, Header]] = []
        rows = self._engine.get_many([prefix + keys[index] for index in missing])
        for index, row in zip(missing, rows, strict=True):
            if row is None:
                continue
            version, expires_at_ms, size = unpack_header(row)
            if size > INLINE_MAX_BYTES:
                large.append((index, (version, expires_at_ms, size)))
                continue
            value = row[HEADER_BYTES:]
            values[index], versions[index] = value, version
            if expires_at_ms != NEVER:
                expiries[index] = expires_at_ms
            found_keys.append(keys[index])
            found_values.append(value)
            found_versions.append(version)
        if may_keep:
            expiring = [(keys[index], expiries[index]) for index in missing if index in expiries] if expiries else ()
            self._cache.fill(shard, collection_id, found_keys, found_values, found_versions, expiring)
        return large

    def _fit(
        self,
        shard: int,
        collection_id: int,
        keys: Sequence[bytes],
        large: Sequence[tuple[int, Header]],
        columns: Columns,
        room: int,
    ) -> None:
        """Read the large values that there is room for; what there is none for gets an error instead."""
        values, versions, expiries, errors = columns
        sizes = {index: header[2] for index, header in large}
        headers = dict(large)
        for index, value in enumerate(values):
            size = sizes.get(index) if value is None else len(value)
            if size is None:
                continue
            if size > room:
                values[index], versions[index], errors[index] = None, ABSENT, _too_much()
                expiries.pop(index, None)
                continue
            if value is None:
                version, expires_at_ms, _ = headers[index]
                value = self.large_value(shard, collection_id, keys[index], version)
                if value is None:
                    errors[index] = record_of(damaged(shard))
                    continue
                values[index], versions[index] = value, version
                if expires_at_ms != NEVER:
                    expiries[index] = expires_at_ms
            room -= size

    def headers(self, shard: int, collection_id: int, keys: Sequence[bytes]) -> list[Header | None]:
        """The headers of stored keys, expired ones too; parallel to the keys. Raises StorageError."""
        if not self._cache.has_any(shard, collection_id, keys):
            return self._stored_headers(shard, collection_id, keys)
        values, versions, expiries = self._cache.look_up(shard, collection_id, keys)
        found: list[Header | None] = [
            (version, NEVER, len(value)) if value is not None else None for value, version in zip(values, versions, strict=True)
        ]
        for index, instant in expiries.items():
            found[index] = (versions[index], instant, len(values[index] or b""))
        missing = [index for index, value in enumerate(values) if value is None]
        if missing:
            stored = self._stored_headers(shard, collection_id, [keys[index] for index in missing])
            for index, header in zip(missing, stored, strict=True):
                found[index] = header
        return found

    def _stored_headers(self, shard: int, collection_id: int, keys: Sequence[bytes]) -> list[Header | None]:
        prefix = layout.value_prefix(shard, collection_id)
        found: list[Header | None] = []
        for first in range(0, len(keys), READ_CHUNK_KEYS):
            rows = self._engine.get_many([prefix + key for key in keys[first : first + READ_CHUNK_KEYS]])
            found += [header_of(row) if row is not None else None for row in rows]
        return found

    def large_value(self, shard: int, collection_id: int, key: bytes, version: int) -> bytes | None:
        """The value that stands apart, if it is still the one of this version. On any thread."""
        row = self._engine.get(layout.large_prefix(shard, collection_id) + key)
        return row[VERSION_BYTES:] if row is not None and layout.unpack_number(row) == version else None


def damaged(shard: int) -> DataLoss:
    """The error of a value that is not there although its header is."""
    return DataLoss(f"a stored value of shard {shard} is missing or damaged", ErrorDetails(shards=(shard,)))


def _size(values: Sequence[bytes | None]) -> int:
    return sum(map(len, filter(None, values)))


def _too_much() -> ErrorRecord:
    text = f"the values of one read may have {READ_REPLY_MAX_BYTES} bytes a shard; ask for fewer keys"
    return record_of(ResourceExhausted(text, ErrorDetails(limit=READ_REPLY_MAX_BYTES)))
