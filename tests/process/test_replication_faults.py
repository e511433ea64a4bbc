"""Real leaves that are killed, paused, cut off, wiped or out of disk, under a load whose history is checked.

After each fault the cluster gets in sync again by itself. No acknowledged write is lost, no strong read is stale, and callers
see an error only where no replica could have served them.
"""

import asyncio
import contextlib
import itertools
import os
import pathlib
import subprocess
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from harness.fault_proxy import Mode
from harness.faulty_cluster import FAILURE_TIMEOUT_S, FaultyCluster
from harness.workload import Workload, running

from kvshard import Client
from kvshard.clock import SystemClock
from kvshard.errors import NotReady, StaleEpoch
from kvshard.model import ShardRead, ShardWrite
from kvshard.rpc.keepalive import PATIENCE
from kvshard.rpc.lane_client import LaneLeafClient

pytestmark = pytest.mark.asyncio(loop_scope="module")

SEED = 3
CLOCK = SystemClock()
NUMBERS = itertools.count()
TAKEN_OVER_WITHIN_S = 8.0
"""Silence, grace, a barrier, a router that learns of it: 2 s or so; the rest is for a busy machine."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def shared(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[FaultyCluster]:
    cluster = FaultyCluster(tmp_path_factory.mktemp("faults"))
    try:
        yield await cluster.start()
    finally:
        await cluster.close()


@pytest_asyncio.fixture(loop_scope="module")
async def cluster(shared: FaultyCluster) -> FaultyCluster:
    """Whole at the begin of each test."""
    await shared.mend()
    return shared


async def until(condition: Callable[[], Awaitable[bool]], what: str, timeout_s: float = TAKEN_OVER_WITHIN_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not await condition():
        assert time.monotonic() < deadline, f"after {timeout_s:g} s still not: {what}"
        await asyncio.sleep(0.02)


async def leads_nothing(cluster: FaultyCluster, leaf: str) -> bool:
    return all(each.primary != leaf for each in (await cluster.map()).shards.values())


async def leads_some(cluster: FaultyCluster, leaf: str) -> bool:
    return not await leads_nothing(cluster, leaf)


async def is_out_of_sync(cluster: FaultyCluster, leaf: str) -> bool:
    return all(leaf not in {r.leaf for r in each.in_sync} for each in (await cluster.map()).shards.values())


async def key_of(cluster: FaultyCluster, shard: int) -> str:
    """Some key of a shard that no other test uses."""
    shard_of_key = (await cluster.map()).shard_of_key
    return next(key for key in map("{}".format, NUMBERS) if shard_of_key(key.encode()) == shard)


def assert_no_errors(load: Workload) -> None:
    assert not load.errors, f"errors though a replica could serve: {load!r}"


async def test_kill_9_of_a_primary(cluster: FaultyCluster) -> None:
    leaf = await cluster.primary(0)
    async with running(cluster.address, seed=SEED, prefix="kill") as load:
        await load.progress(300)
        cluster.leaves[leaf].kill()
        await until(lambda: leads_nothing(cluster, leaf), f"{leaf} leads nothing")
        await load.progress(300)
        await cluster.mend()
        await load.progress(100)
    assert_no_errors(load)
    assert load.gap_s(of_writes=False) < FAILURE_TIMEOUT_S, "reads had to wait for a new primary"


async def test_a_primary_paused_for_longer_than_every_lease(cluster: FaultyCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was asked of it meanwhile waits in its sockets: the first thing it does when it goes on is to answer."""
    # A patient connection: one of the router's kind would be given up during the pause.
    monkeypatch.setattr("kvshard.rpc.lane.IMPATIENCE", PATIENCE)
    leaf = await cluster.primary(0)
    before = await cluster.map()
    led = [shard for shard, config in before.shards.items() if config.primary == leaf]
    keys = {shard: await key_of(cluster, shard) for shard in led}
    direct = LaneLeafClient(cluster.direct_address, CLOCK)
    async with Client(cluster.address) as kv, running(cluster.address, seed=SEED, prefix="pause") as load:
        for shard, key in keys.items():
            await kv.put(key, b"old")
            assert await read_there(direct, leaf, shard, before.shards[shard].epoch, key) == "old"
        await load.progress(200)
        async with cluster.paused(leaf):
            paused_at = time.monotonic()
            asked: list[asyncio.Task[str]] = []
            for shard, key in keys.items():
                for epoch in (before.shards[shard].epoch, before.shards[shard].epoch + 1):
                    asked.append(asyncio.create_task(read_there(direct, leaf, shard, epoch, key)))
                    asked.append(asyncio.create_task(write_there(direct, leaf, shard, epoch, key)))
            await until(lambda: leads_nothing(cluster, leaf), f"{leaf} leads nothing")
            versions = {key: await kv.put(key, b"new") for key in keys.values()}
            await asyncio.sleep(max(0.0, 3 * FAILURE_TIMEOUT_S - (time.monotonic() - paused_at)))
            assert not any(task.done() for task in asked)
        answers = await asyncio.gather(*asked)
        await cluster.mend()
        await load.progress(100)
        for key, version in versions.items():
            item = await kv.get(key)
            assert item is not None
            assert (item.value, item.version) == (b"new", version), "a deposed primary took a write"
    await direct.close()
    assert set(answers) == {"refused"}, "a deposed primary answered"
    assert_no_errors(load)


async def read_there(direct: LaneLeafClient, leaf: str, shard: int, epoch: int, key: str) -> str:
    try:
        reply = (await direct.read(leaf, ShardRead(shard, epoch, 1, [key.encode()]), CLOCK.monotonic() + 20.0)).reply
    except (StaleEpoch, NotReady):
        return "refused"
    return (reply.values[0] or b"nothing").decode()


async def write_there(direct: LaneLeafClient, leaf: str, shard: int, epoch: int, key: str) -> str:
    request = ShardWrite(shard, epoch, 1, [key.encode()], [b"written by a deposed primary"])
    try:
        await direct.write(leaf, request, CLOCK.monotonic() + 20.0)
    except (StaleEpoch, NotReady):
        return "refused"
    return "acknowledged"


@pytest.mark.parametrize("mode", [Mode.STALL, Mode.DROP], ids=["stalled", "dropped"])
async def test_a_primary_cut_off_from_its_secondaries(cluster: FaultyCluster, mode: Mode) -> None:
    leaf = await cluster.primary(0)
    async with running(cluster.address, seed=SEED, prefix=f"cut {mode.value}") as load:
        await load.progress(200)
        cluster.part(leaf, cluster.others(leaf), mode)
        await until(lambda: leads_nothing(cluster, leaf), f"{leaf} leads nothing")
        await load.progress(200)
        await cluster.mend()
        await load.progress(100)
    assert_no_errors(load)


@pytest.mark.parametrize("is_deaf", [True, False], ids=["deaf", "mute"])
async def test_a_primary_that_is_cut_in_one_direction(cluster: FaultyCluster, is_deaf: bool) -> None:
    leaf = await cluster.primary(0)
    async with running(cluster.address, seed=SEED, prefix=f"one way {is_deaf}") as load:
        await load.progress(200)
        for other in cluster.others(leaf):
            cluster.cut(other, leaf) if is_deaf else cluster.cut(leaf, other)
        await until(lambda: leads_nothing(cluster, leaf), f"{leaf} leads nothing")
        await load.progress(200)
        await cluster.mend()
        await load.progress(100)
    assert_no_errors(load)


async def test_a_secondary_cut_off_from_a_primary(cluster: FaultyCluster) -> None:
    primary = await cluster.primary(0)
    secondary = cluster.others(primary)[0]
    async with running(cluster.address, seed=SEED, prefix="secondary") as load:
        await load.progress(200)
        cluster.part(secondary, [primary])

        async def is_put_out() -> bool:
            config = (await cluster.map()).shards[0]
            return secondary not in {each.leaf for each in config.in_sync}

        await until(is_put_out, f"{secondary} is put out of shard 0")
        await load.progress(200)
        await cluster.mend()
        await load.progress(100)
    assert_no_errors(load)


async def test_connections_that_are_reset_or_half_open(cluster: FaultyCluster) -> None:
    """A half-open one is noticed by those who use it; nobody heals it here."""
    leaf = await cluster.primary(0)
    key = await key_of(cluster, 0)
    async with running(cluster.address, seed=SEED, prefix="reset") as load, Client(cluster.address) as kv:
        for name in cluster.names:
            cluster.proxies[name].reset()
            cluster.proxies[name].heal()
            await load.progress(200)
        cluster.proxies[leaf].half_open()
        assert await kv.get(key) is None
        await kv.put(key, b"v")
        await load.progress(300)
    assert_no_errors(load)


async def test_a_wiped_data_directory_comes_back_as_a_learner(cluster: FaultyCluster) -> None:
    leaf = await cluster.primary(0)
    before = {
        each.incarnation for config in (await cluster.map()).shards.values() for each in config.in_sync if each.leaf == leaf
    }
    async with running(cluster.address, seed=SEED, prefix="wipe") as load:
        await load.progress(200)
        await asyncio.to_thread(cluster.leaves[leaf].stop)
        cluster.wipe(leaf)
        # At once: the map still has it in sync, and would have it lead.
        cluster.leaves[leaf].start()
        await load.progress(200)
        await cluster.mend()
        await load.progress(100)
    after = {
        each.incarnation for config in (await cluster.map()).shards.values() for each in config.in_sync if each.leaf == leaf
    }
    assert not before & after, "lost data was trusted"
    assert_no_errors(load)


async def test_all_leaves_killed_at_once(cluster: FaultyCluster) -> None:
    async with running(cluster.address, seed=SEED, prefix="all", timeout_s=20.0) as load:
        await load.progress(300)
        for leaf in cluster.leaves.values():
            leaf.kill()
        await cluster.mend()
        await load.progress(300)
    assert_no_errors(load)  # They had 20 s.


async def test_a_restart_of_the_router(cluster: FaultyCluster) -> None:
    async with running(cluster.address, seed=SEED, prefix="router") as load:
        await load.progress(200)
        cluster.router.kill()
        await cluster.restart("router")
        await load.progress(200)
    assert_no_errors(load)


async def test_a_coordinator_that_cannot_be_written_to(cluster: FaultyCluster) -> None:
    """The data path goes on. A leaf that dies meanwhile is replaced as soon as the coordinator takes the change."""
    leaf = await cluster.primary(0)
    async with running(cluster.address, seed=SEED, prefix="coordinator", timeout_s=20.0) as load:
        await load.progress(100)
        with cluster.locked_coordinator():
            began = time.monotonic()
            await load.progress(300)
            while time.monotonic() - began < 2 * FAILURE_TIMEOUT_S:
                await load.progress(50)
            assert load.gap_s(of_writes=True) < FAILURE_TIMEOUT_S
            cluster.leaves[leaf].kill()
            reads = len(load.reads_at)
            await asyncio.sleep(1.5 * FAILURE_TIMEOUT_S)
            assert len(load.reads_at) > reads, "reads do not need the coordinator"
            assert not await leads_nothing(cluster, leaf)
        await until(lambda: leads_nothing(cluster, leaf), f"{leaf} leads nothing", 15.0)
        await load.progress(200)
        await cluster.mend()
    assert_no_errors(load)


@contextlib.contextmanager
def small_disk(folder: pathlib.Path, megabytes: int):
    """A tmpfs over a folder. Mounting needs rights that not every machine gives."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if subprocess.run(command, check=False, capture_output=True).returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(folder: pathlib.Path, *, leave: int) -> None:
    """Let others write until so many bytes of the disk are free."""
    with (folder / "ballast").open("ab") as ballast, contextlib.suppress(OSError):
        while leave == 0 or (free := os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize) > leave:
            ballast.write(bytes(1 << 20 if leave == 0 else min(1 << 20, free - leave)))
            ballast.flush()


async def test_a_full_disk_on_one_leaf(cluster: FaultyCluster) -> None:
    """Almost full, it leads no shard any more, for it would only refuse the writes. Filled to the brim by others: its replicas
    stop, leave the set, and the shards go on without them."""
    leaf = await cluster.primary(0)
    data = cluster.data_dir(leaf)
    async with running(cluster.address, seed=SEED, prefix="disk", timeout_s=20.0) as load:
        await asyncio.to_thread(cluster.leaves[leaf].stop)
        cluster.wipe(leaf)
        with small_disk(data, 160):
            await cluster.mend()
            await until(lambda: leads_some(cluster, leaf), f"{leaf} leads a shard again", 20.0)
            await load.progress(200)
            fill(data, leave=8 << 20)
            await until(lambda: leads_nothing(cluster, leaf), f"{leaf}, almost full, leads nothing")
            await load.progress(200)
            fill(data, leave=0)
            await until(lambda: is_out_of_sync(cluster, leaf), f"{leaf} is out of every set", 20.0)
            await load.progress(200)
            cluster.leaves[leaf].kill()
        await cluster.mend()
        await load.progress(100)
    # A primary that sees its disk almost full refuses writes before the disk does.
    assert all(error.endswith("RESOURCE_EXHAUSTED") for error in load.errors), repr(load)
