"""A direct client of a real cluster: beside slow leaves, dying ones, a router that stands still, and shards that are split."""

import asyncio
import os
import signal
from collections.abc import Iterator

import pytest
from harness.cluster import UpProcess, running_cluster
from harness.workload import running

from kvshard import Client, DirectStatus

READY_S = 10.0


@pytest.fixture(scope="module")
def sturdy_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UpProcess]:
    """A cluster whose processes the tests stop and kill; each leaves it as it was, or finds it so by waiting."""
    with running_cluster(tmp_path_factory.mktemp("direct") / "data") as up:
        yield up


async def opened(kv: Client[str]) -> DirectStatus:
    assert await kv.wait_direct(timeout=READY_S), kv.direct_status()
    return kv.direct_status()


async def test_operations_on_keys_go_to_the_leaves(shared_cluster: UpProcess) -> None:
    async with Client(shared_cluster.address, direct=True) as kv, Client(shared_cluster.address) as routed:
        before = await opened(kv)
        assert len(before.leaves) == 3
        names = [f"direct-{number:04d}" for number in range(1_500)]
        assert (await kv.put_many({name: name.encode() for name in names})).ok
        found = await kv.get_many(names)
        assert [item.value for item in found] == [name.encode() for name in names]
        assert found.coverage.complete
        singles = await asyncio.gather(*(kv.get(name) for name in names))
        assert [item.value for item in singles] == [name.encode() for name in names]
        version = await kv.put("direct-0000", b"again")
        assert await kv.delete("direct-0001")
        item = await routed.get("direct-0000")
        assert item is not None
        assert (item.value, item.version) == (b"again", version)
        keys = [item.key async for item in kv.scan(prefix="direct-")]
        assert keys == [name for name in names if name != "direct-0001"]
        item, timing = await kv.explain_get("direct-0000")
        assert timing.legs[0].leaf.startswith("leaf-")
        status = kv.direct_status()
        assert status.direct > before.direct
        assert status.detoured == before.detoured


async def test_a_scan_can_be_resumed_here_and_there(shared_cluster: UpProcess) -> None:
    async with Client(shared_cluster.address, direct=True) as kv, Client(shared_cluster.address) as routed:
        await opened(kv)
        names = [f"resumed-{number:04d}" for number in range(300)]
        assert (await kv.put_many(dict.fromkeys(names, b""))).ok
        clients = (kv, routed)
        taken: list[str] = []
        token: bytes | None = None
        while len(taken) < len(names):
            # Each part by the other client, from the token of the part before it.
            scan = clients[len(taken) // 50 % 2].scan(prefix="resumed-", resume=token)
            taken += [(await anext(scan)).key for _ in range(50)]
            token = scan.token
            await scan.aclose()
        assert taken == names


async def test_reads_beside_a_leaf_that_pauses(shared_cluster: UpProcess) -> None:
    async with Client(shared_cluster.address, direct=True) as kv:
        await opened(kv)
        names = [f"paused-{number:03d}" for number in range(64)]
        assert (await kv.put_many(dict.fromkeys(names, b"v"))).ok
        await kv.inject_fault("pause", leaves=["leaf-2"], probability=0.5, delay=0.1, duration=30.0)
        try:
            async with asyncio.timeout(20):
                # The same defences as a router's: what is late is asked elsewhere too.
                while (status := kv.direct_status()).tail is None or not status.tail.hedges_total:
                    assert all(item.value == b"v" for item in await kv.get_many(names))
            for _ in range(20):
                assert all(item.value == b"v" for item in await kv.get_many(names))
        finally:
            await kv.clear_faults()


async def test_leaves_die_and_hang_under_a_checked_history(sturdy_cluster: UpProcess) -> None:
    """Two direct clients and one that is not: their keys stay linearizable, and nothing that was acknowledged is lost."""
    async with running(sturdy_cluster.address, seed=5, prefix="died", direct=2) as load:
        await asyncio.gather(*(opened(kv) for kv in load.direct_clients))
        await load.progress(200)
        os.kill(sturdy_cluster.leaf_pid("leaf-1"), signal.SIGKILL)
        await load.progress(400)
        hung = sturdy_cluster.leaf_pid("leaf-2")
        os.kill(hung, signal.SIGSTOP)
        try:
            await load.progress(400)
        finally:
            os.kill(hung, signal.SIGCONT)
        # All of it goes to the leaves again, by itself.
        for kv in load.direct_clients:
            assert await kv.wait_direct(timeout=20.0), kv.direct_status()
        before = [kv.direct_status() for kv in load.direct_clients]
        await load.progress(200)
        after = [kv.direct_status() for kv in load.direct_clients]
    assert not load.errors, load
    assert all(now.direct > then.direct for then, now in zip(before, after, strict=True))


async def test_a_router_that_stands_still_is_not_needed(sturdy_cluster: UpProcess) -> None:
    async with Client(sturdy_cluster.address, direct=True) as kv:
        await opened(kv)
        await kv.put("key", b"before")
        (router,) = sturdy_cluster.pids("router")
        os.kill(router, signal.SIGSTOP)
        try:
            async with asyncio.timeout(5):
                await kv.put("key", b"meanwhile")
                item = await kv.get("key")
                names = [item.key async for item in kv.scan(prefix="key")]
        finally:
            os.kill(router, signal.SIGCONT)
        assert item is not None
        assert (item.value, names) == (b"meanwhile", ["key"])


async def test_shards_that_are_split_meanwhile(sturdy_cluster: UpProcess) -> None:
    async with Client(sturdy_cluster.address, direct=True) as kv:
        await opened(kv)
        names = [f"split-{number:04d}" for number in range(400)]
        before = len((await kv.map()).shards)
        wanted = await kv.split_shards()
        assert len(wanted) == before
        round_ = 0
        async with asyncio.timeout(30):
            while len((await kv.map()).shards) < 2 * before:
                round_ += 1
                assert (await kv.put_many({name: str(round_).encode() for name in names})).ok
                assert {int(item.value) for item in await kv.get_many(names)} == {round_}
        assert [item.key async for item in kv.scan(prefix="split-")] == names
        assert {int(item.value) for item in await kv.get_many(names)} == {round_}
