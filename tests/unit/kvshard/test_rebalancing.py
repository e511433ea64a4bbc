"""What the balancer decides, case by case."""

from collections import Counter
from dataclasses import replace

import pytest
from fakes.rebalanced import HEAL_AFTER, Shards

from kvshard.clustermap import Leaf, Replica, WantedSplit
from kvshard.rebalancing import CHANGE_PATIENCE_S, CHANGING_MAX, Rebalancer, Situation, forgettable, plan


def leaves(count: int, **fields: object) -> tuple[Leaf, ...]:
    return tuple(Leaf(f"leaf-{number}", **fields) for number in range(1, count + 1))  # type: ignore[arg-type]


def loads(shards: Shards) -> Counter[str]:
    return Counter(leaf for shard in shards.map.shards.values() for leaf in shard.desired)


def primaries(shards: Shards) -> Counter[str]:
    return Counter(shard.desired[0] for shard in shards.map.shards.values())


def test_a_balanced_cluster_is_left_alone() -> None:
    shards = Shards(leaves(4), 8, 3)
    assert not shards.look().desired
    assert shards.settle() == 0


def test_a_leaf_that_is_missing_is_waited_for_and_then_healed() -> None:
    shards = Shards(leaves(4), 8, 3)
    lost = shards.holding("leaf-2")
    shards.up.discard("leaf-2")
    shards.settle()
    assert shards.copies == 0
    shards.now += HEAL_AFTER - 0.1
    assert not shards.look().desired
    shards.now += 0.2
    shards.settle()
    assert shards.copies == len(lost), "only what was lost is made anew"
    assert not loads(shards)["leaf-2"]
    assert all(len(shards.living(shard)) == 3 for shard in shards.map.shards)
    shards.up.add("leaf-2")
    shards.settle()
    assert set(loads(shards).values()) == {6}, "it is empty and gets its share again"


def test_a_leaf_that_comes_back_in_time_changes_nothing() -> None:
    shards = Shards(leaves(4), 8, 3)
    planned = {shard.id: shard.desired for shard in shards.map.shards.values()}
    shards.up.discard("leaf-2")
    shards.settle()
    shards.now += HEAL_AFTER - 1
    shards.settle()
    shards.up.add("leaf-2")
    shards.is_returning = True
    shards.now += HEAL_AFTER
    shards.settle()
    assert {shard.id: shard.desired for shard in shards.map.shards.values()} == planned
    assert all(shard.primary == shard.desired[0] for shard in shards.map.shards.values())


def test_with_too_few_leaves_what_is_gone_keeps_its_place_until_somebody_can_take_it() -> None:
    shards = Shards(leaves(3), 8, 3)
    shards.up.discard("leaf-3")
    shards.look()
    shards.now += 10 * HEAL_AFTER
    assert not shards.look().desired
    assert shards.settle() <= 1
    shards.put_leaf(Leaf("leaf-4", "h:1"))
    shards.up.add("leaf-4")
    shards.settle()
    assert all(set(shard.desired) == {"leaf-1", "leaf-2", "leaf-4"} for shard in shards.map.shards.values())


def test_a_leaf_that_joins_gets_its_share_and_no_more_moves_than_that() -> None:
    shards = Shards(leaves(3), 8, 3)
    shards.put_leaf(Leaf("leaf-4", "h:1"))
    assert not shards.look().desired, "it is not up yet"
    shards.up.add("leaf-4")
    assert len(shards.look().desired) == 2, "a leaf receives two copies at a time"
    shards.settle()
    assert set(loads(shards).values()) == {6}
    assert set(primaries(shards).values()) == {2}
    assert shards.copies == 6


def test_draining_empties_a_leaf_and_undo_fills_it() -> None:
    shards = Shards(leaves(4), 8, 3)
    shards.put_leaf(replace(shards.map.leaves["leaf-1"], is_draining=True))
    shards.settle()
    assert shards.holding("leaf-1") == set()
    assert shards.copies == 6
    assert all(len(shard.in_sync) == 3 for shard in shards.map.shards.values())
    shards.put_leaf(replace(shards.map.leaves["leaf-1"], is_draining=False))
    shards.settle()
    assert set(loads(shards).values()) == {6}


def test_draining_where_too_few_leaves_stay_leaves_fewer_replicas() -> None:
    shards = Shards(leaves(3), 4, 3)
    shards.put_leaf(replace(shards.map.leaves["leaf-1"], is_draining=True))
    shards.settle()
    assert all(set(shard.desired) == {"leaf-2", "leaf-3"} for shard in shards.map.shards.values())
    assert shards.copies == 0


def test_the_last_leaf_is_never_emptied() -> None:
    shards = Shards(leaves(1), 2, 1)
    shards.put_leaf(replace(shards.map.leaves["leaf-1"], is_draining=True))
    assert not shards.look().desired


def test_a_dead_leaf_that_was_removed_is_not_waited_for_and_forgotten_in_the_end() -> None:
    shards = Shards(leaves(4), 8, 3)
    shards.up.discard("leaf-2")
    shards.put_leaf(replace(shards.map.leaves["leaf-2"], is_removed=True))
    assert forgettable(shards.map) == []
    assert shards.look().desired
    shards.settle()
    assert "leaf-2" not in shards.map.leaves
    assert all(len(shard.in_sync) == 3 for shard in shards.map.shards.values())


def test_a_shard_of_which_nobody_lives_waits() -> None:
    shards = Shards(leaves(2), 4, 1)
    planned = {shard.id: shard.desired for shard in shards.map.shards.values()}
    shards.up.discard("leaf-2")
    shards.look()
    shards.now += 2 * HEAL_AFTER
    shards.settle()
    assert {shard.id: shard.desired for shard in shards.map.shards.values()} == planned


def test_a_move_by_hand_is_not_undone() -> None:
    shards = Shards(leaves(4), 8, 3)
    moved = next(shard for shard in shards.map.shards.values() if "leaf-4" not in shard.desired)
    target = tuple("leaf-4" if leaf == moved.desired[0] else leaf for leaf in moved.desired)
    shards.put_shard(replace(moved, desired=target))
    shards.settle()
    assert shards.map.shards[moved.id].desired == target
    assert {each.leaf for each in shards.map.shards[moved.id].in_sync} == set(target)
    other = next(shard for shard in shards.map.shards.values() if shard.id != moved.id)
    led = (*other.desired[1:], other.desired[0])
    shards.put_shard(replace(other, desired=led))
    shards.settle()
    assert shards.map.shards[other.id].desired == led


def test_a_primary_moved_by_hand_stays_though_its_leaf_has_none_left() -> None:
    shards = Shards(leaves(4), 4, 3)
    assert set(primaries(shards).values()) == {1}
    shard = shards.map.shards[0]
    led = (shard.desired[1], shard.desired[0], shard.desired[2])
    shards.put_shard(replace(shard, desired=led))
    shards.settle()
    assert shards.map.shards[0].desired == led


def test_what_is_being_cut_in_two_is_not_moved_for_the_spread_but_healed() -> None:
    shards = Shards(leaves(3), 4, 3)
    cut = replace(shards.map.shards[0], split=WantedSplit(9, shards.map.shards[0].last_slot // 2))
    shards.put_shard(cut)
    shards.put_leaf(Leaf("leaf-4", "h:1"))
    shards.up.add("leaf-4")
    shards.settle()
    assert shards.map.shards[0].desired == cut.desired
    assert loads(shards)["leaf-4"] == 2, "its share is 3, the last one waits"
    shards.put_leaf(replace(shards.map.leaves[cut.desired[0]], is_draining=True))
    shards.settle()
    assert "leaf-4" in shards.map.shards[0].desired


def test_two_replicas_beside_the_share_are_moved_back_and_evened_out() -> None:
    shards = Shards(leaves(4), 8, 3)
    chosen = [shard for shard in shards.map.shards.values() if "leaf-4" not in shard.desired][:2]
    for shard in chosen:
        shards.put_shard(replace(shard, desired=(*(leaf for leaf in shard.desired if leaf != "leaf-1"), "leaf-4")))
    beside = loads(shards)
    assert max(abs(beside[leaf] - 6) for leaf in shards.map.leaves) == 2
    shards.settle()
    assert set(loads(shards).values()) == {6}


def test_an_uneven_spread_of_primaries_is_handed_over_without_a_copy() -> None:
    shards = Shards(leaves(3), 9, 3)
    for shard in shards.map.shards.values():
        order = sorted(shard.desired)
        shards.put_shard(replace(shard, desired=tuple(order), primary="leaf-1"))
    shards.settle()
    assert set(primaries(shards).values()) == {3}
    assert shards.copies == 0


def test_weights_and_zones_decide_the_share() -> None:
    heavy = (Leaf("a", zone="x", weight=2.0), Leaf("b", zone="y", weight=2.0), Leaf("c", zone="x"), Leaf("d", zone="y"))
    shards = Shards(heavy, 12, 2)
    assert loads(shards) == {"a": 8, "b": 8, "c": 4, "d": 4}
    shards.put_leaf(replace(heavy[2], weight=2.0))
    shards.settle()
    assert loads(shards)["c"] == 6
    zone = {leaf.id: leaf.zone for leaf in heavy}
    assert all({zone[leaf] for leaf in shard.desired} == {"x", "y"} for shard in shards.map.shards.values())


def test_a_zone_that_appears_gets_a_replica_of_every_shard() -> None:
    shards = Shards(leaves(3, zone="x"), 6, 2)
    shards.put_leaf(Leaf("other", "h:1", zone="y"))
    shards.up.add("other")
    shards.settle()
    assert loads(shards)["other"] == 6


def test_few_shards_change_at_a_time_the_most_endangered_first() -> None:
    shards = Shards(leaves(6), 30, 3)
    shards.up -= {"leaf-1", "leaf-2"}
    shards.look()
    shards.now += HEAL_AFTER
    begun = shards.look().desired
    assert 1 <= len(begun) <= CHANGING_MAX
    living = {shard: len(shards.living(shard)) for shard in shards.map.shards if shards.living(shard)}
    assert all(living[shard] == min(living.values()) for shard in begun)


def test_a_receiver_that_dies_is_replaced_at_once_when_it_is_gone() -> None:
    shards = Shards(leaves(5), 5, 2)
    shards.up.discard("leaf-1")
    shards.look()
    shards.now += HEAL_AFTER
    shard, target = next(iter(shards.look().desired.items()))
    (receiver,) = set(target) - shards.living(shard)
    shards.up.discard(receiver)
    shards.look()
    shards.now += HEAL_AFTER
    again = shards.look().desired[shard]
    assert receiver not in again
    shards.settle()
    assert all(len(shards.living(each)) == 2 for each in shards.map.shards if shards.living(each))


def test_a_change_without_progress_does_not_keep_others_from_beginning() -> None:
    shards = Shards(leaves(4), 8, 3)
    for shard in list(shards.map.shards.values())[:CHANGING_MAX]:
        shards.put_shard(replace(shard, learners=(Replica(next(iter(set(shards.map.leaves) - set(shard.desired))), "i"),)))
    shards.put_leaf(replace(shards.map.leaves["leaf-1"], is_draining=True))
    assert all(shard < CHANGING_MAX for shard in shards.look().desired)
    shards.now += CHANGE_PATIENCE_S + 1
    assert any(shard >= CHANGING_MAX for shard in shards.rebalancer.decide(shards.map, shards.up, shards.now).desired)


def test_nothing_moves_for_the_spread_while_a_leaf_may_come_back() -> None:
    shards = Shards(leaves(4), 8, 3)
    shards.put_leaf(Leaf("leaf-5", "h:1"))
    shards.up.add("leaf-5")
    shards.up.discard("leaf-1")
    assert not shards.look().desired
    shards.put_leaf(replace(shards.map.leaves["leaf-2"], is_draining=True))
    assert shards.look().desired, "what must move does"


def test_a_new_balancer_heals_later_never_earlier() -> None:
    shards = Shards(leaves(4), 8, 3)
    shards.up.discard("leaf-2")
    shards.look()
    shards.now += HEAL_AFTER - 1
    shards.rebalancer = Rebalancer(HEAL_AFTER)
    shards.look()
    shards.now += 2
    assert not shards.look().desired


@pytest.mark.parametrize("alive", [frozenset(), frozenset({"leaf-9"})])
def test_without_a_living_leaf_there_is_no_plan(alive: frozenset[str]) -> None:
    assert not plan(Situation(Shards(leaves(2), 2, 2).map, alive)).desired


def test_shards_that_nobody_alive_can_move_do_not_hold_up_the_others() -> None:
    """They wait for their only replica, which is gone; what they want of the others is not under way."""
    shards = Shards(leaves(3), 4, 2)
    for shard, in_sync, desired in (
        (0, ("leaf-1", "leaf-2"), ("leaf-1", "leaf-2")),
        (1, ("leaf-2",), ("leaf-3", "leaf-2")),
        (2, ("leaf-3",), ("leaf-1", "leaf-3")),
        (3, ("leaf-3",), ("leaf-3", "leaf-1")),
    ):
        members = tuple(Replica(leaf, "i") for leaf in in_sync)
        shards.put_shard(replace(shards.map.shards[shard], primary=in_sync[0], in_sync=members, desired=desired))
    shards.up.discard("leaf-3")
    shards.look()
    shards.now += 2 * HEAL_AFTER
    shards.settle()
    assert shards.living(1) == {"leaf-1", "leaf-2"}
