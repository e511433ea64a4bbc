import pytest

from kvshard.errors import DataLoss
from leaf.entry_codec import decode_entry, encode_entry
from leaf.operations import Barrier, DropCollection, Entry, WriteOperation


@pytest.mark.parametrize(
    "operation",
    [
        WriteOperation(1, [b"a", b""], [b"\0", None]),
        WriteOperation(2**32 - 1, [b"k"], [b""], [2**63 - 1]),
        WriteOperation(1, [], []),
        DropCollection(7),
        Barrier(),
    ],
)
def test_entries_come_back(operation) -> None:
    entry = Entry(3, 2**40, operation)
    assert decode_entry(encode_entry(entry)) == entry


@pytest.mark.parametrize("row", [b"", b"\x01", b"\x93\x01\x02\x09", b"\x92\x01\x02", b"\x93\x01\x02\x01", b"\xff" * 9])
def test_damaged_entries_are_data_loss(row: bytes) -> None:
    with pytest.raises(DataLoss):
        decode_entry(row)
