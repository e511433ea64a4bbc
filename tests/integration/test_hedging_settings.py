"""Who says how a read is hedged: the request, else its collection, else the router. Through a real router and the client."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from fakes.leaf_client import Hang
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard import Client, DeadlineExceeded, Unavailable
from kvshard.clock import SystemClock
from kvshard.tail import defences
from kvshard.tail.hedging import FixedDelay, HedgeSettings, Off
from kvshard.telemetry import RouterMetrics
from router.server import RouterServer

OFF = HedgeSettings(Off())
SOON = HedgeSettings(FixedDelay(0.005))
NO_ANSWER = (DeadlineExceeded, Unavailable)
"""What a read of one key is told, and a gathered one."""


@pytest.fixture(autouse=True)
def no_hold_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One read in a hundred is not hedged, to see what that costs: not these."""
    monkeypatch.setattr(defences, "HOLD_OUT_SHARE", 0.0)


async def get(kv: Client[str], **how) -> object:
    return await kv.collection("docs").get("k", **how)


async def batch(kv: Client[str], **how) -> object:
    return (await kv.collection("docs").get_many(["k"], **how))[0]


async def scan(kv: Client[str], **how) -> object:
    return [item async for item in kv.collection("docs").scan(**how)]


async def search(kv: Client[str], **how) -> object:
    return (await kv.collection("docs").search("word", **how)).hits


Read = Callable[..., Awaitable[object]]
every_read = pytest.mark.parametrize("read", [get, batch, scan, search])


@asynccontextmanager
async def running(hedging: HedgeSettings) -> AsyncIterator[Client[str]]:
    """A shard on two leaves; the primary, which the client asks first, never answers a read."""
    leaves = MemoryLeaves()
    maps = FakeMapSource(cluster_map(shards=1, leaves=2, replicas=2))
    server = RouterServer("127.0.0.1:0", maps, leaves.client, SystemClock(), RouterMetrics(CollectorRegistry()), hedging)
    await server.start("cluster")
    try:
        async with Client(server.address, replica_choice="primary") as kv:
            await kv.collection("docs").raw.put("k", json.dumps({"title": "word"}).encode())
            leaves.fail("leaf-1", Hang())
            yield kv
    finally:
        await server.stop()


@every_read
async def test_the_routers_settings_hold_where_nothing_else_is_said(read: Read) -> None:
    async with running(SOON) as kv:
        assert await read(kv)
    async with running(OFF) as kv:
        with pytest.raises(NO_ANSWER):
            await read(kv, timeout=0.1)


@every_read
async def test_a_collections_settings_go_before_the_routers(read: Read) -> None:
    async with running(OFF) as kv:
        await kv.collection("docs").update(hedge="5ms")
        assert await read(kv)
    async with running(SOON) as kv:
        await kv.collection("docs").update(hedge_attempts=1)
        with pytest.raises(NO_ANSWER):
            await read(kv, timeout=0.1)


@every_read
async def test_a_request_goes_before_its_collection(read: Read) -> None:
    async with running(OFF) as kv:
        await kv.collection("docs").update(hedge="off")
        assert await read(kv, hedge="5ms")
    async with running(SOON) as kv:
        with pytest.raises(NO_ANSWER):
            await read(kv, hedge="off", timeout=0.1)


async def test_a_budget_of_nothing_sends_no_hedge() -> None:
    async with running(SOON) as kv:
        await kv.collection("docs").update(hedge_budget=0)
        with pytest.raises(NO_ANSWER):
            await get(kv, timeout=0.1)
        await kv.collection("docs").update(hedge_budget="default")
        assert await get(kv)


async def test_the_status_shows_what_was_done() -> None:
    async with running(HedgeSettings(FixedDelay(0.005), 0.2, 2)) as kv:
        assert await get(kv)
        tail = (await kv.status()).tail
        assert tail is not None
        assert (tail.policy, tail.budget_max, tail.budget, tail.max_attempts) == ("5ms", 0.2, 0.2, 2)
        assert (tail.first_attempts, tail.hedges, tail.hedges_total, tail.hedges_won_total) == (1, 1, 1, 1)
        assert set(tail.refused_total) <= {"late_router"}  # A busy machine's timers are late; then it asks once more.
        assert [kind.kind for kind in tail.kinds] == ["Get"]
        states = {leaf.leaf: leaf for leaf in tail.leaves}
        assert {name: leaf.first_attempts for name, leaf in states.items()} == {"leaf-1": 1, "leaf-2": 0}
        assert states["leaf-1"].state in ("stalled", "probation")  # The silent one is pinged, and answers only that.
        assert states["leaf-2"].state in ("ok", "new")
