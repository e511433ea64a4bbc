"""One order to many leaves: done at all of them or taken back, and silent leaves named."""

import pytest
from fakes.clock import ManualClock
from fakes.leaf_client import FakeLeafClient
from fakes.map_source import cluster_map

from kvshard.errors import FailedPrecondition, InvalidArgument, LeafNotFound, ResourceExhausted, Unavailable
from kvshard.fault_model import ActiveFaultRecord, FaultOrder, FaultRecord, FaultReport
from router.faults import FaultOrders

SLOW = FaultRecord("", "slow", 0.05, factor=10.0)


class Leaf:
    """Keeps its faults, as a leaf does."""

    def __init__(self) -> None:
        self.faults: list[FaultRecord] = []

    def __call__(self, order: FaultOrder) -> FaultReport:
        gone = [fault for fault in self.faults if order.clear and (not order.ids or fault.id in order.ids)]
        self.faults = [fault for fault in self.faults if fault not in gone]
        if order.inject is not None:
            self.faults.append(order.inject)
        return FaultReport([ActiveFaultRecord(fault, 50.0, 0) for fault in self.faults], len(gone))


class World:
    def __init__(self) -> None:
        self.map = cluster_map(shards=4, leaves=3)
        self.client = FakeLeafClient()
        self.leaves = {id: Leaf() for id in self.map.leaves}
        for id, leaf in self.leaves.items():
            self.client.on(id, FaultOrder, leaf)
        self.orders = FaultOrders(self.client, ManualClock())

    @property
    def held(self) -> dict[str, int]:
        return {id: len(leaf.faults) for id, leaf in self.leaves.items()}


@pytest.fixture
def world() -> World:
    return World()


async def test_all_leaves_get_the_same_fault_under_one_id_and_seed(world: World) -> None:
    injected = await world.orders.inject(world.map, [], SLOW)
    first, *others = [each.fault.fault for each in injected]
    assert [each.leaf for each in injected] == sorted(world.leaves)
    assert others == [first, first]
    assert first.id.startswith("slow-")
    assert first.seed > 0
    again = await world.orders.inject(world.map, [], SLOW)
    assert len(again) == 3
    assert again[0].fault.fault.id != first.id


async def test_named_leaves_and_a_given_seed(world: World) -> None:
    one, two = list(world.leaves)[:2]
    injected = await world.orders.inject(world.map, [two, one, two], FaultRecord("", "drop", 1.0, seed=7))
    assert [(each.leaf, each.fault.fault.seed) for each in injected] == [(one, 7), (two, 7)]
    with pytest.raises(LeafNotFound) as caught:
        await world.orders.inject(world.map, [one, "leaf-99"], SLOW)
    assert caught.value.details.field == "leaves"
    assert sum(world.held.values()) == 2


async def test_a_wrong_fault_reaches_no_leaf(world: World) -> None:
    with pytest.raises(InvalidArgument):
        await world.orders.inject(world.map, [], FaultRecord("", "slow", 0.05))
    assert not world.client.calls


@pytest.mark.parametrize("error", [FailedPrecondition("no faults"), Unavailable("gone"), ResourceExhausted("full")])
async def test_a_leaf_that_refuses_takes_it_from_the_others(world: World, error: Exception) -> None:
    first, refusing, _ = world.leaves
    world.client.on(first, FaultOrder, world.leaves[first])
    await world.orders.inject(world.map, [first], SLOW)  # An earlier one, which must stay.
    world.client.on(refusing, FaultOrder, error)
    with pytest.raises(type(error), match=refusing) as caught:
        await world.orders.inject(world.map, [], SLOW)
    assert caught.value.details.replicas_tried == (refusing,)
    assert world.held == {first: 1, refusing: 0, "leaf-3": 0}


async def test_what_no_retry_mends_is_told_first(world: World) -> None:
    silent, refusing, _ = world.leaves
    world.client.on(silent, FaultOrder, Unavailable("gone")).on(refusing, FaultOrder, FailedPrecondition("no faults"))
    with pytest.raises(FailedPrecondition):
        await world.orders.inject(world.map, [], SLOW)


async def test_clear_and_list_name_the_silent(world: World) -> None:
    injected = await world.orders.inject(world.map, [], SLOW)
    await world.orders.inject(world.map, ["leaf-1"], SLOW)
    world.client.on("leaf-2", FaultOrder, Unavailable("gone"))
    found = await world.orders.list(world.map)
    assert ([each.leaf for each in found.faults], found.silent) == (["leaf-1", "leaf-1", "leaf-3"], ["leaf-2"])
    done = await world.orders.clear(world.map, [], [injected[0].fault.fault.id])
    assert (done.cleared, done.silent) == (2, ["leaf-2"])
    done = await world.orders.clear(world.map, ["leaf-1"], [])
    assert (done.cleared, done.silent) == (1, [])
