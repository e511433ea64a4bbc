"""The balancer's shell over a coordinator in memory: who acts, what is written, what a coordinator that fails changes."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from fakes.clock import ManualClock
from fakes.coordinator import MemoryCoordinator

from kvshard.clustermap import Leaf, ShardConfig
from kvshard.coordination import leases, mapwriter
from kvshard.coordination import mapstore as mapstore_module
from kvshard.coordination.base import CoordinatorUnavailable
from kvshard.coordination.leases import read_alive
from kvshard.coordination.mapstore import BootstrapPlan, MapStore, bootstrap
from leaf import balancer as balancer_module
from leaf.balancer import Balancer, lease_ttl_s

HEAL_AFTER_S = 10.0


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapstore_module, "REFRESH_INTERVAL_S", 0.0)
    monkeypatch.setattr(balancer_module, "GATHER_S", 0.0)
    monkeypatch.setattr(balancer_module, "LOOK_INTERVAL_S", 0.005)
    monkeypatch.setattr(leases, "RENEWALS_PER_TTL", 1_000)


class Cluster:
    """Balancers of several leaves over one store of keys."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.clock = ManualClock()
        self.coordinator = MemoryCoordinator(clock=self.clock)
        self.maps = {name: MapStore(self.coordinator.handle(), self.clock) for name in names}
        self.handles = {name: self.coordinator.handle() for name in names}
        self.balancers = {
            name: Balancer(
                name,
                self.handles[name],
                self.maps[name],
                self.clock,
                7,
                heal_after_s=HEAL_AFTER_S,
                failure_timeout_s=1.5,
            )
            for name in names
        }

    async def renew(self, *names: str) -> None:
        for name in names or self.balancers:
            await self.balancers[name].alive.renew()
            await self.balancers[name].office.renew()

    async def look(self) -> None:
        for name, balancer in self.balancers.items():
            await self.maps[name].refresh()
            await balancer.look()

    async def shards(self) -> list[ShardConfig]:
        items = (await self.coordinator.get_prefix(mapwriter.SHARD_PREFIX)).items
        return [mapwriter.decode_shard(item) for item in items]


@contextlib.asynccontextmanager
async def cluster(*names: str, shards: int = 4, replicas: int = 2) -> AsyncIterator[Cluster]:
    made = Cluster(names)
    await bootstrap(made.coordinator, BootstrapPlan(tuple(Leaf(name, "h:1") for name in names), shards, replicas))
    for store in made.maps.values():
        await store.start()
    try:
        yield made
    finally:
        for name, balancer in made.balancers.items():
            await balancer.close()
            await made.maps[name].close()


async def test_one_balancer_acts_and_another_takes_over_when_it_is_gone() -> None:
    async with cluster("a", "b", "c") as three:
        await three.renew()
        assert await read_alive(three.coordinator) == {"a", "b", "c"}
        assert [name for name, each in three.balancers.items() if each.office.is_held] == ["a"]
        before = await three.shards()
        three.clock.advance(lease_ttl_s(1.5) + 0.1)
        await three.renew("b", "c")
        assert [name for name, each in three.balancers.items() if each.office.is_held] == ["b"]
        await three.look()
        assert await three.shards() == before, "a is waited for"
        three.clock.advance(1.0)
        for _ in range(12):
            await three.renew("b", "c")
            await three.look()
            three.clock.advance(1.0)
        wanted = {leaf for shard in await three.shards() for leaf in shard.desired}
        assert wanted == {"b", "c"}
        assert [shard.epoch for shard in await three.shards()] == [shard.epoch for shard in before]


async def test_who_lost_the_key_writes_nothing_even_if_it_does_not_know() -> None:
    async with cluster("a", "b", "c") as three:
        await three.renew()
        three.coordinator.store.items.pop("balancer")
        await three.balancers["b"].office.renew()
        assert three.balancers["a"].office.is_held
        entry = replace(three.maps["a"].current.leaves["c"], is_draining=True)
        await three.coordinator.txn([], [mapwriter.put_leaf(entry)])
        await three.maps["a"].refresh()
        before = await three.shards()
        await three.balancers["a"].look()
        assert await three.shards() == before
        await three.maps["b"].refresh()
        await three.balancers["b"].look()
        assert await three.shards() != before


async def test_a_plan_for_a_shard_that_has_changed_is_not_written() -> None:
    async with cluster("a", "b", "c") as three:
        await three.renew()
        entry = replace(three.maps["a"].current.leaves["c"], is_draining=True)
        await three.coordinator.txn([], [mapwriter.put_leaf(entry)])
        await three.maps["a"].refresh()
        changed = [replace(shard, epoch=9) for shard in await three.shards()]
        await three.coordinator.txn([], [mapwriter.put_shard(shard) for shard in changed])
        known = three.maps["a"].current
        three.maps["a"]._map = replace(known, shards={each.id: replace(each, epoch=1) for each in changed})
        await three.balancers["a"].look()
        assert await three.shards() == changed


async def test_a_leaf_removed_by_force_is_healed_and_forgotten() -> None:
    async with cluster("a", "b", "c") as three:
        await three.renew("a", "b")
        entry = replace(three.maps["a"].current.leaves["c"], is_removed=True)
        await three.coordinator.txn([], [mapwriter.put_leaf(entry)])
        for _ in range(6):
            await three.look()
            for shard in await three.shards():  # The primaries obey at once.
                members = tuple(
                    next((m for m in shard.in_sync if m.leaf == leaf), replace(shard.in_sync[0], leaf=leaf))
                    for leaf in shard.desired
                )
                moved = replace(shard, in_sync=members, primary=shard.desired[0])
                await three.coordinator.txn([], [mapwriter.put_shard(moved)])
        assert set((await three.maps["a"].refresh()).leaves) == {"a", "b"}


async def test_running_it_survives_a_coordinator_that_does_not_answer_and_stops_clean() -> None:
    async with cluster("a", "b", "c") as three:
        await three.renew("b", "c")
        for name in ("b", "c"):
            await three.balancers[name].office.release()
        three.handles["a"].refuse = 3
        three.balancers["a"].start()
        async with asyncio.timeout(10):
            while not three.balancers["a"].office.is_held:
                await asyncio.sleep(0.002)
        entry = replace(three.maps["a"].current.leaves["c"], is_draining=True)
        await three.coordinator.txn([], [mapwriter.put_leaf(entry)])
        async with asyncio.timeout(10):
            while all("c" in shard.desired for shard in await three.shards() if "c" in {m.leaf for m in shard.in_sync}):
                await asyncio.sleep(0.002)
        await three.balancers["a"].close()
        assert await three.coordinator.get("balancer") is None
        assert "a" not in await read_alive(three.coordinator)


async def test_a_coordinator_that_fails_in_a_look_is_the_callers_to_see() -> None:
    async with cluster("a", "b") as two:
        await two.renew()
        two.handles["a"].refuse = 1
        with pytest.raises(CoordinatorUnavailable):
            await two.balancers["a"].look()


@pytest.mark.parametrize(("timeout", "ttl"), [(0.2, 2.0), (1.5, 5.0), (10.0, 30.0)])
def test_the_lease_outlasts_some_failure_timeouts(timeout: float, ttl: float) -> None:
    assert lease_ttl_s(timeout) == ttl
