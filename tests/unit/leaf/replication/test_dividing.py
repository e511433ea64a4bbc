"""What the machine does for a shard that divides: who is taken in, what is told, and what is applied together."""

from dataclasses import replace

import msgspec
from fakes.replicated_shard import TIMINGS, ReplicatedShard

from kvshard.clustermap import Replica
from leaf.peer_codec import Envelope, decode, encode
from leaf.replication import actions as act
from leaf.replication import events as ev
from leaf.replication.dedup import DedupTable
from leaf.replication.machine import Recovered
from leaf.replication.messages import Beacon, BeaconAck, Echo, PrepareAck, RequestId
from leaf.replication.oplog import ReplicatedLog

D = Replica("d", "d1")


def joining() -> ReplicatedShard:
    """A shard of two in which d is wanted, and has just begun."""
    shard = ReplicatedShard("ab")
    shard.store(replace(shard.stored, desired=("a", "b", "d")))
    fresh = ReplicatedShard("ab").nodes["a"]
    machine = shard._machine(D, Recovered(0, ReplicatedLog(0, 0), 0, DedupTable()))
    shard.boot(D, replace(fresh, machine=machine, state={}, log={}, saved_epoch=0))
    return shard


def test_nobody_is_taken_in_while_a_part_of_the_state_is_known_to_nobody_else() -> None:
    shard = joining()
    shard.machine("a").is_dividing = True
    shard.run(1.5)
    assert D in shard.stored.learners
    assert D not in shard.stored.in_sync
    shard.machine("a").is_dividing = False
    shard.run(0.5)
    assert D in shard.stored.in_sync


def test_the_primary_learns_who_is_ready_with_the_next_beacon() -> None:
    shard = ReplicatedShard()
    reign = shard.machine("a").reign
    assert reign is not None
    assert not reign.are_ready_for(9)
    for leaf in ("b", "c"):
        shard.machine(leaf).ready_for = 9
        shard.run(2 * TIMINGS.beacon_interval)
        assert reign.are_ready_for(9) is (leaf == "c")
    shard.machine("b").ready_for = None
    shard.run(2 * TIMINGS.beacon_interval)
    assert not reign.are_ready_for(9)


def test_learners_are_not_waited_for() -> None:
    shard = joining()
    shard.machine("a").is_dividing = True
    shard.run(1.5)
    reign = shard.machine("a").reign
    assert reign is not None
    shard.machine("b").ready_for = 9
    shard.run(2 * TIMINGS.beacon_interval)
    assert reign.are_ready_for(9)


def test_readiness_travels_and_an_older_leaf_says_nothing_of_it() -> None:
    shard = ReplicatedShard()
    a, b = shard.machine("a").me, shard.machine("b").me
    for ready_for in (None, 0, 9):
        ack = BeaconAck(3, 1.5, Echo(7, 2.5), 9, False, ready_for)
        payload = encode([Envelope(0, b, a, ack)], lambda entry: b"")
        assert [each.message for each in decode(payload, "b", "a", lambda row: None)] == [ack]  # type: ignore[arg-type, return-value]
    old = msgspec.msgpack.encode([[0, "b1", "a1", 2, 3, 1.5, [7, 2.5], 9, True]])
    (found,) = decode(old, "b", "a", lambda row: None)  # type: ignore[arg-type, return-value]
    assert found.message == BeaconAck(3, 1.5, Echo(7, 2.5), 9, True, None)


def propose(shard: ReplicatedShard, token: int, number: int, keys: tuple[str, ...] | None) -> None:
    """Put an entry into the primary's log, its disk being held."""
    machine = shard.machine("a")
    request = RequestId("client", number)
    machine.step(ev.Write(token, request, 1), shard.now)
    for action in machine.step(ev.Propose(token, request, (f"k{token}", "v"), keys, 1, f"did {number}"), shard.now):
        if isinstance(action, act.Append):
            shard.nodes["a"].ticket = action.ticket


def test_an_entry_that_concerns_every_key_ends_what_is_applied_together_and_has_its_table() -> None:
    shard = ReplicatedShard("a", min_in_sync=1)
    before = shard.machine("a").committed
    for token, keys in ((1, ("x",)), (2, None), (3, ("y",)), (4, None)):
        propose(shard, token, token, keys)
    machine = shard.machine("a")
    assert machine.latest_of_all == before + 4
    applied = [each for each in machine.step(ev.Durable(shard.nodes["a"].ticket), shard.now) if isinstance(each, act.Apply)]
    assert [[entry.seqno - before for entry in each.entries] for each in applied] == [[1, 2], [3, 4]]
    assert applied[0].table is not None
    (record,) = applied[0].table.records()
    assert [number for number, _, _ in record.results] == [1, 2], "as of that entry"
    assert applied[1].table is None, "the machine's own is just that"
    assert machine.latest_of_all == 0
    machine.check_invariants()


def test_a_copy_of_a_table_has_a_life_of_its_own() -> None:
    table = DedupTable()
    table.record(RequestId("client", 1), 5, b"r")
    copy = table.copy()
    table.record(RequestId("client", 2), 6, b"r")
    assert [number for number, _, _ in copy.records()[0].results] == [1]
    copy.check_invariants()


def test_a_peer_that_comes_up_later_is_greeted_at_once() -> None:
    """A child's replicas open some milliseconds apart: its primary must not wait for the next beacon to get its lease."""
    shard = ReplicatedShard()
    machine = shard.machine("a")
    reign = machine.reign
    assert reign is not None
    peer = reign.peers["b"]
    peer.last_ack_at, peer.is_greeted = None, False
    ack = PrepareAck(machine.epoch, machine.last)
    sent = [machine.step(ev.Receive(peer.replica, machine.me, ack), shard.now) for _ in range(2)]
    beacons = [
        [each for each in actions if isinstance(each, act.Send) and isinstance(each.message, Beacon)] for actions in sent
    ]
    assert [len(each) for each in beacons] == [2, 0], "to all, once"
