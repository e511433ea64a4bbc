import tracemalloc

import pytest

from leaf.entry_codec import decode_entry, encode_entry
from leaf.operations import DropCollection, WriteOperation, keys_of, size_of, size_with
from leaf.replication.messages import Entry


@pytest.mark.parametrize(
    ("payload", "keys", "size"),
    [
        (WriteOperation(4, [b"a", b"bc", b"a"], [b"123", None, b""]), ((4, b"a"), (4, b"bc"), (4, b"a")), size_with(3, 7)),
        (WriteOperation(4, [], []), (), 0),
        (DropCollection(4), None, 0),
        (None, (), 0),
    ],
)
def test_the_keys_and_the_size_follow_from_the_payload(payload, keys, size) -> None:
    assert keys_of(payload) == keys
    assert size_of(payload) == size


@pytest.mark.parametrize("value_bytes", [0, 10, 100, 1_000])
def test_the_size_of_entries_is_about_what_they_take_in_memory(value_bytes: int) -> None:
    """The log that a replica holds in memory is bounded by it: of small keys a leaf held hundreds of megabytes for good."""
    rows = []
    for seqno in range(1, 21):
        operation = WriteOperation(1, [b"key-%08d" % (1_000 * seqno + n) for n in range(1_000)], [bytes(value_bytes)] * 1_000)
        rows.append(encode_entry(Entry(1, seqno, operation)))
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        entries = [decode_entry(row) for row in rows]
        committed = tracemalloc.get_traced_memory()[0] - before
        dirty = {name: entry.seqno for entry in entries for name in entry.keys or ()}
        in_flight = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(dirty) == 20_000
    size = sum(entry.size for entry in entries)
    # An empty value is counted like any other, though all of them are one object.
    assert 0.7 < size / in_flight < (1.0 if value_bytes else 1.25)
    assert 1.0 < size / committed < (1.6 if value_bytes > 10 else 2.9)
