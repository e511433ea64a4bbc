"""A real leaf, on RocksDB and tantivy, asked over a real lane on a loopback port."""

import asyncio
import contextlib
import pathlib
import socket
import urllib.request

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from harness.leaf import LEAF, LeafCaller, bootstrap, coordinator_url, leaf_caller

from kvshard.errors import (
    CollectionNotFound,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    MalformedQuery,
    StaleEpoch,
)
from kvshard.model import LeafStatusRequest, ShardRead, ShardScan, ShardSearch, ShardWrite
from leaf.server import LeafOptions, open_engine, run


class Running:
    """A leaf that runs in this process."""

    def __init__(self, folder: pathlib.Path, address: str) -> None:
        self.folder = folder
        self.address = address


@contextlib.asynccontextmanager
async def running_leaf(folder: pathlib.Path, **fields: int):
    """Run a leaf until the block ends. fields: of its options."""
    stop, ready = asyncio.Event(), asyncio.get_running_loop().create_future()
    options = LeafOptions(LEAF, folder / LEAF, coordinator_url(folder), "127.0.0.1:0", **fields)
    running = asyncio.create_task(run(options, stop, ready.set_result))
    try:
        await asyncio.wait({running, ready}, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            running.result()
        yield Running(folder, await ready)
    finally:
        stop.set()
        await running


@pytest.fixture
async def leaf(tmp_path: pathlib.Path):
    await bootstrap(tmp_path)
    async with running_leaf(tmp_path) as running:
        yield running


@pytest.fixture
async def caller(leaf: Running):
    async with leaf_caller(leaf.folder) as made:
        yield made


def write_of(caller: LeafCaller, items: dict[bytes, bytes | None], shard: int = 0, collection_id: int = 1, **columns):
    return ShardWrite(shard, caller.epoch(shard), collection_id, list(items), list(items.values()), **columns)


async def test_write_read_scan(caller: LeafCaller) -> None:
    items: dict[bytes, bytes | None] = {b"k%03d" % n: b"v%d" % n for n in range(300)}
    written = await caller.client.write(LEAF, write_of(caller, items), caller.deadline())
    version = written.reply.versions[0]
    assert written.reply.versions == [version] * 300
    read = await caller.client.read(LEAF, ShardRead(0, caller.epoch(0), 1, [b"k007", b"none"]), caller.deadline())
    assert (read.reply.values, read.reply.versions, read.reply.documents) == ([b"v7", None], [version, 0], 300)
    scan = await caller.client.scan(LEAF, ShardScan(0, caller.epoch(0), 1, b"k1", b"k2", 1000), caller.deadline())
    assert scan.reply.keys == [b"k%03d" % n for n in range(100, 200)]
    conflict = await caller.client.write(LEAF, write_of(caller, {b"k000": b"x"}, conditions=[0]), caller.deadline())
    assert conflict.reply.errors[0].reason == "VERSION_CONFLICT"
    assert conflict.reply.errors[0].details.current_version == version


def cache_metrics(port: int) -> dict[str, float]:
    """What the leaf's metrics say of its cache."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        lines = [line.split() for line in page.read().decode().splitlines() if line.startswith("kvshard_leaf_cache_")]
    return {name.removeprefix("kvshard_leaf_cache_"): float(value) for name, value in lines}


@pytest.mark.parametrize("cache_bytes", [0, 1_000_000])
async def test_the_cache_has_the_size_that_was_asked_for_and_shows_what_it_does(
    tmp_path: pathlib.Path, cache_bytes: int
) -> None:
    await bootstrap(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    async with running_leaf(tmp_path, cache_bytes=cache_bytes, metrics_port=port), leaf_caller(tmp_path) as caller:
        await caller.client.write(LEAF, write_of(caller, {b"k": b"v"}), caller.deadline())
        for _ in range(3):
            read = await caller.client.read(LEAF, ShardRead(0, caller.epoch(0), 1, [b"k", b"none"]), caller.deadline())
            assert read.reply.values == [b"v", None]
        found = await asyncio.to_thread(cache_metrics, port)
    hits = 2 if cache_bytes else 0
    assert (found["limit_bytes"], found["hits_total"], found["misses_total"]) == (cache_bytes, hits, 6 - hits)
    assert (found["keys"], found["bytes"] > 0, found["turns_total"]) == (hits // 2, cache_bytes > 0, 0)


async def test_search_sees_writes_drops_and_expiry(caller: LeafCaller) -> None:
    docs = await caller.maps.create_collection("docs", {"title": "text", "year": "integer"})
    items: dict[bytes, bytes | None] = {b"d%d" % n: b'{"title": "tail latency %d", "year": %d}' % (n, n) for n in range(20)}
    await caller.client.write(LEAF, write_of(caller, items, collection_id=docs.id, wait_for_refresh=True), caller.deadline())

    async def search(query: str, refresh: bool = False) -> int:
        request = ShardSearch(0, caller.epoch(0), docs.id, query, [], 5, refresh=refresh)
        return (await caller.client.search(LEAF, request, caller.deadline())).reply.total

    assert await search("latency") == 20
    assert await search("year:[5 TO 9]") == 5
    await caller.client.write(LEAF, write_of(caller, {b"d5": None}, collection_id=docs.id), caller.deadline())
    assert await search("year:[5 TO 9]", refresh=True) == 4
    with pytest.raises(MalformedQuery):
        await search('title:"open')
    bad = await caller.client.write(
        LEAF, write_of(caller, {b"bad": b'{"year": "x"}'}, collection_id=docs.id), caller.deadline()
    )
    assert bad.reply.errors[0].details.field == "document.year"
    await caller.maps.drop_collection("docs")
    with pytest.raises(CollectionNotFound):
        for _ in range(500):  # The leaf hears of the drop by its watch.
            await search("latency")
            await asyncio.sleep(0.01)


async def test_refusals(caller: LeafCaller) -> None:
    with pytest.raises(StaleEpoch):
        await caller.client.read(LEAF, ShardRead(99, 1, 1, [b"k"]), caller.deadline())
    with pytest.raises(CollectionNotFound):
        await caller.client.write(LEAF, write_of(caller, {b"k": b"v"}, collection_id=9), caller.deadline())
    with pytest.raises(InvalidArgument):
        await caller.client.scan(LEAF, ShardScan(0, caller.epoch(0), 1, b"", None, 0), caller.deadline())
    with pytest.raises(DeadlineExceeded):
        await caller.client.read(LEAF, ShardRead(0, caller.epoch(0), 1, [b"k"]), caller.clock.monotonic() - 1)


async def test_status_health_and_reflection(leaf: Running, caller: LeafCaller) -> None:
    await caller.client.write(LEAF, write_of(caller, {b"k": b"value"}), caller.deadline())
    status = (await caller.client.status(LEAF, LeafStatusRequest(), caller.deadline())).reply
    assert [(replica.shard, replica.role) for replica in status.replicas] == [(n, "primary") for n in range(4)]
    assert (status.replicas[0].collections[0].documents, status.replicas[0].collections[0].bytes) == (1, 6)
    assert status.leaf == LEAF
    assert status.resident_bytes > 0
    async with grpc.aio.insecure_channel(leaf.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "kvshard.v1.Lanes"):
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        requests = [reflection_pb2.ServerReflectionRequest(list_services="")]
        names = [
            service.name
            async for answer in reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter(requests))
            for service in answer.list_services_response.service
        ]
        assert "kvshard.v1.Lanes" in names


async def test_a_restart_keeps_the_data_and_raises_the_epoch(tmp_path: pathlib.Path) -> None:
    await bootstrap(tmp_path)
    async with running_leaf(tmp_path), leaf_caller(tmp_path) as caller:
        docs = await caller.maps.create_collection("docs", {"title": "text"})
        epoch = caller.epoch(0)
        await caller.client.write(LEAF, write_of(caller, {b"k": b"v"}), caller.deadline())
        await caller.client.write(
            LEAF, write_of(caller, {b"d": b'{"title": "word"}'}, collection_id=docs.id), caller.deadline()
        )
    async with running_leaf(tmp_path), leaf_caller(tmp_path) as caller:
        assert caller.epoch(0) == epoch + 1
        read = await caller.client.read(LEAF, ShardRead(0, caller.epoch(0), 1, [b"k"]), caller.deadline())
        assert read.reply.values == [b"v"]
        request = ShardSearch(0, caller.epoch(0), docs.id, "word", [], 5, refresh=True)
        found = (await caller.client.search(LEAF, request, caller.deadline())).reply
        assert [hit.key for hit in found.hits] == [b"d"]


async def test_data_in_use_or_of_another_leaf_is_refused(leaf: Running, tmp_path: pathlib.Path) -> None:
    options = LeafOptions(LEAF, tmp_path / LEAF, "sqlite:///nowhere/c.db", "127.0.0.1:0")
    with pytest.raises(FailedPrecondition, match="another leaf"):
        open_engine(options)
    other = tmp_path / "other"
    open_engine(LeafOptions("leaf-7", other, "", "")).close()
    with pytest.raises(FailedPrecondition, match="leaf-7"):
        open_engine(LeafOptions("leaf-8", other, "", ""))
    open_engine(LeafOptions("leaf-7", other, "", "")).close()


async def test_data_of_one_cluster_is_not_served_under_another(tmp_path: pathlib.Path) -> None:
    await bootstrap(tmp_path)
    async with running_leaf(tmp_path), leaf_caller(tmp_path) as caller:
        await caller.client.write(LEAF, write_of(caller, {b"k": b"v"}), caller.deadline())
    (tmp_path / "coordinator.db").rename(tmp_path / "lost.db")
    await bootstrap(tmp_path)
    with pytest.raises(FailedPrecondition, match="of the cluster"):
        async with running_leaf(tmp_path):
            pass
    (tmp_path / "lost.db").rename(tmp_path / "coordinator.db")
    async with running_leaf(tmp_path), leaf_caller(tmp_path) as caller:
        read = await caller.client.read(LEAF, ShardRead(0, caller.epoch(0), 1, [b"k"]), caller.deadline())
        assert read.reply.values == [b"v"]
