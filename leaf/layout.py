"""Rows of a leaf's engine: how keys and values are laid out, and the batch through which rows are written.

A row's key is a one-byte tag and big-endian fields, so that byte order is the order of the fields:

    v shard collection key          -> header, value when it is small       a stored key
    b shard collection key          -> version, value                       its value when it is large
    x shard expires_at collection key -> nothing                            expiry index
    l shard seqno                   -> entry                                log
    c shard collection              -> documents, bytes                     counts
    r shard                         -> last_slot, cuts                      its range was cut by a split
    d shard client [number]         -> what is known of the client, or the result of its request    see dedup_rows.py
    m shard name                    -> anything                             meta

Large values stand apart so that a row of tag v is bounded: what reads many headers at once (conditions, counts, key-only
scans) never has to hold many large values.

Pure: imports only the standard library.
"""

from collections.abc import Callable
from struct import Struct
from typing import Final, Protocol, TypeAlias, cast

INLINE_MAX_BYTES: Final = 16 * 1024
"""Values up to this size stand beside their header; 512 such rows, one chunk of a multi-get, stay within 8 MiB."""

LEAF_SHARD: Final = 0xFFFF_FFFF
"""Stands in the place of the shard in meta rows of the whole leaf; no shard has this number."""

FORMAT: Final = b"1"
"""Version of this layout, kept in the leaf's meta rows."""

STATE_TAGS: Final = b"bcrvx"
"""Tags, in byte order, of the rows that are a shard's state: what its log amounts to, the same on every replica."""

APPLIED: Final = b"applied"
EPOCH: Final = b"epoch"
GENERATION: Final = b"generation"
INCARNATION: Final = b"incarnation"
STAGING: Final = b"staging"
TRIMMED: Final = b"trimmed"
"""Names of a shard's meta rows; see `ShardStore`."""

ALL_TAGS: Final = b"bcdlmrvx"
"""Tags of all rows that a shard has."""


Header: TypeAlias = tuple[int, int, int]
"""What is known of a stored key without its value: (version, expires_at_ms, bytes of the value). A plain tuple: one is made
for every key read or written."""


class Batch(Protocol):
    """Changes that an engine makes together, in order."""

    def put(self, key: bytes, value: bytes, /) -> None:
        """Set a row."""
        ...

    def delete(self, key: bytes, /) -> None:
        """Remove a row; nothing happens when there is none."""
        ...

    def delete_range(self, begin: bytes, end: bytes, /) -> None:
        """Remove the rows in [begin, end)."""
        ...


_Change: TypeAlias = tuple[bytes, bytes | None, bytes | None]


class Changes:
    """Changes that somebody wants made later, in order: a batch that no engine has seen yet.

    bytes: of their keys and values.
    """

    __slots__ = ("_changes", "bytes")

    def __init__(self) -> None:
        self.bytes = 0
        # (key, value, None): put. (key, None, None): delete. (begin, None, end): delete a range.
        self._changes: list[_Change] = []

    def __repr__(self) -> str:
        return f"Changes({len(self._changes)}, bytes={self.bytes})"

    def __len__(self) -> int:
        return len(self._changes)

    def put(self, key: bytes, value: bytes, /) -> None:
        """Set a row."""
        self._changes.append((key, value, None))
        self.bytes += len(key) + len(value)

    def delete(self, key: bytes, /) -> None:
        """Remove a row; nothing happens when there is none."""
        self._changes.append((key, None, None))
        self.bytes += len(key)

    def delete_range(self, begin: bytes, end: bytes, /) -> None:
        """Remove the rows in [begin, end)."""
        self._changes.append((begin, None, end))
        self.bytes += len(begin) + len(end)

    def write_to(self, batch: Batch) -> None:
        """Put the changes into a batch."""
        for key, value, end in self._changes:
            if value is not None:
                batch.put(key, value)
            elif end is None:
                batch.delete(key)
            else:
                batch.delete_range(key, end)


_SHARD: Final = Struct(">I")
_SHARD_COLLECTION: Final = Struct(">II")
_SHARD_SEQNO: Final = Struct(">IQ")
_EXPIRY: Final = Struct(">IQI")
_HEADER: Final = Struct(">QQI")
_COUNTS: Final = Struct(">QQ")
_NUMBER: Final = Struct(">Q")
_RANGE: Final = Struct(">II")

HEADER_BYTES: Final = _HEADER.size

PLACE_AT: Final = 1 + _SHARD.size
KEY_AT: Final = 1 + _SHARD_COLLECTION.size
"""Where collection and key, or the key alone, begin in the key of a row of tag v or b."""

VERSION_BYTES: Final = _NUMBER.size

pack_header = _HEADER.pack
unpack_header = _HEADER.unpack_from
pack_counts = _COUNTS.pack
unpack_counts = _COUNTS.unpack
pack_number = _NUMBER.pack


def pack_range(last_slot: int, cuts: int) -> bytes:
    """How far a shard's range goes, and how often it was cut."""
    return _RANGE.pack(last_slot, cuts)


def unpack_range(row: bytes) -> tuple[int, int]:
    """(last_slot, cuts)."""
    return cast(tuple[int, int], _RANGE.unpack(row))


def pack_position(seqno: int, epoch: int) -> bytes:
    """A position in a log. Rows of an earlier version of this program have no epoch."""
    return _NUMBER.pack(seqno) + _NUMBER.pack(epoch)


def unpack_position(row: bytes) -> tuple[int, int | None]:
    """(seqno, epoch) of a position; epoch None: the row does not say."""
    epoch: int | None = _NUMBER.unpack_from(row, _NUMBER.size)[0] if len(row) > _NUMBER.size else None
    return unpack_number(row), epoch


def unpack_number(row: bytes) -> int:
    """The number that a row begins with."""
    number: int = _NUMBER.unpack_from(row)[0]
    return number


header_of: Final = cast("Callable[[bytes], Header]", _HEADER.unpack_from)
"""The header of a row of tag v. Without a function around it: a thousand are read for a batch of writes."""


def value_prefix(shard: int, collection_id: int) -> bytes:
    """What the rows of a collection's keys begin with."""
    return b"v" + _SHARD_COLLECTION.pack(shard, collection_id)


def large_prefix(shard: int, collection_id: int) -> bytes:
    """What the rows of a collection's large values begin with."""
    return b"b" + _SHARD_COLLECTION.pack(shard, collection_id)


def log_key(shard: int, seqno: int) -> bytes:
    """Key of a log entry's row."""
    return b"l" + _SHARD_SEQNO.pack(shard, seqno)


def shard_range(tag: int, shard: int) -> tuple[bytes, bytes]:
    """The range of a shard's rows of one tag."""
    prefix = bytes((tag,)) + _SHARD.pack(shard)
    return prefix, end_of(prefix)


def seqno_of(key: bytes) -> int:
    """The seqno in a log row's key."""
    seqno: int = _SHARD_SEQNO.unpack_from(key, 1)[1]
    return seqno


def counts_key(shard: int, collection_id: int) -> bytes:
    """Key of a collection's counts."""
    return b"c" + _SHARD_COLLECTION.pack(shard, collection_id)


def range_key(shard: int) -> bytes:
    """Key of the row that says how far a shard's range goes and how often it was cut; without one it never was."""
    return b"r" + _SHARD.pack(shard)


def place_of(collection_id: int, key: bytes) -> bytes:
    """Where a key stands among its shard's rows, of tag v and b: what follows tag and shard."""
    return _SHARD.pack(collection_id) + key


def key_of_place(row_key: bytes) -> tuple[int, bytes]:
    """(collection, key) in the key of a row of tag v or b."""
    collection_id: int = _SHARD_COLLECTION.unpack_from(row_key, 1)[1]
    return collection_id, row_key[KEY_AT:]


def collection_of_counts(key: bytes) -> int:
    """The collection in the key of a counts row."""
    collection_id: int = _SHARD_COLLECTION.unpack_from(key, 1)[1]
    return collection_id


def log_range(shard: int, after: int) -> tuple[bytes, bytes]:
    """The range of the rows of a shard's log entries after a seqno."""
    return log_key(shard, after + 1), end_of(b"l" + _SHARD.pack(shard))


def meta_key(shard: int, name: bytes) -> bytes:
    """Key of a meta row."""
    return b"m" + _SHARD.pack(shard) + name


def shard_of_meta(key: bytes) -> int:
    """The shard that a meta row belongs to."""
    shard: int = _SHARD.unpack_from(key, 1)[0]
    return shard


def expiry_key(shard: int, expires_at_ms: int, collection_id: int, key: bytes) -> bytes:
    """Key of an expiry row."""
    return b"x" + _EXPIRY.pack(shard, expires_at_ms, collection_id) + key


def expiry_range(shard: int, from_ms: int, through_ms: int) -> tuple[bytes, bytes]:
    """The range of a shard's expiry rows of these instants, the last one among them."""
    return b"x" + _SHARD_SEQNO.pack(shard, from_ms), b"x" + _SHARD_SEQNO.pack(shard, through_ms + 1)


def expiry_of(row_key: bytes) -> tuple[int, int, bytes]:
    """(expires_at_ms, collection_id, key) of an expiry row's key."""
    _, expires_at_ms, collection_id = _EXPIRY.unpack_from(row_key, 1)
    return expires_at_ms, collection_id, row_key[1 + _EXPIRY.size :]


def end_of(prefix: bytes) -> bytes:
    """The least byte string greater than every one that begins with the prefix."""
    trimmed = prefix.rstrip(b"\xff")
    assert trimmed, "a prefix of only 0xff has no end"
    return trimmed[:-1] + bytes((trimmed[-1] + 1,))
