"""Whom a read and a write may ask, and in which order."""

from collections import Counter
from random import Random

import pytest

from kvshard.clustermap import Replica, ShardConfig
from kvshard.errors import ErrorDetails, NotReady, ResourceExhausted, StaleEpoch, Unavailable
from kvshard.tail import replica_health
from kvshard.tail.attempts import Candidate
from kvshard.tail.hedging import ReplicaChoice
from kvshard.tail.replica_health import RecentTrouble, is_unreachable
from kvshard.tail.replica_plan import plan_read, plan_write

ADAPTIVE, PRIMARY = ReplicaChoice.ADAPTIVE, ReplicaChoice.PRIMARY


def shard(in_sync: str = "abc", primary: str = "b", learners: str = "", desired: str = "") -> ShardConfig:
    replicas = tuple(Replica(leaf, "i") for leaf in in_sync)
    return ShardConfig(0, 0, 65_535, 7, primary, replicas, tuple(Replica(leaf, "i") for leaf in learners), tuple(desired))


def order(config: ShardConfig, choice: ReplicaChoice = ADAPTIVE, is_stale: bool = False, troubled=(), seed: int = 1) -> str:
    return "".join(each.leaf for each in plan_read(config, choice, is_stale).candidates(Random(seed), troubled))


def test_a_write_asks_the_primary() -> None:
    assert plan_write(shard()).candidates(Random(1)) == (Candidate("b", 7),)


def test_reads_are_spread_evenly_and_may_go_everywhere() -> None:
    rng, config = Random(5), shard()
    plan = plan_read(config, ADAPTIVE, False)
    firsts = Counter(plan.candidates(rng)[0].leaf for _ in range(3_000))
    assert set(firsts) == {"a", "b", "c"}
    assert min(firsts.values()) > 900
    assert all(sorted(order(config, seed=seed)) == ["a", "b", "c"] for seed in range(20))


def test_the_primary_first_if_asked_for() -> None:
    assert {order(shard(), PRIMARY, seed=seed) for seed in range(20)} == {"bca"}


def test_learners_only_for_stale_reads_and_only_after_the_others() -> None:
    config = shard("ab", learners="cd")
    assert sorted(order(config)) == ["a", "b"]
    assert {order(config, is_stale=True, seed=seed)[2:] for seed in range(20)} == {"cd"}


def test_leaves_in_trouble_come_last_but_come() -> None:
    assert {order(shard(), troubled={"a"}, seed=seed)[-1] for seed in range(20)} == {"a"}
    assert order(shard(), PRIMARY, troubled={"b"}) == "cab"
    assert sorted(order(shard(), troubled={"a", "b", "c"})) == ["a", "b", "c"]
    assert order(shard("b"), troubled={"b"}) == "b"


def test_where_there_is_something_to_fail_over_to() -> None:
    assert plan_write(shard("ab", primary="a")).has_failover
    assert plan_write(shard("a", primary="a", desired="abc")).has_failover
    assert not plan_read(shard("a", primary="a", desired="a"), ADAPTIVE, False).has_failover


class TestRecentTrouble:
    def test_it_is_forgotten_after_a_while(self) -> None:
        trouble = RecentTrouble()
        trouble.note("a", 1.0)
        trouble.note("b", 1.5)
        trouble.note("a", 1.8)
        assert set(trouble.leaves(2.4)) == {"a", "b"}
        assert set(trouble.leaves(2.6)) == {"a"}
        assert not trouble.leaves(2.9)

    def test_it_is_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(replica_health, "LEAVES_MAX", 2)
        trouble = RecentTrouble()
        for leaf in "abc":
            trouble.note(leaf, 1.0)
        assert set(trouble.leaves(1.0)) == {"b", "c"}


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unavailable("connection refused"), True),
        (Unavailable("too few in sync", ErrorDetails(shards=(1,))), False),
        (NotReady("no lease"), False),
        (StaleEpoch("not primary"), False),
        (ResourceExhausted("busy"), False),
    ],
)
def test_only_a_leaf_that_cannot_be_reached_is_in_trouble(error, expected: bool) -> None:
    assert is_unreachable(error) is expected
