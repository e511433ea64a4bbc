"""The rules of a replica that another one leads, one by one."""

from dataclasses import replace

import pytest
from fakes.replicated_shard import TIMINGS, ReplicatedShard

from kvshard.clustermap import Replica
from leaf.replication import actions as act
from leaf.replication import events as ev
from leaf.replication.actions import Reason
from leaf.replication.core import APPLY_MAX_ENTRIES
from leaf.replication.machine import ReadNow, Role
from leaf.replication.messages import (
    Beacon,
    BeaconAck,
    Commit,
    Echo,
    Entry,
    Join,
    Outdated,
    Prepare,
    PrepareAck,
    PrepareNack,
    SnapshotAck,
    SnapshotChunk,
)

A, B, C = (Replica(leaf, f"{leaf}1") for leaf in "abc")


def told(shard: ReplicatedShard, leaf: str, message: object, sender: Replica = A) -> list[act.Action]:
    """What a replica does about one message."""
    machine = shard.machine(leaf)
    actions = machine.step(ev.Receive(sender, machine.me, message), shard.now)  # type: ignore[arg-type]
    machine.check_invariants()
    return actions


def messages(actions: list[act.Action]) -> list[object]:
    return [action.message for action in actions if isinstance(action, act.Send)]


def beacon(
    shard: ReplicatedShard, *, epoch: int = 1, grants: bool = False, echo: Echo | None = None, committed: int = 1
) -> Beacon:
    return Beacon(epoch, shard.now, committed, echo, grants, None)


# Who is listened to


@pytest.mark.parametrize("sender", [Replica("a", "another"), C, Replica("d", "d1")])
def test_only_the_primary_is_listened_to_and_only_as_the_identity_it_has(sender: Replica) -> None:
    shard = ReplicatedShard()
    assert told(shard, "b", beacon(shard), sender) == []
    assert told(shard, "b", Prepare(1, 1, 1, (Entry(1, 2, None),), 1), sender) == []
    assert shard.machine("b").last == 1


def test_what_was_meant_for_the_data_before_this_is_ignored() -> None:
    shard = ReplicatedShard()
    machine = shard.machine("b")
    assert machine.step(ev.Receive(A, Replica("b", "older"), beacon(shard)), shard.now) == []


def test_an_older_epoch_is_refused_and_told_so() -> None:
    shard = ReplicatedShard()
    shard.store(replace(shard.stored, epoch=2, in_sync=(A, B)))
    shard.run(0.1)
    assert messages(told(shard, "b", beacon(shard, epoch=1))) == [Outdated(2)]
    assert told(shard, "b", Prepare(1, 1, 1, (Entry(1, 2, None),), 1)) == []


def test_one_who_asks_to_join_by_an_old_configuration_is_told_so() -> None:
    shard = ReplicatedShard()
    shard.store(replace(shard.stored, epoch=2, in_sync=(A, B)))
    shard.run(0.1)
    assert messages(told(shard, "b", Join(1), C)) == [Outdated(2)]


# Disk before answer


def test_nothing_is_acknowledged_in_an_epoch_that_the_disk_does_not_know() -> None:
    shard = ReplicatedShard()
    shard.nodes["b"].is_disk_held = True
    machine = shard.machine("b")
    (save,) = machine.step(ev.ConfigSeen(replace(shard.stored, epoch=2)), shard.now)
    assert isinstance(save, act.SaveEpoch)
    assert messages(told(shard, "b", beacon(shard, epoch=2))) == []
    assert messages(told(shard, "b", Prepare(2, 1, 1, (), 1))) == []
    found = messages(machine.step(ev.Durable(save.ticket), shard.now))
    assert {type(message) for message in found} == {BeaconAck, PrepareAck}


def test_an_entry_is_acknowledged_when_the_disk_has_it() -> None:
    shard = ReplicatedShard()
    (append,) = told(shard, "b", Prepare(1, 1, 1, (Entry(1, 2, ("k", "v"), ("k",)),), 1))
    assert isinstance(append, act.Append)
    assert messages(shard.machine("b").step(ev.Durable(append.ticket - 1), shard.now)) == []
    assert messages(shard.machine("b").step(ev.Durable(append.ticket), shard.now)) == [PrepareAck(1, 2)]


def test_the_disk_s_answer_for_entries_taken_back_says_nothing_of_those_in_their_place() -> None:
    shard = ReplicatedShard()
    machine = shard.machine("b")
    (old,) = told(shard, "b", Prepare(1, 1, 1, (Entry(1, 2, ("k", "v"), ("k",)), Entry(1, 3, ("k", "w"), ("k",))), 1))
    machine.step(ev.ConfigSeen(replace(shard.stored, epoch=2, primary="c")), shard.now)
    truncate, new = told(shard, "b", Prepare(2, 1, 1, (Entry(2, 2, None),), 1), C)
    assert isinstance(old, act.Append)
    assert isinstance(truncate, act.Truncate)
    assert isinstance(new, act.Append)
    assert truncate.after == 1
    machine.step(ev.Durable(old.ticket), shard.now)
    assert machine.durable == 1
    machine.step(ev.Durable(new.ticket), shard.now)
    assert machine.durable == 2


def test_what_is_told_as_committed_is_applied_only_as_far_as_it_is_verified_and_durable() -> None:
    shard = ReplicatedShard()
    machine = shard.machine("b")
    (append,) = told(shard, "b", Prepare(1, 1, 1, (Entry(1, 2, ("k", "v"), ("k",)),), 2))
    assert machine.committed == 1
    assert isinstance(append, act.Append)
    machine.step(ev.ConfigSeen(replace(shard.stored, epoch=2, primary="c")), shard.now)
    machine.step(ev.Durable(append.ticket + 1), shard.now)
    told(shard, "b", beacon(shard, epoch=2, committed=2), C)
    assert machine.committed == 1, "the new primary's entry 2 may be another one"
    told(shard, "b", Prepare(2, 1, 2, (), 2), C)
    assert machine.committed == 2


def test_much_that_is_told_as_committed_is_applied_in_several_steps() -> None:
    shard = ReplicatedShard()
    entries = tuple(Entry(1, seqno, ("k", str(seqno)), ("k",), 1) for seqno in range(2, APPLY_MAX_ENTRIES + 7))
    told(shard, "b", Prepare(1, 1, 1, entries, 1))
    machine = shard.machine("b")
    machine.step(ev.Durable(shard.nodes["b"].ticket + 99), shard.now)
    assert not machine.is_behind
    told(shard, "b", Commit(1, entries[-1].seqno))
    assert machine.applied == 1 + APPLY_MAX_ENTRIES
    assert machine.is_behind
    machine.step(ev.Tick(), shard.now)
    assert machine.applied == entries[-1].seqno
    assert not machine.is_behind


# The log


def test_a_gap_or_another_history_is_refused_with_a_hint() -> None:
    shard = ReplicatedShard()
    assert messages(told(shard, "b", Prepare(1, 1, 5, (Entry(1, 6, None),), 1))) == [PrepareNack(1, 5, 1)]
    told(shard, "b", Prepare(1, 1, 1, (Entry(1, 2, None), Entry(1, 3, None)), 1))
    machine = shard.machine("b")
    machine.step(ev.ConfigSeen(replace(shard.stored, epoch=2, primary="c")), shard.now)
    assert messages(told(shard, "b", Prepare(2, 2, 3, (), 1), C)) == [PrepareNack(2, 3, 1)]


def test_entries_that_come_twice_change_nothing() -> None:
    shard = ReplicatedShard()
    prepare = Prepare(1, 1, 1, (Entry(1, 2, None),), 1)
    (append,) = told(shard, "b", prepare)
    assert isinstance(append, act.Append)
    assert told(shard, "b", prepare) == []
    shard.machine("b").step(ev.Durable(append.ticket), shard.now)
    assert messages(told(shard, "b", prepare)) == [PrepareAck(1, 2)]


# The read lease


def test_a_lease_needs_a_grant_and_an_echo_of_this_run() -> None:
    shard = ReplicatedShard()
    shard.restart("b")
    machine = shard.machine("b")
    old = Echo(machine.boot - 1, shard.now)
    for message in (
        beacon(shard, grants=True, echo=old),
        beacon(shard, grants=True),
        beacon(shard, echo=Echo(machine.boot, shard.now)),
    ):
        told(shard, "b", message)
        assert machine.try_read(("k",), True, shard.now) is Reason.NO_LEASE
    told(shard, "b", beacon(shard, grants=True, echo=Echo(machine.boot, shard.now)))
    assert isinstance(machine.try_read(("k",), True, shard.now), ReadNow)
    assert machine.try_read(("k",), True, shard.now + TIMINGS.read_lease) is Reason.NO_LEASE


def test_a_newer_epoch_ends_the_lease() -> None:
    shard = ReplicatedShard()
    machine = shard.machine("b")
    assert isinstance(machine.try_read(("k",), True, shard.now), ReadNow)
    machine.step(ev.ConfigSeen(replace(shard.stored, epoch=2)), shard.now)
    assert machine.try_read(("k",), True, shard.now) is Reason.NO_LEASE


def test_a_dirty_key_waits_and_others_do_not() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_disk_held = True
    shard.write("a", 1, "k", "v")
    shard.settle()
    machine = shard.machine("b")
    assert machine.try_read(("k",), True, shard.now) is None
    assert machine.try_read(("other",), True, shard.now) == ReadNow(1, machine.follower.age(shard.now))
    assert isinstance(machine.try_read(("k",), False, shard.now), ReadNow), "committed state, for who wants that"
    assert shard.read("b", 2) is None, "a scan waits for everything that was there when it came"
    shard.nodes["c"].is_disk_held = False
    shard.settle()
    assert shard.reads[2] == {"k": ("v", 2)}


def test_who_waits_for_a_commit_is_sent_elsewhere_when_the_lease_ends() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_disk_held = True
    shard.write("a", 1, "k", "v")
    shard.settle()
    assert shard.read("b", 2, "k") is None
    shard.is_cut = lambda sender, receiver: True
    shard.run(TIMINGS.read_lease + 2 * TIMINGS.tick)
    assert shard.reads[2] is Reason.NO_LEASE


def test_a_reader_who_gave_up_is_not_answered() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_disk_held = True
    shard.write("a", 1, "k", "v")
    shard.settle()
    assert shard.read("b", 2, "k") is None
    shard.step("b", ev.Cancel(2))
    shard.nodes["c"].is_disk_held = False
    shard.settle()
    assert 2 not in shard.reads


def test_the_age_of_stale_state_counts_from_what_the_primary_vouched_for() -> None:
    shard = ReplicatedShard()
    machine = shard.machine("b")
    found = machine.try_read(("k",), False, shard.now)
    assert isinstance(found, ReadNow)
    assert found.age_s is not None
    assert 0 < found.age_s <= 2 * TIMINGS.beacon_interval
    shard.is_cut = lambda sender, receiver: True
    before = shard.now
    shard.run(0.5)
    later = machine.try_read(("k",), False, shard.now)
    assert isinstance(later, ReadNow)
    assert later.age_s == pytest.approx(found.age_s + shard.now - before)


# Taking over


def test_grace_starts_anew_after_a_restart_and_with_a_newer_epoch() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    shard.is_coordinator_up = False
    shard.run(TIMINGS.grace - 2 * TIMINGS.tick)
    shard.restart("b")
    shard.nodes["c"].machine.step(ev.ConfigSeen(replace(shard.stored, epoch=2)), shard.now)
    shard.run(TIMINGS.grace - 2 * TIMINGS.tick)
    assert [leaf for leaf, _ in shard.cas if leaf != "a"] == []
    shard.run(4 * TIMINGS.tick)
    assert [leaf for leaf, _ in shard.cas if leaf != "a"] == ["b"], "and c after it, by rank"


def test_who_asks_to_take_over_no_longer_answers_the_old_primary() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    shard.is_coordinator_up = False
    shard.run(TIMINGS.grace + 2 * TIMINGS.tick)
    assert shard.machine("b").follower.is_taking_over()
    assert told(shard, "b", beacon(shard)) == []
    assert told(shard, "b", Prepare(1, 1, 1, (), 1)) == []


@pytest.mark.parametrize("outcome", [ev.Outcome.UNKNOWN, ev.Outcome.FAILED])
def test_only_a_clear_no_lets_it_answer_again(outcome: ev.Outcome) -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    shard.is_coordinator_up = False
    shard.run(TIMINGS.grace + 2 * TIMINGS.tick)
    machine = shard.machine("b")
    machine.step(ev.CasAnswer(1, outcome), shard.now)
    machine.step(ev.ConfigSeen(shard.stored), shard.now)
    answers = messages(told(shard, "b", beacon(shard)))
    assert [type(message) for message in answers] == ([BeaconAck] if outcome is ev.Outcome.FAILED else [])


def test_a_no_after_an_open_answer_leaves_it_open() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    shard.is_coordinator_up = False
    shard.run(TIMINGS.grace + 2 * TIMINGS.tick)
    machine = shard.machine("b")
    machine.step(ev.CasAnswer(1, ev.Outcome.UNKNOWN), shard.now)
    machine.step(ev.CasAnswer(1, ev.Outcome.FAILED), shard.now)
    assert machine.follower.is_taking_over(), "the first request may still be done"


def test_a_take_over_that_an_earlier_run_asked_for_waits_for_the_lease_that_this_run_renewed() -> None:
    shard = ReplicatedShard()
    shard.restart("b")
    shard.run(0.2)
    shard.is_cut = lambda sender, receiver: True
    late = replace(shard.stored, epoch=2, primary="b", in_sync=(B, C))
    shard.stored = late
    shard.step("b", ev.ConfigSeen(late))
    promised = shard.machine("b").follower.promised_at
    assert shard.machine("a").try_read(("k",), True, shard.now) == ReadNow(1, 0.0), "the old primary has its lease"
    shard.run(TIMINGS.grace - (shard.now - promised) - 2 * TIMINGS.tick)
    assert shard.machine("b").reign is None
    shard.run(3 * TIMINGS.tick)
    assert shard.machine("b").reign is not None
    assert shard.machine("a").try_read(("k",), True, shard.now) in (Reason.NO_LEASE, Reason.NOT_READY)


@pytest.mark.parametrize("has_seen_the_old_one", [True, False])
def test_a_takeover_of_an_earlier_run_is_not_acted_on_while_another_run_may_have_promised(has_seen_the_old_one: bool) -> None:
    """The request is done late. The run that made it is over, so is one that has answered the old primary since."""
    shard = ReplicatedShard("ab", min_in_sync=1)
    shard.write("a", 1, "k", "old")
    shard.run()
    assert shard.read("a", 2, "k") == {"k": ("old", 2)}
    shard.is_cut = lambda sender, receiver: True
    shard.is_coordinator_up = False
    taken = replace(shard.stored, epoch=2, primary="b", in_sync=(B,))
    if has_seen_the_old_one:
        shard.restart("b")
        shard.store(taken, tell=False)
        shard.step("b", ev.ConfigSeen(taken))
    else:
        shard.store(taken, tell=False)
        shard.restart("b")
    shard.run(TIMINGS.primary_lease - 2 * TIMINGS.tick)
    assert shard.read("a", 3, "k") == {"k": ("old", 2)}, "its lease, by the answer of b's earlier run, is good"
    assert shard.machine("b").role is Role.CONFIRMING
    shard.run(TIMINGS.grace - TIMINGS.primary_lease + 4 * TIMINGS.tick)
    assert shard.machine("b").role is Role.PRIMARY


def test_a_run_that_crashed_before_it_led_leaves_the_wait_to_the_next() -> None:
    """Its epoch is on disk, no entry of it: what the runs before it promised may still hold."""
    shard = ReplicatedShard("ab", min_in_sync=1)
    shard.write("a", 1, "k", "old")
    shard.run()
    assert shard.read("a", 2, "k") == {"k": ("old", 2)}
    shard.is_cut = lambda sender, receiver: True
    taken = replace(shard.stored, epoch=2, primary="b", in_sync=(B,))
    shard.store(taken, tell=False)
    shard.nodes["b"].saved_epoch = 2
    shard.restart("b")
    shard.run(TIMINGS.primary_lease - 2 * TIMINGS.tick)
    assert shard.stored.epoch == 3, "it has taken an epoch of its own"
    assert shard.machine("b").role is Role.CONFIRMING
    shard.run(TIMINGS.grace - TIMINGS.primary_lease + 4 * TIMINGS.tick)
    assert shard.machine("b").role is Role.PRIMARY


def test_a_primary_that_never_was_up_is_given_time() -> None:
    shard = ReplicatedShard()
    unknown = (Replica("a"), B, C)
    shard.nodes["a"].is_up = False
    for leaf in "bc":
        shard.machine(leaf).config = replace(shard.stored, in_sync=unknown)
    shard.stored = replace(shard.stored, epoch=5, in_sync=unknown)
    shard.tell()
    shard.run(TIMINGS.first_contact - 2 * TIMINGS.tick)
    assert shard.stored.epoch == 5
    shard.run(4 * TIMINGS.tick)
    assert (shard.stored.epoch, shard.stored.primary) == (6, "b")


# Snapshots


def learner() -> ReplicatedShard:
    """A shard in which c is a learner."""
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    config = replace(shard.stored, epoch=2, in_sync=(A, B), learners=(C,))
    shard.store(config)
    shard.settle()
    assert shard.machine("c").role is Role.LEARNER
    return shard


def chunk(index: int, *, seqno: int = 9, is_last: bool = False, snapshot: int = 7) -> SnapshotChunk:
    return SnapshotChunk(2, snapshot, index, seqno, 1, {f"k{index}": ("v", 1)}, is_last)


def test_pieces_are_staged_in_order_and_the_last_is_acknowledged_when_all_is_durable() -> None:
    shard = learner()
    machine = shard.machine("c")
    assert messages(told(shard, "c", chunk(0))) == [SnapshotAck(2, 7, 0)]
    assert told(shard, "c", chunk(2)) == []
    assert messages(told(shard, "c", chunk(0))) == [SnapshotAck(2, 7, 0)], "its ack was lost"
    assert machine.try_read(("k",), False, shard.now) is Reason.NOT_READY
    stage, install = told(shard, "c", chunk(1, is_last=True))
    assert isinstance(stage, act.StageRows)
    assert isinstance(install, act.InstallSnapshot)
    assert (machine.committed, machine.last) == (9, 9)
    found = machine.step(ev.Durable(install.ticket), shard.now)
    assert SnapshotAck(2, 7, 1) in messages(found)


def test_a_late_copy_of_a_snapshot_takes_nothing_back() -> None:
    shard = learner()
    machine = shard.machine("c")
    told(shard, "c", chunk(0, is_last=True))
    (append,) = told(shard, "c", Prepare(2, 1, 9, (Entry(2, 10, None),), 9))
    assert isinstance(append, act.Append)
    machine.step(ev.Durable(append.ticket), shard.now)
    assert told(shard, "c", chunk(0, is_last=True)) == []
    assert told(shard, "c", chunk(0, seqno=10, is_last=True, snapshot=6)) == [], "10 is acknowledged, not committed"
    assert (machine.committed, machine.last) == (9, 10)


def test_half_a_snapshot_is_told_and_one_that_is_not_known_too() -> None:
    shard = learner()
    assert messages(told(shard, "c", chunk(3))) == [SnapshotAck(2, 7, -1)]
    told(shard, "c", chunk(0))
    assert messages(told(shard, "c", Prepare(2, 1, 1, (), 1))) == [PrepareNack(2, 1, 0, needs_snapshot=True)]
    shard.machine("c").step(ev.ConfigSeen(replace(shard.stored, epoch=3, primary="b")), shard.now)
    found = told(shard, "c", Prepare(3, 1, 1, (), 1), B)
    assert messages(found) == [PrepareNack(3, 1, 0, needs_snapshot=True)], "the other half will not come"
