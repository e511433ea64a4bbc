"""What becomes of the data that a disk holds, by what the map says of it."""

from dataclasses import replace

import pytest

from kvshard.clustermap import Replica, ShardConfig
from kvshard.errors import DataLoss, FailedPrecondition
from leaf.recovery import Held, Identity, identify

NOTHING = Held("", has_history=False)


def config(*in_sync: tuple[str, str], learners: tuple[Replica, ...] = (), desired: tuple[str, ...] = ()) -> ShardConfig:
    members = tuple(Replica(leaf, incarnation) for leaf, incarnation in in_sync)
    return ShardConfig(3, 0, 9, 5, in_sync[0][0], members, learners, desired)


def test_the_data_that_the_map_knows_is_kept() -> None:
    assert identify(config(("a", "i1"), ("b", "i2")), "b", Held("i2", has_history=True)) is Identity.KEEP
    assert identify(config(("a", "i1")), "a", Held("i1", has_history=False)) is Identity.KEEP


def test_at_the_bootstrap_data_is_made_and_claimed() -> None:
    fresh = config(("a", ""), ("b", ""))
    assert identify(fresh, "b", NOTHING) is Identity.CREATE_AND_CLAIM
    assert identify(fresh, "b", Held("i2", has_history=False)) is Identity.CLAIM


def test_data_with_a_history_that_the_map_does_not_know_is_refused() -> None:
    with pytest.raises(FailedPrecondition, match="does not know"):
        identify(config(("a", ""), ("b", "")), "a", Held("old", has_history=True))


def test_lost_data_is_made_anew_while_others_are_in_sync() -> None:
    two = config(("a", "i1"), ("b", "i2"))
    assert identify(two, "b", NOTHING) is Identity.CREATE
    assert identify(two, "b", Held("another", has_history=True)) is Identity.CREATE
    assert identify(two, "b", Held("i2", has_history=True, is_whole=False)) is Identity.CREATE


@pytest.mark.parametrize("held", [NOTHING, Held("another", has_history=True), Held("i1", has_history=True, is_whole=False)])
def test_lost_data_of_the_only_replica_in_sync_is_a_loss(held: Held) -> None:
    with pytest.raises(DataLoss, match="expects i1"):
        identify(config(("a", "i1"), learners=(Replica("b", "i2"),)), "a", held)


def test_a_replica_that_is_to_be_here_goes_on_from_what_it_has() -> None:
    """One that was put out while it was away keeps its data: the log repairs what it missed."""
    wanted = config(("a", "i1"), desired=("a", "b"))
    assert identify(wanted, "b", NOTHING) is Identity.CREATE
    assert identify(wanted, "b", Held("i2", has_history=True)) is Identity.KEEP
    assert identify(wanted, "b", Held("i2", has_history=True, is_whole=False)) is Identity.CREATE


def test_a_learner_of_another_identity_is_made_anew() -> None:
    learning = replace(config(("a", "i1")), learners=(Replica("b", "i2"),))
    assert identify(learning, "b", Held("i2", has_history=True)) is Identity.KEEP
    assert identify(learning, "b", NOTHING) is Identity.CREATE
