"""What waits for another leaf, and how it is carried there."""

import pytest

from kvshard.clustermap import Replica
from leaf.peer_codec import Envelope
from leaf.peers import BATCH_BYTES, MESSAGE_BYTES, QUEUE_MAX_BYTES, QUEUE_MAX_MESSAGES, STALE_S, Outbox
from leaf.replication.messages import Beacon, Entry, Message, Prepare, SnapshotChunk

A, B = Replica("a", "a1"), Replica("b", "b1")
MIB = 1024 * 1024


def beacon() -> Beacon:
    return Beacon(1, 1.0, 1, None, True, None)


def prepare(size: int = MIB) -> Prepare:
    return Prepare(1, 1, 1, (Entry(1, 2, None, size=size),), 1)


def chunk(size: int = MIB) -> SnapshotChunk:
    return SnapshotChunk(1, 1, 0, 1, 1, [(b"", bytes(size))], False)


def put(box: Outbox, count: int, message: Message, now: float = 0.0) -> None:
    for shard in range(count):
        box.put(Envelope(shard, A, B, message), now)


def drain(box: Outbox) -> list[Envelope]:
    found: list[Envelope] = []
    while batch := box.take(0.0):
        found += batch
    assert box.bytes == 0
    return found


def kinds(envelopes: list[Envelope], kind: type[Message]) -> list[int]:
    return [each.shard for each in envelopes if isinstance(each.message, kind)]


@pytest.mark.parametrize("order", [(chunk, prepare, beacon), (beacon, prepare, chunk), (prepare, chunk, beacon)])
def test_leases_and_entries_do_not_suffer_from_snapshots_that_pile_up(order) -> None:
    """A leaf that gets many shards at once: were its beacons dropped it would lose those that it has."""
    box = Outbox()
    for make in order:
        put(box, 100 if make is chunk else 10, make())
        assert box.bytes <= QUEUE_MAX_BYTES
    left = drain(box)
    assert kinds(left, Beacon) == list(range(10))
    assert kinds(left, Prepare) == list(range(10))
    assert kinds(left, SnapshotChunk)[-1] == 99


def test_leases_do_not_suffer_from_the_largest_entries() -> None:
    box = Outbox()
    put(box, 1, prepare(QUEUE_MAX_BYTES))
    put(box, 10, beacon())
    left = drain(box)
    assert len(kinds(left, Beacon)) == 10
    assert len(kinds(left, Prepare)) == 1


def test_of_entries_and_of_small_messages_the_oldest_go() -> None:
    box = Outbox()
    put(box, 100, prepare())
    assert kinds(drain(box), Prepare)[-1] == 99
    put(box, QUEUE_MAX_MESSAGES + 5, beacon())
    assert kinds(drain(box), Beacon)[0] == 5
    assert box.dropped > 5


def test_a_batch_is_bounded_begins_with_small_messages_and_holds_nothing_stale() -> None:
    box = Outbox()
    put(box, 2, prepare(), now=0.0)
    put(box, 3, prepare(BATCH_BYTES - 2 * MESSAGE_BYTES), now=STALE_S)
    put(box, 1, beacon(), now=STALE_S)
    assert [type(each.message) for each in box.take(1.5 * STALE_S)] == [Beacon]
    assert [type(each.message) for each in box.take(1.5 * STALE_S)] == [Prepare]
    assert box.dropped == 2
