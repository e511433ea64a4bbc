"""The balancer with real processes: a leaf joins, dies, comes back, is drained and removed, while clients write and read.

One cluster for all tests, which build on each other: three leaves under `kvshard up`, and leaf-4, which joins.
"""

import asyncio
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

import pytest
from harness.cluster import UpProcess, is_alive, running_cluster

import kvshard
from kvshard import Client
from kvshard.client.status import ClusterStatus
from kvshard.supervision import EXIT_DONE

TIMES = ("--heal-after", "2")
SHARDS = 4
WAIT_S = 25.0
"""For what takes a few seconds: other tests may hold the cores."""


class Cluster:
    """The cluster of this file. values: what was acknowledged."""

    def __init__(self, up: UpProcess, folder: pathlib.Path) -> None:
        self.up = up
        self.folder = folder
        self.values: dict[str, bytes] = {}
        self.fourth: subprocess.Popen[str] | None = None

    def start_fourth(self, *flags: str) -> None:
        """Run leaf-4 as somebody on another machine would."""
        command = [sys.executable, "-m", "kvshard.cli", "leaf", "run", "--id", "leaf-4", *flags, *TIMES]
        command += [
            "--coordinator",
            f"sqlite://{self.up.data_dir / 'coordinator.db'}",
            "--data-dir",
            str(self.folder / "leaf-4"),
        ]
        with (self.folder / "leaf-4.err").open("ab") as errors:
            self.fourth = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert self.fourth.stdout is not None
        assert self.fourth.stdout.readline().startswith("ready: "), (self.folder / "leaf-4.err").read_text()

    def end_fourth(self, signal_number: int) -> int:
        assert self.fourth is not None
        self.fourth.send_signal(signal_number)
        code = self.fourth.wait(10.0)
        self.close_fourth()
        return code

    def close_fourth(self) -> None:
        if self.fourth is not None and self.fourth.stdout is not None:
            self.fourth.stdout.close()

    async def cli(self, *argv: str) -> tuple[int, str]:
        """Run a verb; its exit code, and what it said."""
        command = [sys.executable, "-m", "kvshard.cli", *argv, "--router", self.up.address]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("balancer")
    with running_cluster(folder / "data", ("--shards", str(SHARDS), *TIMES)) as up:
        made = Cluster(up, folder)
        try:
            yield made
        finally:
            if made.fourth is not None and made.fourth.poll() is None:
                made.end_fourth(signal.SIGKILL)
            made.close_fourth()


class Traffic:
    """Writers and readers in the background. errors: what a caller saw. longest_s: of all writes."""

    def __init__(self, kv: Client, cluster: Cluster) -> None:
        self.kv = kv
        self.values = cluster.values
        self.errors: list[str] = []
        self.longest_s = 0.0
        self.writes = 0
        self.is_over = False

    async def write(self, writer: int) -> None:
        while not self.is_over:
            key, value = f"t{writer}:{self.writes % 400}", os.urandom(40)
            began = time.monotonic()
            try:
                await self.kv.put(key, value)
            except kvshard.KvShardError as error:
                self.errors.append(f"put: {error!r}")
            else:
                self.values[key] = value
            self.longest_s = max(self.longest_s, time.monotonic() - began)
            self.writes += 1
            await asyncio.sleep(0.005)

    async def read(self) -> None:
        while not self.is_over:
            keys = list(self.values)[:: max(1, len(self.values) // 50)]
            before = {key: self.values[key] for key in keys}
            try:
                items = await self.kv.get_many(keys)
            except kvshard.KvShardError as error:
                self.errors.append(f"get: {error!r}")
                continue
            for key, item in zip(keys, items, strict=True):
                if not isinstance(item, kvshard.Item):
                    self.errors.append(f"get {key}: {item!r}")
                elif key.startswith("k") and item.value != before[key]:
                    self.errors.append(f"get {key}: another value")
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def traffic(cluster: Cluster) -> AsyncIterator[Traffic]:
    """Clients that write and read as long as the block lasts; at its end every acknowledged value is there."""
    async with Client(cluster.up.address, timeout=10.0) as kv:
        made = Traffic(kv, cluster)
        tasks = [asyncio.create_task(made.write(writer)) for writer in range(3)] + [asyncio.create_task(made.read())]
        try:
            yield made
        finally:
            made.is_over = True
            await asyncio.gather(*tasks)
        keys = list(cluster.values)
        items = await kv.get_many(keys, timeout=20.0)
        lost = [key for key, item in zip(keys, items, strict=True) if getattr(item, "value", None) != cluster.values[key]]
        assert not lost, f"{len(lost)} of {len(keys)} acknowledged writes lost"


async def until(kv: Client, is_so: Callable[[ClusterStatus], bool], what: str) -> ClusterStatus:
    """Poll the status until something is so."""
    deadline = time.monotonic() + WAIT_S
    while True:
        with contextlib.suppress(kvshard.KvShardError):
            found = await kv.status()
            if is_so(found):
                return found
        assert time.monotonic() < deadline, f"after {WAIT_S:g} s still not: {what}; {found.map.shards}"
        await asyncio.sleep(0.05)


def replicas_on(found: ClusterStatus, leaf: str) -> set[int]:
    """Shards that have a replica in sync on a leaf."""
    return {shard.id for shard in found.map.shards.values() if any(each.leaf == leaf for each in shard.in_sync)}


def held_by(found: ClusterStatus, leaf: str) -> set[int]:
    """Shards of which a leaf says that it has a replica."""
    return {replica.shard for each in found.leaves if each.leaf.id == leaf for replica in each.replicas}


def is_settled(found: ClusterStatus) -> bool:
    return all(
        {each.leaf for each in shard.in_sync} == set(shard.desired) and not shard.learners and shard.primary == shard.desired[0]
        for shard in found.map.shards.values()
    )


async def test_a_leaf_joins_and_data_flows_to_it(cluster: Cluster) -> None:
    async with traffic(cluster) as load:
        values = {f"k{n}": os.urandom(100) for n in range(3_000)}
        (await load.kv.put_many(values)).raise_for_failures()
        cluster.values |= values
        await asyncio.to_thread(cluster.start_fourth, "--join")
        found = await until(load.kv, lambda s: is_settled(s) and len(replicas_on(s, "leaf-4")) == 3, "leaf-4 has its share")
        held = next(leaf for leaf in found.leaves if leaf.leaf.id == "leaf-4").replicas
        assert sum(count.documents for replica in held for count in replica.collections) > 1_500
        await until(load.kv, lambda s: all(held_by(s, leaf) == replicas_on(s, leaf) for leaf in s.map.leaves), "the rest wiped")
    assert load.errors == []


async def test_moving_a_primary_disturbs_nobody(cluster: Cluster) -> None:
    async with traffic(cluster) as load:
        shard = (await load.kv.map()).shards[0]
        order = (shard.desired[1], shard.desired[0], shard.desired[2])
        argv = ("--primary", shard.desired[1], "--wait", "--max-wait", "20")
        assert await cluster.cli("shard", "move", "0", *argv) == (
            0,
            f"shard 0 is on {', '.join(order)}; the first orders the writes\n",
        )
        moved = (await load.kv.map()).shards[0]
        assert moved.primary == shard.desired[1]
        (spare,) = {"leaf-1", "leaf-2", "leaf-3", "leaf-4"} - set(moved.desired)
        argv = ("--from", moved.primary, "--to", spare, "--wait", "--max-wait", "20")
        code, said = await cluster.cli("shard", "move", "0", *argv)
        assert code == 0, said
        assert (await load.kv.map()).shards[0].primary == spare
        await asyncio.sleep(1.5)
        after = await load.kv.status()
        assert after.map.shards[0].desired[0] == spare, "the balancer does not move it back"
        assert moved.primary not in {each.leaf for each in after.map.shards[0].in_sync}
    assert load.errors == []


async def test_a_dead_leaf_is_healed_after_the_grace_and_gets_its_share_when_it_is_back(cluster: Cluster) -> None:
    async with traffic(cluster) as load:
        began = time.monotonic()
        assert await asyncio.to_thread(cluster.end_fourth, signal.SIGKILL) == -signal.SIGKILL
        healed = await until(
            load.kv,
            lambda s: not replicas_on(s, "leaf-4") and all(len(x.in_sync) == 3 for x in s.map.shards.values()),
            "healed",
        )
        assert time.monotonic() - began > 2.0
        assert not any("leaf-4" in shard.desired for shard in healed.map.shards.values())
        await asyncio.to_thread(cluster.start_fourth)
        await until(load.kv, lambda s: is_settled(s) and len(replicas_on(s, "leaf-4")) >= 2, "leaf-4 has its share again")
    assert load.errors == []


async def test_a_leaf_stopped_in_order_leaves_no_gap_without_writes(cluster: Cluster) -> None:
    async with traffic(cluster) as load:
        await until(load.kv, is_settled, "every shard has all of its replicas")
        before = cluster.up.leaf_pid("leaf-2")
        os.kill(before, signal.SIGTERM)
        while is_alive(before):
            await asyncio.sleep(0.01)
        gone = await load.kv.map()
        assert not any(each.leaf == "leaf-2" for shard in gone.shards.values() for each in shard.in_sync), "nobody waits for it"
        await until(load.kv, lambda s: any("--id leaf-2 " in each for each in cluster.up.pids("leaf").values()), "back")
        await until(load.kv, lambda s: is_settled(s) and bool(replicas_on(s, "leaf-2")), "leaf-2 is back in its places")
        assert cluster.up.leaf_pid("leaf-2") != before
    assert load.errors == []


async def test_draining_and_removing_empties_a_leaf_and_ends_it(cluster: Cluster) -> None:
    async with traffic(cluster) as load:
        code, said = await cluster.cli("leaf", "remove", "leaf-4")
        assert (code, "still holds" in said) == (1, True)
        code, said = await cluster.cli("leaf", "drain", "leaf-4", "--wait", "--max-wait", "20")
        assert code == 0, said
        await until(load.kv, lambda s: held_by(s, "leaf-4") == set(), "leaf-4 has wiped what it held")
        assert await cluster.cli("leaf", "remove", "leaf-4") == (0, "leaf leaf-4 is removed\n")
        code, said = await cluster.cli("leaf", "remove", "leaf-4")
        assert (code, "no leaf 'leaf-4'" in said) == (1, True)
        assert cluster.fourth is not None
        assert await asyncio.to_thread(cluster.fourth.wait, 10.0) == EXIT_DONE
        found = await until(load.kv, lambda s: is_settled(s) and len(s.map.leaves) == 3, "three leaves are left")
        assert all(len(shard.in_sync) == 3 for shard in found.map.shards.values())
    assert load.errors == []
