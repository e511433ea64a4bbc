"""Log entries as rows: msgpack of `leaf/operations.py`. A field may be added at an array's end; none may change its meaning."""

from typing import Any, Final

import msgspec

from kvshard.errors import DataLoss
from leaf.operations import Barrier, DropCollection, Entry, Operation, WriteOperation

_BARRIER: Final = 0
_WRITE: Final = 1
_DROP: Final = 2

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode


def encode_entry(entry: Entry) -> bytes:
    """The entry as a row's value."""
    return _encode([entry.epoch, entry.seqno, *_fields(entry.operation)])


def _fields(operation: Operation) -> list[object]:
    match operation:
        case WriteOperation(collection_id, keys, values, expires_at_ms):
            return [_WRITE, collection_id, keys, values, expires_at_ms]
        case DropCollection(collection_id):
            return [_DROP, collection_id]
        case Barrier():
            return [_BARRIER]


def decode_entry(row: bytes) -> Entry:
    """The entry that a row holds. Raises DataLoss when it holds none."""
    try:
        epoch, seqno, kind, *fields = _decode(row)
        return Entry(epoch, seqno, _operation(kind, fields))
    except (msgspec.MsgspecError, ValueError, TypeError, IndexError) as error:
        raise DataLoss(f"damaged log entry: {error}") from error


def _operation(kind: int, fields: list[Any]) -> Operation:
    if kind == _WRITE:
        return WriteOperation(fields[0], fields[1], fields[2], fields[3])
    if kind == _DROP:
        return DropCollection(fields[0])
    if kind == _BARRIER:
        return Barrier()
    raise ValueError(f"unknown kind of operation {kind!r}")
