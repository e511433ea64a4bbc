"""DrainLeaf, RemoveLeaf and MoveShard over real gRPC, the map in a coordinator in memory."""

from collections.abc import AsyncIterator

import pytest
from fakes.coordinator import MemoryCoordinator
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard import Client
from kvshard.clock import SystemClock
from kvshard.clustermap import Leaf, WantedSplit
from kvshard.coordination.base import Put
from kvshard.coordination.leases import alive_key
from kvshard.coordination.mapstore import BootstrapPlan, MapStore, bootstrap
from kvshard.errors import FailedPrecondition, InvalidArgument, LeafNotFound, ShardNotFound
from kvshard.telemetry import RouterMetrics
from router.server import RouterServer


class Front:
    """A router, its map and a client of it."""

    def __init__(self, kv: Client, maps: MapStore, coordinator: MemoryCoordinator) -> None:
        self.kv = kv
        self.maps = maps
        self.coordinator = coordinator


@pytest.fixture
async def front() -> AsyncIterator[Front]:
    clock = SystemClock()
    coordinator = MemoryCoordinator(clock=clock)
    leaves = tuple(Leaf(f"leaf-{n}", f"127.0.0.1:{n}") for n in range(1, 5))
    await bootstrap(coordinator, BootstrapPlan(leaves, shards=4, replicas=3))
    await coordinator.txn([], [Put(alive_key(leaf.id), b"") for leaf in leaves])
    maps = MapStore(coordinator.handle(), clock)
    await maps.start()
    server = RouterServer("127.0.0.1:0", maps, MemoryLeaves().client, clock, RouterMetrics(CollectorRegistry()))
    await server.start("cluster")
    try:
        async with Client(server.address, timeout=5.0) as kv:
            yield Front(kv, maps, coordinator)
    finally:
        await server.stop()
        await maps.close()


async def test_drain_and_undo_change_the_map_and_no_epoch(front: Front) -> None:
    before = await front.kv.map()
    assert (await front.kv.drain_leaf("leaf-1")).is_draining
    after = await front.kv.map()
    assert after.leaves["leaf-1"].is_draining
    assert after.shards == before.shards
    assert not (await front.kv.drain_leaf("leaf-1", undo=True)).is_draining
    status = await front.kv.status()
    assert [leaf.leaf.is_draining for leaf in status.leaves] == [False] * 4


async def test_move_a_replica_and_a_primary(front: Front) -> None:
    shard = front.maps.current.shards[0]
    (spare,) = set(front.maps.current.leaves) - set(shard.desired)
    moved = await front.kv.move_replica(0, shard.desired[1], spare)
    assert moved.desired == (shard.desired[0], spare, shard.desired[2])
    assert (await front.kv.move_primary(0, spare)).desired[0] == spare
    assert (await front.kv.map()).shards[0].epoch == shard.epoch


async def test_remove_with_and_without_force(front: Front) -> None:
    held = tuple(shard.id for shard in front.maps.current.shards_on("leaf-2"))
    with pytest.raises(FailedPrecondition, match="still holds") as refusal:
        await front.kv.remove_leaf("leaf-2")
    assert refusal.value.details.shards == held
    with pytest.raises(FailedPrecondition, match="is alive"):
        await front.kv.remove_leaf("leaf-2", force=True)
    front.coordinator.store.items.pop(alive_key("leaf-2"))
    assert await front.kv.remove_leaf("leaf-2", force=True) is False
    assert (await front.kv.map()).leaves["leaf-2"].is_removed


async def test_wrong_names(front: Front) -> None:
    with pytest.raises(LeafNotFound, match="did you mean leaf-1"):
        await front.kv.drain_leaf("leaf1")
    with pytest.raises(LeafNotFound):
        await front.kv.remove_leaf("other")
    with pytest.raises(ShardNotFound, match="no shard 9"):
        await front.kv.move_primary(9, "leaf-1")
    for call in (
        front.kv.drain_leaf(""),
        front.kv.remove_leaf(""),
        front.kv.move_primary(0, ""),
        front.kv.move_replica(0, "", "a"),
    ):
        with pytest.raises(InvalidArgument, match="must not be empty"):
            await call


async def test_splits_are_wanted_once(front: Front) -> None:
    wanted = await front.kv.split_shards([1])
    assert wanted == {1: WantedSplit(4, front.maps.current.shards[1].middle_slot)}
    assert await front.kv.split_shards([1]) == wanted
    everything = await front.kv.split_shards()
    assert sorted(everything) == [0, 1, 2, 3]
    assert everything[1] == wanted[1]
    assert {shard.id: shard.split for shard in (await front.kv.map()).shards.values()} == everything


async def test_what_cannot_be_split(front: Front) -> None:
    with pytest.raises(ShardNotFound) as caught:
        await front.kv.split_shards([1, 9])
    assert caught.value.details.shards == (9,)
    with pytest.raises(InvalidArgument, match="name shards, or say all"):
        await front.kv.split_shards([])
    assert not any(shard.split for shard in (await front.kv.map()).shards.values())
