"""Two workers of a router in one process: one port for the clients, and what each says of the other."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass

import pytest
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard import Client
from kvshard.clock import SystemClock
from kvshard.errors import FailedPrecondition
from kvshard.router_workers import RouterWorkers
from kvshard.rpc.channel import aio_channel
from kvshard.telemetry import RouterMetrics
from kvshard.v1 import cluster_pb2, cluster_pb2_grpc, kv_pb2, kv_pb2_grpc
from kvshard.workers import WorkerPlace
from router.server import RouterServer


@dataclass
class Pair:
    """ports: those of the workers. servers: by number."""

    ports: RouterWorkers
    servers: dict[int, RouterServer]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    async with AsyncExitStack() as stack:
        ports = stack.enter_context(RouterWorkers("127.0.0.1:0", 2))
        servers = {}
        for number in (1, 2):
            maps, leaves = FakeMapSource(cluster_map(shards=4, leaves=2)), MemoryLeaves()
            place = WorkerPlace(number, ports.private, 9100 + number)
            metrics = RouterMetrics(CollectorRegistry())
            server = RouterServer(ports.address, maps, leaves.client, SystemClock(), metrics, worker=place)
            stack.push_async_callback(server.stop)
            await server.start("cluster")
            servers[number] = server
        for server in servers.values():
            await server.wait_serving()
        yield Pair(ports, servers)


async def test_both_have_the_shared_address_and_each_one_of_its_own(pair: Pair) -> None:
    assert {server.address for server in pair.servers.values()} == {pair.ports.address}
    for number, address in enumerate(pair.ports.private, start=1):
        async with aio_channel(address) as channel:
            answer = await cluster_pb2_grpc.ClusterStub(channel).GetWorkerStatus(cluster_pb2.GetWorkerStatusRequest())
        worker = answer.worker
        assert (worker.worker, worker.address, worker.metrics_port) == (f"router-{number}", address, 9100 + number)
        assert worker.pid
        assert worker.resident_bytes > 1_000_000
        assert worker.HasField("tail")


async def test_connections_are_spread(pair: Pair) -> None:
    """The kernel draws by the client's port: that 24 of them all fall to one is one chance in eight million."""
    for _ in range(24):
        async with aio_channel(pair.ports.address) as channel:
            await kv_pb2_grpc.KVStub(channel).Get(kv_pb2.GetRequest(key=b"k"))
    arrived = [server._calls.admission.arrived for server in pair.servers.values()]
    assert sum(arrived) == 24
    assert all(arrived)


async def test_whoever_is_asked_tells_of_both(pair: Pair) -> None:
    for address in (*pair.ports.private, pair.ports.address):
        async with Client(address) as kv:
            status = await kv.status()
        assert [(each.worker, each.address, each.is_up) for each in status.workers] == [
            ("router-1", pair.ports.private[0], True),
            ("router-2", pair.ports.private[1], True),
        ]
        assert set(status.tails) == {"router-1", "router-2"}


async def test_counts_are_the_workers_own(pair: Pair) -> None:
    async with Client(pair.ports.private[1]) as kv:
        for number in range(3):
            await kv.get(f"key-{number}")
        status = await kv.status()
    assert [each.calls_total for each in status.workers] == [0, 3]
    assert [tail.first_attempts for tail in status.tails.values()] == [0, 3]


async def test_slow_reads_of_both_are_merged_and_forgotten_together(pair: Pair) -> None:
    for number, address in enumerate(pair.ports.private, start=1):
        async with Client(address) as kv:
            await kv.get(f"key-{number}")
    async with Client(pair.ports.address) as kv:
        reads = await kv.slow_reads(method="Get")
        assert {(read.worker, read.detail) for read in reads} == {("router-1", "key 'key-1'"), ("router-2", "key 'key-2'")}
        assert [read.timing.total_us for read in reads] == sorted((read.timing.total_us for read in reads), reverse=True)
        assert reads.silent == ()
        assert len(await kv.slow_reads(1)) == 1
        assert len(await kv.slow_reads(reset=True)) == 2
        assert await kv.slow_reads() == []


async def test_one_that_does_not_answer_is_named(pair: Pair) -> None:
    await pair.servers[1].stop()
    async with Client(pair.ports.private[1]) as kv:
        await kv.get("k")
        status = await kv.status()
        reads = await kv.slow_reads()
    first, second = status.workers
    assert (first.worker, first.address, first.is_up, first.tail) == ("router-1", pair.ports.private[0], False, None)
    assert first.error
    assert second.is_up
    assert status.tail == second.tail
    assert (len(reads), reads.silent) == (1, ("router-1",))


async def test_each_probes_itself(pair: Pair) -> None:
    assert [server._arrivals._address for server in pair.servers.values()] == list(pair.ports.private)


async def test_the_ports_are_nobody_elses(pair: Pair) -> None:
    maps, leaves = FakeMapSource(cluster_map()), MemoryLeaves()
    for address in (pair.ports.address, *pair.ports.private):
        with pytest.raises(FailedPrecondition, match="in use"):
            RouterServer(address, maps, leaves.client, SystemClock(), RouterMetrics(CollectorRegistry()))


async def test_a_router_that_is_alone_tells_of_itself() -> None:
    maps, leaves = FakeMapSource(cluster_map()), MemoryLeaves()
    server = RouterServer("127.0.0.1:0", maps, leaves.client, SystemClock(), RouterMetrics(CollectorRegistry()))
    await server.start("cluster")
    try:
        async with Client(server.address) as kv:
            await kv.get("k")
            status = await kv.status()
            (read,) = await kv.slow_reads()
    finally:
        await server.stop()
    (worker,) = status.workers
    assert (worker.worker, worker.address, worker.metrics_port, worker.calls_total) == ("router", "", 0, 1)
    assert worker.tail == status.tail
    assert read.worker == "router"
