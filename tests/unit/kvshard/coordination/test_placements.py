"""What balancer and operators write: draining, removing, moving; and what is refused, with which words."""

from dataclasses import replace

import pytest
from fakes.clock import ManualClock
from fakes.coordinator import MemoryCoordinator

from kvshard.clustermap import Leaf, Replica, ShardConfig
from kvshard.coordination import mapwriter, placements, replica_sets
from kvshard.coordination.base import Compare, Put
from kvshard.coordination.leases import alive_key
from kvshard.coordination.mapstore import BootstrapPlan, assemble, bootstrap
from kvshard.coordination.replica_sets import CasOutcome
from kvshard.errors import FailedPrecondition, LeafNotFound, ShardNotFound

LEAVES = tuple(Leaf(f"leaf-{n}", f"h:{n}") for n in range(1, 5))


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapwriter, "RETRY_PAUSE_S", 0.001)


@pytest.fixture
async def coordinator() -> MemoryCoordinator:
    """Four leaves that are alive; shard 0 on leaves 1, 2, 3."""
    made = MemoryCoordinator(clock=ManualClock())
    await bootstrap(made, BootstrapPlan(LEAVES, shards=2, replicas=3))
    for shard in (0, 1):
        await place(made, shard, "leaf-1", "leaf-2", "leaf-3")
    await made.txn([], [Put(alive_key(leaf.id), b"") for leaf in LEAVES])
    return made


async def place(coordinator: MemoryCoordinator, shard: int, *leaves: str, **changes: object) -> None:
    held = await shard_of(coordinator, shard)
    members = tuple(Replica(leaf, "i") for leaf in leaves)
    placed = replace(held, primary=leaves[0], in_sync=members, desired=leaves, **changes)  # type: ignore[arg-type]
    await coordinator.txn([], [mapwriter.put_shard(placed)])


async def shard_of(coordinator: MemoryCoordinator, shard: int) -> ShardConfig:
    return (await mapwriter.read_shard(coordinator, shard))[1]


async def leaf_of(coordinator: MemoryCoordinator, leaf: str) -> Leaf | None:
    item = await coordinator.get(mapwriter.leaf_key(leaf))
    return None if item is None else mapwriter.decode_leaf(item)


async def check(coordinator: MemoryCoordinator) -> None:
    """What stands there is a map."""
    assert assemble((await coordinator.get_prefix(mapwriter.PREFIX)).items) is not None


# Where a shard is wanted


async def test_desired_is_written_without_a_new_epoch(coordinator: MemoryCoordinator) -> None:
    before = await shard_of(coordinator, 0)
    assert await placements.set_desired(coordinator, before, ("leaf-1", "leaf-2", "leaf-4"))
    after = await shard_of(coordinator, 0)
    assert after == replace(before, desired=("leaf-1", "leaf-2", "leaf-4"))
    assert not await placements.set_desired(coordinator, before, ("leaf-2",)), "it was planned for what has changed"


async def test_desired_is_not_written_without_the_guard_or_onto_a_leaf_that_goes(coordinator: MemoryCoordinator) -> None:
    before = await shard_of(coordinator, 0)
    wanted = ("leaf-1", "leaf-2", "leaf-4")
    assert not await placements.set_desired(coordinator, before, wanted, [Compare("balancer", 7)])
    await placements.set_draining(coordinator, "leaf-4", True)
    assert not await placements.set_desired(coordinator, before, wanted)
    assert not await placements.set_desired(coordinator, before, ("leaf-1", "leaf-2", "leaf-9"))
    await check(coordinator)


async def test_a_new_member_that_is_not_wanted_any_more_is_refused(coordinator: MemoryCoordinator) -> None:
    before = await shard_of(coordinator, 0)
    await placements.set_desired(coordinator, before, ("leaf-1", "leaf-2", "leaf-4"))
    adding = replace(before, epoch=before.epoch + 1, learners=(Replica("leaf-4", "i"),))
    await placements.set_desired(coordinator, await shard_of(coordinator, 0), before.desired)
    result = await replica_sets.compare_and_set(coordinator, adding, before.epoch)
    assert (result.outcome, result.config) == (CasOutcome.FAILED, before)
    await placements.set_desired(coordinator, before, ("leaf-1", "leaf-2", "leaf-4"))
    assert (await replica_sets.compare_and_set(coordinator, adding, before.epoch)).outcome is CasOutcome.SUCCEEDED


async def test_a_replica_set_is_changed_beside_a_writer_of_desired(coordinator: MemoryCoordinator) -> None:
    """The epoch has not moved, so it is tried again; what was answered is known, so it is never left open."""
    before = await shard_of(coordinator, 0)
    evicting = replace(before, epoch=before.epoch + 1, in_sync=before.in_sync[:2])
    original, races = coordinator.txn, [("leaf-1", "leaf-2", "leaf-4"), ("leaf-1", "leaf-4", "leaf-2")]

    async def raced(*args: object):
        if races:
            held = await shard_of(coordinator, 0)
            await original([], [mapwriter.put_shard(replace(held, desired=races.pop()))])
        return await original(*args)  # type: ignore[arg-type]

    coordinator.txn = raced  # type: ignore[method-assign]
    assert (await replica_sets.compare_and_set(coordinator, evicting, before.epoch)).outcome is CasOutcome.SUCCEEDED
    after = await shard_of(coordinator, 0)
    assert (after.in_sync, after.desired) == (before.in_sync[:2], ("leaf-1", "leaf-2", "leaf-4"))
    races += [("leaf-1",), ("leaf-2",)] * 10
    evicting = replace(after, epoch=after.epoch + 1, in_sync=after.in_sync[:1])
    assert (await replica_sets.compare_and_set(coordinator, evicting, after.epoch)).outcome is CasOutcome.FAILED


# Draining


async def test_draining_and_its_undoing(coordinator: MemoryCoordinator) -> None:
    drained = await placements.set_draining(coordinator, "leaf-1", True)
    assert drained.is_draining
    assert await leaf_of(coordinator, "leaf-1") == drained
    revision = coordinator.store.revision
    assert await placements.set_draining(coordinator, "leaf-1", True) == drained
    assert coordinator.store.revision == revision
    coordinator.lose_answers = 1
    assert not (await placements.set_draining(coordinator, "leaf-1", False)).is_draining


async def test_an_unknown_leaf_is_named_with_the_nearest_one(coordinator: MemoryCoordinator) -> None:
    with pytest.raises(LeafNotFound, match="no leaf 'leaf1'; did you mean leaf-1"):
        await placements.set_draining(coordinator, "leaf1", True)
    with pytest.raises(LeafNotFound, match="there are leaf-1, leaf-2, leaf-3, leaf-4"):
        await placements.remove_leaf(coordinator, "x")
    with pytest.raises(LeafNotFound, match="did you mean leaf-2"):
        await placements.move_replica(coordinator, 0, "leaf-1", "leaf_2")
    with pytest.raises(LeafNotFound):
        await placements.move_primary(coordinator, 0, "leaf-9")
    with pytest.raises(ShardNotFound, match="no shard 2; there are 0, 1"):
        await placements.move_primary(coordinator, 2, "leaf-1")


async def test_draining_that_would_stop_writes_is_refused(coordinator: MemoryCoordinator) -> None:
    await placements.set_draining(coordinator, "leaf-1", True)
    await placements.set_draining(coordinator, "leaf-2", True)
    with pytest.raises(FailedPrecondition, match="only 1 leaf may hold replicas, and writes need 2 of 3"):
        await placements.set_draining(coordinator, "leaf-3", True)


# Removing


async def test_a_leaf_that_holds_something_is_not_removed(coordinator: MemoryCoordinator) -> None:
    with pytest.raises(FailedPrecondition, match=r"still holds 2 shards \(0, 1\); drain it first") as refusal:
        await placements.remove_leaf(coordinator, "leaf-1")
    assert refusal.value.details.shards == (0, 1)
    await placements.set_draining(coordinator, "leaf-1", True)
    await place(coordinator, 0, "leaf-2", "leaf-3", "leaf-4")
    await place(coordinator, 1, "leaf-2", "leaf-3", "leaf-4", learners=(Replica("leaf-1", "i"),))
    with pytest.raises(FailedPrecondition, match=r"still holds 1 shard \(1\); it is being drained"):
        await placements.remove_leaf(coordinator, "leaf-1")
    await place(coordinator, 1, "leaf-2", "leaf-3", "leaf-4", learners=())
    version = coordinator.store.revision
    assert (await placements.remove_leaf(coordinator, "leaf-1")).is_done
    assert await leaf_of(coordinator, "leaf-1") is None
    items = (await coordinator.get_prefix(mapwriter.PREFIX)).items
    assert max(item.revision for item in items) > version, "whoever reads later sees the version of who watched"
    await check(coordinator)


async def test_nothing_can_come_to_name_a_leaf_while_it_is_removed(coordinator: MemoryCoordinator) -> None:
    """The balancer planned to fill it before; its write comes between the look at the shards and the delete."""
    before = await shard_of(coordinator, 0)
    original, has_raced = coordinator.get_prefix, []

    async def raced(prefix: str):
        found = await original(prefix)
        if prefix == mapwriter.SHARD_PREFIX:
            has_raced.append(await placements.set_desired(coordinator, before, ("leaf-1", "leaf-2", "leaf-4")))
        return found

    coordinator.get_prefix = raced  # type: ignore[method-assign]
    with pytest.raises(FailedPrecondition, match=r"still holds 1 shard \(0\)"):
        await placements.remove_leaf(coordinator, "leaf-4")
    assert has_raced[0]
    await check(coordinator)


async def test_a_removal_whose_answer_was_lost_is_done(coordinator: MemoryCoordinator) -> None:
    await placements.set_draining(coordinator, "leaf-4", True)
    coordinator.lose_answers = 1
    assert (await placements.remove_leaf(coordinator, "leaf-4")).is_done
    with pytest.raises(LeafNotFound):
        await placements.remove_leaf(coordinator, "leaf-4")


async def test_force_is_for_the_dead_only(coordinator: MemoryCoordinator) -> None:
    with pytest.raises(FailedPrecondition, match="is alive and holds 2 shards"):
        await placements.remove_leaf(coordinator, "leaf-1", is_forced=True)
    coordinator.store.items.pop(alive_key("leaf-1"))
    removal = await placements.remove_leaf(coordinator, "leaf-1", is_forced=True)
    assert (removal.is_done, removal.shards) == (False, (0, 1))
    marked = await leaf_of(coordinator, "leaf-1")
    assert marked is not None
    assert marked.is_removed
    assert await placements.remove_leaf(coordinator, "leaf-1") == removal, "again without force: it is on its way"
    with pytest.raises(FailedPrecondition, match="removed by force"):
        await placements.set_draining(coordinator, "leaf-1", False)
    assert not await placements.forget_leaf(coordinator, "leaf-1")
    for shard in (0, 1):
        await place(coordinator, shard, "leaf-2", "leaf-3", "leaf-4")
    assert not await placements.forget_leaf(coordinator, "leaf-2"), "it was not marked"
    assert await placements.forget_leaf(coordinator, "leaf-1")
    assert await placements.forget_leaf(coordinator, "leaf-1")
    await check(coordinator)


# Moving


async def test_moving_a_replica_and_the_primary(coordinator: MemoryCoordinator) -> None:
    moved = await placements.move_replica(coordinator, 0, "leaf-2", "leaf-4")
    assert moved.desired == ("leaf-1", "leaf-4", "leaf-3")
    assert await shard_of(coordinator, 0) == moved
    assert await placements.move_replica(coordinator, 0, "leaf-2", "leaf-4") == moved, "again is no error"
    assert (await placements.move_replica(coordinator, 0, "leaf-1", "leaf-2")).desired == ("leaf-2", "leaf-4", "leaf-3")
    led = await placements.move_primary(coordinator, 0, "leaf-3")
    assert led.desired == ("leaf-3", "leaf-2", "leaf-4")
    assert led.epoch == moved.epoch
    assert await placements.move_primary(coordinator, 0, "leaf-3") == led


async def test_moves_that_make_no_sense_are_refused(coordinator: MemoryCoordinator) -> None:
    with pytest.raises(FailedPrecondition, match="wanted on leaf-1, leaf-2, leaf-3, not on leaf-4"):
        await placements.move_primary(coordinator, 0, "leaf-4")
    with pytest.raises(FailedPrecondition, match="already"):
        await placements.move_replica(coordinator, 0, "leaf-1", "leaf-2")
    await place(coordinator, 1, "leaf-2", "leaf-3")
    with pytest.raises(FailedPrecondition, match="not on leaf-1"):
        await placements.move_replica(coordinator, 1, "leaf-1", "leaf-4")
    await placements.set_draining(coordinator, "leaf-4", True)
    with pytest.raises(FailedPrecondition, match="leaf-4 is draining"):
        await placements.move_replica(coordinator, 0, "leaf-1", "leaf-4")
    await placements.set_draining(coordinator, "leaf-4", False)
    coordinator.store.items.pop(alive_key("leaf-4"))
    with pytest.raises(FailedPrecondition, match="leaf-4 is not alive"):
        await placements.move_replica(coordinator, 0, "leaf-1", "leaf-4")


async def test_a_move_that_gives_up_a_zone_is_refused(coordinator: MemoryCoordinator) -> None:
    for leaf, zone in zip(LEAVES, ("a", "b", "c", "b"), strict=True):
        await mapwriter.register_leaf(coordinator, leaf.id, leaf.address, zone, None)
    with pytest.raises(FailedPrecondition, match="a replica in zone 'b' already, and would have none in 'a'"):
        await placements.move_replica(coordinator, 0, "leaf-1", "leaf-4")
    assert "leaf-4" in (await placements.move_replica(coordinator, 0, "leaf-2", "leaf-4")).desired
