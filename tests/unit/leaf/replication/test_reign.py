"""The rules of a primary, one by one."""

from dataclasses import replace

import pytest
from fakes.replicated_shard import TIMINGS, ReplicatedShard

from kvshard.clustermap import Replica
from leaf.replication import actions as act
from leaf.replication import events as ev
from leaf.replication.actions import Reason
from leaf.replication.core import APPLY_MAX_BYTES, READERS_MAX
from leaf.replication.dedup import DedupTable
from leaf.replication.machine import ReadNow, Recovered, ReplicationMachine, Role
from leaf.replication.messages import Beacon, BeaconAck, Commit, Echo, Prepare, PrepareAck, PrepareNack, RequestId
from leaf.replication.oplog import ReplicatedLog, Retention
from leaf.replication.peer import WINDOW_ENTRIES
from leaf.replication.reign import IN_FLIGHT_MAX_BYTES, IN_FLIGHT_MAX_ENTRIES, Reign

A, B, C, D = (Replica(leaf, f"{leaf}1") for leaf in "abcd")


def reign_of(shard: ReplicatedShard, leaf: str = "a") -> Reign:
    reign = shard.machine(leaf).reign
    assert reign is not None
    return reign


def heard(shard: ReplicatedShard, sender: Replica, message: object) -> list[act.Action]:
    """What the primary does about one message."""
    machine = shard.machine("a")
    actions = machine.step(ev.Receive(sender, machine.me, message), shard.now)  # type: ignore[arg-type]
    machine.check_invariants()
    return actions


def grants(shard: ReplicatedShard, leaf: str) -> list[bool]:
    """Of the beacons sent to a leaf since the list was cleared."""
    found = [send.message for _, send in shard.sent if send.receiver.leaf == leaf]
    return [message.grants_lease for message in found if isinstance(message, Beacon)]


# Commits


def test_a_commit_waits_for_the_slowest_and_is_told_at_once() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    shard.write("a", 1, "k", "v")
    shard.settle()
    assert heard(shard, B, PrepareAck(1, 2)) == []
    found = heard(shard, C, PrepareAck(1, 2))
    assert [type(action) for action in found] == [act.Apply, act.Answer, act.Send, act.Send]
    assert [action.message for action in found if isinstance(action, act.Send)] == [Commit(1, 2)] * 2


def test_many_entries_that_are_committed_at_once_are_applied_in_several_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step would hold the event loop of the leaf, and with it all its other shards, for a tenth of a second and more."""
    monkeypatch.setattr("leaf.replication.core.APPLY_MAX_ENTRIES", 8)
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    count = 2 * 8 + 5
    for token in range(1, count + 1):
        shard.write("a", token, f"k{token}", "v")
    shard.settle()
    machine = shard.machine("a")
    heard(shard, B, PrepareAck(1, count + 1))
    applied: list[int] = []
    answered: list[int] = []
    following: list[act.Action] = heard(shard, C, PrepareAck(1, count + 1))
    while True:
        applied.append(sum(len(action.entries) for action in following if isinstance(action, act.Apply)))
        answered += [action.token for action in following if isinstance(action, act.Answer)]
        assert machine.applied == machine.committed == 1 + sum(applied)
        if not machine.is_behind:
            break
        following = machine.step(ev.Tick(), shard.now)
        machine.check_invariants()
    assert applied == [8, 8, 5]
    assert answered == list(range(1, count + 1))


def test_an_entry_larger_than_a_step_is_applied_alone() -> None:
    shard = ReplicatedShard("a", min_in_sync=1)
    shard.nodes["a"].is_disk_held = True
    for token in (1, 2, 3):
        shard.write("a", token, f"k{token}", "v" * (APPLY_MAX_BYTES + 1))
    machine, ticket = shard.machine("a"), shard.nodes["a"].ticket
    sizes = []
    following = machine.step(ev.Durable(ticket), shard.now)
    while True:
        sizes += [len(action.entries) for action in following if isinstance(action, act.Apply)]
        if not machine.is_behind:
            break
        following = machine.step(ev.Tick(), shard.now)
    assert sizes == [1, 1, 1]


@pytest.mark.parametrize("sender", [Replica("c", "c2"), D])
def test_the_ack_of_another_identity_counts_nothing(sender: Replica) -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    shard.write("a", 1, "k", "v")
    shard.settle()
    heard(shard, B, PrepareAck(1, 2))
    assert heard(shard, sender, PrepareAck(1, 2)) == []
    assert shard.machine("a").committed == 1


def test_without_its_lease_a_primary_commits_nothing_and_says_how_old_its_state_is() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    shard.is_coordinator_up = False
    shard.write("a", 1, "k", "v")
    shard.settle()
    end = reign_of(shard).lease_until()
    shard.run(TIMINGS.primary_lease + TIMINGS.tick)
    heard(shard, B, PrepareAck(1, 2))
    assert heard(shard, C, PrepareAck(1, 2)) == []
    assert shard.machine("a").try_read(("k",), True, shard.now) is Reason.NO_LEASE
    assert shard.machine("a").try_read(("k",), False, shard.now) == ReadNow(1, shard.now - end)


def test_the_lease_counts_from_when_the_beacon_was_sent() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    sent_at = shard.now + 0.01
    for sender in (B, C):
        heard(shard, sender, BeaconAck(1, sent_at, Echo(9, 5.0), 1))
    assert reign_of(shard).has_lease(sent_at + TIMINGS.primary_lease - 0.001)
    assert not reign_of(shard).has_lease(sent_at + TIMINGS.primary_lease)
    heard(shard, B, BeaconAck(1, sent_at - 1.0, Echo(9, 4.0), 1))
    assert reign_of(shard).peers["b"].echo == Echo(9, 5.0), "a late answer takes nothing back"


def test_below_the_least_number_in_sync_what_is_under_way_waits() -> None:
    shard = ReplicatedShard("ab")
    shard.nodes["b"].is_up = False
    shard.write("a", 1, "k", "v")
    shard.run(TIMINGS.evict_after + TIMINGS.solitude + 2 * TIMINGS.tick)
    assert [each.leaf for each in shard.stored.in_sync] == ["a"]
    assert 1 not in shard.answers
    assert shard.read("a", 2, "k") == {"k": None}
    shard.nodes["b"].is_up = True
    shard.run(1.0)
    assert shard.answers[1] == (2, "did v")


# A primary that is cut off


def cut_off(shard: ReplicatedShard, *, hears: bool, is_heard: bool) -> None:
    """The primary a, from both others."""
    shard.is_cut = lambda sender, receiver: (receiver == "a" and not hears) or (sender == "a" and not is_heard)


@pytest.mark.parametrize(("hears", "is_heard"), [(False, False), (True, False), (False, True)])
def test_the_others_take_over_from_a_primary_that_is_cut_off(hears: bool, is_heard: bool) -> None:
    shard = ReplicatedShard()
    shard.run(1.0)
    cut_off(shard, hears=hears, is_heard=is_heard)
    began = shard.now
    while shard.stored.epoch == 1:
        shard.run(TIMINGS.tick)
    assert shard.stored.primary == "b", "alone it could take no writes"
    assert shard.stored.in_sync == (B, C)
    assert shard.now - began <= TIMINGS.evict_after + TIMINGS.grace + 2 * TIMINGS.tick
    shard.run(1.0)
    shard.write("b", 1, "k", "v")
    shard.run(0.1)
    assert shard.answers[1] == (3, "did v")


def test_a_primary_whose_others_are_all_gone_serves_reads_alone_in_the_end() -> None:
    shard = ReplicatedShard()
    shard.run(1.0)
    shard.nodes["b"].is_up = shard.nodes["c"].is_up = False
    shard.run(TIMINGS.evict_after + TIMINGS.solitude - TIMINGS.beacon_interval)
    assert shard.stored.epoch == 1
    shard.run(TIMINGS.beacon_interval + 2 * TIMINGS.tick)
    assert shard.stored.in_sync == (A,)
    assert shard.read("a", 2, "k") == {"k": None}


def test_a_primary_that_hears_the_others_again_goes_on() -> None:
    shard = ReplicatedShard()
    shard.run(1.0)
    cut_off(shard, hears=False, is_heard=True)
    shard.run(TIMINGS.evict_after + 3 * TIMINGS.tick)
    assert reign_of(shard).alone_since is not None
    shard.sent.clear()
    shard.run(TIMINGS.beacon_interval)
    assert not [send for sender, send in shard.sent if sender == "a"], "they would wait for it for ever"
    cut_off(shard, hears=True, is_heard=True)
    heard(shard, B, BeaconAck(1, shard.now - 0.01, Echo(9, 5.0), 1))
    shard.run(0.5)
    assert (shard.stored.primary, reign_of(shard).alone_since) == ("a", None)
    shard.write("a", 1, "k", "v")
    shard.run(0.1)
    assert shard.answers[1] == (2, "did v")


# Leases that it grants


def test_no_lease_is_granted_while_an_eviction_is_under_way_whatever_is_acked_meanwhile() -> None:
    shard = ReplicatedShard()
    shard.is_coordinator_up = False
    shard.is_cut = lambda sender, receiver: "c" in (sender, receiver)
    shard.run(TIMINGS.evict_after + 2 * TIMINGS.tick)
    assert [asked.config.in_sync for _, asked in shard.cas] == [(A, B)]
    shard.is_cut = lambda sender, receiver: False
    shard.sent.clear()
    shard.run(0.5)
    assert grants(shard, "c")
    assert not any(grants(shard, "c"))
    assert all(grants(shard, "b"))
    shard.step("a", ev.CasAnswer(1, ev.Outcome.UNKNOWN))
    shard.cas.clear()
    shard.sent.clear()
    shard.run(0.5)
    assert not any(grants(shard, "c")), "it may still be done"
    assert shard.cas, "asked again"


def test_nobody_is_put_out_before_every_lease_of_an_earlier_primary_has_ended() -> None:
    shard = ReplicatedShard()
    shard.run(TIMINGS.first_contact)
    shard.nodes["a"].is_up = shard.nodes["c"].is_up = False
    while shard.machine("b").reign is None:
        shard.run(TIMINGS.tick)
    began = shard.now
    while shard.stored.epoch == 2:
        shard.run(TIMINGS.tick)
    assert shard.now - began >= TIMINGS.evict_after - TIMINGS.tick
    assert shard.stored.in_sync == (B,)


def test_who_has_not_come_up_yet_is_given_time() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_up = False
    shard.restart("a")
    shard.run(TIMINGS.first_contact - 2 * TIMINGS.tick)
    assert shard.stored.in_sync == (A, B, C)
    shard.run(3 * TIMINGS.tick)
    assert shard.stored.in_sync == (A, B)


# Learners


def promoting(leaves: str = "ab") -> ReplicatedShard:
    """A shard whose primary has asked to take learner d in, and does not know the outcome. d hears nothing any more."""
    shard = ReplicatedShard(leaves, min_in_sync=1)
    shard.store(replace(shard.stored, desired=(*leaves, "d")))
    machine = ReplicationMachine(
        0,
        D,
        TIMINGS,
        boot=99,
        min_in_sync=1,
        recovered=Recovered(0, ReplicatedLog(0, 0), 0, DedupTable()),
        now=shard.now,
    )
    shard.boot(D, replace(shard.nodes["a"], machine=machine, state={}, log={}, saved_epoch=0))
    while shard.stored.learners != (D,):
        shard.run(TIMINGS.tick)
    shard.is_coordinator_up = False
    while not shard.cas:
        shard.run(TIMINGS.tick)
    assert shard.cas[0][1].config.in_sync[-1] == D
    shard.is_cut = lambda sender, receiver: "d" in (sender, receiver)
    return shard


@pytest.mark.parametrize("leaves", ["ab", "a"])
def test_a_learner_counts_for_commit_and_lease_as_soon_as_its_taking_in_is_asked_for(leaves: str) -> None:
    shard = promoting(leaves)
    shard.write("a", 1, "k", "v")
    shard.run(TIMINGS.primary_lease + 2 * TIMINGS.tick)
    assert 1 not in shard.answers
    assert shard.read("a", 2, "k") is Reason.NO_LEASE
    shard.step("a", ev.CasAnswer(shard.stored.epoch, ev.Outcome.UNKNOWN))
    shard.run(0.2)
    assert shard.read("a", 3, "k") is Reason.NO_LEASE, "it may have been done"
    shard.step("a", ev.CasAnswer(shard.stored.epoch, ev.Outcome.FAILED))
    assert shard.read("a", 4, "k") is Reason.NO_LEASE, "the first request may still be done"


def test_a_clear_no_lets_it_go_on_without() -> None:
    shard = promoting()
    shard.step("a", ev.CasAnswer(shard.stored.epoch, ev.Outcome.FAILED))
    shard.cas.clear()
    shard.write("a", 1, "k", "v")
    shard.settle()
    assert shard.answers[1][0] > 1  # type: ignore[index]


def with_learner(leaves: str) -> ReplicatedShard:
    """A shard in which d has just become a learner; the others commit without it."""
    shard = promoting(leaves)
    shard.is_cut = lambda sender, receiver: False
    shard.step("a", ev.CasAnswer(shard.stored.epoch, ev.Outcome.FAILED))
    shard.cas.clear()
    shard.is_coordinator_up = True
    return shard


def one_behind(shard: ReplicatedShard, token: int) -> None:
    """d acknowledges the write before; then one more is made, which its disk holds only after the tick."""
    node = shard.nodes["d"]
    node.is_disk_held = True
    ticket, node.ticket = node.ticket, 0
    shard.step("d", ev.Durable(ticket))
    shard.write("a", token, "k", f"v{token}")
    shard.settle()
    shard.now += TIMINGS.tick
    for leaf in shard.nodes:
        shard.step(leaf, ev.Tick())
    shard.settle()


@pytest.mark.parametrize("leaves", ["ab", "a"])
def test_a_learner_that_is_always_one_write_behind_is_waited_for_and_taken_in(leaves: str) -> None:
    shard = with_learner(leaves)
    for token in range(1, 60):
        one_behind(shard, token)
    shard.nodes["d"].is_disk_held = False
    shard.settle()
    assert D in shard.stored.in_sync
    assert all(isinstance(shard.answers[token], tuple) for token in range(1, 60))


def test_a_learner_that_is_waited_for_in_vain_does_not_hold_up_the_shard() -> None:
    shard = with_learner("a")
    reign = reign_of(shard)
    token = 0
    while reign.joining is None:
        token += 1
        one_behind(shard, token)
    shard.write("a", 99, "k", "v")
    shard.settle()
    assert 99 not in shard.answers
    shard.run(TIMINGS.joining_limit + TIMINGS.tick)
    assert isinstance(shard.answers[99], tuple)
    assert D not in shard.stored.in_sync
    shard.run(TIMINGS.join_interval / 2)
    assert reign.joining is None, "nor is it tried again at once"
    shard.nodes["d"].is_disk_held = False
    shard.run(2 * TIMINGS.join_interval)
    assert D in shard.stored.in_sync


def test_nobody_is_taken_in_before_the_barrier_commits() -> None:
    shard = promoting()
    reign = reign_of(shard)
    reign.change = None
    shard.machine("a").role = Role.CONFIRMING
    shard.cas.clear()
    shard.run(0.1)
    assert not shard.cas


# Handing over, putting out


def test_a_handover_stops_writes_and_gives_up_the_lease_until_the_outcome_is_known() -> None:
    shard = ReplicatedShard()
    shard.is_coordinator_up = False
    shard.stored = replace(shard.stored, desired=("b", "a", "c"))
    shard.tell()
    shard.run(0.1)
    assert [asked.config.primary for _, asked in shard.cas] == ["b"]
    assert shard.read("a", 1, "k") is Reason.NO_LEASE
    shard.write("a", 2, "k", "v")
    assert shard.answers[2] is Reason.NO_LEASE
    shard.step("a", ev.CasAnswer(1, ev.Outcome.FAILED))
    assert shard.read("a", 3, "k") == {"k": None}, "surely not done"


def test_a_handover_for_which_not_all_is_acknowledged_in_time_is_given_up() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_disk_held = True
    shard.write("a", 1, "k", "v")
    shard.store(replace(shard.stored, desired=("b", "a", "c")))
    shard.run(0.2)
    shard.write("a", 2, "k", "w")
    assert shard.answers[2] is Reason.NOT_READY
    shard.run(TIMINGS.handover_limit)
    shard.write("a", 3, "k", "w")
    assert 3 not in shard.answers, "taken"
    assert shard.primary == "a"


def test_one_that_is_wanted_again_gets_its_leases_again() -> None:
    shard = ReplicatedShard()
    wanted = shard.stored
    shard.store(replace(shard.stored, desired=("a", "b")))
    shard.run(0.2)
    shard.sent.clear()
    shard.run(0.2)
    assert grants(shard, "c")
    assert not any(grants(shard, "c"))
    shard.store(wanted)
    shard.run(0.1)
    shard.sent.clear()
    shard.run(0.3)
    assert all(grants(shard, "c"))
    assert shard.stored.in_sync == (A, B, C)


def test_an_identity_once_known_is_not_forgotten_by_an_older_answer() -> None:
    shard = ReplicatedShard()
    shard.step("a", ev.ConfigSeen(replace(shard.stored, in_sync=(Replica("a"), Replica("b"), C))))
    assert shard.machine("a").config == shard.stored


# Writes


def test_each_request_takes_effect_once_and_one_beyond_the_window_is_expired() -> None:
    shard = ReplicatedShard()
    machine = shard.machine("a")
    machine.dedup.window = 2
    for number in (1, 2, 3):
        shard.write("a", number, "k", f"v{number}", RequestId("client", number))
        shard.settle()
    shard.write("a", 11, "k", "late", RequestId("client", 1))
    assert shard.answers[11] is Reason.EXPIRED
    shard.write("a", 12, "k", "again", RequestId("client", 3))
    assert shard.answers[12] == (4, "did v3")


def test_a_repetition_is_answered_even_where_new_writes_are_refused() -> None:
    shard = ReplicatedShard()
    shard.write("a", 1, "k", "v", RequestId("client", 1))
    shard.settle()
    shard.nodes["b"].is_up = shard.nodes["c"].is_up = False
    shard.run(TIMINGS.evict_after + TIMINGS.solitude + 2 * TIMINGS.tick)
    shard.write("a", 2, "k", "v", RequestId("client", 1))
    shard.write("a", 3, "k", "v", RequestId("client", 2))
    assert (shard.answers[2], shard.answers[3]) == ((2, "did v"), Reason.TOO_FEW_IN_SYNC)


def test_a_failed_condition_is_told_when_what_it_saw_is_committed() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    machine = shard.machine("a")
    shard.write("a", 1, "k", "v")
    assert machine.step(ev.Write(2, None, 5), shard.now) == [act.Evaluate(2)]
    assert machine.latest_write("k") == 2
    assert machine.step(ev.Conclude(2, 2, "conflict"), shard.now) == []
    shard.settle()
    heard(shard, B, PrepareAck(1, 2))
    found = heard(shard, C, PrepareAck(1, 2))
    assert [action for action in found if isinstance(action, act.Answer)] == [
        act.Answer(1, 2, "did v"),
        act.Answer(2, 0, "conflict"),
    ]


def test_an_entry_that_concerns_every_key_is_the_latest_write_of_each() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    machine = shard.machine("a")
    shard.write("a", 1, "k", "v")
    machine.step(ev.Write(2, None, 5), shard.now)
    machine.step(ev.Propose(2, None, "drop", None, 5, b""), shard.now)
    assert (machine.latest_write("k"), machine.latest_write("other")) == (3, 3)
    assert (machine.latest_write("k", by_name=True), machine.latest_write("other", by_name=True)) == (2, None)


def test_a_writer_who_gave_up_is_not_answered_and_the_write_goes_on() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_disk_held = True
    request = RequestId("client", 1)
    shard.write("a", 1, "k", "v", request)
    shard.write("a", 2, "k", "v", request)
    shard.step("a", ev.Cancel(1))
    shard.nodes["c"].is_disk_held = False
    shard.settle()
    assert shard.answers == {2: (2, "did v")}
    assert shard.nodes["c"].state["k"] == ("v", 2)


def test_what_is_in_flight_has_bounds() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    machine = shard.machine("a")
    assert machine.step(ev.Write(1, None, IN_FLIGHT_MAX_BYTES), shard.now) == [act.Evaluate(1)]
    machine.step(ev.Propose(1, None, ("k", "v"), ("k",), IN_FLIGHT_MAX_BYTES, b""), shard.now)
    assert machine.step(ev.Write(2, None, 1), shard.now) == [act.Refuse(2, Reason.BUSY)]
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    machine = shard.machine("a")
    for token in range(IN_FLIGHT_MAX_ENTRIES):
        assert machine.step(ev.Write(token, None, 1), shard.now) == [act.Evaluate(token)]
        machine.step(ev.Propose(token, None, ("k", "v"), ("k",), 1, b""), shard.now)
    assert machine.step(ev.Write(9_999, None, 1), shard.now) == [act.Refuse(9_999, Reason.BUSY)]
    assert reign_of(shard).peers["b"].sent == 1 + WINDOW_ENTRIES, "so much is sent before an ack"


def test_waiting_reads_have_a_bound_and_those_that_gave_up_make_room() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_disk_held = True
    shard.write("a", 1, "k", "v")
    shard.settle()
    machine = shard.machine("b")
    for token in range(READERS_MAX):
        assert machine.step(ev.Read(token, ("k",), True), shard.now) == []
    assert machine.step(ev.Read(-1, ("k",), True), shard.now) == [act.Refuse(-1, Reason.BUSY)]
    for token in range(READERS_MAX // 2):
        machine.step(ev.Cancel(token), shard.now)
    assert machine.step(ev.Read(-1, ("k",), True), shard.now) == []
    machine.check_invariants()


# What is sent


def test_what_is_not_acknowledged_is_asked_for_again_and_then_sent_again() -> None:
    shard = ReplicatedShard()
    lost: list[object] = []
    shard.is_cut = lambda sender, receiver: receiver == "c" and not lost.append(1)  # type: ignore[func-returns-value]
    shard.write("a", 1, "k", "v")
    shard.settle()
    assert lost
    shard.is_cut = lambda sender, receiver: False
    shard.sent.clear()
    shard.run(TIMINGS.resend_after + 2 * TIMINGS.tick)
    assert shard.answers[1] == (2, "did v")
    prepares = [send.message for _, send in shard.sent if isinstance(send.message, Prepare) and send.receiver == C]
    assert [len(message.entries) for message in prepares] == [0, 1], "a question first: it may be slow, not without"


def test_a_nack_that_was_overtaken_changes_nothing() -> None:
    shard = ReplicatedShard()
    peer = reign_of(shard).peers["b"]
    before = (peer.acked, peer.sent)
    assert heard(shard, B, PrepareNack(1, 0, 0)) == []
    assert heard(shard, B, PrepareNack(1, 50, 0)) == []
    assert (peer.acked, peer.sent) == before


def test_the_end_of_a_reign_frees_what_was_under_way() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: True
    shard.write("a", 1, "k", "v")
    shard.step("a", ev.ConfigSeen(replace(shard.stored, epoch=2, primary="b")))
    assert shard.answers[1] is Reason.ABANDONED
    assert shard.machine("a").role is Role.SECONDARY


# Splits


def test_a_primary_hears_at_once_who_has_divided_off_a_shard() -> None:
    shard = ReplicatedShard()
    reign = reign_of(shard)
    assert reign.have_divided_off(7) == frozenset()
    shard.step("a", ev.Divided(7))
    shard.step("b", ev.Divided(7))
    shard.settle()
    assert reign.have_divided_off(7) == {"a", "b"}, "without waiting for a beacon"
    shard.step("c", ev.Divided(8))
    shard.settle()
    assert reign.have_divided_off(7) == {"a", "b"}
    shard.step("b", ev.Divided(None))
    shard.run(2 * TIMINGS.beacon_interval)
    assert reign.have_divided_off(7) == {"a"}


def test_a_late_refusal_takes_nothing_back_that_was_acknowledged() -> None:
    shard = ReplicatedShard(retention=Retention(4, 1_000))
    for number in range(40):
        shard.write("a", number, "k", f"v{number}")
        shard.settle()
    reign, machine = reign_of(shard), shard.machine("a")
    for token in (98, 99):  # Both refusals were sent when b had little of the log that is kept by now.
        acked = reign.peers["b"].acked
        assert acked == machine.committed > machine.log.base_seqno
        shard.is_cut = lambda sender, receiver: True
        shard.write("a", token, "k", "new")
        shard.settle()
        heard(shard, B, PrepareNack(1, acked + 1, 3))
        assert reign.peers["b"].acked == acked
        shard.is_cut = lambda sender, receiver: False
        shard.run()
        assert isinstance(shard.answers[token], tuple)
