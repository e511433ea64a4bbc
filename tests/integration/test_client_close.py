"""What a closed client leaves behind: no connection, at once, and not only when the garbage collector comes by."""

import asyncio
import gc
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest
from fakes.router_service import FakeRouter
from harness.cluster import UpProcess
from harness.connections import connections_by_port, open_sockets

from kvshard import Client, KvShardError

CLIENTS = 50
WAIT_S = 5.0
"""gRPC closes sockets in a thread of its own, soon after their last user has gone."""


@pytest.fixture
def no_collection() -> Iterator[None]:
    """Nothing is freed by the garbage collector while the test runs."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


async def remaining(ports: set[int]) -> int:
    """Connections of this process to these ports, when they are gone or the wait for that is over."""
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT_S
    while True:
        found = connections_by_port()
        count = sum(found[port] for port in ports)
        if not count or loop.time() > until:
            return count
        await asyncio.sleep(0.01)


async def use_lanes(kv: Client[str]) -> None:
    await kv.put("a", b"1")
    await asyncio.gather(*(kv.get("a") for _ in range(10)))
    await kv.get_many(["a"] * 200)


async def use_unary(kv: Client[str]) -> None:
    await kv.collections()


async def leave_a_scan(kv: Client[str]) -> None:
    await kv.put_many({f"k{number:03d}": b"v" for number in range(100)})
    async for _ in kv.scan():
        break


async def leave_a_call(kv: Client[str]) -> None:
    """One that was sent and is not answered."""
    calls = asyncio.gather(kv.get("stuck"), kv.get_many(["stuck"] * 200), return_exceptions=True)
    calls.add_done_callback(lambda _: None)
    await kv.put("a", b"1")


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize(
    ("use", "has_lanes"),
    [(use_lanes, True), (use_lanes, False), (use_unary, True), (leave_a_scan, True), (leave_a_call, True)],
)
async def test_fifty_clients_leave_no_connection(use: Callable[[Client[str]], Awaitable[None]], has_lanes: bool) -> None:
    with FakeRouter(has_lanes=has_lanes) as router:
        if use is leave_a_call:
            router.hold("Get")
            router.hold("BatchGet")
        async with Client(router.address) as kv:
            await use(kv)
            assert connections_by_port()[router.port], "this test can see connections"
        for _ in range(CLIENTS - 1):
            async with Client(router.address) as kv:
                await use(kv)
        assert await remaining({router.port}) == 0


@asynccontextmanager
async def deaf_listener() -> AsyncIterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=2 * CLIENTS) as listener:
        yield listener.getsockname()[1]


@pytest.mark.usefixtures("no_collection")
async def test_clients_that_were_closed_while_they_connected() -> None:
    async with deaf_listener() as port:
        for _ in range(CLIENTS):
            kv = Client(f"127.0.0.1:{port}")
            call = asyncio.create_task(kv.get("a"))
            while not connections_by_port()[port]:
                await asyncio.sleep(0.001)
            await kv.close()
            with suppress(KvShardError):
                await call
        del call, kv
        assert await remaining({port}) == 0


@pytest.mark.usefixtures("no_collection")
async def test_direct_clients_leave_no_connection(shared_cluster: UpProcess) -> None:
    """Neither to a router, nor to the leaves, nor what follows the map; over whatever their lanes run."""
    async with Client(shared_cluster.address) as kv:
        await kv.collections()  # gRPC has its own by now.
    assert await remaining({int(shared_cluster.address.rpartition(":")[2])}) == 0
    before = open_sockets()
    for number in range(10):
        async with Client(shared_cluster.address, direct=True) as kv:
            assert await kv.wait_direct(timeout=10.0)
            await kv.put(f"close-{number}", b"1")
            await kv.get_many([f"close-{number}"] * 300)
            async for _ in kv.scan(prefix="close-"):
                break
            assert len(open_sockets() - before) > 3
    assert await gone_but(before)


async def gone_but(kept: set[str]) -> bool:
    """Whether this process has no other sockets, or has none before the wait for it is over."""
    loop = asyncio.get_running_loop()
    until = loop.time() + WAIT_S
    while open_sockets() - kept:
        if loop.time() > until:
            return False
        await asyncio.sleep(0.01)
    return True
