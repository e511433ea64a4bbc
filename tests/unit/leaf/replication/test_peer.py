"""What goes to one other replica: snapshots piece by piece, and what happens when one side forgets."""

from dataclasses import replace

import pytest
from fakes.replicated_shard import TIMINGS, ReplicatedShard

from kvshard.clustermap import Replica
from leaf.replication import actions as act
from leaf.replication import events as ev
from leaf.replication.dedup import DedupTable
from leaf.replication.machine import Recovered, ReplicationMachine
from leaf.replication.messages import BeaconAck, Echo, PrepareNack, RequestId, SnapshotAck, SnapshotChunk
from leaf.replication.oplog import ReplicatedLog, Retention
from leaf.replication.peer import CHUNKS_MAX, Peer

D = Replica("d", "d1")


def with_learner() -> ReplicatedShard:
    """A shard whose log is short, and a learner d that is about to be sent a snapshot of 20 pieces; nothing reaches it yet."""
    shard = ReplicatedShard("ab", retention=Retention(4, 1_000))
    for number in range(40):
        shard.write("a", 100 + number, f"k{number:02}", f"v{number}", RequestId("client", number + 1))
        shard.settle()
    machine = ReplicationMachine(
        0,
        D,
        TIMINGS,
        boot=99,
        min_in_sync=2,
        recovered=Recovered(0, ReplicatedLog(0, 0), 0, DedupTable()),
        now=shard.now,
    )
    shard.boot(D, replace(shard.nodes["a"], machine=machine, state={}, log={}, saved_epoch=0, is_up=False))
    shard.store(replace(shard.stored, epoch=2, learners=(D,), desired=("a", "b", "d")))
    shard.settle()
    return shard


def peer_of(shard: ReplicatedShard) -> Peer:
    reign = shard.machine("a").reign
    assert reign is not None
    return reign.peers["d"]


def heard(shard: ReplicatedShard, message: object) -> list[act.Action]:
    machine = shard.machine("a")
    return machine.step(ev.Receive(D, machine.me, message), shard.now)  # type: ignore[arg-type]


def chunks(actions: list[act.Action]) -> list[int]:
    found = [action.message for action in actions if isinstance(action, act.Send)]
    return [message.index for message in found if isinstance(message, SnapshotChunk)]


def begin(shard: ReplicatedShard) -> int:
    """The learner says that it has nothing; the number of the snapshot that is opened for it."""
    found = heard(shard, PrepareNack(2, peer_of(shard).sent, 0))
    found += heard(shard, PrepareNack(2, peer_of(shard).sent, 0))
    (opened,) = [action for action in found if isinstance(action, act.OpenSnapshot)]
    assert any(isinstance(action, act.ReadSnapshot) for action in found)
    return opened.snapshot


def test_so_many_pieces_are_under_way_and_the_table_of_requests_goes_with_the_last() -> None:
    shard = with_learner()
    number = begin(shard)
    machine = shard.machine("a")
    for index in range(CHUNKS_MAX):
        found = machine.step(ev.SnapshotRows(number, {}, index + 1), shard.now)
        assert chunks(found) == [index]
    assert not any(isinstance(action, act.ReadSnapshot) for action in found), "the window is full"
    found = heard(shard, SnapshotAck(2, number, 1))
    assert [action for action in found if isinstance(action, act.ReadSnapshot)] == [act.ReadSnapshot(number, CHUNKS_MAX)]
    (last, *_) = machine.step(ev.SnapshotRows(number, {}, None), shard.now)
    assert isinstance(last, act.Send)
    assert isinstance(last.message, SnapshotChunk)
    assert last.message.is_last
    assert last.message.dedup == machine.dedup.records()
    assert last.message.seqno == machine.committed
    heard(shard, SnapshotAck(2, number, CHUNKS_MAX))
    assert peer_of(shard).acked == last.message.seqno
    assert peer_of(shard).sending is None


def test_a_snapshot_that_the_learner_has_lost_begins_anew() -> None:
    shard = with_learner()
    number = begin(shard)
    shard.machine("a").step(ev.SnapshotRows(number, {}, 1), shard.now)
    assert heard(shard, SnapshotAck(2, number, -1)) == [], "pieces that overtook the first"
    heard(shard, SnapshotAck(2, number, 0))
    found = heard(shard, SnapshotAck(2, number, -1))
    assert act.CloseSnapshot(number) in found
    assert act.OpenSnapshot(number + 1) in found


def test_when_only_the_last_ack_was_lost_a_beacon_s_answer_ends_it() -> None:
    shard = with_learner()
    number = begin(shard)
    machine = shard.machine("a")
    machine.step(ev.SnapshotRows(number, {}, None), shard.now)
    found = heard(shard, BeaconAck(2, shard.now, Echo(99, 1.0), machine.committed))
    assert act.CloseSnapshot(number) in found
    assert peer_of(shard).acked == machine.committed


def test_a_piece_without_an_answer_is_sent_again() -> None:
    shard = with_learner()
    number = begin(shard)
    shard.machine("a").step(ev.SnapshotRows(number, {}, 1), shard.now)
    shard.sent.clear()
    shard.run(4 * TIMINGS.resend_after + 2 * TIMINGS.tick)
    assert 0 in chunks([send for _, send in shard.sent])


def test_a_learner_that_is_gone_costs_no_snapshot_and_no_log() -> None:
    shard = with_learner()
    number = begin(shard)
    machine = shard.machine("a")
    assert machine.pinned == machine.committed
    found = machine.step(ev.ConfigSeen(replace(shard.stored, epoch=3, learners=())), shard.now)
    assert act.CloseSnapshot(number) in found
    assert machine.pinned is None


@pytest.mark.parametrize("restarted", ["a", "d"])
def test_a_snapshot_survives_the_restart_of_either_side(restarted: str) -> None:
    shard = with_learner()
    shard.nodes["d"].is_up = True
    seen: list[int] = []

    def is_cut(sender: str, receiver: str) -> bool:
        seen.append(1)
        return len(seen) > 40

    shard.is_cut = is_cut
    shard.step("d", ev.ConfigSeen(shard.stored))
    shard.run(0.2)
    staging = shard.machine("d").follower.staging
    assert staging is not None
    assert 0 < staging.received < 20, "half of it is there"
    shard.restart(restarted)
    shard.is_cut = lambda sender, receiver: False
    shard.run(3.0)
    assert D in shard.stored.in_sync
    assert shard.nodes["d"].state == shard.nodes[shard.primary].state
    assert shard.machine("d").dedup.records() == shard.machine("a").dedup.records()


def test_an_acknowledgement_that_answers_no_probe_does_not_end_it() -> None:
    """Else what the other has would never be verified, until a write comes or it is put out."""
    shard = ReplicatedShard("ab")
    shard.write("a", 1, "k", "v")
    shard.settle()
    primary = shard.machine("a")
    assert primary.reign is not None
    peer = primary.reign.peers["b"]
    asked = peer.acked
    peer.restart(primary)
    peer.on_ack(primary, asked - 1, shard.now, is_answer=True)
    assert peer.is_probing
    peer.on_ack(primary, asked, shard.now, is_answer=True)
    assert not peer.is_probing


def test_a_secondary_that_started_anew_learns_that_the_end_of_its_log_is_good() -> None:
    """Its last entry was not applied when it stopped; no write follows that would tell it more."""
    shard = ReplicatedShard("ab")
    shard.write("a", 1, "k", "v")
    shard.settle()
    primary = shard.machine("a")
    assert primary.reign is not None
    peer = primary.reign.peers["b"]
    peer.on_ack(primary, peer.acked - 1, shard.now, is_answer=False)
    assert peer.is_probing
    shard.run(3 * TIMINGS.beacon_interval)
    assert not peer.is_probing
    peer.on_ack(primary, peer.acked, shard.now, is_answer=False)
    assert not peer.is_probing
