"""What a shard's log may contain, and what applying it does to the shard's state.

The only way into a shard's state is `apply_entries`: state = fold(log). It reads nothing but headers of the state itself, no
clock and no map, so every replica that applies the same entries has the same rows. A key's version is the seqno of the entry
that wrote it.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Final, NamedTuple, TypeAlias

from kvshard.model import NEVER
from leaf.layout import (
    INLINE_MAX_BYTES,
    Batch,
    Header,
    counts_key,
    end_of,
    expiry_key,
    large_prefix,
    pack_counts,
    pack_header,
    pack_number,
    value_prefix,
)
from leaf.replication.messages import Entry

EXPIRES_MAX_MS: Final = 2**63 - 1
"""Expiry instants fit a signed 64-bit number; a longer life is for ever anyway."""


KEY_COST_BYTES: Final = 160
"""What a key of an entry takes in memory besides its own bytes and its value's: the objects of both and its place in the
columns, 100, and while it is in flight its name as a dirty key, 115 more. With small ones it is most of all, and every bound on
entries in memory is one on their sizes."""


@dataclass(frozen=True, slots=True)
class WriteOperation:
    """Write keys of one collection, in order. Columns parallel to the keys.

    values: None deletes. expires_at_ms: empty when no key expires.
    """

    collection_id: int
    keys: list[bytes]
    values: list[bytes | None]
    expires_at_ms: list[int] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class DropCollection:
    """Remove every key of a collection."""

    collection_id: int


@dataclass(frozen=True, slots=True)
class Split:
    """The slots [at_slot, last_slot] leave this shard for the shard `child`, with what is in them after this entry.

    Proposed with keys None: until it is applied every key is dirty, so that no replica shows what the child may have changed.
    """

    child: int
    at_slot: int
    last_slot: int


Operation: TypeAlias = WriteOperation | DropCollection | Split | None
"""Payload of a log entry. None is a barrier: it changes nothing, and its commit proves that a primary's epoch holds."""


class Counts(NamedTuple):
    """Keys of one collection in one shard, and the bytes of keys and values. Expired keys count until they are removed."""

    documents: int
    bytes: int


NO_COUNTS = Counts(0, 0)


class KeyNames(Collection[tuple[int, bytes]]):
    """The keys of an entry as the machine names them, (collection_id, key). A name is made when it is looked at.

    Kept, the names would be a third of what the log takes in memory, and an object a key for the garbage collector to look at.
    """

    __slots__ = ("_collection_id", "_keys")

    def __init__(self, collection_id: int, keys: list[bytes]) -> None:
        self._collection_id = collection_id
        self._keys = keys

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        return zip(repeat(self._collection_id), self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: object) -> bool:
        return name in tuple(self)

    def __eq__(self, other: object) -> bool:
        return tuple(self) == tuple(other) if isinstance(other, KeyNames | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return f"KeyNames({self._collection_id}, {self._keys!r})"


Names: TypeAlias = Collection[tuple[int, bytes]]


def keys_of(payload: object) -> Names | None:
    """The keys, as (collection_id, key), that an entry with this payload makes dirty; None: every key."""
    if isinstance(payload, WriteOperation):
        return KeyNames(payload.collection_id, payload.keys)
    return None if isinstance(payload, DropCollection | Split) else ()


def size_of(payload: object) -> int:
    """What an entry with this payload takes in memory, about: see `size_with`."""
    if not isinstance(payload, WriteOperation):
        return 0
    data = sum(map(len, payload.keys)) + sum(map(len, filter(None, payload.values)))
    return size_with(len(payload.keys), data)


def size_with(keys: int, data_bytes: int) -> int:
    """The size of an entry that writes so many keys, with so many bytes of keys and values."""
    return data_bytes + KEY_COST_BYTES * keys


Headers: TypeAlias = Callable[[int, Sequence[bytes]], Sequence[Header | None]]
"""(collection_id, keys) -> their headers in the state before the entries."""


def apply_entries(
    shard: int, entries: Iterable[Entry], headers: Headers, counts: dict[int, Counts], batch: Batch
) -> dict[int, Counts]:
    """Put what the entries change into the batch, the changed counts among it. Returns the counts afterwards.

    The entries must follow, without a gap, those that made the state that `headers` and `counts` show. What a split changes is
    the matter of `split_rows.py`.
    """
    after = dict(counts)
    known: dict[int, dict[bytes, Header | None]] = {}
    dropped: set[int] = set()
    touched: set[int] = set()
    for entry in entries:
        operation = entry.payload
        if isinstance(operation, WriteOperation):
            collection_id = operation.collection_id
            seen = known.setdefault(collection_id, {})
            _learn(seen, operation.keys, None if collection_id in dropped else headers, collection_id)
            old = after.get(collection_id, NO_COUNTS)
            new = _apply_plain(shard, entry.seqno, operation, seen, old, batch)
            if new is None:
                new = _apply_write(shard, entry.seqno, operation, seen, old, batch)
            after[collection_id] = new
            touched.add(collection_id)
        elif isinstance(operation, DropCollection):
            _apply_drop(shard, operation.collection_id, batch)
            known[operation.collection_id] = {}
            dropped.add(operation.collection_id)
            touched.discard(operation.collection_id)
            after.pop(operation.collection_id, None)
    for collection_id in sorted(touched):
        batch.put(counts_key(shard, collection_id), pack_counts(*after[collection_id]))
    return after


def soonest_expiry(entries: Iterable[Entry]) -> int:
    """The earliest instant at which a key that the entries write expires; beyond every instant if none does."""
    columns = [entry.payload.expires_at_ms for entry in entries if isinstance(entry.payload, WriteOperation)]
    return min((instant for column in columns for instant in column if instant != NEVER), default=EXPIRES_MAX_MS)


def _learn(seen: dict[bytes, Header | None], keys: Sequence[bytes], headers: Headers | None, collection_id: int) -> None:
    """Add the headers of the keys that no earlier entry of these wrote."""
    wanted = [key for key in keys if key not in seen] if seen else keys
    if headers is None:
        seen.update(dict.fromkeys(wanted))
    else:
        seen.update(zip(wanted, headers(collection_id, wanted), strict=True))


def _apply_plain(
    shard: int, seqno: int, operation: WriteOperation, seen: dict[bytes, Header | None], counts: Counts, batch: Batch
) -> Counts | None:
    """Small values put for ever, under different keys, where nothing but such values was: the same rows as `_apply_write`,
    in half the time. None: it is not that common case."""
    keys, values = operation.keys, [value for value in operation.values if value]
    if operation.expires_at_ms or len(values) != len(keys) or len(set(keys)) != len(keys):
        return None
    sizes = list(map(len, values))
    replaced = [(key, old) for key, old in zip(keys, map(seen.get, keys), strict=True) if old]
    odd = [old for _, old in replaced if old[1] != NEVER or old[2] > INLINE_MAX_BYTES]
    if odd or max(sizes, default=0) > INLINE_MAX_BYTES:
        return None
    headers = {size: (seqno, NEVER, size) for size in sizes}
    heads = {size: pack_header(*header) for size, header in headers.items()}
    rows = value_prefix(shard, operation.collection_id)
    put = batch.put
    for key, value, size in zip(keys, values, sizes, strict=True):
        put(rows + key, heads[size] + value)
    seen.update(zip(keys, map(headers.__getitem__, sizes), strict=True))
    gone = sum([len(key) + old[2] for key, old in replaced])
    return Counts(counts.documents + len(keys) - len(replaced), counts.bytes + sum(map(len, keys)) + sum(sizes) - gone)


def _apply_write(
    shard: int, seqno: int, operation: WriteOperation, seen: dict[bytes, Header | None], counts: Counts, batch: Batch
) -> Counts:
    documents, size_sum = counts
    rows = value_prefix(shard, operation.collection_id)
    large = large_prefix(shard, operation.collection_id)
    expiries = operation.expires_at_ms
    put = batch.put
    for index, (key, value) in enumerate(zip(operation.keys, operation.values, strict=True)):
        old = seen[key]
        if old is not None:
            _, old_expires_at_ms, old_size = old
            documents -= 1
            size_sum -= len(key) + old_size
            if old_expires_at_ms != NEVER:
                batch.delete(expiry_key(shard, old_expires_at_ms, operation.collection_id, key))
            if old_size > INLINE_MAX_BYTES:
                batch.delete(large + key)
        if value is None:
            if old is not None:
                batch.delete(rows + key)
            seen[key] = None
            continue
        size = len(value)
        expires_at_ms = expiries[index] if expiries else NEVER
        documents += 1
        size_sum += len(key) + size
        if size <= INLINE_MAX_BYTES:
            put(rows + key, pack_header(seqno, expires_at_ms, size) + value)
        else:
            put(rows + key, pack_header(seqno, expires_at_ms, size))
            put(large + key, pack_number(seqno) + value)
        if expires_at_ms != NEVER:
            put(expiry_key(shard, expires_at_ms, operation.collection_id, key), b"")
        seen[key] = (seqno, expires_at_ms, size)
    return Counts(documents, size_sum)


def _apply_drop(shard: int, collection_id: int, batch: Batch) -> None:
    # Expiry rows are ordered by time, not by collection: the sweep removes each when it is due and finds no key.
    for prefix in (value_prefix(shard, collection_id), large_prefix(shard, collection_id)):
        batch.delete_range(prefix, end_of(prefix))
    batch.delete(counts_key(shard, collection_id))
