"""Faults in a real cluster, through the router: by the client and by the command line."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest
from harness.cluster import UpProcess

from kvshard import Client
from kvshard.errors import LeafNotFound

KEYS = [f"fault:{number}" for number in range(64)]


@pytest.fixture
async def kv(shared_cluster: UpProcess) -> AsyncIterator[Client]:
    async with Client(shared_cluster.address, timeout=10.0) as client:
        await client.put_many({key: key.encode() for key in KEYS})
        try:
            yield client
        finally:
            await client.clear_faults()


async def test_a_paused_leaf_is_out_for_readers_and_in_for_writers(kv: Client) -> None:
    cluster_map = await kv.map()
    before = cluster_map.shards
    injected = await kv.inject_fault("pause", leaves=["leaf-2"], duration=30.0)
    assert [(each.leaf, each.fault.kind, each.hits) for each in injected] == [("leaf-2", "pause", 1)]
    status = await kv.status()
    assert {leaf.leaf.id: leaf.is_up for leaf in status.leaves} == {"leaf-1": True, "leaf-2": False, "leaf-3": True}
    found = await kv.get_many(KEYS)
    assert [item.value for item in found if item] == [key.encode() for key in KEYS]
    led_by_others = [key for key in KEYS if before[cluster_map.shard_of_key(key.encode())].primary != "leaf-2"]
    written = await kv.put_many(dict.fromkeys(led_by_others, b"during"))  # Every one with leaf-2's acknowledgement.
    assert all(isinstance(result, int) for result in written.values())
    assert len(written) == len(led_by_others) > 16
    listed = await kv.list_faults()
    assert [(each.leaf, each.fault.id) for each in listed.faults] == [("leaf-2", injected[0].fault.id)]
    assert (await kv.clear_faults(ids=[injected[0].fault.id])).cleared == 1
    assert all(leaf.is_up for leaf in (await kv.status()).leaves)
    after = (await kv.map()).shards
    assert {id: shard.epoch for id, shard in after.items()} == {id: shard.epoch for id, shard in before.items()}


async def test_a_fault_ends_by_itself(kv: Client) -> None:
    await kv.inject_fault("pause", leaves=["leaf-1"], duration=0.5)
    async with asyncio.timeout(10.0):
        while (await kv.list_faults()).faults:
            await asyncio.sleep(0.02)
    assert all(leaf.is_up for leaf in (await kv.status()).leaves)


async def test_reads_survive_a_leaf_that_fails_them(kv: Client) -> None:
    await kv.inject_fault("error", leaves=["leaf-3"], methods=["read", "scan"])
    found = await kv.get_many(KEYS * 4)
    assert [item.value for item in found if item] == [key.encode() for key in KEYS * 4]
    assert len([item async for item in kv.scan(prefix="fault:")]) == len(KEYS)
    (fault,) = (await kv.list_faults()).faults
    assert fault.hits > 0


async def test_unknown_leaves_are_refused(kv: Client) -> None:
    with pytest.raises(LeafNotFound):
        await kv.inject_fault("drop", leaves=["leaf-1", "leaf-77"])
    assert not (await kv.list_faults()).faults


def test_the_command_line(shared_cluster: UpProcess) -> None:
    def kvshard(*argv: str) -> str:
        command = [sys.executable, "-m", "kvshard.cli", "fault", *argv, "--router", shared_cluster.address]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=30.0).stdout

    assert "10 times as long" in kvshard("slow", "--leaf", "leaf-3", "--share", "5%", "--for", "20")
    assert "leaf-3" in kvshard("list")
    assert kvshard("clear") == "1 fault ended\n"
