"""Who reports which index is built, and who switches: leaves over a coordinator in memory."""

import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace

import pytest
from fakes.clock import ManualClock
from fakes.coordinator import MemoryCoordinator

from kvshard.clustermap import Collection, Leaf
from kvshard.coordination import mapstore as mapstore_module
from kvshard.coordination import schema_changes
from kvshard.coordination.base import ABSENT, Compare, CoordinatorUnavailable
from kvshard.coordination.mapstore import BootstrapPlan, MapStore, bootstrap
from leaf.reindexing import Reindexing

NAMES = ("leaf-1", "leaf-2")


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapstore_module, "REFRESH_INTERVAL_S", 0.0)


class Indexes:
    """What a leaf has built."""

    def __init__(self) -> None:
        self.shards: frozenset[int] = frozenset()

    def ready(self, collection_id: int, version: int) -> frozenset[int]:
        return self.shards


class Cluster:
    """Two leaves, of which the first holds the balancer's key; docs is to get another schema."""

    def __init__(self) -> None:
        self.coordinator = MemoryCoordinator()
        self.handles = {name: self.coordinator.handle() for name in NAMES}
        self.maps = {name: MapStore(handle, ManualClock()) for name, handle in self.handles.items()}
        self.indexes = {name: Indexes() for name in NAMES}
        self.offices = {
            name: SimpleNamespace(is_held=name == "leaf-1", guard=lambda: Compare("office", ABSENT)) for name in NAMES
        }
        self.leaves = {
            name: Reindexing(name, self.handles[name], self.maps[name], self.indexes[name], self.offices[name])
            for name in NAMES
        }

    async def look(self, *names: str) -> None:
        for name in names or NAMES:
            await self.maps[name].refresh()
            await self.leaves[name].look()

    async def docs(self) -> Collection:
        return (await self.maps["leaf-2"].refresh()).collections["docs"]

    async def reports(self) -> dict:
        return await schema_changes.read_reports(self.coordinator)


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    made = Cluster()
    await bootstrap(made.coordinator, BootstrapPlan(tuple(Leaf(name, "h:1") for name in NAMES), shards=2, replicas=2))
    for maps in made.maps.values():
        await maps.start()
    await made.maps["leaf-1"].create_collection("docs", {"title": "text"})
    await made.maps["leaf-1"].add_fields("docs", {"lang": "keyword"})
    yield made
    for maps in made.maps.values():
        await maps.close()


async def test_the_switch_comes_when_the_last_index_is_there(cluster: Cluster) -> None:
    cluster.indexes["leaf-1"].shards = frozenset({0, 1})
    cluster.indexes["leaf-2"].shards = frozenset({0})
    await cluster.look("leaf-2", "leaf-1")
    assert (await cluster.docs()).version == 1
    cluster.indexes["leaf-2"].shards = frozenset({0, 1})
    await cluster.look("leaf-2", "leaf-1")
    docs = await cluster.docs()
    assert (docs.version, docs.change) == (2, None)
    await cluster.look()
    assert await cluster.reports() == {}


async def test_an_index_that_is_lost_again_is_taken_back(cluster: Cluster) -> None:
    cluster.indexes["leaf-2"].shards = frozenset({0, 1})
    await cluster.look("leaf-2")
    cluster.indexes["leaf-2"].shards = frozenset({1})
    cluster.indexes["leaf-1"].shards = frozenset({0, 1})
    await cluster.look("leaf-2", "leaf-1")
    assert (await cluster.docs()).version == 1


async def test_only_the_balancers_leaf_switches(cluster: Cluster) -> None:
    for indexes in cluster.indexes.values():
        indexes.shards = frozenset({0, 1})
    cluster.offices["leaf-1"].is_held = False
    await cluster.look()
    await cluster.look()
    assert (await cluster.docs()).version == 1
    cluster.offices["leaf-2"].is_held = True
    await cluster.look("leaf-2")
    assert (await cluster.docs()).version == 2


async def test_who_lost_the_key_meanwhile_does_not_switch(cluster: Cluster) -> None:
    for indexes in cluster.indexes.values():
        indexes.shards = frozenset({0, 1})
    cluster.offices["leaf-1"].guard = lambda: Compare("office", 77)
    await cluster.look("leaf-2", "leaf-1")
    assert (await cluster.docs()).version == 1


async def test_what_is_reported_already_is_not_written_again(cluster: Cluster) -> None:
    cluster.indexes["leaf-2"].shards = frozenset({0})
    await cluster.look("leaf-2")
    before = cluster.coordinator.store.revision
    await cluster.look("leaf-2")
    assert cluster.coordinator.store.revision == before


async def test_a_coordinator_that_fails_only_delays_it(cluster: Cluster) -> None:
    for indexes in cluster.indexes.values():
        indexes.shards = frozenset({0, 1})
    await cluster.maps["leaf-2"].refresh()
    cluster.handles["leaf-2"].refuse = 1
    with contextlib.suppress(CoordinatorUnavailable):
        await cluster.leaves["leaf-2"].look()
    await cluster.look("leaf-2", "leaf-1")
    assert (await cluster.docs()).version == 2


async def test_a_change_that_is_called_off_leaves_no_reports(cluster: Cluster) -> None:
    cluster.indexes["leaf-2"].shards = frozenset({0, 1})
    await cluster.look("leaf-2")
    assert await cluster.reports()
    await cluster.maps["leaf-1"].call_off_change("docs")
    await cluster.look()
    assert await cluster.reports() == {}
    assert (await cluster.docs()).version == 1


async def test_a_collection_that_is_dropped_meanwhile(cluster: Cluster) -> None:
    for indexes in cluster.indexes.values():
        indexes.shards = frozenset({0, 1})
    await cluster.look("leaf-2")
    await cluster.maps["leaf-2"].drop_collection("docs")
    await cluster.leaves["leaf-1"].look()
    await cluster.look()
    assert await cluster.reports() == {}
