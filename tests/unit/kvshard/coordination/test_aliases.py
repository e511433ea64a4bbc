"""Aliases of collections: made, moved and removed in one step, and never without the collection that they stand for."""

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from fakes.clock import ManualClock
from fakes.coordinator import MemoryCoordinator

from kvshard import clustermap_text
from kvshard.clustermap import Hedging, Leaf
from kvshard.coordination import collections, mapwriter
from kvshard.coordination.base import Delete, Put
from kvshard.coordination.mapstore import BootstrapPlan, MapStore, bootstrap
from kvshard.errors import (
    AliasNotFound,
    ChangeConflict,
    CollectionExists,
    CollectionNotFound,
    FailedPrecondition,
    InvalidArgument,
    ResourceExhausted,
)
from kvshard.rpc.convert import cluster_map_from_proto, cluster_map_to_proto


@pytest.fixture
def coordinator() -> MemoryCoordinator:
    return MemoryCoordinator()


@pytest.fixture
async def store(coordinator: MemoryCoordinator) -> AsyncIterator[MapStore]:
    """A store of a cluster with the collections one and two."""
    await bootstrap(coordinator, BootstrapPlan((Leaf("leaf-1"),), shards=2))
    store = MapStore(coordinator.handle(), ManualClock(), random.Random(1))
    await store.start()
    await store.create_collection("one", {"title": "text"})
    await store.create_collection("two", {"title": "keyword"})
    yield store
    await store.close()


async def test_an_alias_stands_for_a_collection_and_is_moved_at_once(store: MapStore) -> None:
    await store.set_alias("it", "one")
    assert store.current.collection("it") == store.current.collections["one"]
    before = store.current.version
    await store.set_alias("it", "two", "one")
    assert store.current.collection("it") == store.current.collections["two"]
    assert store.current.version == before + 1
    assert store.current.aliases_of("two") == ["it"]
    assert await store.remove_alias("it") == "two"
    assert store.current.collection("it") is None
    with pytest.raises(AliasNotFound):
        await store.remove_alias("it")


async def test_an_alias_is_changed_only_from_what_was_expected(store: MapStore) -> None:
    await store.set_alias("it", "one", "")
    with pytest.raises(ChangeConflict, match="'it' stands for 'one', and was expected for 'two'"):
        await store.set_alias("it", "default", "two")
    with pytest.raises(ChangeConflict, match="to be new"):
        await store.set_alias("it", "two", "")
    with pytest.raises(ChangeConflict, match="does not exist"):
        await store.set_alias("that", "two", "one")
    await store.set_alias("it", "one", "two")  # it is there already: the repetition of a change whose answer was lost
    assert dict(store.current.aliases) == {"it": "one"}


async def test_of_changes_at_once_each_is_whole(coordinator: MemoryCoordinator, store: MapStore) -> None:
    await store.set_alias("it", "one")
    changes = [collections.set_alias(coordinator.handle(), "it", name, "one") for name in ("two", "default")]
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    assert [type(each) for each in outcomes].count(ChangeConflict) == 1
    assert (await store.refresh()).aliases["it"] in ("two", "default")


async def test_names_that_an_alias_cannot_have(store: MapStore) -> None:
    await store.set_alias("it", "one")
    with pytest.raises(CollectionExists, match="'two' is a collection"):
        await store.set_alias("two", "one")
    with pytest.raises(InvalidArgument, match="'it' is an alias itself"):
        await store.set_alias("that", "it")
    with pytest.raises(InvalidArgument):
        await store.set_alias("it", "it")
    with pytest.raises(CollectionNotFound):
        await store.set_alias("that", "three")
    with pytest.raises(InvalidArgument):
        await store.set_alias("9", "one")
    with pytest.raises(CollectionExists, match="'it' is an alias"):
        await store.create_collection("it", {})


async def test_what_an_alias_stands_for_is_not_dropped(store: MapStore) -> None:
    await store.set_alias("it", "one")
    with pytest.raises(FailedPrecondition, match="alias it stands for collection 'one'"):
        await store.drop_collection("one")
    with pytest.raises(FailedPrecondition, match="'it' is an alias"):
        await store.drop_collection("it")
    await store.remove_alias("it")
    await store.drop_collection("one")


@pytest.mark.parametrize("seed", range(4))
async def test_no_alias_of_a_collection_that_is_dropped_at_the_same_time(
    coordinator: MemoryCoordinator, store: MapStore, seed: int
) -> None:
    calls = [collections.set_alias(coordinator.handle(), "it", "one"), collections.drop_collection(coordinator.handle(), "one")]
    if seed % 2:
        calls.reverse()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, (FailedPrecondition, CollectionNotFound))]
    assert len(refused) == 1
    current = await store.refresh()
    assert ("it" in current.aliases) == ("one" in current.collections)


async def test_no_collection_with_the_name_of_an_alias_that_is_made_at_the_same_time(
    coordinator: MemoryCoordinator, store: MapStore
) -> None:
    calls = [collections.create_collection(coordinator.handle(), "it", {}), collections.set_alias(coordinator, "it", "one")]
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert len([each for each in outcomes if isinstance(each, CollectionExists)]) == 1
    await store.refresh()


async def test_a_lost_answer_is_no_failure(store: MapStore) -> None:
    handle = store._coordinator
    assert isinstance(handle, MemoryCoordinator)
    handle.lose_answers = 1
    await store.set_alias("it", "one", "")
    handle.lose_answers = 1
    assert await store.remove_alias("it") == "one"


async def test_settings_are_changed_by_an_alias_too(store: MapStore) -> None:
    await store.set_alias("it", "one")
    assert (await store.update_collection("it", Hedging("off"), ["policy"])).name == "one"
    assert store.current.collections["one"].hedging == Hedging("off")


async def test_aliases_are_bounded(store: MapStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collections, "ALIASES_MAX", 1)
    await store.set_alias("it", "one")
    await store.set_alias("it", "two")
    with pytest.raises(ResourceExhausted):
        await store.set_alias("that", "one")


async def test_a_map_with_aliases_survives_each_of_its_forms(store: MapStore) -> None:
    assert "aliases" not in clustermap_text.to_json(store.current), "a map without aliases reads as it always did"
    await store.set_alias("it", "one")
    current = store.current
    assert clustermap_text.from_json(clustermap_text.to_json(current)) == current
    assert cluster_map_from_proto(cluster_map_to_proto(current)) == current
    assert "it" in clustermap_text.pretty(current)


async def test_a_map_whose_alias_stands_for_nothing_is_refused(coordinator: MemoryCoordinator, store: MapStore) -> None:
    before = store.current
    await coordinator.txn([], [Put(mapwriter.alias_key("it"), b'{"alias":"it","collection":"none"}')])
    assert await store.refresh() == before
    await coordinator.txn(
        [], [Delete(mapwriter.alias_key("it")), Put(mapwriter.alias_key("that"), b'{"alias":"it","collection":"one"}')]
    )
    assert await store.refresh() == before
