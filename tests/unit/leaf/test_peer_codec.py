"""Messages between leaves as bytes."""

import random

import pytest

from kvshard.clustermap import Replica, ShardConfig
from leaf.entry_codec import EntryRows
from leaf.operations import WriteOperation, keys_of, size_of
from leaf.peer_codec import Envelope, decode, encode
from leaf.replication.messages import (
    Beacon,
    BeaconAck,
    Commit,
    DedupRecord,
    Echo,
    Entry,
    Join,
    Message,
    Outdated,
    Prepare,
    PrepareAck,
    PrepareNack,
    RequestId,
    SnapshotAck,
    SnapshotChunk,
)

A, B = Replica("a", "a1"), Replica("b", "b1")
OPERATION = WriteOperation(1, [b"k", b"l"], [b"v", None], [5, 0])
ENTRY = Entry(3, 4, OPERATION, keys_of(OPERATION), size_of(OPERATION), RequestId("client", 5, 1), b"result")
CONFIG = ShardConfig(7, 0, 99, 3, "a", (A, B), (), ("a", "b"))
MESSAGES: tuple[Message, ...] = (
    Beacon(3, 1.5, 5, Echo(3, 1.0), True, CONFIG),
    Beacon(3, 1.5, 5, None, False, None),
    BeaconAck(3, 1.5, Echo(1, 2.0), 5),
    Prepare(3, 1, 3, (ENTRY, Entry(3, 5, None, (), 0, None, b"")), 3),
    PrepareAck(3, 4),
    PrepareNack(3, 4, 2, True),
    Commit(3, 2),
    SnapshotChunk(3, 2, 3, 4, 3, [(b"k", b"v")], True, (DedupRecord("c", 1, 2, 3, ((1, 2, b"x"),)),), 7),
    SnapshotAck(3, 2, -1),
    Outdated(3),
    Join(2),
)


def rows() -> EntryRows:
    return EntryRows()


def payload_of(*messages: Message) -> bytes:
    return encode([Envelope(7, A, B, message) for message in messages], rows().row_of)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_what_is_sent_arrives(message: Message) -> None:
    assert list(decode(payload_of(message), "a", "b", rows().entry_of)) == [Envelope(7, A, B, message)]


def test_damage_is_told_by_one_error_whatever_it_is() -> None:
    payload, rng = payload_of(*MESSAGES), random.Random(1)
    told = 0
    for _ in range(5_000):
        damaged = bytearray(payload[: rng.choice((len(payload), rng.randrange(len(payload))))] or b"x")
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        try:
            list(decode(bytes(damaged), "a", "b", rows().entry_of))
        except ValueError:
            told += 1
    assert told > 1_000
