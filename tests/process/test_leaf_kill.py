"""A real leaf process that is killed in the middle of writes, or runs out of disk: no acknowledged write is lost or torn."""

import asyncio
import contextlib
import os
import pathlib
import shutil
import signal
import subprocess

import pytest
from harness.leaf import LEAF, LeafCaller, LeafProcess, bootstrap, leaf_caller

from kvshard.errors import KvShardError, ResourceExhausted, StorageFailed
from kvshard.model import ShardRead, ShardWrite
from kvshard.supervision import EXIT_DONE

SHARDS = 4
KEYS_A_BATCH = 50


async def write_until_dead(
    caller: LeafCaller, shard: int, writer: int, acknowledged: dict[int, int], value_size: int
) -> KvShardError:
    """Write batches, all keys of one with its number, until a write fails. acknowledged: writer -> its last number."""
    number = acknowledged.get(writer, 0)
    keys = [b"w%d:%d" % (writer, n) for n in range(KEYS_A_BATCH)]
    while True:
        number += 1
        value = b"%d:" % number + os.urandom(value_size)
        try:
            request = ShardWrite(shard, caller.epoch(shard), 1, keys, [value] * KEYS_A_BATCH)
            reply = (await caller.client.write(LEAF, request, caller.deadline(5.0))).reply
        except KvShardError as error:
            return error
        assert not reply.errors
        acknowledged[writer] = number


async def check(caller: LeafCaller, acknowledged: dict[int, int]) -> None:
    """Every writer's keys carry one number, the acknowledged one or (sent, not answered) the next."""
    for writer, number in acknowledged.items():
        shard = writer % SHARDS
        keys = [b"w%d:%d" % (writer, n) for n in range(KEYS_A_BATCH)]
        reply = (await caller.client.read(LEAF, ShardRead(shard, caller.epoch(shard), 1, keys), caller.deadline())).reply
        assert len(set(reply.values)) == 1, f"writer {writer}: half of a batch is there"
        assert reply.values[0] is not None, f"writer {writer}: lost"
        assert int(reply.values[0].split(b":")[0]) in (number, number + 1)
        assert len(set(reply.versions)) == 1


async def test_kill_9_during_writes(tmp_path: pathlib.Path) -> None:
    await bootstrap(tmp_path, SHARDS)
    acknowledged: dict[int, int] = {}
    for round_number in range(3):
        leaf = LeafProcess(tmp_path)
        try:
            await leaf.wait_ready()
            async with leaf_caller(tmp_path) as caller:
                await check(caller, acknowledged)
                writers = [
                    asyncio.create_task(write_until_dead(caller, writer % SHARDS, writer, acknowledged, 200))
                    for writer in range(8)
                ]
                goal = sum(acknowledged.values()) + 200 + 37 * round_number
                while sum(acknowledged.values()) < goal:
                    await asyncio.sleep(0.01)
                leaf.kill()
                await asyncio.gather(*writers)
        finally:
            leaf.stop()
    leaf = LeafProcess(tmp_path)
    try:
        await leaf.wait_ready()
        async with leaf_caller(tmp_path) as caller:
            await check(caller, acknowledged)
    finally:
        assert leaf.stop() == 0


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_a_graceful_stop(tmp_path: pathlib.Path, signal_number: int) -> None:
    await bootstrap(tmp_path, SHARDS)
    leaf = LeafProcess(tmp_path)
    try:
        await leaf.wait_ready()
        async with leaf_caller(tmp_path) as caller:
            acknowledged: dict[int, int] = {}
            writer = asyncio.create_task(write_until_dead(caller, 0, 0, acknowledged, 100))
            while not acknowledged:
                await asyncio.sleep(0.01)
            assert await asyncio.to_thread(leaf.stop, signal_number) == 0
            await writer
    finally:
        leaf.stop()
    assert "Traceback" not in leaf.errors.read_text()


async def test_a_leaf_that_cannot_start_says_why(tmp_path: pathlib.Path) -> None:
    (tmp_path / LEAF).write_text("a file where the folder should be")
    leaf = LeafProcess(tmp_path)
    assert await asyncio.to_thread(leaf.process.wait, 10.0) == 3
    leaf.stop()
    text = leaf.errors.read_text()
    assert text.startswith("leaf leaf-1: ")
    assert "Traceback" not in text


@pytest.fixture
def small_disk(tmp_path: pathlib.Path):
    """A tmpfs of 128 MB. Mounting needs rights that not every machine gives; the faulty engine covers the rest there."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128m", "tmpfs", folder], check=False, capture_output=True)
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


async def test_a_full_disk_refuses_writes_and_recovers_by_itself(small_disk: pathlib.Path, tmp_path: pathlib.Path) -> None:
    await bootstrap(small_disk, SHARDS)
    acknowledged: dict[int, int] = {}
    ballast = small_disk / "ballast"
    leaf = LeafProcess(small_disk)
    try:
        await leaf.wait_ready()
        async with leaf_caller(small_disk) as caller:
            await write_a_little(caller, acknowledged)
            ballast.write_bytes(bytes(60 * 1024 * 1024))
            refusal = await write_until_dead(caller, 1, 1, acknowledged, 20_000)
            assert isinstance(refusal, ResourceExhausted), refusal
            assert "disk almost full" in refusal.message
            await check(caller, acknowledged)
            ballast.unlink()
            deadline = caller.deadline(10.0)
            while True:
                with contextlib.suppress(ResourceExhausted):
                    await write_a_little(caller, acknowledged)
                    break
                assert caller.clock.monotonic() < deadline
                await asyncio.sleep(0.2)
            await check(caller, acknowledged)
    finally:
        assert leaf.stop() == 0


async def test_a_disk_that_others_fill_to_the_brim_stops_the_replicas_and_loses_nothing(small_disk: pathlib.Path) -> None:
    await bootstrap(small_disk, SHARDS)
    acknowledged: dict[int, int] = {}
    ballast = small_disk / "ballast"
    leaf = LeafProcess(small_disk)
    try:
        await leaf.wait_ready()
        async with leaf_caller(small_disk) as caller:
            await write_a_little(caller, acknowledged)
            with ballast.open("wb") as file, contextlib.suppress(OSError):
                while True:
                    file.write(bytes(1024 * 1024))
            refusal = await write_until_dead(caller, 1, 1, acknowledged, 20_000)
            assert isinstance(refusal, ResourceExhausted | StorageFailed), refusal
            await check(caller, acknowledged)
    finally:
        leaf.kill()
        leaf.stop()
    ballast.unlink()
    leaf = LeafProcess(small_disk)
    try:
        await leaf.wait_ready()
        async with leaf_caller(small_disk) as caller:
            await check(caller, acknowledged)
            await write_a_little(caller, acknowledged)
    finally:
        assert leaf.stop() == 0


async def write_a_little(caller: LeafCaller, acknowledged: dict[int, int]) -> None:
    """One batch of writer 0."""
    number = acknowledged.get(0, 0) + 1
    keys = [b"w0:%d" % n for n in range(KEYS_A_BATCH)]
    request = ShardWrite(0, caller.epoch(0), 1, keys, [b"%d:" % number] * KEYS_A_BATCH)
    await caller.client.write(LEAF, request, caller.deadline())
    acknowledged[0] = number


async def test_of_two_processes_that_serve_as_one_leaf_the_older_stops(tmp_path: pathlib.Path) -> None:
    """A copy of the data directory has the identity of each replica, so that both would lead in one epoch."""
    await bootstrap(tmp_path, SHARDS)
    leaf = LeafProcess(tmp_path)
    await leaf.wait_ready()
    leaf.stop()
    copy = tmp_path / "copy"
    shutil.copytree(tmp_path / LEAF, copy)
    older = LeafProcess(tmp_path)
    newer = None
    try:
        await older.wait_ready()
        newer = LeafProcess(tmp_path, "--data-dir", str(copy))
        await newer.wait_ready()
        assert await asyncio.to_thread(older.process.wait, 10) == EXIT_DONE
        assert "another process serves as this leaf" in older.errors.read_text()
        assert newer.process.poll() is None
    finally:
        older.stop()
        if newer is not None:
            newer.stop()
