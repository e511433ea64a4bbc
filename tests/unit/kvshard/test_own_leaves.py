"""Which leaves `up` runs: its own, not those that joined from elsewhere, nor those that were removed."""

import subprocess
import sys
from pathlib import Path

import pytest

from kvshard.clock import SystemClock
from kvshard.clustermap import Leaf
from kvshard.coordination import mapwriter
from kvshard.coordination.base import Delete
from kvshard.coordination.connect import connect
from kvshard.errors import FailedPrecondition, InvalidArgument
from kvshard.local_cluster import ClusterPlan, open_map
from kvshard.own_leaves import note_own_leaves, own_leaves, removed_leaves

THREE = ("leaf-1", "leaf-2", "leaf-3")


def test_a_new_directory_runs_every_leaf_of_the_map_and_a_wiped_one_still_does(tmp_path: Path) -> None:
    assert own_leaves(tmp_path, ("leaf-10", *THREE)) == (*THREE, "leaf-10")
    note_own_leaves(tmp_path, THREE)
    note_own_leaves(tmp_path, THREE)
    assert own_leaves(tmp_path, THREE) == THREE


def test_a_leaf_that_joined_from_elsewhere_is_not_run_here(tmp_path: Path) -> None:
    note_own_leaves(tmp_path, THREE)
    assert own_leaves(tmp_path, (*THREE, "leaf-4")) == THREE
    assert removed_leaves(tmp_path, (*THREE, "leaf-4")) == ()


def test_a_removed_leaf_is_not_run_any_more(tmp_path: Path) -> None:
    note_own_leaves(tmp_path, THREE)
    assert own_leaves(tmp_path, THREE[:2]) == THREE[:2]
    assert removed_leaves(tmp_path, THREE[:2]) == ("leaf-3",)


def test_a_leaf_that_joined_inside_the_directory_is_adopted_when_nobody_runs_it(tmp_path: Path) -> None:
    note_own_leaves(tmp_path, THREE)
    lock = tmp_path / "leaf-4" / "data" / "LOCK"
    lock.parent.mkdir(parents=True)
    lock.touch()
    hold = "import fcntl, sys; file = open(sys.argv[1], 'r+'); fcntl.lockf(file, fcntl.LOCK_EX); print('held', flush=True)"
    command = [sys.executable, "-c", f"{hold}; sys.stdin.read()", str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert own_leaves(tmp_path, (*THREE, "leaf-4")) == THREE
    assert own_leaves(tmp_path, (*THREE, "leaf-4")) == (*THREE, "leaf-4")


async def test_up_counts_its_own_leaves(tmp_path: Path) -> None:
    coordinator = connect(f"sqlite://{tmp_path}/coordinator.db", SystemClock())
    try:
        made = await open_map(coordinator, ClusterPlan(tmp_path, leaves=3, shards=4))
        note_own_leaves(tmp_path, own_leaves(tmp_path, made.leaves))
        await mapwriter.register_leaf(coordinator, "leaf-4", "h:1", None, None)
        again = await open_map(coordinator, ClusterPlan(tmp_path, leaves=3, shards=4))
        assert Leaf("leaf-4", "h:1") in again.leaves.values()
        with pytest.raises(InvalidArgument, match="holds a cluster with 3 leaves, not 4"):
            await open_map(coordinator, ClusterPlan(tmp_path, leaves=4))
        note_own_leaves(tmp_path, ("leaf-9",))
        with pytest.raises(FailedPrecondition, match="all of them were removed"):
            await open_map(coordinator, ClusterPlan(tmp_path))
        await coordinator.txn([], [Delete(mapwriter.leaf_key("leaf-4"))])
    finally:
        await coordinator.close()
