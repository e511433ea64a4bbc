"""Log entries as bytes, on the disk and between leaves: msgpack of a flat array.

    epoch, seqno, kind, what belongs to the kind, and for an entry with a request id: client, number, since, result

A field may be added at an array's end; none may change its meaning. Which keys an entry writes, and its size, follow from its
payload.
"""

from collections import OrderedDict
from typing import Any, Final

import msgspec

from kvshard.errors import DataLoss
from leaf.operations import DropCollection, Operation, Split, WriteOperation, keys_of, size_of
from leaf.replication.messages import Entry, RequestId

KEPT_ROWS: Final = 1_024
KEPT_ROWS_BYTES: Final = 8 * 1024 * 1024
"""Rows kept for those who want them again, disk and lanes, which do so in the same pass of the loop: a few passes' worth."""

_BARRIER: Final = 0
_WRITE: Final = 1
_DROP: Final = 2
_SPLIT: Final = 3

_FIELDS: Final = {_BARRIER: 3, _WRITE: 7, _DROP: 4, _SPLIT: 6}
"""Length of the array, by kind, of an entry without a request."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Any]).decode
_decode_raw = msgspec.msgpack.Decoder(list[msgspec.Raw]).decode
_decode_number = msgspec.msgpack.Decoder(int).decode


def encode_entry(entry: Entry) -> bytes:
    """The entry as a row's value."""
    payload = entry.payload
    if isinstance(payload, WriteOperation):
        fields = [
            entry.epoch,
            entry.seqno,
            _WRITE,
            payload.collection_id,
            payload.keys,
            payload.values,
            payload.expires_at_ms,
        ]
    elif isinstance(payload, DropCollection):
        fields = [entry.epoch, entry.seqno, _DROP, payload.collection_id]
    elif isinstance(payload, Split):
        fields = [entry.epoch, entry.seqno, _SPLIT, payload.child, payload.at_slot, payload.last_slot]
    else:
        assert payload is None, f"unknown payload {payload!r}"
        fields = [entry.epoch, entry.seqno, _BARRIER]
    request = entry.request
    if request is not None:
        fields += (*request, entry.result)
    return _encode(fields)


def decode_entry(row: bytes) -> Entry:
    """The entry that a row holds. Raises DataLoss when it holds none."""
    try:
        fields = _decode(row)
        length = _FIELDS[fields[2]]
        operation = _operation(fields)
        request, result = None, b""
        if len(fields) > length:
            request, result = RequestId(*fields[length : length + 3]), fields[length + 3]
        return Entry(fields[0], fields[1], operation, keys_of(operation), size_of(operation), request, result)
    except _DAMAGES as error:
        raise _damaged(error) from error


def decode_operation(row: bytes) -> tuple[int, Operation]:
    """(seqno, payload) of the entry that a row holds. Raises DataLoss."""
    try:
        fields = _decode(row)
        return fields[1], _operation(fields)
    except _DAMAGES as error:
        raise _damaged(error) from error


def epoch_of(row: bytes) -> int:
    """The epoch of the entry that a row holds, without a look at its values. Raises DataLoss."""
    try:
        return _decode_number(_decode_raw(row)[0])
    except _DAMAGES as error:
        raise _damaged(error) from error


_DAMAGES = (msgspec.MsgspecError, ValueError, TypeError, IndexError, KeyError)


def _damaged(error: Exception) -> DataLoss:
    return DataLoss(f"damaged log entry: {error!r}")


def _operation(fields: list[Any]) -> Operation:
    kind = fields[2]
    if kind == _WRITE:
        return WriteOperation(fields[3], fields[4], fields[5], fields[6])
    if kind == _DROP:
        return DropCollection(fields[3])
    if kind == _SPLIT:
        return Split(fields[3], fields[4], fields[5])
    if kind == _BARRIER:
        return None
    raise ValueError(f"unknown kind of operation {kind!r}")


class EntryRows:
    """Rows of entries that were just encoded or received, so that disk and lanes need not make them again.

    Used on the event loop only.
    """

    def __init__(self, max_rows: int = KEPT_ROWS, max_bytes: int = KEPT_ROWS_BYTES) -> None:
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._bytes = 0
        # By identity, for an entry has no cheap equality; held here, so that no other one gets its number.
        self._rows: OrderedDict[int, tuple[Entry, bytes]] = OrderedDict()

    def __repr__(self) -> str:
        return f"EntryRows({len(self._rows)} rows, bytes={self._bytes})"

    def row_of(self, entry: Entry) -> bytes:
        """The entry as bytes."""
        known = self._rows.get(id(entry))
        if known is not None:
            return known[1]
        row = encode_entry(entry)
        self._keep(entry, row)
        return row

    def entry_of(self, row: bytes) -> Entry:
        """The entry that came as these bytes. Raises DataLoss."""
        entry = decode_entry(row)
        self._keep(entry, row)
        return entry

    def _keep(self, entry: Entry, row: bytes) -> None:
        self._rows[id(entry)] = (entry, row)
        self._bytes += len(row)
        while self._bytes > self._max_bytes or len(self._rows) > self._max_rows:
            _, (_, dropped) = self._rows.popitem(last=False)
            self._bytes -= len(dropped)
