"""A first map of many transactions: whole or not there, whatever happens on the way."""

import asyncio
import itertools

import pytest
from fakes.clock import ManualClock
from fakes.coordinator import MemoryCoordinator

from kvshard.clustermap import ClusterMap, Leaf
from kvshard.coordination import mapwriter, replica_sets
from kvshard.coordination.base import Compare, CoordinatorUnavailable, Delete, Put, TxnResult
from kvshard.coordination.mapstore import BootstrapPlan, assemble, bootstrap


def plan(shards: int, leaves: int = 5) -> BootstrapPlan:
    return BootstrapPlan(tuple(Leaf(f"leaf-{number}") for number in range(leaves)), shards)


async def read(store: MemoryCoordinator) -> ClusterMap | None:
    return assemble((await store.get_prefix(mapwriter.PREFIX)).items)


class Dying(MemoryCoordinator):
    """Its process dies before, or right after, its n-th transaction."""

    def __init__(self, store: MemoryCoordinator, at: int, is_applied: bool) -> None:
        super().__init__(store.store)
        self.left = at
        self.is_applied = is_applied

    async def txn(self, compares: list[Compare], writes: list[Put | Delete]) -> TxnResult:
        self.left -= 1
        if self.left < 0:
            if self.is_applied:
                await super().txn(compares, writes)
            raise asyncio.CancelledError
        return await super().txn(compares, writes)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapwriter, "CLAIM_PAUSE_S", 0.0)
    monkeypatch.setattr(mapwriter, "RETRY_PAUSE_S", 0.0)


@pytest.mark.parametrize("shards", [1, 118, 119, 120, 121, 300, 4096])
async def test_any_number_of_shards(shards: int) -> None:
    store = MemoryCoordinator(clock=ManualClock())
    assert await bootstrap(store, plan(shards))
    found = await read(store)
    assert found is not None
    assert len(found.shards) == shards
    assert await store.get(mapwriter.CLAIM_KEY) is None
    assert not await bootstrap(store, plan(8))


@pytest.mark.parametrize(("at", "is_applied"), list(itertools.product(range(4), (False, True))))
async def test_a_bootstrap_that_died_half_way_is_replaced_by_another(at: int, is_applied: bool) -> None:
    store = MemoryCoordinator(clock=ManualClock())
    with pytest.raises(asyncio.CancelledError):
        await bootstrap(Dying(store, at, is_applied), plan(400, leaves=9))
    is_whole = at == 3 and is_applied
    found = await read(store)
    assert (found is not None) == is_whole
    assert await bootstrap(store, plan(3, leaves=2)) != is_whole
    found = await read(store)
    assert found is not None
    assert (len(found.shards), len(found.leaves)) == ((400, 9) if is_whole else (3, 2))
    assert await store.get(mapwriter.CLAIM_KEY) is None


async def test_the_same_plan_goes_on_after_lost_answers() -> None:
    store = MemoryCoordinator(clock=ManualClock())
    store.lose_answers = 3
    assert await bootstrap(store, plan(300))
    found = await read(store)
    assert found is not None
    assert len(found.shards) == 300


async def test_rivals_make_one_whole_map() -> None:
    """Of several that bootstrap together one wins; nothing of the others is left."""
    first = MemoryCoordinator(clock=ManualClock())
    sizes = (3, 150, 400, 900)
    won = await asyncio.gather(*(bootstrap(first.handle(), plan(size, leaves=number + 1)) for number, size in enumerate(sizes)))
    assert sum(won) == 1
    found = await read(first)
    assert found is not None
    assert len(found.shards) == sizes[won.index(True)]
    assert len(found.leaves) == won.index(True) + 1


async def test_an_unavailable_store_is_an_error_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapwriter, "BOOTSTRAP_TRIES_MAX", 3)
    store = MemoryCoordinator(clock=ManualClock())
    store.refuse = 100
    with pytest.raises(mapwriter.Unavailable, match="cannot bootstrap"):
        await bootstrap(store, plan(300))
    with pytest.raises(CoordinatorUnavailable):
        await store.get("a")


async def test_identities_of_more_shards_than_a_transaction_takes() -> None:
    store = MemoryCoordinator(clock=ManualClock())
    await bootstrap(store, plan(300, leaves=1))
    claimed = await replica_sets.claim_incarnations(store, "leaf-0", {shard: f"data-{shard}" for shard in range(300)})
    assert {shard: config.in_sync[0].incarnation for shard, config in claimed.items()} == {n: f"data-{n}" for n in range(300)}
    assert (await mapwriter.read_shard(store, 299))[1] == claimed[299]
