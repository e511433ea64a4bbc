"""Changes of a collection's schema: begun, called off, finished, and what races with them."""

import asyncio
import random
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from fakes.clock import ManualClock
from fakes.coordinator import MemoryCoordinator

from kvshard import clustermap_text
from kvshard.clustermap import Collection, InvalidMap, Leaf, SchemaChange
from kvshard.coordination import schema_changes
from kvshard.coordination.mapstore import BootstrapPlan, MapStore, bootstrap
from kvshard.errors import ChangeConflict, CollectionNotFound, FailedPrecondition, InvalidArgument
from kvshard.rpc.convert import cluster_map_from_proto, cluster_map_to_proto

SCHEMA = {"title": "text", "year": "integer"}


@pytest.fixture
def coordinator() -> MemoryCoordinator:
    return MemoryCoordinator()


@pytest.fixture
async def store(coordinator: MemoryCoordinator) -> AsyncIterator[MapStore]:
    """A store of a cluster with the collection docs on two leaves."""
    leaves = (Leaf("leaf-1"), Leaf("leaf-2"))
    await bootstrap(coordinator, BootstrapPlan(leaves, shards=2, replicas=2))
    store = MapStore(coordinator.handle(), ManualClock(), random.Random(1))
    await store.start()
    await store.create_collection("docs", SCHEMA)
    yield store
    await store.close()


def docs(store: MapStore) -> Collection:
    return store.current.collections["docs"]


async def test_a_change_is_begun_and_finished(coordinator: MemoryCoordinator, store: MapStore) -> None:
    begun = await store.add_fields("docs", {"lang": "keyword"})
    assert begun == docs(store)
    assert (begun.version, begun.versions, dict(begun.schema)) == (1, 2, SCHEMA)
    assert begun.change == SchemaChange({**SCHEMA, "lang": "keyword"}, 2)
    assert begun.written_schema == {**SCHEMA, "lang": "keyword"}
    assert await schema_changes.finish(coordinator, begun)
    await store.refresh()
    assert docs(store) == replace(begun, schema={**SCHEMA, "lang": "keyword"}, version=2, change=None)
    assert not await schema_changes.finish(coordinator, begun), "once is enough"


async def test_what_is_there_already_is_no_change(store: MapStore) -> None:
    before = store.current.version
    assert (await store.add_fields("docs", {"year": "integer"})).change is None
    assert store.current.version == before
    begun = await store.add_fields("docs", {"lang": "keyword"})
    assert await store.add_fields("docs", {"lang": "keyword"}) == begun, "the repetition of a call whose answer was lost"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"year": "text"}, "is of type integer"),
        ({"lang": "words"}, "unknown type"),
        ({"9": "text"}, "must be letters"),
        ({}, "name the fields"),
        ({f"f{n}": "text" for n in range(1_000)}, "at most"),
    ],
)
async def test_fields_that_cannot_be_added(store: MapStore, fields: dict[str, str], why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        await store.add_fields("docs", fields)
    assert docs(store).change is None


async def test_a_type_is_changed_where_values_may_fit_it(store: MapStore) -> None:
    for field, kind in (("year", "text"), ("title", "float"), ("title", "boolean"), ("year", "date")):
        with pytest.raises(InvalidArgument, match=f"none would fit {kind}"):
            await store.reindex("docs", {field: kind})
    await store.create_collection("vectors", {"v": "vector(3,cosine)"})
    with pytest.raises(InvalidArgument, match="its values are vectors of 3 numbers"):
        await store.reindex("vectors", {"v": "vector(4,cosine)"})
    begun = await store.reindex("docs", {"title": "text(english)", "year": "float", "more": "date"})
    assert begun.change is not None
    assert dict(begun.change.schema) == {"title": "text(english)", "year": "float", "more": "date"}


async def test_an_index_is_built_anew_without_any_change(store: MapStore) -> None:
    assert (await store.reindex("docs", {})).change == SchemaChange(SCHEMA, 2)
    await store.create_collection("plain", {})
    with pytest.raises(FailedPrecondition, match="no schema"):
        await store.reindex("plain", {})
    assert (await store.add_fields("plain", {"title": "text"})).change == SchemaChange({"title": "text"}, 2)


async def test_collections_whose_schema_is_not_changed(store: MapStore) -> None:
    with pytest.raises(InvalidArgument, match="default collection"):
        await store.add_fields("default", {"title": "text"})
    with pytest.raises(CollectionNotFound):
        await store.add_fields("none", {"title": "text"})


async def test_of_two_changes_at_once_one_is_refused(coordinator: MemoryCoordinator, store: MapStore) -> None:
    changes = [schema_changes.add_fields(coordinator.handle(), "docs", {name: "keyword"}) for name in ("lang", "tag")]
    outcomes = await asyncio.gather(*changes, return_exceptions=True)
    refused = [each for each in outcomes if isinstance(each, ChangeConflict)]
    assert len(refused) == 1
    assert "being changed already, to version 2" in refused[0].message
    begun = next(each for each in outcomes if isinstance(each, Collection))
    await store.refresh()
    assert docs(store) == begun


async def test_a_change_that_was_called_off_leaves_its_number_behind(coordinator: MemoryCoordinator, store: MapStore) -> None:
    begun = await store.add_fields("docs", {"lang": "keyword"})
    called_off = await store.call_off_change("docs")
    assert (called_off.version, called_off.change, called_off.versions) == (1, None, 2)
    assert await store.call_off_change("docs") == called_off
    again = await store.add_fields("docs", {"lang": "text"})
    assert again.change is not None
    assert again.change.version == 3
    assert not await schema_changes.finish(coordinator, begun), "what its leaves have built is of the other change"


async def test_an_alias_leads_to_the_collection(store: MapStore) -> None:
    await store.set_alias("it", "docs")
    assert (await store.add_fields("it", {"lang": "keyword"})).name == "docs"


async def test_a_switch_waits_for_every_replica_in_sync(coordinator: MemoryCoordinator, store: MapStore) -> None:
    begun = await store.add_fields("docs", {"lang": "keyword"})
    change = (begun.id, 2)
    assert len(schema_changes.lacking(store.current, {})) == 4
    assert await schema_changes.report(coordinator, schema_changes.report_key(*change, "leaf-1"), {1, 0})
    assert await schema_changes.report(coordinator, schema_changes.report_key(*change, "leaf-2"), {0})
    reports = await schema_changes.read_reports(coordinator)
    assert reports == {change: {"leaf-1": frozenset({0, 1}), "leaf-2": frozenset({0})}}
    assert schema_changes.lacking(store.current, reports[change]) == [(1, "leaf-2")]
    assert await schema_changes.report(coordinator, schema_changes.report_key(*change, "leaf-2"), {0, 1})
    assert schema_changes.lacking(store.current, (await schema_changes.read_reports(coordinator))[change]) == []
    await schema_changes.forget_reports(coordinator, change, ["leaf-1", "leaf-2"])
    assert await schema_changes.read_reports(coordinator) == {}


async def test_the_map_keeps_what_it_says_of_a_change(store: MapStore) -> None:
    text = clustermap_text.to_json(store.current)
    assert '"version":1,' not in text.replace(f'"version":{store.current.version}', ""), "as it always read without a change"
    await store.add_fields("docs", {"lang": "keyword"})
    assert clustermap_text.from_json(clustermap_text.to_json(store.current)) == store.current
    assert cluster_map_from_proto(cluster_map_to_proto(store.current)) == store.current


@pytest.mark.parametrize(
    "wrong",
    [
        {"version": 3, "versions": 2},
        {"version": 2, "versions": 2, "change": SchemaChange({}, 2)},
        {"versions": 2, "change": SchemaChange({}, 3)},
        {"version": 0},
    ],
)
async def test_versions_that_contradict_each_other(store: MapStore, wrong: dict) -> None:
    with pytest.raises(InvalidMap, match="docs"):
        replace(store.current, collections={**store.current.collections, "docs": replace(docs(store), **wrong)})
