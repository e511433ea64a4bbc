"""How loaded a leaf is, by what this router has there and what the leaf reports."""

from random import Random

import pytest

from kvshard.tail.latency import LatencyPool
from kvshard.tail.leaf_health import FRESH_S, Attempt, Leaf
from kvshard.tail.replica_health import ReplicaHealth

NOW = 1_000.0


@pytest.fixture
def health() -> ReplicaHealth:
    return ReplicaHealth(Random(7))


def began(health: ReplicaHealth, count: int) -> list[Attempt]:
    return [health.began("a", LatencyPool("Search"), 60.0, NOW, True) for _ in range(count)]


def leaf(health: ReplicaHealth) -> Leaf:
    return health.leaf("a", NOW)


def test_what_this_router_has_there_counts_as_long_as_it_has_no_answer(health: ReplicaHealth) -> None:
    legs = began(health, 8)
    assert leaf(health).load(NOW) == 8
    for place, leg in enumerate(legs):
        health.answered(leg, NOW, in_flight=7 - place)
        assert leaf(health).load(NOW) == 7 - place


def test_a_report_of_the_routers_own_requests_does_not_outlive_them(health: ReplicaHealth) -> None:
    """Else the next request of the router passes over the leaf that has just answered all of this one."""
    one, other = began(health, 2)
    health.answered(one, NOW, in_flight=1)
    health.cancelled(other, NOW)
    assert leaf(health).load(NOW) == 0


def test_what_others_have_there_counts_while_the_report_is_fresh(health: ReplicaHealth) -> None:
    one, other = began(health, 2)
    health.answered(one, NOW, in_flight=6)
    assert leaf(health).load(NOW) == 1 + 5
    health.cancelled(other, NOW)
    assert leaf(health).load(NOW) == 5
    assert leaf(health).load(NOW + FRESH_S) == 0


def test_what_a_report_is_too_early_for_is_not_taken_off_again(health: ReplicaHealth) -> None:
    one, *_ = began(health, 9)
    health.answered(one, NOW, in_flight=2)  # The others are still on their way to the leaf.
    assert leaf(health).load(NOW) == 8
