"""The leaves' entries of the map: how one is added, what a restart keeps, what a removed one may not do."""

from dataclasses import replace

import pytest
from fakes.clock import ManualClock
from fakes.coordinator import MemoryCoordinator

from kvshard import clustermap_text as text
from kvshard.clustermap import Leaf
from kvshard.coordination import mapwriter
from kvshard.coordination.base import Put
from kvshard.coordination.mapstore import BootstrapPlan, bootstrap
from kvshard.errors import FailedPrecondition, InvalidArgument


@pytest.fixture
async def coordinator() -> MemoryCoordinator:
    made = MemoryCoordinator(clock=ManualClock())
    await bootstrap(made, BootstrapPlan(leaves=(Leaf("leaf-1", zone="a", weight=2.0), Leaf("leaf-2"))))
    return made


async def stored(coordinator: MemoryCoordinator, leaf: str) -> Leaf | None:
    item = await coordinator.get(mapwriter.leaf_key(leaf))
    return None if item is None else mapwriter.decode_leaf(item)


async def mark(coordinator: MemoryCoordinator, leaf: str, **marks: bool) -> None:
    held = await stored(coordinator, leaf)
    assert held is not None
    data = text.encode(text.leaf_data(replace(held, **marks)))
    await coordinator.txn([], [Put(mapwriter.leaf_key(leaf), data.encode())])


async def test_an_unknown_leaf_is_added_only_if_it_may_join(coordinator: MemoryCoordinator) -> None:
    with pytest.raises(InvalidArgument, match="no leaf 'leaf-7'") as refusal:
        await mapwriter.register_leaf(coordinator, "leaf-7", "h:1", None, None, may_join=False)
    assert refusal.value.details.field == "id"
    assert await stored(coordinator, "leaf-7") is None
    added = await mapwriter.register_leaf(coordinator, "leaf-7", "h:1", None, None)
    assert added == await stored(coordinator, "leaf-7") == Leaf("leaf-7", "h:1")


async def test_a_restart_keeps_zone_weight_and_draining(coordinator: MemoryCoordinator) -> None:
    await mark(coordinator, "leaf-1", is_draining=True)
    await mapwriter.register_leaf(coordinator, "leaf-1", "h:2", None, None, may_join=False)
    assert await stored(coordinator, "leaf-1") == Leaf("leaf-1", "h:2", "a", 2.0, is_draining=True)
    await mapwriter.register_leaf(coordinator, "leaf-1", "h:2", "b", 0.0)
    assert await stored(coordinator, "leaf-1") == Leaf("leaf-1", "h:2", "b", 0.0, is_draining=True)


async def test_a_leaf_removed_by_force_may_not_come_back(coordinator: MemoryCoordinator) -> None:
    await mark(coordinator, "leaf-2", is_removed=True)
    with pytest.raises(FailedPrecondition, match="was removed"):
        await mapwriter.register_leaf(coordinator, "leaf-2", "h:2", None, None)
    with pytest.raises(FailedPrecondition, match="was removed"):
        await mapwriter.register_leaf(coordinator, "leaf-2", "h:2", None, None, may_join=False)


@pytest.mark.parametrize("marks", [{}, {"is_draining": True}, {"is_removed": True}, {"is_draining": True, "is_removed": True}])
def test_marks_survive_the_text_form(marks: dict[str, bool]) -> None:
    leaf = Leaf("leaf-1", "h:1", "a", 2.0, **marks)
    assert text.leaf_of(text.leaf_data(leaf)) == leaf
    assert leaf.may_hold is not bool(marks)
    assert ("marks" in text.leaf_data(leaf)) is bool(marks), "a map without marks reads as it always did"
