"""The peers as stores and arms, as far as this machine has them: they have to be measured right to be measured against."""

import asyncio
from contextlib import AsyncExitStack

import pytest
from harness.etcd import EtcdServer

from benchmarks.fast_path.data import sample_data
from benchmarks.fast_path.peer_arms import RedisArms, best_single_gets, etcd_puts
from benchmarks.measured import Absent
from benchmarks.peers import etcd_client, redis_client
from benchmarks.peers.servers import Server, peers
from benchmarks.ycsb.stores import EtcdStore, RedisStore
from benchmarks.ycsb.workloads import RECORD_BYTES

RECORDS = {f"user{number:03d}": bytes([number]) * RECORD_BYTES for number in range(50)}


async def check_store(store):
    """It holds what was loaded, in the order of keys, and what is written later."""
    await store.load(RECORDS)
    assert await store.read("user007") == RECORDS["user007"]
    assert await store.read("nobody") is None
    await store.update("user007", b"updated")
    assert await store.read("user007") == b"updated"
    await store.insert("user0071", b"inserted")
    assert await store.scan("user007", 3) == [b"updated", b"inserted", RECORDS["user008"]]
    assert list(await store.scan("user048", 100)) == [RECORDS["user048"], RECORDS["user049"]]


async def test_etcd_as_a_store_and_as_an_arm(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.fast_path.peer_arms.ETCD_CALLERS", (2, 8))
    etcd = await asyncio.to_thread(EtcdServer, tmp_path)
    await asyncio.to_thread(etcd.start)
    try:
        server = Server("etcd", int(etcd.endpoint.rpartition(":")[2]), (etcd.process.pid,))
        async with etcd_client.connected(server) as client, AsyncExitStack() as stack:
            await check_store(EtcdStore(client))
            data = sample_data(100)
            monkeypatch.setattr("benchmarks.fast_path.peer_arms.SWEEP_S", 0.02)
            arm, sweep = await etcd_puts(server, data, stack)
            assert set(sweep) == {"2 callers", "8 callers"}
            assert (await arm.run(0.02)).operations > 0
            assert await client.get(b"key:000000000000") == data.value
    finally:
        await asyncio.to_thread(etcd.stop)


async def test_redis_alone_and_behind_twemproxy(tmp_path, monkeypatch):
    pytest.importorskip("redis", reason="measured with the bench extra: make bench installs it")
    monkeypatch.setattr("benchmarks.fast_path.peer_arms.POOL_SIZES", (2, 8))
    monkeypatch.setattr("benchmarks.fast_path.peer_arms.SWEEP_S", 0.02)
    with peers(tmp_path) as found:
        if isinstance(found.twemproxies, Absent):
            pytest.skip(found.twemproxies.why)
        for server in (found.redis, *found.twemproxies):
            usable = redis_client.usable(server, "redis")
            if isinstance(usable, Absent):
                pytest.skip(usable.why)
            data = sample_data(200)
            async with AsyncExitStack() as stack:
                arms = RedisArms("redis", usable, data, stack)
                await arms.load()
                single, sweep = await best_single_gets([arms], 16)
                assert [setting.split(",")[0] for setting in sweep] == ["2 connections", "8 connections"]
                assert (await single.run(0.02)).operations >= 16
                batch = await (await arms.batch_gets(100, 2)).run(0.02)
                assert batch.operations % 100 == 0 < batch.operations
                if not isinstance(found.redis_benchmark, Absent):
                    monkeypatch.setattr("benchmarks.peers.redis_benchmark.PROBE_REQUESTS", 50)
                    for size in (1, 100):
                        block = await arms.benchmark(found.redis_benchmark, size, 4).run(0.02)
                        assert block.operations >= 50 * size
        async with redis_client.connected(found.redis, 4) as client:
            await check_store(RedisStore(client))
