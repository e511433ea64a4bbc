"""The map store: following, refusing, refreshing and changing the cluster map through every fault of a coordinator."""

import asyncio
import contextlib
import dataclasses
import random
from collections.abc import AsyncIterator

import pytest
from fakes.clock import ManualClock
from fakes.coordinator import MemoryCoordinator

from kvshard import clustermap_text
from kvshard.clustermap import DEFAULT_COLLECTION, Collection, Hedging, Leaf, Replica
from kvshard.coordination import collections, mapwriter, replica_sets
from kvshard.coordination import mapstore as mapstore_module
from kvshard.coordination.base import CoordinatorUnavailable, Delete, Put
from kvshard.coordination.mapstore import BootstrapPlan, MapStore, bootstrap
from kvshard.coordination.replica_sets import CasOutcome
from kvshard.errors import (
    CollectionExists,
    CollectionNotFound,
    DeadlineExceeded,
    InvalidArgument,
    ResourceExhausted,
    Unavailable,
)

PLAN = BootstrapPlan(leaves=(Leaf("leaf-1"), Leaf("leaf-2", zone="b"), Leaf("leaf-3", weight=2.0)), shards=4)
WAIT_S = 10


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapstore_module, "BACKOFF_S", 0.001)
    monkeypatch.setattr(mapstore_module, "BACKOFF_MAX_S", 0.002)
    monkeypatch.setattr(mapstore_module, "REFRESH_INTERVAL_S", 0.001)
    monkeypatch.setattr(mapwriter, "RETRY_PAUSE_S", 0.001)
    monkeypatch.setattr(mapwriter, "RETRY_PAUSE_MAX_S", 0.001)


@pytest.fixture
def coordinator() -> MemoryCoordinator:
    return MemoryCoordinator(clock=ManualClock())


def new_store(coordinator: MemoryCoordinator) -> MapStore:
    return MapStore(coordinator, ManualClock(), random.Random(1))


@pytest.fixture
async def store(coordinator: MemoryCoordinator) -> AsyncIterator[MapStore]:
    """A started store with a map; it has a handle of its own, which the tests break."""
    await bootstrap(coordinator, PLAN)
    store = new_store(coordinator.handle())
    await store.start()
    yield store
    await store.close()


async def raise_epoch(coordinator: MemoryCoordinator, shard: int) -> None:
    """A change of the map like any other."""
    _, held = await mapwriter.read_shard(coordinator, shard)
    changed = await replica_sets.compare_and_set(coordinator, dataclasses.replace(held, epoch=held.epoch + 1), held.epoch)
    assert changed.outcome is CasOutcome.SUCCEEDED


def handle_of(store: MapStore) -> MemoryCoordinator:
    assert isinstance(store._coordinator, MemoryCoordinator)
    return store._coordinator


async def test_bootstrap_writes_a_whole_map_once(coordinator: MemoryCoordinator) -> None:
    assert await bootstrap(coordinator, PLAN) is True
    store = new_store(coordinator)
    await store.start()
    current = store.current
    assert current.version == 1
    assert current.leaves == {leaf.id: leaf for leaf in PLAN.leaves}
    assert [(shard.first_slot, shard.epoch) for shard in current.shards.values()] == [(16384 * n, 1) for n in range(4)]
    assert all(shard.in_sync == (Replica(shard.primary),) for shard in current.shards.values())
    assert all(shard.desired == (shard.primary,) for shard in current.shards.values())
    assert {leaf: len(current.shards_on(leaf)) for leaf in current.leaves} == {"leaf-1": 1, "leaf-2": 1, "leaf-3": 2}
    assert current.collections == {"default": DEFAULT_COLLECTION}
    assert await bootstrap(coordinator, BootstrapPlan((Leaf("other"),))) is False
    assert (await store.refresh()) == current
    await store.close()


async def test_bootstrap_with_a_lost_answer_knows_its_own_map(coordinator: MemoryCoordinator) -> None:
    coordinator.lose_answers = 1
    assert await bootstrap(coordinator, PLAN) is True
    other = coordinator.handle()
    assert await bootstrap(other, BootstrapPlan(PLAN.leaves)) is False


async def test_racing_bootstraps_have_one_winner(coordinator: MemoryCoordinator) -> None:
    plans = [BootstrapPlan(PLAN.leaves, shards=n) for n in (1, 2, 3)]
    outcomes = await asyncio.gather(*(bootstrap(coordinator.handle(), plan) for plan in plans))
    assert outcomes.count(True) == 1
    assert len((await coordinator.get_prefix("map/shard/")).items) == plans[outcomes.index(True)].shards


@pytest.mark.parametrize(
    ("plan", "field"),
    [
        (BootstrapPlan((Leaf("a"),), shards=0), "shards"),
        (BootstrapPlan((Leaf("a"),), shards=4097), "shards"),
        (BootstrapPlan((Leaf("a"),), replicas=2), "replicas"),
        (BootstrapPlan((Leaf("a"),), replicas=0), "replicas"),
        (BootstrapPlan((Leaf("a"), Leaf("a"))), "leaves"),
        (BootstrapPlan((Leaf("a/b"),)), "leaf"),
        (BootstrapPlan((Leaf("a", weight=float("nan")),)), "weight"),
        (BootstrapPlan((Leaf("a"),), seed=-1), "seed"),
    ],
)
async def test_impossible_plans(coordinator: MemoryCoordinator, plan: BootstrapPlan, field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await bootstrap(coordinator, plan)
    assert caught.value.details.field == field
    assert coordinator.store.revision == 0


async def test_start_waits_for_the_bootstrap(coordinator: MemoryCoordinator) -> None:
    store = new_store(coordinator.handle())
    starting = asyncio.create_task(store.start())
    for _ in range(20):
        await asyncio.sleep(0)
    assert not starting.done()
    assert not store.has_map
    with pytest.raises(Unavailable):
        _ = store.current
    with pytest.raises(Unavailable):
        await store.refresh()
    await bootstrap(coordinator, PLAN)
    await asyncio.wait_for(starting, WAIT_S)
    assert store.has_map
    await store.close()


async def test_start_survives_an_absent_coordinator(coordinator: MemoryCoordinator) -> None:
    await bootstrap(coordinator, PLAN)
    handle = coordinator.handle()
    handle.refuse = 5
    store = new_store(handle)
    await asyncio.wait_for(store.start(), WAIT_S)
    await store.close()


async def test_the_store_follows_the_map(coordinator: MemoryCoordinator, store: MapStore) -> None:
    versions: list[int] = []
    unsubscribe = store.subscribe(lambda new: versions.append(new.version))
    await mapwriter.register_leaf(coordinator, "leaf-1", "127.0.0.1:1", "a", 1.0)
    newer = await store.wait_newer(1, WAIT_S)
    assert newer is store.current
    assert newer.leaf_address("leaf-1") == "127.0.0.1:1"
    assert versions == [2]
    unsubscribe()
    unsubscribe()
    await mapwriter.register_leaf(coordinator, "leaf-1", "127.0.0.1:2", "a", 1.0)
    assert (await store.wait_newer(2, WAIT_S)).version == 3
    assert versions == [2]


async def test_wait_newer(coordinator: MemoryCoordinator, store: MapStore) -> None:
    assert await store.wait_newer(0) is store.current
    with pytest.raises(DeadlineExceeded):
        await store.wait_newer(1, 0.001)


async def test_a_failing_subscriber_harms_nobody(coordinator: MemoryCoordinator, store: MapStore) -> None:
    seen: list[int] = []

    def fail(_: object) -> None:
        raise RuntimeError("a defect elsewhere")

    store.subscribe(fail)
    store.subscribe(lambda new: seen.append(new.version))
    for version in (2, 3):
        await raise_epoch(coordinator, 0)
        await store.wait_newer(version - 1, WAIT_S)
    assert seen == [2, 3]


async def test_versions_agree_between_watching_and_reading_after_a_delete(
    coordinator: MemoryCoordinator, store: MapStore
) -> None:
    created = await collections.create_collection(coordinator, "docs", {"body": "text"})
    await collections.drop_collection(coordinator, created.name)
    watched = await store.wait_newer(2, WAIT_S)
    late = new_store(coordinator.handle())
    await late.start()
    assert late.current == watched
    assert clustermap_text.to_json(late.current) == clustermap_text.to_json(watched)
    await late.close()


async def test_an_invalid_map_is_refused_and_the_next_good_one_taken(coordinator: MemoryCoordinator, store: MapStore) -> None:
    before = store.current
    shard_key = mapwriter.shard_key(1)
    good = await coordinator.get(shard_key)
    assert good is not None
    for bad in (Put(shard_key, b"{"), Put(shard_key, good.value.replace(b'"epoch":1', b'"epoch":0')), Delete(shard_key)):
        await coordinator.txn([], [bad])
        assert await store.refresh() is before
    await coordinator.txn([], [Put(shard_key, good.value)])
    assert (await store.wait_newer(before.version, WAIT_S)).shards == before.shards


async def test_a_value_under_the_wrong_key_is_refused(coordinator: MemoryCoordinator, store: MapStore) -> None:
    leaf = await coordinator.get(mapwriter.leaf_key("leaf-1"))
    assert leaf is not None
    await coordinator.txn([], [Put(mapwriter.leaf_key("leaf-9"), leaf.value), Delete(leaf.key)])
    assert (await store.refresh()).version == 1


async def test_the_follower_survives_broken_watches_and_refusals(coordinator: MemoryCoordinator, store: MapStore) -> None:
    handle = handle_of(store)
    for round_number in range(3):
        handle.refuse = round_number
        handle.break_watches()
        await raise_epoch(coordinator, 0)
        newer = await store.wait_newer(round_number + 1, WAIT_S)
        assert newer.shards[0].epoch == round_number + 2


async def test_the_follower_survives_lost_history(coordinator: MemoryCoordinator, store: MapStore) -> None:
    handle_of(store).break_watches()
    await raise_epoch(coordinator, 0)
    coordinator.store.compact(coordinator.store.revision)
    assert (await store.wait_newer(1, WAIT_S)).shards[0].epoch == 2


async def test_the_follower_survives_defects(coordinator: MemoryCoordinator) -> None:
    class Defective(MemoryCoordinator):
        defects = 2

        async def get_prefix(self, prefix: str):
            if self.defects:
                self.defects -= 1
                raise RuntimeError("a defect")
            return await super().get_prefix(prefix)

    await bootstrap(coordinator, PLAN)
    store = new_store(Defective(coordinator.store))
    await asyncio.wait_for(store.start(), WAIT_S)
    await store.close()


async def test_concurrent_refreshes_share_reads_that_begin_after_them(coordinator: MemoryCoordinator, store: MapStore) -> None:
    handle = handle_of(store)
    handle.calls.clear()
    first = [asyncio.create_task(store.refresh()) for _ in range(100)]
    await handle.called("get_prefix")
    # The first read is under way; whoever asks now must see this change, so a second read serves them.
    await raise_epoch(coordinator, 0)
    second = [asyncio.create_task(store.refresh()) for _ in range(100)]
    await asyncio.gather(*first)
    assert {each.shards[0].epoch for each in await asyncio.gather(*second)} == {2}
    assert handle.calls.count("get_prefix") == 2


async def test_refresh_without_a_coordinator(store: MapStore) -> None:
    handle_of(store).refuse = 1
    with pytest.raises(Unavailable, match="cannot be read"):
        await store.refresh()
    assert (await store.refresh()).version == 1


async def test_a_cancelled_refresh_disturbs_no_other(store: MapStore) -> None:
    gone, stays = asyncio.create_task(store.refresh()), asyncio.create_task(store.refresh())
    await asyncio.sleep(0)
    gone.cancel()
    assert await stays is store.current
    with pytest.raises(asyncio.CancelledError):
        await gone


async def test_close_ends_every_wait(coordinator: MemoryCoordinator) -> None:
    await bootstrap(coordinator, PLAN)
    store = new_store(coordinator.handle())
    await store.start()
    waits = [asyncio.create_task(store.wait_newer(5)), asyncio.create_task(store.refresh())]
    for _ in range(3):
        await asyncio.sleep(0)
    waits.append(asyncio.create_task(store.refresh()))
    await asyncio.sleep(0)
    await store.close()
    outcomes = await asyncio.wait_for(asyncio.gather(*waits, return_exceptions=True), WAIT_S)
    assert isinstance(outcomes[0], Unavailable)
    with pytest.raises(Unavailable):
        await store.refresh()
    with pytest.raises(Unavailable):
        await store.wait_newer(5)
    await store.close()


async def test_register_leaf_adds_and_changes(store: MapStore) -> None:
    added = await store.register_leaf("leaf-4", "127.0.0.1:4", "z", 1.5)
    assert store.current.leaves["leaf-4"] == added == Leaf("leaf-4", "127.0.0.1:4", "z", 1.5)
    version = store.current.version
    await store.register_leaf("leaf-4", "127.0.0.1:4", "z", 1.5)
    assert store.current.version == version
    await store.register_leaf("leaf-4", "127.0.0.1:5", "z", 1.5)
    assert store.current.leaf_address("leaf-4") == "127.0.0.1:5"
    for leaf, weight in (("", 1.0), ("a b", 1.0), ("leaf-4", float("inf")), ("leaf-4", -1.0)):
        with pytest.raises(InvalidArgument):
            await store.register_leaf(leaf, "127.0.0.1:4", "", weight)


async def test_collections_get_numbers_that_are_never_used_again(store: MapStore) -> None:
    docs = await store.create_collection("docs", {"title": "text", "year": "integer"})
    assert docs == Collection("docs", 2, {"title": "text", "year": "integer"})
    assert store.current.collection("docs") == store.current.collection_by_id(2) == docs
    assert await store.create_collection("docs", {"year": "integer", "title": "text"}) == docs
    with pytest.raises(CollectionExists):
        await store.create_collection("docs", {"title": "keyword"})
    await store.drop_collection("docs")
    assert store.current.collection("docs") is None
    with pytest.raises(CollectionNotFound):
        await store.drop_collection("docs")
    assert (await store.create_collection("docs", {"title": "keyword"})).id == 3


async def test_racing_creations_share_no_number(coordinator: MemoryCoordinator, store: MapStore) -> None:
    creations = [collections.create_collection(coordinator.handle(), f"c{n}", {}) for n in range(8)]
    made = await asyncio.gather(*creations, collections.create_collection(coordinator.handle(), "c0", {}))
    assert sorted({each.id for each in made}) == list(range(2, 10))
    assert made[0] == made[-1]


async def test_lost_answers_to_collection_changes(store: MapStore) -> None:
    handle_of(store).lose_answers = 1
    assert (await store.create_collection("docs", {})).id == 2
    handle_of(store).lose_answers = 1
    await store.drop_collection("docs")
    assert store.current.collection("docs") is None


async def test_a_collection_is_created_with_hedging_settings_or_left_as_it_is(store: MapStore) -> None:
    off = Hedging("off", 0.0)
    assert (await store.create_collection("docs", {}, Hedging(" OFF ", 0.0))).hedging == off
    assert (await store.create_collection("docs", {})).hedging == off, "who says nothing of it takes what is there"
    assert (await store.create_collection("docs", {}, off)).hedging == off
    with pytest.raises(CollectionExists, match="other hedging settings"):
        await store.create_collection("docs", {}, Hedging("p99"))
    with pytest.raises(InvalidArgument) as caught:
        await store.create_collection("more", {}, Hedging("", 0.6))
    assert caught.value.details.field == "hedging.budget"


async def test_an_update_changes_what_it_names_and_nothing_else(store: MapStore) -> None:
    await store.create_collection("docs", {"title": "text"}, Hedging("off", 0.1))
    version = store.current.version
    updated = await store.update_collection("docs", Hedging("p99", None, 2), ["policy", "max_attempts"])
    assert updated == store.current.collection("docs") == Collection("docs", 2, {"title": "text"}, Hedging("p99", 0.1, 2))
    assert store.current.version > version, "whoever follows the map sees it"
    version = store.current.version
    assert await store.update_collection("docs", Hedging("P99"), ["policy"]) == updated
    assert store.current.version == version, "nothing was to be changed"
    assert (await store.update_collection("default", Hedging("off"), ["policy"])).hedging == Hedging("off")
    with pytest.raises(CollectionNotFound):
        await store.update_collection("nothing", Hedging("off"), ["policy"])
    with pytest.raises(InvalidArgument) as caught:
        await store.update_collection("docs", Hedging("soon", 0.9), ["policy"])
    assert caught.value.details.field == "hedging.policy"


async def test_racing_updates_of_different_settings_are_both_kept(coordinator: MemoryCoordinator, store: MapStore) -> None:
    await store.create_collection("docs", {})
    changes = [(Hedging("off"), "policy"), (Hedging("", 0.2), "budget"), (Hedging("", None, 2), "max_attempts")]
    updates = [collections.update_collection(coordinator.handle(), "docs", hedging, [name]) for hedging, name in changes]
    await asyncio.gather(*updates)
    await store.refresh()
    assert store.current.collections["docs"].hedging == Hedging("off", 0.2, 2)


async def test_a_lost_answer_to_an_update(store: MapStore) -> None:
    handle_of(store).lose_answers = 1
    assert (await store.update_collection("default", Hedging("off"), ["policy"])).hedging == Hedging("off")


@pytest.mark.parametrize("name", ["", "1a", "a b", "a/b", "a" * 65, "ä", "default\n"])
async def test_collection_names(store: MapStore, name: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await store.create_collection(name, {})
    assert caught.value.details.field == "name"


async def test_bad_schemas_and_the_default_collection(store: MapStore) -> None:
    with pytest.raises(InvalidArgument):
        await store.create_collection("docs", {"title": "no such type"})
    with pytest.raises(InvalidArgument):
        await store.drop_collection("default")
    assert store.current.version == 1


async def test_collections_are_bounded(store: MapStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collections, "COLLECTIONS_MAX", 2)
    await store.create_collection("one", {})
    with pytest.raises(ResourceExhausted):
        await store.create_collection("two", {})


async def test_writers_give_up_in_the_end(store: MapStore) -> None:
    handle = handle_of(store)
    handle.refuse = 10_000
    with pytest.raises(Unavailable, match="register leaf leaf-1"):
        await store.register_leaf("leaf-1", "127.0.0.1:1", "", 1.0)
    handle.refuse = 0


async def test_a_write_whose_refresh_fails_is_still_made(coordinator: MemoryCoordinator, store: MapStore) -> None:
    handle = handle_of(store)
    original = handle.txn

    async def txn_then_refuse(*args):
        result = await original(*args)
        handle.refuse = 1
        return result

    handle.txn = txn_then_refuse  # type: ignore[method-assign]
    assert (await store.create_collection("docs", {})).id == 2
    with contextlib.suppress(CoordinatorUnavailable):
        await coordinator.get("x")
    assert (await store.wait_newer(1, WAIT_S)).collection("docs") is not None


async def test_synonyms_are_changed_apart_from_hedging(store: MapStore) -> None:
    await store.create_collection("docs", {"title": "text"}, Hedging("off"))
    updated = await store.update_collection("docs", Hedging(), [], ["Car, AUTOMOBILE", "", "laptop => notebook"])
    assert updated.synonyms == ("car, automobile", "laptop => notebook")
    assert updated.hedging == Hedging("off")
    assert (await store.update_collection("docs", Hedging("p99"), ["policy"])).synonyms == updated.synonyms
    assert store.current.collections["docs"].synonyms == updated.synonyms
    with pytest.raises(InvalidArgument, match="synonym rule 1"):
        await store.update_collection("docs", Hedging(), [], ["car"])
    assert (await store.update_collection("docs", Hedging(), [], [])).synonyms == ()
