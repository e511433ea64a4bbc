"""Changes of replica sets and claims of identities: never blind, and what is not known is said to be unknown."""

from dataclasses import replace

import pytest
from fakes.clock import ManualClock
from fakes.coordinator import MemoryCoordinator

from kvshard.clustermap import Leaf, Replica, ShardConfig
from kvshard.coordination import mapwriter
from kvshard.coordination.mapstore import BootstrapPlan, bootstrap
from kvshard.coordination.replica_sets import CasOutcome, CasResult, claim_incarnations, compare_and_set
from kvshard.errors import FailedPrecondition

PLAN = BootstrapPlan(leaves=tuple(Leaf(f"leaf-{number}") for number in (1, 2, 3)), shards=4, replicas=2)


@pytest.fixture
async def coordinator() -> MemoryCoordinator:
    coordinator = MemoryCoordinator(clock=ManualClock())
    await bootstrap(coordinator, PLAN)
    return coordinator


async def stored(coordinator: MemoryCoordinator, shard: int = 0) -> ShardConfig:
    return (await mapwriter.read_shard(coordinator.handle(), shard))[1]


def without_primary(held: ShardConfig) -> ShardConfig:
    """What the secondary asks for to take over."""
    (stays,) = (each for each in held.in_sync if each.leaf != held.primary)
    return replace(held, epoch=held.epoch + 1, primary=stays.leaf, in_sync=(stays,))


async def test_a_replica_set_is_changed_at_its_epoch_only(coordinator: MemoryCoordinator) -> None:
    held = await stored(coordinator)
    wanted = without_primary(held)
    assert await compare_and_set(coordinator, wanted, held.epoch) == CasResult(CasOutcome.SUCCEEDED, wanted)
    assert await stored(coordinator) == wanted
    assert await compare_and_set(coordinator, wanted, held.epoch) == CasResult(CasOutcome.FAILED, wanted)


async def test_range_and_desired_stay_as_stored(coordinator: MemoryCoordinator) -> None:
    held = await stored(coordinator)
    asked = replace(without_primary(held), desired=("leaf-9",), last_slot=7)
    await compare_and_set(coordinator, asked, held.epoch)
    assert await stored(coordinator) == without_primary(held)


async def test_no_answer_is_an_unknown_outcome(coordinator: MemoryCoordinator) -> None:
    held = await stored(coordinator)
    coordinator.lose_answers = 1
    assert (await compare_and_set(coordinator, without_primary(held), held.epoch)).outcome is CasOutcome.UNKNOWN
    assert await stored(coordinator) == without_primary(held), "it was done all the same"
    coordinator.refuse = 1
    assert (await compare_and_set(coordinator, without_primary(held), held.epoch)).outcome is CasOutcome.UNKNOWN


class Raced(MemoryCoordinator):
    """A writer of `desired` gets in before each of the first so many transactions."""

    races = 0

    async def txn(self, compares, writes):  # type: ignore[no-untyped-def]
        if self.races:
            self.races -= 1
            rival = self.handle()
            item, held = await mapwriter.read_shard(rival, 0)
            wanted = replace(held, desired=(*held.desired[::-1],))
            assert await mapwriter.replace_keys(rival, [(item.key, item)], [mapwriter.put_shard(wanted)])
        return await super().txn(compares, writes)


async def test_a_race_lost_to_who_changed_no_epoch_is_run_again(coordinator: MemoryCoordinator) -> None:
    held = await stored(coordinator)
    raced = Raced(coordinator.store)
    raced.races = 1
    wanted = replace(without_primary(held), desired=held.desired[::-1])
    assert await compare_and_set(raced, without_primary(held), held.epoch) == CasResult(CasOutcome.SUCCEEDED, wanted)
    assert await stored(coordinator) == wanted


async def test_races_that_are_always_lost_end_and_nothing_was_done(coordinator: MemoryCoordinator) -> None:
    held = await stored(coordinator)
    raced = Raced(coordinator.store)
    raced.races = 1_000
    assert (await compare_and_set(raced, without_primary(held), held.epoch)).outcome is CasOutcome.FAILED
    assert (await stored(coordinator)).epoch == held.epoch


async def test_a_shard_that_is_not_there(coordinator: MemoryCoordinator) -> None:
    held = await stored(coordinator)
    with pytest.raises(FailedPrecondition, match="no shard 99"):
        await compare_and_set(coordinator, replace(held, id=99), 1)


async def test_identities_are_claimed_once(coordinator: MemoryCoordinator) -> None:
    held = await stored(coordinator, 2)
    primary = held.primary
    claimed = await claim_incarnations(coordinator, primary, {2: "first"})
    assert Replica(primary, "first") in claimed[2].in_sync
    assert await stored(coordinator, 2) == claimed[2]
    assert await claim_incarnations(coordinator, primary, {2: "first"}) == claimed
    with pytest.raises(FailedPrecondition, match="incarnation first in the map") as caught:
        await claim_incarnations(coordinator, primary, {2: "second"})
    assert caught.value.details.shards == (2,)
    (other,) = {leaf.id for leaf in PLAN.leaves} - {each.leaf for each in held.in_sync}
    with pytest.raises(FailedPrecondition, match="no in-sync replica"):
        await claim_incarnations(coordinator, other, {2: "third"})


async def test_a_claim_whose_answer_was_lost_is_read_again(
    coordinator: MemoryCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapwriter, "RETRY_PAUSE_S", 0.001)
    primary = (await stored(coordinator)).primary
    coordinator.lose_answers = 1
    claimed = await claim_incarnations(coordinator, primary, {0: "first"})
    assert await stored(coordinator) == claimed[0]
