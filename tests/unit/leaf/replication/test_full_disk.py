"""A leaf whose disk has no room: others lead its shards while they can, and nothing changes where all are full."""

import pytest
from fakes.replicated_shard import TIMINGS, ReplicatedShard

from leaf.replication import events as ev
from leaf.replication.machine import Role


def fill(shard: ReplicatedShard, leaves: str, is_full: bool = True) -> None:
    for leaf in leaves:
        shard.machine(leaf).is_full = is_full


def primaries_during(shard: ReplicatedShard, seconds: float) -> set[str]:
    until, found = shard.now + seconds, set()
    while shard.now < until:
        shard.run(TIMINGS.tick)
        found.add(shard.stored.primary)
    return found


def test_a_primary_without_room_hands_the_shard_over_and_follows() -> None:
    shard = ReplicatedShard()
    fill(shard, "a")
    shard.run(TIMINGS.failure_timeout)
    assert shard.stored.primary == "b"
    assert {each.leaf for each in shard.stored.in_sync} == {"a", "b", "c"}, "what is sent to it it still takes"
    shard.write("b", 1, "k", "v")
    shard.run(TIMINGS.tick)
    assert isinstance(shard.answers[1], tuple)
    assert shard.machine("a").role is Role.SECONDARY


def test_it_is_not_handed_back_before_there_is_room() -> None:
    shard = ReplicatedShard(desired="abc")
    fill(shard, "a")
    shard.run(TIMINGS.failure_timeout)
    assert primaries_during(shard, 10 * TIMINGS.failure_timeout) == {"b"}
    fill(shard, "a", is_full=False)
    shard.run(10 * TIMINGS.failure_timeout)
    assert shard.stored.primary == "a"


def test_one_that_is_full_too_is_passed_over() -> None:
    shard = ReplicatedShard(desired="abc")
    fill(shard, "ab")
    shard.run(TIMINGS.failure_timeout)
    assert shard.stored.primary == "c"


@pytest.mark.parametrize("leaves", ["ab", "abc"])
def test_where_all_are_full_nothing_changes(leaves: str) -> None:
    shard = ReplicatedShard(leaves)
    epoch = shard.stored.epoch
    fill(shard, leaves[1:])
    shard.run(2 * TIMINGS.beacon_interval)  # The primary hears of it.
    fill(shard, leaves)
    assert primaries_during(shard, 5 * TIMINGS.failure_timeout) == {"a"}
    assert shard.stored.epoch == epoch


def test_a_leaf_that_stops_leaves_the_shard_to_a_full_one_rather_than_to_nobody() -> None:
    shard = ReplicatedShard("ab")
    fill(shard, "b")
    shard.step("a", ev.Leave())
    shard.run(TIMINGS.failure_timeout)
    assert shard.stored.primary == "b"


def test_one_that_is_full_takes_over_when_nobody_else_can() -> None:
    shard = ReplicatedShard("ab", min_in_sync=1)
    fill(shard, "b")
    shard.nodes["a"].is_up = False
    shard.run(4 * TIMINGS.failure_timeout)
    assert shard.stored.primary == "b"
