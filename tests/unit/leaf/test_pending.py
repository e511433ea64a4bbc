"""What entries in flight leave of keys, drops and splits among them."""

from fakes.replicated_shard import TIMINGS

from kvshard.clustermap import Replica, ShardConfig
from leaf.operations import DropCollection, Operation, Split, WriteOperation, keys_of, size_of
from leaf.pending import is_splitting, latest_of, writable_last_slot
from leaf.replication import events as ev
from leaf.replication.dedup import DedupTable
from leaf.replication.machine import Recovered, ReplicationMachine
from leaf.replication.messages import Entry
from leaf.replication.oplog import ReplicatedLog

ME = Replica("a", "a1")
SPLIT = Split(9, 100, 200)


def with_in_flight(*operations: Operation) -> ReplicationMachine:
    """A primary whose disk has none of these entries yet. The first one has the seqno 1."""
    entries = [Entry(1, n, each, keys_of(each), size_of(each)) for n, each in enumerate(operations, 1)]
    recovered = Recovered(1, ReplicatedLog(0, 0, entries), 0, DedupTable())
    machine = ReplicationMachine(0, ME, TIMINGS, boot=1, min_in_sync=1, recovered=recovered, now=0.0)
    machine.step(ev.ConfigSeen(ShardConfig(0, 0, 65_535, 2, "a", (ME,))), 0.0)
    return machine


def write(*keys: bytes, collection_id: int = 1) -> WriteOperation:
    return WriteOperation(collection_id, list(keys), [b"v"] * len(keys))


def test_the_last_write_of_a_key_counts() -> None:
    machine = with_in_flight(write(b"a", b"b"), write(b"a"), WriteOperation(1, [b"b"], [None]))
    found = latest_of(machine, 1, [b"a", b"b", b"c"])
    assert {key: (each.seqno, each.version) for key, each in found.items()} == {b"a": (2, 2), b"b": (3, 0)}


def test_a_drop_counts_for_its_collection_whatever_comes_after_it() -> None:
    machine = with_in_flight(write(b"a"), DropCollection(1), write(b"b"), DropCollection(2), SPLIT)
    found = latest_of(machine, 1, [b"a", b"b", b"c"])
    assert {key: (each.seqno, each.version) for key, each in found.items()} == {b"a": (2, 0), b"b": (3, 3), b"c": (2, 0)}
    assert latest_of(machine, 3, [b"a"]) == {}


def test_a_split_in_flight_ends_the_range_that_is_written() -> None:
    assert writable_last_slot(with_in_flight(write(b"a")), 200) == 200
    machine = with_in_flight(write(b"a"), SPLIT, write(b"b"))
    assert (is_splitting(machine), writable_last_slot(machine, 200)) == (True, 99)
    assert not is_splitting(with_in_flight(DropCollection(1)))
