"""Clusters whose map is in a real etcd, which stops and comes back while they serve."""

import asyncio
import contextlib
import pathlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator

import pytest
from harness.cluster import running_cluster
from harness.etcd import EtcdServer

from kvshard import Client
from kvshard.clock import SystemClock
from kvshard.clustermap import Leaf
from kvshard.coordination.base import Coordinator
from kvshard.coordination.connect import connect
from kvshard.coordination.mapstore import BootstrapPlan, bootstrap

LEAVES = ("leaf-1", "leaf-2")
WAIT_S = 30


@pytest.fixture
def etcd(tmp_path: pathlib.Path) -> Iterator[EtcdServer]:
    folder = tmp_path / "coordinator"
    folder.mkdir()
    server = EtcdServer(folder)
    try:
        yield server.start()
    finally:
        server.stop()


@contextlib.contextmanager
def process(folder: pathlib.Path, name: str, module: str, *flags: str) -> Iterator[subprocess.Popen[str]]:
    with (folder / f"{name}.err").open("ab") as errors:
        command = [sys.executable, "-m", module, *flags]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield child
        child.terminate()
        assert child.wait(10.0) == 0, (folder / f"{name}.err").read_text()[-3000:]
    finally:
        child.kill()
        child.wait()
        assert child.stdout is not None
        child.stdout.close()


async def address_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = await asyncio.wait_for(asyncio.to_thread(child.stdout.readline), WAIT_S)
    assert line.startswith("ready: "), line
    return line.split()[1]


@contextlib.asynccontextmanager
async def coordinator_at(url: str) -> AsyncIterator[Coordinator]:
    coordinator = connect(url, SystemClock())
    try:
        yield coordinator
    finally:
        await coordinator.close()


async def check_service(client: Client, label: str) -> None:
    """Writes, reads and a search, all new."""
    await client.put(f"{label}:one", b"1")
    results = await client.put_many({f"{label}:{number}": b"x" for number in range(50)})
    results.raise_for_failures()
    item = await client.get(f"{label}:one")
    assert item is not None
    assert item.value == b"1"
    texts = client.collection("texts")
    await texts.put(f"{label}", {"body": f"the words of {label}"})
    page = await texts.search(f"body:{label}", refresh=True)
    assert [hit.key for hit in page.hits] == [label]


async def test_a_cluster_serves_through_an_outage_of_etcd_and_follows_it_again(
    etcd: EtcdServer, tmp_path: pathlib.Path
) -> None:
    url = etcd.url("cluster")
    async with coordinator_at(url) as coordinator:
        assert await bootstrap(coordinator, BootstrapPlan(tuple(Leaf(leaf) for leaf in LEAVES), shards=4))
    with contextlib.ExitStack() as stack:
        children = []
        for leaf in LEAVES:
            flags = ("--id", leaf, "--data-dir", str(tmp_path / leaf), "--coordinator", url)
            children.append(stack.enter_context(process(tmp_path, leaf, "leaf", *flags)))
        router = stack.enter_context(process(tmp_path, "router", "router", "--listen", "127.0.0.1:0", "--coordinator", url))
        for child in children:
            await address_of(child)
        async with Client(await address_of(router), timeout=20.0) as client:
            await client.collection("texts").create({"body": "text"})
            await check_service(client, "before")
            etcd.stop()
            for label in ("during", "still"):
                await check_service(client, label)
                await asyncio.sleep(1.0)
            etcd.start()
            await client.collection("later").create({"body": "text"}, timeout=WAIT_S)
            later = client.collection("later")
            await later.put("k", {"body": "found"}, timeout=WAIT_S)
            page = await later.search("body:found", refresh=True, timeout=WAIT_S)
            assert [hit.key for hit in page.hits] == ["k"]
            await check_service(client, "after")


async def test_up_with_etcd_continues_its_cluster(etcd: EtcdServer, tmp_path: pathlib.Path) -> None:
    flags = ("--coordinator", etcd.url("up"), "--leaves", "2", "--shards", "4")
    for start in range(2):
        with running_cluster(tmp_path / "data", flags) as up:
            async with Client(up.address, timeout=20.0) as client:
                if start == 0:
                    await client.put("kept", b"1")
                item = await client.get("kept")
                assert item is not None
    assert not (tmp_path / "data" / "coordinator.db").exists()
