"""Aliases through a real router and the client: every operation takes one where it takes a collection."""

import json
from collections.abc import AsyncIterator

import pytest
from fakes.map_source import FakeMapSource, cluster_map
from fakes.memory_leaves import MemoryLeaves
from prometheus_client import CollectorRegistry

from kvshard import Client, CollectionNotFound, InvalidArgument, InvalidToken
from kvshard.clock import SystemClock
from kvshard.tail.hedging import HedgeSettings
from kvshard.telemetry import RouterMetrics
from router.server import RouterServer


@pytest.fixture
async def kv() -> AsyncIterator[Client[str]]:
    leaves, maps = MemoryLeaves(), FakeMapSource(cluster_map())
    metrics = RouterMetrics(CollectorRegistry())
    server = RouterServer("127.0.0.1:0", maps, leaves.client, SystemClock(), metrics, HedgeSettings())
    await server.start("cluster")
    try:
        async with Client(server.address) as client:
            yield client
    finally:
        await server.stop()


async def test_every_operation_takes_an_alias(kv: Client[str]) -> None:
    await kv.set_alias("it", "docs", if_collection="")
    it, docs = kv.collection("it"), kv.collection("docs")
    await it.put("a", {"title": "word"})
    await it.put_many({"b": {"title": "word"}})
    assert (await docs.get("a")) == (await it.get("a"))
    assert [item.key for item in await it.get_many(["a", "b"]) if item] == ["a", "b"]
    assert [item.key async for item in it.scan()] == [item.key async for item in docs.scan()] == ["a", "b"]
    assert {hit.key for hit in (await it.search("word")).hits} == {"a", "b"}
    assert await it.delete("a")
    assert await docs.get("a") is None
    infos = {info.name: info for info in await kv.collections()}
    assert infos["docs"].aliases == ("it",)
    assert (await kv.map()).collection("it") == (await kv.map()).collections["docs"]


async def test_an_alias_that_is_moved_leads_to_the_other_collection(kv: Client[str]) -> None:
    await kv.collection("more").create({"title": "text"})
    for name in ("docs", "more"):
        await kv.collection(name).raw.put_many({f"{name}{n}": json.dumps({"title": "word"}).encode() for n in range(3)})
    await kv.set_alias("it", "docs")
    page = await kv.collection("it").search("word", limit=1)
    assert page.hits[0].key.startswith("docs")
    assert page.next
    await kv.set_alias("it", "more", if_collection="docs")
    assert (await kv.collection("it").search("word", limit=1)).hits[0].key.startswith("more")
    with pytest.raises(InvalidToken, match="another collection"):
        await kv.collection("it").search("word", limit=1, next=page.next)
    assert await kv.remove_alias("it") == "more"
    with pytest.raises(CollectionNotFound):
        await kv.collection("it").get("more1")


async def test_a_name_that_cannot_be_one_is_refused_at_the_door(kv: Client[str]) -> None:
    with pytest.raises(InvalidArgument, match="no name") as refused:
        await kv.set_alias("9", "docs")
    assert refused.value.details.field == "alias"
    with pytest.raises(InvalidArgument, match="must not be empty"):
        await kv.set_alias("it", "")
