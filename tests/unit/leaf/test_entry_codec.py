import msgspec
import pytest

from kvshard.errors import DataLoss
from leaf.entry_codec import EntryRows, decode_entry, decode_operation, encode_entry, epoch_of
from leaf.operations import DropCollection, Split, WriteOperation, keys_of, size_of
from leaf.replication.messages import Entry, RequestId

PAYLOADS = [
    WriteOperation(1, [b"a", b""], [b"\0", None]),
    WriteOperation(2**32 - 1, [b"k"], [b""], [2**63 - 1]),
    WriteOperation(1, [], []),
    DropCollection(7),
    Split(9, 1, 65535),
    None,
]


def entry_of(payload, seqno: int = 2**40, request: RequestId | None = None, result: bytes = b"") -> Entry:
    return Entry(3, seqno, payload, keys_of(payload), size_of(payload), request, result)


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("request_id", [None, RequestId("client", 2**63, 7), RequestId("", 0)])
def test_entries_come_back(payload, request_id) -> None:
    entry = entry_of(payload, request=request_id, result=b"\xff\0" if request_id else b"")
    row = encode_entry(entry)
    assert decode_entry(row) == entry
    assert decode_operation(row) == (entry.seqno, payload)
    assert epoch_of(row) == 3


@pytest.mark.parametrize(
    ("row", "payload"),
    [
        ([3, 2**40, 1, 5, [b"a", b"b"], [b"1", None], [0, 9]], WriteOperation(5, [b"a", b"b"], [b"1", None], [0, 9])),
        ([3, 2**40, 2, 7], DropCollection(7)),
        ([3, 2**40, 0], None),
    ],
)
def test_rows_written_before_there_were_request_ids_are_read(row, payload) -> None:
    assert decode_entry(msgspec.msgpack.encode(row)) == entry_of(payload)


@pytest.mark.parametrize(
    "row",
    [
        *(b"", b"\x01", b"\x93\x01\x02\x09", b"\x92\x01\x02", b"\x93\x01\x02\x01", b"\xff" * 9),
        msgspec.msgpack.encode([1, 2, 0, "client", 1]),
        encode_entry(entry_of(PAYLOADS[0]))[:-1],
    ],
)
def test_damaged_entries_are_data_loss(row: bytes) -> None:
    with pytest.raises(DataLoss):
        decode_entry(row)


def test_a_row_is_made_once_for_disk_and_lanes() -> None:
    rows = EntryRows()
    entry = entry_of(WriteOperation(1, [b"k"], [b"v"]))
    row = rows.row_of(entry)
    assert rows.row_of(entry) is row
    received = rows.entry_of(row)
    assert received == entry
    assert rows.row_of(received) is row


def test_the_rows_kept_are_bounded_by_number_and_bytes() -> None:
    rows = EntryRows(max_rows=3, max_bytes=1_000)
    entries = [entry_of(None, seqno) for seqno in range(10)]
    for entry in entries:
        rows.row_of(entry)
    assert repr(rows).startswith("EntryRows(3 rows")
    large = entry_of(WriteOperation(1, [b"k"], [bytes(2_000)]))
    assert decode_entry(rows.row_of(large)) == large
    assert repr(rows) == "EntryRows(0 rows, bytes=0)"
