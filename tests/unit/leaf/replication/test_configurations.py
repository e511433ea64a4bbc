"""Configurations as they come: late, twice, out of order, told by the coordinator or by a primary."""

from dataclasses import replace

from fakes.replicated_shard import TIMINGS, ReplicatedShard

from kvshard.clustermap import Replica
from leaf.replication import actions as act
from leaf.replication import events as ev
from leaf.replication.machine import Role
from leaf.replication.messages import Beacon, Outdated

A, B, C = (Replica(leaf, f"{leaf}1") for leaf in "abc")


def test_an_older_configuration_changes_nothing() -> None:
    shard = ReplicatedShard()
    old = shard.stored
    shard.store(replace(old, epoch=2, in_sync=(A, B)))
    machine = shard.machine("b")
    assert machine.step(ev.ConfigSeen(old), shard.now) == []
    assert (machine.epoch, machine.role) == (2, Role.SECONDARY)


def test_a_beacon_tells_who_missed_the_news() -> None:
    shard = ReplicatedShard()
    machine = shard.machine("b")
    config = replace(shard.stored, epoch=2, primary="c")
    machine.step(ev.Receive(C, B, Beacon(2, 1.0, 1, None, False, config)), shard.now)
    assert machine.config == config


def test_a_newer_epoch_without_its_configuration_is_asked_for() -> None:
    shard = ReplicatedShard()
    found = shard.machine("a").step(ev.Receive(B, A, Outdated(7)), shard.now)
    assert found == [act.ReadConfig()]
    assert shard.machine("a").step(ev.Receive(B, A, Outdated(7)), shard.now) == [], "not for each message"
    assert shard.machine("a").role is Role.PRIMARY, "until it knows better; its lease guards it"


def test_what_is_desired_is_read_again_when_it_changes_within_an_epoch() -> None:
    shard = ReplicatedShard()
    machine = shard.machine("b")
    machine.step(ev.ConfigSeen(replace(shard.stored, desired=("a",))), shard.now)
    later = shard.now + TIMINGS.coordinator_retry
    assert act.ReadConfig() in machine.step(ev.Tick(), later)
    assert act.ReadConfig() not in machine.step(ev.Tick(), later + TIMINGS.tick)
    machine.step(ev.ConfigSeen(shard.stored), later + TIMINGS.tick)
    later += TIMINGS.tick + TIMINGS.coordinator_retry
    assert act.ReadConfig() in machine.step(ev.Tick(), later), "it has changed again"
    machine.step(ev.ConfigSeen(shard.stored), later)
    assert act.ReadConfig() not in machine.step(ev.Tick(), later + TIMINGS.failure_timeout)


def test_a_primary_goes_on_through_a_change_of_its_own_though_an_identity_was_told_meanwhile() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_up = False
    shard.is_coordinator_up = False
    machine = shard.machine("a")
    reign = machine.reign
    assert reign is not None
    machine.config = reign.config = replace(shard.stored, in_sync=(A, Replica("b"), C))
    shard.run(TIMINGS.evict_after + 3 * TIMINGS.tick)
    ((_, asked),) = shard.cas
    assert asked.config.in_sync == (A, Replica("b"))
    machine.step(ev.ConfigSeen(replace(asked.config, in_sync=(A, B))), shard.now)
    assert machine.reign is reign
    assert reign.adopting is not None


def test_an_identity_that_is_known_is_not_forgotten_by_a_change_that_was_asked_for_without_it() -> None:
    shard = ReplicatedShard()
    shard.write("a", 1, "k", "v")
    shard.run()
    shard.nodes["c"].is_up = False
    shard.is_coordinator_up = False
    shard.run(TIMINGS.evict_after + 3 * TIMINGS.tick)
    ((_, asked),) = shard.cas
    shard.cas.clear()
    machine = shard.machine("a")
    shard.step("a", ev.ConfigSeen(replace(asked.config, in_sync=(A, Replica("b")))))
    shard.settle()
    assert machine.epoch == 2
    assert machine.config is not None
    assert machine.config.in_sync == (A, B)
    assert machine.reign is not None
    assert machine.reign.peers["b"].acked == machine.committed, "what it acknowledged counts on"


def test_while_its_new_epoch_is_not_on_disk_a_primary_goes_on_in_the_old_one() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_up = False
    shard.nodes["a"].is_disk_held = True
    shard.run(TIMINGS.evict_after + 3 * TIMINGS.tick)
    assert shard.stored.epoch == 2
    machine = shard.machine("a")
    assert (machine.epoch, machine.role) == (1, Role.PRIMARY)
    beacons = [send.message for leaf, send in shard.sent if leaf == "a" and isinstance(send.message, Beacon)]
    assert beacons[-1].epoch == 1
    shard.nodes["a"].is_disk_held = False
    shard.settle()
    assert (machine.epoch, machine.role) == (2, Role.PRIMARY), "without a new barrier"
    assert machine.last == 1


def test_what_is_desired_is_read_again_when_it_changes_while_an_epoch_is_adopted() -> None:
    shard = ReplicatedShard()
    shard.nodes["c"].is_up = False
    shard.nodes["a"].is_disk_held = True
    shard.is_coordinator_up = False
    shard.run(TIMINGS.evict_after + 3 * TIMINGS.tick)
    ((_, asked),) = shard.cas
    shard.cas.clear()
    shard.store(replace(asked.config, desired=("a", "b")))  # The watch is faster than the answer, which knows an older wish.
    shard.step("a", ev.CasAnswer(1, ev.Outcome.SUCCEEDED, asked.config))
    shard.nodes["a"].is_disk_held = False
    shard.is_coordinator_up = True
    shard.run(TIMINGS.coordinator_retry + 3 * TIMINGS.tick)
    machine = shard.machine("a")
    assert machine.reign is not None
    assert (machine.epoch, machine.reign.config.desired) == (2, ("a", "b"))


def test_a_restarted_primary_whose_disk_did_not_know_the_epoch_has_not_acted_in_it() -> None:
    shard = ReplicatedShard()
    shard.store(replace(shard.stored, epoch=2, primary="b", desired=("b", "a", "c")))
    shard.nodes["b"].saved_epoch = 1
    shard.nodes["a"].is_up = shard.nodes["c"].is_up = False
    shard.restart("b")
    shard.run(TIMINGS.grace - 2 * TIMINGS.tick)
    assert shard.machine("b").reign is None, "the run before may have answered who led until then"
    shard.run(4 * TIMINGS.tick)
    assert shard.stored.epoch == 2, "it may lead in it"
    assert shard.machine("b").reign is not None


def test_who_left_the_set_and_is_wanted_again_asks_to_join() -> None:
    shard = ReplicatedShard()
    shard.store(replace(shard.stored, epoch=2, in_sync=(A, B)))
    assert shard.machine("c").role is Role.REMOVED
    shard.run(1.5)
    assert C in shard.stored.in_sync
