"""Real processes that hang, stall and vanish: what a caller of reads sees of it is short and honest."""

import asyncio
import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from benchmarks.fleet import Fleet
from kvshard import Client
from kvshard.errors import DeadlineExceeded, KvShardError, Unavailable

KEYS = [f"tail:{number}" for number in range(64)]
VALUES = [key.encode() for key in KEYS]
DOCUMENTS = 20
LEAVES = 3
HEAL_S = 30.0

PATIENCE_S = 10.0
"""Of a caller. Whoever waits for a hung leaf until the deadline takes that long."""

SHORT_S = 3.0
"""Far beyond what a hedge costs on a loaded machine, and far below PATIENCE_S."""


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    """One cluster for all tests; each leaves it whole."""
    folder = tmp_path_factory.mktemp("tail")
    async with Fleet(folder, leaves=LEAVES, shards=4, replicas=3, leaf_arguments=("--allow-faults",)) as fleet:
        async with Client(fleet.address, timeout=PATIENCE_S) as client:
            await client.put_many(dict(zip(KEYS, VALUES, strict=True)))
            docs = client.collection("docs")
            await docs.create(schema={"title": "text"})
            await docs.put_many({f"d{number}": {"title": f"tail number {number}"} for number in range(DOCUMENTS)}, refresh=True)
        yield fleet


@pytest_asyncio.fixture(loop_scope="module")
async def kv(fleet: Fleet) -> AsyncIterator[Client]:
    async with Client(fleet.address, timeout=PATIENCE_S) as client:
        await fleet.wait_whole(HEAL_S)
        for _ in range(40):  # So that the router knows how long a read takes.
            await client.get_many(KEYS)
            await client.collection("docs").search("tail", limit=3)
        try:
            yield client
        finally:
            for leaf in fleet.leaves.values():
                if leaf.is_running:
                    leaf.send(signal.SIGCONT)
                else:
                    leaf.start()
                    await leaf.wait_ready()
            await client.clear_faults()


async def slowest(calls: int, call) -> float:
    """Make so many calls one after the other; the longest time one of them took."""
    times = []
    for _ in range(calls):
        began = time.monotonic()
        await call()
        times.append(time.monotonic() - began)
    return max(times)


async def test_a_leaf_that_stops_in_the_middle_of_reads_and_searches(fleet: Fleet, kv: Client) -> None:
    async def reads() -> None:
        assert [item.value for item in await kv.get_many(KEYS) if item] == VALUES

    async def searches() -> None:
        page = await kv.collection("docs").search("tail", limit=3)
        assert page.complete
        assert page.total == DOCUMENTS

    async def stop_and_go() -> None:
        for name in ("leaf-2", "leaf-3"):
            await asyncio.sleep(0.1)
            fleet.leaves[name].send(signal.SIGSTOP)
            try:
                await asyncio.sleep(0.5)  # Shorter than any lease: nobody takes over, and nobody is put out.
            finally:
                fleet.leaves[name].send(signal.SIGCONT)

    stopping = asyncio.create_task(stop_and_go())
    times = [await slowest(30, reads), await slowest(30, searches)]
    while not stopping.done():
        times += [await slowest(5, reads), await slowest(5, searches)]
    await stopping
    assert max(times) < SHORT_S
    tail = (await kv.status()).tail
    assert tail is not None
    assert tail.hedges_total > 0


async def test_a_leaf_that_accepts_and_never_answers(fleet: Fleet, kv: Client) -> None:
    """Its lanes stay open and it reads what comes; only answers never leave it."""
    await kv.inject_fault("drop", leaves=["leaf-1"], duration=60.0)
    times = await slowest(40, lambda: kv.get_many(KEYS))
    assert times < SHORT_S
    tail = (await kv.status()).tail
    assert tail is not None
    leaf = next(each for each in tail.leaves if each.leaf == "leaf-1")
    before = leaf.first_attempts
    await slowest(20, lambda: kv.get_many(KEYS))
    after = next(each for each in (await kv.status()).tail.leaves if each.leaf == "leaf-1").first_attempts
    assert after - before <= 20  # of 80 legs; pings are answered, so it is tried now and then


@contextlib.contextmanager
def deaf_port(port: int) -> Iterator[None]:
    """Somebody who accepts connections there and says nothing."""
    code = (
        "import socket,sys,time\ns=socket.socket();s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,1)\n"
        f"s.bind(('127.0.0.1',{port}));s.listen(64);print('ready',flush=True)\n"
        "held=[]\nwhile True: held.append(s.accept())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


async def test_a_host_that_accepts_connections_and_says_nothing(fleet: Fleet, kv: Client) -> None:
    """A leaf is gone, and what listens in its place never speaks: connecting to it must not take the deadline either."""
    address = (await fleet.map()).leaves["leaf-1"].address
    fleet.leaves["leaf-1"].kill()
    with deaf_port(int(address.rpartition(":")[2])):
        times = await slowest(60, lambda: kv.get_many(KEYS))
    assert times < PATIENCE_S / 2  # Strong reads of the shards that it led wait until another leads them.


async def test_a_router_that_stalls_hedges_nothing_when_it_wakes(fleet: Fleet, kv: Client) -> None:
    for _ in range(300):  # So that it knows how fast leaves are, and has a budget to spend.
        await kv.get_many(KEYS)
    before = (await kv.status()).tail
    assert before is not None
    calls = [asyncio.create_task(kv.get_many(KEYS)) for _ in range(100)]
    await asyncio.sleep(0.02)
    fleet.router.send(signal.SIGSTOP)
    await asyncio.sleep(0.5)
    fleet.router.send(signal.SIGCONT)
    await asyncio.gather(*calls)
    after = (await kv.status()).tail
    assert after is not None
    assert after.hedges_total - before.hedges_total <= 0.05 * 400 + 4


async def test_every_replica_of_a_shard_gone_is_said_in_time(fleet: Fleet, kv: Client) -> None:
    for leaf in fleet.leaves.values():
        leaf.send(signal.SIGSTOP)
    began = time.monotonic()
    with pytest.raises((DeadlineExceeded, Unavailable)):
        await kv.get("tail:1", timeout=1.0)
    assert time.monotonic() - began < 1.5
    for leaf in fleet.leaves.values():
        leaf.send(signal.SIGCONT)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with contextlib.suppress(KvShardError):
                item = await kv.get("tail:1", timeout=2.0)
                assert item is not None
                break


async def test_a_deadline_of_a_millisecond_is_kept(kv: Client) -> None:
    answered = late = 0
    for _ in range(50):
        began = time.monotonic()
        try:
            await kv.get("tail:1", timeout=0.001)
            answered += 1
        except (DeadlineExceeded, Unavailable):
            late += 1
        assert time.monotonic() - began < 0.5
    assert answered + late == 50
    item = await kv.get("tail:1")
    assert item is not None
    assert item.value == b"tail:1"


async def test_a_caller_that_goes_in_the_middle_of_a_scatter_leaves_no_work(kv: Client) -> None:
    await kv.inject_fault("delay", delay=5.0, duration=60.0, methods=["read"])
    calls = [asyncio.create_task(kv.get_many(KEYS)) for _ in range(10)]

    async def outstanding() -> int:
        tail = (await kv.status()).tail
        assert tail is not None
        return sum(each.outstanding for each in tail.leaves)

    async with asyncio.timeout(PATIENCE_S):
        while not await outstanding():
            await asyncio.sleep(0.01)
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    async with asyncio.timeout(2.0):
        while await outstanding():
            await asyncio.sleep(0.01)
