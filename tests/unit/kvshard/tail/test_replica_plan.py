"""Whom a read and a write may ask, and in which order."""

from collections import Counter
from random import Random

from kvshard.clustermap import Replica, ShardConfig
from kvshard.tail.hedging import ReplicaChoice
from kvshard.tail.leg_events import Candidate
from kvshard.tail.replica_health import ReplicaHealth
from kvshard.tail.replica_plan import ReplicaPlan, plan_read, plan_write

ADAPTIVE, RANDOM, PRIMARY = ReplicaChoice.ADAPTIVE, ReplicaChoice.RANDOM, ReplicaChoice.PRIMARY


def shard(in_sync: str = "abc", primary: str = "b", learners: str = "", desired: str = "") -> ShardConfig:
    replicas = tuple(Replica(leaf, "i") for leaf in in_sync)
    return ShardConfig(0, 0, 65_535, 7, primary, replicas, tuple(Replica(leaf, "i") for leaf in learners), tuple(desired))


def orders(plan: ReplicaPlan, choice: ReplicaChoice, unreachable: str = "", count: int = 300) -> list[str]:
    rng = Random(7)
    health = ReplicaHealth(rng)
    for leaf in unreachable:
        health.unreachable(leaf, 1.0)
    return ["".join(each.leaf for each in plan.order(choice, health, rng, 1.5)) for _ in range(count)]


def test_a_write_asks_the_primary() -> None:
    plan = plan_write(shard())
    assert plan.order(ADAPTIVE, ReplicaHealth(Random(1)), Random(1), 0.0) == (Candidate("b", 7),)


def test_reads_are_spread_evenly_and_may_go_everywhere() -> None:
    for choice in (ADAPTIVE, RANDOM):
        found = orders(plan_read(shard(), False), choice, count=3_000)
        firsts = Counter(order[0] for order in found)
        assert set(firsts) == {"a", "b", "c"}
        assert min(firsts.values()) > 900
        assert all(sorted(order) == ["a", "b", "c"] for order in found)


def test_the_primary_first_if_asked_for() -> None:
    assert set(orders(plan_read(shard(), False), PRIMARY)) == {"bac"}


def test_learners_only_for_stale_reads_and_only_after_the_others() -> None:
    config = shard("ab", primary="a", learners="cd")
    assert {"".join(sorted(order)) for order in orders(plan_read(config, False), ADAPTIVE)} == {"ab"}
    assert {order[2:] for order in orders(plan_read(config, True), ADAPTIVE)} == {"cd"}


def test_leaves_that_cannot_be_reached_come_last_but_come() -> None:
    plan = plan_read(shard(), False)
    for choice in ReplicaChoice:
        assert {order[-1] for order in orders(plan, choice, "b")} == {"b"}
        assert {"".join(sorted(order)) for order in orders(plan, choice, "abc")} == {"abc"}
    assert set(orders(plan_read(shard("b"), False), ADAPTIVE, "b")) == {"b"}


def test_where_there_is_something_to_fail_over_to() -> None:
    assert plan_write(shard("ab", primary="a")).has_failover
    assert plan_write(shard("a", primary="a", desired="abc")).has_failover
    assert not plan_read(shard("a", primary="a", desired="a"), False).has_failover


def test_who_is_first_is_so_also_when_the_others_are_looked_up_later() -> None:
    for choice in ReplicaChoice:
        for unreachable in ("", "a", "ab"):
            rng = Random(3)
            health, plan = ReplicaHealth(rng), plan_read(shard("abc", primary="a", learners="d"), True)
            for leaf in unreachable:
                health.unreachable(leaf, 1.0)
            for _ in range(50):
                first = plan.first(choice, health, rng, 1.5)
                behind = plan.behind(first, choice, health, 1.6)
                assert behind[0] is first
                assert first.leaf not in unreachable
                assert sorted(each.leaf for each in behind) == ["a", "b", "c", "d"]
                assert behind[-1].leaf == "d"
                assert {each.leaf for each in behind[3 - len(unreachable) : 3]} == set(unreachable)


def test_whoever_was_asked_first_stays_so_when_it_could_not_be_reached() -> None:
    for choice in ReplicaChoice:
        for seed in range(20):
            rng = Random(seed)
            health, plan = ReplicaHealth(rng), plan_read(shard(), False)
            first = plan.first(choice, health, rng, 1.5)
            health.unreachable(first.leaf, 1.5)
            assert plan.behind(first, choice, health, 1.6)[0] is first


def test_a_replica_alone_has_no_spares() -> None:
    assert not plan_write(shard()).has_spares
    assert not plan_read(shard("b"), False).has_spares
    assert plan_read(shard("b", learners="c"), True).has_spares
    assert plan_read(shard("ab"), False).has_spares
