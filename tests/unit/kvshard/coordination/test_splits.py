"""The wish for a split in the map, and its end, against a coordinator in memory."""

from dataclasses import replace

import pytest
from fakes.coordinator import MemoryCoordinator

from kvshard.clustermap import Leaf, Replica, WantedSplit
from kvshard.coordination.mapstore import assemble
from kvshard.coordination.mapwriter import PREFIX, BootstrapPlan, bootstrap, put_shard, read_shard, replace_keys
from kvshard.coordination.replica_sets import CasOutcome, claim_incarnations
from kvshard.coordination.splits import finish_split, request_splits
from kvshard.errors import FailedPrecondition, ResourceExhausted, ShardNotFound


async def cluster(shards: int = 4) -> MemoryCoordinator:
    coordinator = MemoryCoordinator()
    await bootstrap(coordinator, BootstrapPlan((Leaf("a"), Leaf("b")), shards, 2))
    for leaf in "ab":
        await claim_incarnations(coordinator, leaf, {shard: f"{leaf}{shard}" for shard in range(shards)})
    return coordinator


async def map_of(coordinator: MemoryCoordinator):
    return assemble((await coordinator.get_prefix(PREFIX)).items)


async def test_a_wish_cuts_in_the_middle_and_is_idempotent() -> None:
    coordinator = await cluster()
    wanted = await request_splits(coordinator, [2])
    assert wanted == {2: WantedSplit(4, 0x8000 + 0x2000)}
    assert await request_splits(coordinator, [2]) == wanted
    current = await map_of(coordinator)
    assert current.shards[2].split == wanted[2]
    assert current.shards[2].epoch == 1


async def test_children_never_get_a_number_twice() -> None:
    coordinator = await cluster()
    await request_splits(coordinator, [3])
    wanted = await request_splits(coordinator, None)
    assert sorted(split.child for split in wanted.values()) == [4, 5, 6, 7]
    await finish_split(coordinator, 3, 1, wanted[3], await members(coordinator, 3))
    assert (await request_splits(coordinator, [3]))[3].child == 8


async def members(coordinator: MemoryCoordinator, shard: int) -> frozenset[str]:
    """The leaves of all replicas in sync."""
    _, config = await read_shard(coordinator, shard)
    return frozenset(each.leaf for each in config.in_sync)


async def test_only_who_has_the_data_of_the_child_is_in_sync_of_it() -> None:
    coordinator = await cluster()
    wanted = (await request_splits(coordinator, [1]))[1]
    parent = (await map_of(coordinator)).shards[1]
    others = frozenset(each.leaf for each in parent.in_sync) - {parent.primary}
    assert others
    assert (await finish_split(coordinator, 1, 1, wanted, others)).outcome is CasOutcome.FAILED, "the primary must have it"
    await finish_split(coordinator, 1, 1, wanted, frozenset({parent.primary}))
    child = (await map_of(coordinator)).shards[wanted.child]
    assert [each.leaf for each in child.in_sync] == [parent.primary]
    assert child.desired == parent.desired


async def test_many_wishes_are_more_than_one_transaction() -> None:
    coordinator = await cluster(300)
    wanted = await request_splits(coordinator, None)
    assert sorted(split.child for split in wanted.values()) == list(range(300, 600))


async def test_a_wish_whose_answer_was_lost_is_made_once() -> None:
    coordinator = await cluster()
    coordinator.lose_answers = 1
    wanted = await request_splits(coordinator, [0])
    assert {shard.id: shard.split for shard in (await map_of(coordinator)).shards.values() if shard.split} == wanted


async def test_what_cannot_be_split_is_refused_and_nothing_is_written() -> None:
    coordinator = await cluster()
    with pytest.raises(ShardNotFound) as caught:
        await request_splits(coordinator, [0, 99])
    assert caught.value.details.shards == (99,)
    item, config = await read_shard(coordinator, 1)
    _, before = await read_shard(coordinator, 0)
    narrow = [replace(before, last_slot=config.last_slot - 1), replace(config, first_slot=config.last_slot)]
    await replace_keys(coordinator, [(item.key, item)], [put_shard(each) for each in narrow])
    with pytest.raises(FailedPrecondition, match="single token slot"):
        await request_splits(coordinator, [1])
    assert not any(shard.split for shard in (await map_of(coordinator)).shards.values())
    assert 1 not in await request_splits(coordinator, None)


async def test_the_map_does_not_outgrow_its_bound() -> None:
    coordinator = await cluster(3_000)
    with pytest.raises(ResourceExhausted) as caught:
        await request_splits(coordinator, None)
    assert caught.value.details.limit == 4_096


async def test_the_end_writes_parent_and_child_together() -> None:
    coordinator = await cluster()
    wanted = (await request_splits(coordinator, [1]))[1]
    before = (await map_of(coordinator)).shards[1]
    result = await finish_split(coordinator, 1, 1, wanted, await members(coordinator, 1))
    assert result.outcome is CasOutcome.SUCCEEDED
    after = await map_of(coordinator)
    assert after.shards[1] == replace(before, last_slot=wanted.at_slot - 1, split=None, cuts=1)
    child = after.shards[wanted.child]
    assert (child.first_slot, child.last_slot, child.epoch) == (wanted.at_slot, before.last_slot, 2)
    assert child.in_sync == tuple(Replica(each.leaf, f"{each.incarnation}.4") for each in before.in_sync)
    assert (child.primary, child.desired, child.learners) == (before.primary, before.desired, ())
    assert (await finish_split(coordinator, 1, 1, wanted, await members(coordinator, 1))).outcome is CasOutcome.SUCCEEDED, (
        "it is done already"
    )


async def test_the_end_is_refused_in_another_epoch_and_while_an_identity_is_unknown() -> None:
    coordinator = await cluster()
    wanted = (await request_splits(coordinator, [1]))[1]
    assert (await finish_split(coordinator, 1, 2, wanted, await members(coordinator, 1))).outcome is CasOutcome.FAILED
    item, config = await read_shard(coordinator, 1)
    nameless = replace(config, in_sync=(config.in_sync[0], replace(config.in_sync[1], incarnation="")))
    await replace_keys(coordinator, [(item.key, item)], [put_shard(nameless)])
    assert (await finish_split(coordinator, 1, 1, wanted, await members(coordinator, 1))).outcome is CasOutcome.FAILED
    assert wanted.child not in (await map_of(coordinator)).shards


async def test_an_answer_that_is_lost_is_no_answer() -> None:
    coordinator = await cluster()
    wanted = (await request_splits(coordinator, [1]))[1]
    coordinator.lose_answers = 1
    assert (await finish_split(coordinator, 1, 1, wanted, await members(coordinator, 1))).outcome is CasOutcome.UNKNOWN
    assert (await finish_split(coordinator, 1, 1, wanted, await members(coordinator, 1))).outcome is CasOutcome.SUCCEEDED
