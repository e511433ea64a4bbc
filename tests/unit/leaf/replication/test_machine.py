"""The replication machine's rules, one by one, with three replicas and everything else held by hand."""

from dataclasses import replace

from fakes.replicated_shard import TIMINGS, ReplicatedShard

from kvshard.clustermap import Replica
from leaf.replication import events as ev
from leaf.replication.actions import Reason
from leaf.replication.machine import Role
from leaf.replication.messages import Beacon, RequestId
from leaf.replication.oplog import Retention


def roles(shard: ReplicatedShard) -> dict[str, Role]:
    return {leaf: node.machine.role for leaf, node in shard.nodes.items() if node.is_up}


def test_a_new_shard_finds_its_places() -> None:
    shard = ReplicatedShard()
    assert roles(shard) == {"a": Role.PRIMARY, "b": Role.SECONDARY, "c": Role.SECONDARY}
    assert shard.stored.epoch == 1
    assert [node.machine.committed for node in shard.nodes.values()] == [1, 1, 1]


def test_a_write_is_answered_when_every_replica_in_sync_has_it_on_disk() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_disk_held = True
    shard.write("a", 1, "k", "v")
    shard.settle()
    assert 1 not in shard.answers
    assert shard.read("a", 2, "k") == {"k": None}
    assert shard.read("b", 3, "k") is None, "the key is dirty there"
    shard.nodes["c"].is_disk_held = False
    shard.settle()
    assert shard.answers[1] == (2, "did v")
    assert shard.reads[3] == {"k": ("v", 2)}, "a commit is told at once"
    assert [shard.read(leaf, 10 + index, "k") for index, leaf in enumerate("abc")] == [{"k": ("v", 2)}] * 3


def test_a_silent_secondary_is_put_out_before_anything_commits_without_it() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_up = False
    shard.write("a", 1, "k", "v")
    shard.run(TIMINGS.evict_after / 2)
    assert 1 not in shard.answers
    shard.run(TIMINGS.evict_after)
    assert shard.answers[1] == (2, "did v")
    assert [each.leaf for each in shard.stored.in_sync] == ["a", "b"]
    shard.nodes["c"].is_up = True
    shard.run(1.0)
    assert shard.read("c", 2, "k") == {"k": ("v", 2)}, "it came back by itself"
    assert {each.leaf for each in shard.stored.in_sync} == {"a", "b", "c"}


def test_a_secondary_that_answers_beacons_but_leaves_entries_is_put_out() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_disk_held = True
    shard.write("a", 1, "k", "v")
    shard.run(3 * TIMINGS.evict_after)
    assert shard.answers[1] == (2, "did v")
    assert [each.leaf for each in shard.stored.in_sync] == ["a", "b"]
    assert shard.read("c", 2, "k") in (Reason.NO_LEASE, Reason.NOT_READY)


def test_another_takes_over_from_a_primary_that_is_gone_and_loses_nothing() -> None:
    shard = ReplicatedShard()
    shard.write("a", 1, "k", "v")
    shard.settle()
    shard.nodes["a"].is_up = False
    shard.run(TIMINGS.grace - 2 * TIMINGS.tick)
    assert roles(shard) == {"b": Role.SECONDARY, "c": Role.SECONDARY}
    shard.run(0.3)
    assert shard.primary == "b"
    assert shard.read("b", 2, "k") == {"k": ("v", 2)}
    shard.write("b", 3, "k", "w")
    shard.run(0.1)
    assert shard.answers[3] == (4, "did w"), "after the barrier"
    assert shard.read("c", 4, "k") == {"k": ("w", 4)}
    shard.restart("a")
    shard.run(1.0)
    assert shard.read("a", 5, "k") == {"k": ("w", 4)}


def test_a_primary_that_is_cut_off_serves_nothing_when_its_lease_is_over() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: "a" in (sender, receiver)
    shard.is_coordinator_up = False
    shard.run(TIMINGS.primary_lease - TIMINGS.beacon_interval - 2 * TIMINGS.tick)
    assert shard.read("a", 1, "k") == {"k": None}
    shard.run(TIMINGS.beacon_interval + 3 * TIMINGS.tick)
    assert shard.read("a", 2, "k") is Reason.NO_LEASE
    shard.write("a", 3, "k", "lost")
    assert shard.answers[3] is Reason.NO_LEASE
    assert shard.read("b", 4, "k") is Reason.NO_LEASE
    shard.cas.clear()
    shard.is_coordinator_up = True
    shard.run(1.0)
    assert shard.primary in "bc"


def test_what_an_old_primary_could_not_commit_is_taken_back() -> None:
    shard = ReplicatedShard()
    shard.is_cut = lambda sender, receiver: "a" in (sender, receiver)
    shard.write("a", 1, "k", "lost")
    shard.is_coordinator_up = False
    shard.run(TIMINGS.grace)
    shard.cas = [(leaf, asked) for leaf, asked in shard.cas if leaf != "a"]
    shard.is_coordinator_up = True
    shard.run(0.5)
    assert shard.answers[1] is Reason.ABANDONED
    new = shard.primary
    shard.write(new, 2, "k", "kept")
    shard.run(0.1)
    shard.is_cut = lambda sender, receiver: False
    shard.run(1.5)
    assert shard.read("a", 3, "k") == shard.read(new, 4, "k")
    assert shard.nodes["a"].state["k"][0] == "kept"


def test_a_restarted_primary_takes_a_new_epoch() -> None:
    shard = ReplicatedShard()
    shard.restart("a")
    shard.settle()
    assert shard.stored.epoch == 2
    shard.run(0.2)
    assert shard.primary == "a"


def test_a_repeated_request_takes_effect_once() -> None:
    shard = ReplicatedShard()
    request = RequestId("client", 1)
    shard.nodes["c"].is_disk_held = True
    shard.write("a", 1, "k", "v", request)
    shard.write("a", 2, "k", "v", request)
    shard.settle()
    assert shard.answers == {}
    shard.nodes["c"].is_disk_held = False
    shard.settle()
    assert shard.answers == {1: (2, "did v"), 2: (2, "did v")}, "the second joined the first"
    shard.nodes["a"].is_up = False
    shard.run(1.5)
    shard.write(shard.primary, 3, "k", "again", request)
    shard.run(0.1)
    assert shard.answers[3] == (2, "did v")


def test_a_learner_catches_up_by_the_log_and_by_a_snapshot() -> None:
    for retention in (Retention(), Retention(4, 1_000)):
        shard = ReplicatedShard("ab", retention=retention)
        for number in range(40):
            shard.write("a", 100 + number, f"k{number}", f"v{number}", RequestId("client", number + 1))
            shard.settle()
        shard.store(replace(shard.stored, desired=("a", "b", "d")))
        me = Replica("d", "d1")
        fresh = ReplicatedShard("ab").nodes["a"]
        shard.boot(me, replace(fresh, machine=shard._machine(me, _empty()), state={}, log={}, saved_epoch=0))
        shard.run(1.5)
        assert me in shard.stored.in_sync
        assert shard.nodes["d"].state == shard.nodes["a"].state
        assert shard.machine("d").dedup.records() == shard.machine("a").dedup.records()


def _empty():
    from leaf.replication.dedup import DedupTable
    from leaf.replication.machine import Recovered
    from leaf.replication.oplog import ReplicatedLog

    return Recovered(0, ReplicatedLog(0, 0), 0, DedupTable())


def test_the_wanted_primary_is_handed_the_shard() -> None:
    shard = ReplicatedShard()
    shard.write("a", 1, "k", "v")
    shard.store(replace(shard.stored, desired=("b", "a", "c")))
    shard.run(0.5)
    assert shard.primary == "b"
    assert {each.leaf for each in shard.stored.in_sync} == {"a", "b", "c"}
    assert shard.read("a", 2, "k") == {"k": ("v", 2)}


def test_who_is_not_wanted_goes_when_every_wanted_one_is_in_sync() -> None:
    shard = ReplicatedShard()
    shard.store(replace(shard.stored, desired=("a", "b")))
    shard.run(0.3)
    assert shard.read("c", 1, "k") in (Reason.NO_LEASE, {"k": None})
    shard.run(2.0)
    assert [each.leaf for each in shard.stored.in_sync] == ["a", "b"]
    assert shard.machine("c").role is Role.REMOVED


def test_a_lease_counts_from_the_secondary_s_own_clock() -> None:
    shard = ReplicatedShard()
    beacons = [send.message for _, send in shard.sent if isinstance(send.message, Beacon) and send.receiver.leaf == "b"]
    granted = [beacon for beacon in beacons if beacon.grants_lease]
    assert granted
    echo = granted[-1].echo
    assert echo is not None
    follower = shard.machine("b").follower
    assert follower.lease_until == echo.clock + TIMINGS.read_lease


def test_below_the_least_number_in_sync_writes_are_refused_and_reads_go_on() -> None:
    shard = ReplicatedShard()
    shard.write("a", 1, "k", "v")
    shard.settle()
    shard.nodes["b"].is_up = shard.nodes["c"].is_up = False
    shard.run(TIMINGS.evict_after + TIMINGS.solitude + 2 * TIMINGS.tick)
    assert [each.leaf for each in shard.stored.in_sync] == ["a"]
    shard.write("a", 2, "k", "w")
    assert shard.answers[2] is Reason.TOO_FEW_IN_SYNC
    assert shard.read("a", 3, "k") == {"k": ("v", 2)}


def test_a_failed_replica_refuses_everything() -> None:
    shard = ReplicatedShard()
    shard.step("b", ev.Fail("disk"))
    assert shard.read("b", 1, "k") is Reason.NOT_READY
    shard.run(1.0)
    assert [each.leaf for each in shard.stored.in_sync] == ["a", "c"]
