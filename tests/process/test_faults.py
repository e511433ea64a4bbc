"""What may break: leaves and routers that die, disks that fill up, folders that rot. No acknowledged write is ever lost."""

import asyncio
import contextlib
import json
import os
import pathlib
import shutil
import signal
import subprocess

import pytest
from harness.cluster import UpProcess, children_of, free_port, is_alive, running_cluster, wait_until

import kvshard
from kvshard import Client


async def stored(kv: Client, keys: list[str]) -> list[bytes | None]:
    items = await kv.get_many(keys, timeout=30.0)
    assert not [item for item in items if isinstance(item, kvshard.KvShardError)]
    return [item.value if isinstance(item, kvshard.Item) else None for item in items]


async def test_kill_9_of_a_leaf_during_a_load_loses_no_acknowledged_write(own_cluster: UpProcess) -> None:
    acknowledged: dict[str, bytes] = {}
    is_over = asyncio.Event()

    async def write(kv: Client, writer: int) -> None:
        batch = 0
        while not is_over.is_set():
            values = {f"{writer}:{batch}:{n}": os.urandom(200) for n in range(40)}
            with contextlib.suppress(kvshard.KvShardError):
                results = await kv.put_many(values, timeout=5.0)
                acknowledged.update({key: values[key] for key in values if isinstance(results[key], int)})
            batch += 1

    async with Client(own_cluster.address, timeout=10.0) as kv:
        writers = [asyncio.create_task(write(kv, writer)) for writer in range(4)]
        for leaf in ("leaf-1", "leaf-2", "leaf-3"):
            before, seen = own_cluster.leaf_pid(leaf), len(acknowledged)
            while len(acknowledged) < seen + 2_000:
                await asyncio.sleep(0.02)
            os.kill(before, signal.SIGKILL)
            while not own_cluster.leaf_pids(leaf) - {before}:
                await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)
        is_over.set()
        await asyncio.gather(*writers)
        keys = list(acknowledged)
        found: list[bytes | None] = []
        for first in range(0, len(keys), 5_000):
            found += await stored(kv, keys[first : first + 5_000])
        lost = [key for key, value in zip(keys, found, strict=True) if value != acknowledged[key]]
        assert not lost, f"{len(lost)} of {len(keys)} acknowledged writes lost or torn"


async def test_kill_9_of_the_router_is_survived_by_the_client(own_cluster: UpProcess) -> None:
    async with Client(own_cluster.address, timeout=15.0) as kv:
        await kv.put("k", b"v")
        (router,) = own_cluster.pids("router")
        os.kill(router, signal.SIGKILL)
        item = await kv.get("k")
        assert item is not None
        assert item.value == b"v"
        assert router not in own_cluster.pids("router")


async def test_a_dead_leaf_fails_or_shortens_the_answer_as_asked(tmp_path: pathlib.Path) -> None:
    """Where nobody else has its shards."""
    with running_cluster(tmp_path / "data", ("--replicas", "1")) as up:
        async with Client(up.address, timeout=20.0) as kv:
            docs = kv.collection("docs")
            await docs.create(schema={"body": "text"})
            (await docs.put_many({f"d{n}": {"body": "words"} for n in range(400)})).raise_for_failures()
            assert (await docs.search("words", refresh=True)).total == 400
            # A stopped process keeps its connections: the hard case, seen only by the deadline.
            os.kill(up.leaf_pid("leaf-2"), signal.SIGSTOP)
            try:
                with pytest.raises((kvshard.Unavailable, kvshard.DeadlineExceeded)) as caught:
                    await docs.search("words", timeout=1.0)
                assert caught.value.details.shards
                page = await docs.search("words", timeout=1.0, on_shortfall="partial")
                assert not page.complete
                assert 0 < page.total < 400
                assert page.coverage.documents_considered == page.total
                assert page.coverage.documents_total == 400
                assert page.coverage.legs == 8 == page.coverage.legs_ok + len(page.coverage.failed)
                assert {failed.shard for failed in page.coverage.failed} == set(caught.value.details.shards)
            finally:
                os.kill(up.leaf_pid("leaf-2"), signal.SIGCONT)
            page = await docs.search("words")
            assert page.complete
            assert page.total == 400


async def test_damaged_and_lost_indexes_are_rebuilt(tmp_path: pathlib.Path) -> None:
    data = tmp_path / "data"
    with running_cluster(data) as up:
        async with Client(up.address, timeout=20.0) as kv:
            docs = kv.collection("docs")
            await docs.create(schema={"body": "text"})
            (await docs.put_many({f"d{n}": {"body": f"words {n}"} for n in range(300)})).raise_for_failures()
            assert (await docs.search("words", refresh=True)).total == 300
    metas = sorted(data.glob("leaf-*/index/**/meta.json"))
    assert len(metas) >= 6
    for number, meta in enumerate(metas):
        if number % 3 == 0:
            shutil.rmtree(meta.parent)
        elif number % 3 == 1:
            meta.write_text("{ rotten")
        else:
            for file in meta.parent.iterdir():
                if file.is_file() and file.suffix != ".json":
                    file.write_bytes(os.urandom(64))
    with running_cluster(data) as up:
        async with Client(up.address, timeout=30.0) as kv:
            page = await kv.collection("docs").search("words", refresh=True, timeout=30.0)
            assert page.total == 300
            assert page.complete


def run_up(data: pathlib.Path, port: int, *extra: str) -> subprocess.CompletedProcess[str]:
    up = UpProcess(data, port, extra)
    code = up.process.wait(20.0)
    assert up.process.stdout is not None
    with up.process.stdout as out:
        return subprocess.CompletedProcess((), code, out.read(), up.errors.read_text())


def test_two_up_on_one_data_directory(own_cluster: UpProcess) -> None:
    second = run_up(own_cluster.data_dir, free_port())
    assert second.returncode == 3
    assert "in use" in second.stderr
    assert str(own_cluster.process.pid) in second.stderr
    assert "Traceback" not in second.stderr


def test_a_port_in_use(own_cluster: UpProcess, tmp_path: pathlib.Path) -> None:
    second = run_up(tmp_path / "other", own_cluster.port)
    assert second.returncode == 3
    assert str(own_cluster.port) in second.stderr
    assert "Traceback" not in second.stderr


def test_more_replicas_than_leaves_are_refused_clearly(tmp_path: pathlib.Path) -> None:
    refused = run_up(tmp_path / "data", free_port(), "--leaves", "2", "--replicas", "3")
    assert refused.returncode == 2
    assert "--replicas must be between 1 and 2" in refused.stderr


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=["ctrl-c", "term", "kill"])
def test_no_orphans(tmp_path: pathlib.Path, signal_number: int) -> None:
    up = UpProcess(tmp_path / "data").wait_ready()
    family = children_of(up.process.pid)
    assert len(family) == 4
    os.kill(next(iter(up.pids("leaf"))), signal.SIGSTOP)
    code = up.stop(signal_number)
    assert code == (-signal.SIGKILL if signal_number == signal.SIGKILL else 0)
    wait_until(lambda: not any(is_alive(pid) for pid in family), 5.0, "all children gone")


async def test_up_continues_an_existing_data_directory(tmp_path: pathlib.Path) -> None:
    data = tmp_path / "data"
    for generation in range(3):
        with running_cluster(data, ("--leaves", "2", "--shards", "5") if not generation else ()) as up:
            async with Client(up.address, timeout=20.0) as kv:
                assert await stored(kv, [f"g{n}" for n in range(generation)]) == [b"%d" % n for n in range(generation)]
                await kv.put(f"g{generation}", b"%d" % generation)
                assert len((await kv.status()).leaves) == 2


@pytest.fixture
def small_disk(tmp_path: pathlib.Path):
    """A tmpfs of 160 MB. Mounting needs rights that not every machine gives; the unit tests cover the rest there."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=160m", "tmpfs", folder], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_refuses_writes_and_loses_none(small_disk: pathlib.Path) -> None:
    acknowledged: dict[str, bytes] = {}
    with running_cluster(small_disk / "data", ("--leaves", "1", "--shards", "2")) as up:
        async with Client(up.address, timeout=5.0) as kv:
            refusal: kvshard.KvShardError | None = None
            for batch in range(400):
                values = {f"{batch}:{n}": os.urandom(100_000) for n in range(10)}
                try:
                    results = await kv.put_many(values, timeout=3.0)
                except kvshard.KvShardError as error:
                    refusal = error
                    break
                acknowledged.update({key: values[key] for key in values if isinstance(results[key], int)})
                if results.failures:
                    refusal = next(iter(results.failures.values()))
                    break
            assert isinstance(refusal, kvshard.ResourceExhausted | kvshard.Unavailable), refusal
            assert "disk" in str(refusal) or "storage" in str(refusal), refusal
            keys = list(acknowledged)
            for first in range(0, len(keys), 100):
                chosen = keys[first : first + 100]
                assert await stored(kv, chosen) == [acknowledged[key] for key in chosen]
    with running_cluster(small_disk / "data") as up:
        async with Client(up.address, timeout=20.0) as kv:
            for first in range(0, len(keys), 100):
                chosen = keys[first : first + 100]
                assert await stored(kv, chosen) == [acknowledged[key] for key in chosen]


def test_status_tells_a_dead_leaf_from_a_living_one(own_cluster: UpProcess) -> None:
    import sys

    pid = own_cluster.leaf_pid("leaf-1")
    os.kill(pid, signal.SIGSTOP)
    try:
        shown = subprocess.run(
            [sys.executable, "-m", "kvshard.cli", "status", "--json", "--router", own_cluster.address],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
        )
    finally:
        os.kill(pid, signal.SIGCONT)
    leaves = {leaf["id"]: leaf["is_up"] for leaf in json.loads(shown.stdout)["leaves"]}
    assert leaves == {"leaf-1": False, "leaf-2": True, "leaf-3": True}
