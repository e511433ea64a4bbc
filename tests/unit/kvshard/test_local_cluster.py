"""The plan of a local cluster: what is refused, which processes it becomes, who may use the directory. Starts no process."""

import os
import socket
from pathlib import Path

import pytest

from kvshard.clock import SystemClock
from kvshard.coordination.connect import connect
from kvshard.errors import InvalidArgument, Unavailable
from kvshard.limits import CACHE_MAX_MB
from kvshard.local_cluster import ClusterPlan, DirectoryLock, LocalCluster, check_ports, child_specs, open_map
from kvshard.router_workers import RouterWorkers


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"leaves": 0}, "leaves"),
        ({"leaves": 65}, "leaves"),
        ({"shards": 0}, "shards"),
        ({"shards": 4097}, "shards"),
        ({"replicas": 0}, "replicas"),
        ({"replicas": 65}, "replicas"),
        ({"leaves": 2, "replicas": 3}, "replicas"),
        ({"port": -1}, "port"),
        ({"port": 65_536}, "port"),
        ({"metrics_port": 0}, "metrics-port"),
        ({"metrics_port": 65_408}, "metrics-port"),
        ({"workers": 0}, "workers"),
        ({"workers": 65}, "workers"),
    ],
)
def test_plans_that_cannot_be(changes, field):
    with pytest.raises(InvalidArgument) as refusal:
        ClusterPlan(Path("data"), **changes).check()
    assert refusal.value.details.field == field


def test_ports_of_a_plan():
    assert ClusterPlan(Path("data"), port=7700).ports(3) == [7700]
    assert ClusterPlan(Path("data"), port=0).ports(3) == []
    assert ClusterPlan(Path("data"), port=7700, metrics_port=9100).ports(3) == [7700, 9100, 9101, 9102, 9103]
    assert ClusterPlan(Path("data"), port=7700, metrics_port=9100, workers=3).ports(2) == [7700, *range(9100, 9105)]
    with pytest.raises(InvalidArgument, match="both clients and metrics"):
        ClusterPlan(Path("data"), port=9102, metrics_port=9100).ports(3)


def test_command_lines_of_the_processes():
    plan = ClusterPlan(Path("/d"), port=7700, metrics_port=9100, log_json=True)
    router, leaf = child_specs(plan, Path("/d"), "sqlite:///d/coordinator.db", ("leaf-1",))
    assert (router.name, router.is_front, router.keeps_address) == ("router", True, True)
    assert (leaf.name, leaf.is_front, leaf.keeps_address) == ("leaf-1", False, False)
    shared = "--coordinator sqlite:///d/coordinator.db --log-level info --log-json"
    assert " ".join(router.command[1:]) == f"-P -m router --listen 127.0.0.1:7700 {shared} --metrics-port 9100"
    assert " ".join(leaf.command[1:]) == (
        f"-P -m leaf --id leaf-1 --data-dir /d/leaf-1 --listen 127.0.0.1:0 {shared} --metrics-port 9101"
    )


def test_command_lines_of_several_workers():
    plan = ClusterPlan(Path("/d"), port=0, metrics_port=9100, hedge="off", workers=2)
    with RouterWorkers("127.0.0.1:0", 2) as workers:
        *routers, leaf = child_specs(plan, Path("/d"), "sqlite:///d/coordinator.db", ("leaf-1",), workers)
    assert [router.name for router in routers] == ["router-1", "router-2"]
    for number, router in enumerate(routers, start=1):
        assert router.is_front
        flags = " ".join(router.command[1:])
        assert flags.startswith("-P -m router --coordinator sqlite:///d/coordinator.db --log-level info --hedge=off --listen ")
        assert f"--listen {workers.address} --worker {number} " in flags
        assert flags.endswith(f"--metrics-port {9099 + number}")
    assert " ".join(leaf.command).endswith("--metrics-port 9102"), "the leaves' ports follow the workers'"


def test_one_user_of_a_directory_at_a_time(tmp_path):
    first = DirectoryLock(tmp_path / "new" / "data")
    with pytest.raises(Unavailable, match=f"in use by process {os.getpid()};"):
        DirectoryLock(tmp_path / "new" / "data")
    first.release()
    first.release()
    second = DirectoryLock(tmp_path / "new" / "data")
    second.release()


def test_directories_that_cannot_be_used(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InvalidArgument, match="is not a directory"):
        DirectoryLock(tmp_path / "file")
    with pytest.raises(InvalidArgument, match="is not a directory"):
        DirectoryLock(tmp_path / "file" / "below")
    (tmp_path / "data" / "lock").mkdir(parents=True)
    with pytest.raises(Unavailable, match="cannot be used"):
        DirectoryLock(tmp_path / "data")


def test_a_port_that_somebody_listens_on():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(Unavailable, match=f"port {port} on 127.0.0.1 is in use"):
            check_ports([port])
    check_ports([port])


async def test_the_first_start_makes_the_map_and_later_ones_keep_it(tmp_path):
    coordinator = connect(f"sqlite://{tmp_path}/coordinator.db", SystemClock())
    try:
        made = await open_map(coordinator, ClusterPlan(tmp_path, leaves=2, shards=4))
        assert (sorted(made.leaves), sorted(made.shards)) == (["leaf-1", "leaf-2"], [0, 1, 2, 3])
        assert await open_map(coordinator, ClusterPlan(tmp_path)) == made
        assert await open_map(coordinator, ClusterPlan(tmp_path, leaves=2, shards=4)) == made
        with pytest.raises(InvalidArgument, match="holds a cluster with 2 leaves, not 3"):
            await open_map(coordinator, ClusterPlan(tmp_path, leaves=3))
        assert await open_map(coordinator, ClusterPlan(tmp_path, replicas=2)) == made
        with pytest.raises(InvalidArgument, match="holds a cluster with 2 replicas of each shard, not 1"):
            await open_map(coordinator, ClusterPlan(tmp_path, replicas=1))
        with pytest.raises(InvalidArgument, match="holds a cluster with 4 shards, not 8"):
            await open_map(coordinator, ClusterPlan(tmp_path, shards=8))
    finally:
        await coordinator.close()


async def test_refused_before_anything_was_started_the_directory_is_free_again(tmp_path):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        plan = ClusterPlan(tmp_path / "data", port=listener.getsockname()[1])
        with pytest.raises(Unavailable, match="is in use"):
            async with LocalCluster(plan, SystemClock(), print) as cluster:
                await cluster.start()
    DirectoryLock(tmp_path / "data").release()
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["lock"]


def test_times_go_to_the_leaves_where_they_are_not_the_default():
    plan = ClusterPlan(Path("/d"), heal_after_s=4.0, failure_timeout_s=0.5)
    router, leaf = child_specs(plan, Path("/d"), "sqlite:///d/coordinator.db", ("leaf-1",))
    assert leaf.command[-4:] == ("--heal-after", "4", "--failure-timeout", "0.5")
    assert "--heal-after" not in router.command
    assert "--allow-faults" not in leaf.command
    _, leaf = child_specs(ClusterPlan(Path("/d"), are_faults_allowed=True), Path("/d"), "sqlite:///d/c.db", ("leaf-1",))
    assert leaf.command[-1] == "--allow-faults"
    _, leaf = child_specs(ClusterPlan(Path("/d"), refresh_interval_s=0.1), Path("/d"), "sqlite:///d/c.db", ("leaf-1",))
    assert leaf.command[-2:] == ("--refresh-interval", "0.1")
    for changes, field in (
        ({"heal_after_s": -1.0}, "heal-after"),
        ({"failure_timeout_s": 100.0}, "failure-timeout"),
        ({"refresh_interval_s": 0.01}, "refresh-interval"),
    ):
        with pytest.raises(InvalidArgument) as refusal:
            ClusterPlan(Path("data"), **changes).check()
        assert refusal.value.details.field == field


def test_the_cache_is_the_leaves_and_theirs_to_choose_unless_asked_for() -> None:
    router, leaf = child_specs(ClusterPlan(Path("/d"), cache_mb=0), Path("/d"), "sqlite:///x", ("leaf-1",))
    assert leaf.command[-2:] == ("--cache-mb", "0")
    assert "--cache-mb" not in router.command
    _, usual = child_specs(ClusterPlan(Path("/d")), Path("/d"), "sqlite:///x", ("leaf-1",))
    assert "--cache-mb" not in usual.command
    for wrong in (-1, CACHE_MAX_MB + 1):
        with pytest.raises(InvalidArgument) as refusal:
            ClusterPlan(Path("data"), cache_mb=wrong).check()
        assert (refusal.value.details.field, refusal.value.details.limit) == ("cache-mb", CACHE_MAX_MB)


def test_hedging_is_the_routers() -> None:
    plan = ClusterPlan(Path("/d"), hedge="min(p99,10ms)", hedge_budget="3%", hedge_attempts=2)
    router, leaf = child_specs(plan, Path("/d"), "sqlite:///x", ("leaf-1",))
    assert router.command[-3:] == ("--hedge=min(p99,10ms)", "--hedge-budget=3%", "--hedge-attempts=2")
    assert not any("hedge" in each for each in leaf.command)
    usual, _ = child_specs(ClusterPlan(Path("/d")), Path("/d"), "sqlite:///x", ("leaf-1",))
    assert not any("hedge" in each for each in usual.command)
    for changes, field in (
        ({"hedge": "soon"}, "hedge"),
        ({"hedge_budget": "9"}, "hedge-budget"),
        ({"hedge_attempts": 0}, "hedge-attempts"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            ClusterPlan(Path("/d"), **changes).check()
        assert caught.value.details.field == field
