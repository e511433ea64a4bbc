"""Schemas that change while documents are written and searched, in a real cluster."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator

import pytest
from harness.cluster import UpProcess

from kvshard import ChangeConflict, Client, FailedPrecondition, InvalidArgument


@contextlib.asynccontextmanager
async def connected(up: UpProcess) -> AsyncIterator[Client]:
    async with Client(up.address, timeout=20.0) as client:
        yield client


async def test_a_field_is_added_while_documents_are_written_and_searched(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        docs = kv.collection("adding")
        await docs.create({"title": "text"})
        values = {
            f"d{n:04d}": {"title": "word", "lang": ("en", "de")[n % 2], "size": n if n % 10 else "?"} for n in range(2_000)
        }
        (await docs.put_many(values, refresh=True)).raise_for_failures()
        with pytest.raises(InvalidArgument, match="lang"):
            await docs.search("lang:en")
        done = asyncio.Event()

        async def read() -> int:
            count = 0
            while not done.is_set():
                assert (await docs.search("title:word")).total >= 2_000
                count += 1
                await asyncio.sleep(0.01)
            return count

        async def write() -> int:
            count = 0
            while not done.is_set():
                await docs.put(f"w{count:04d}", {"title": "other", "lang": "fr"})
                count += 1
                await asyncio.sleep(0.01)
            return count

        reading, writing = asyncio.create_task(read()), asyncio.create_task(write())
        try:
            info = await docs.add_fields({"lang": "keyword", "size": "integer"})
            assert info.change is not None
            with contextlib.suppress(FailedPrecondition):  # Unless it was done meanwhile.
                await docs.search("lang:en")
            assert (await docs.add_fields({"lang": "keyword", "size": "integer"})).version in (1, 2)
            info = await docs.wait_indexed()
            assert (info.version, dict(info.schema)) == (2, {"title": "text", "lang": "keyword", "size": "integer"})
            assert (await docs.search("lang:en", limit=1)).total == 1_000
        finally:
            done.set()
            searched, written = await asyncio.gather(reading, writing)
        assert searched > 0
        page = await docs.search("lang:fr", limit=1, refresh=True)
        assert page.total == written, "no write is missing, whenever it came"
        assert (await docs.search("size:[0 TO *]", limit=1)).total == 1_800
        status = await kv.status()
        assert status.misfits(info.id) == {"size": 200}
        assert status.reindexing(info.id) is None
        with pytest.raises(InvalidArgument, match=r"document\.size"):
            await docs.put("bad", {"size": "?"})


async def test_an_analyzer_is_changed_behind_an_alias(shared_cluster: UpProcess) -> None:
    async with connected(shared_cluster) as kv:
        docs = kv.collection("analysed")
        await docs.create({"title": "text"})
        await kv.set_alias("by-alias", "analysed")
        by_alias = kv.collection("by-alias")
        (await docs.put_many({f"d{n}": {"title": "running shoes"} for n in range(300)}, refresh=True)).raise_for_failures()
        assert (await by_alias.search("run")).total == 0
        info = await by_alias.reindex({"title": "text(english)"})
        assert (info.name, info.change and info.change.version) == ("analysed", 2)
        with pytest.raises(ChangeConflict):
            await docs.reindex({"title": "keyword"})
        await by_alias.wait_indexed()
        assert (await by_alias.search("run")).total == 300
        with pytest.raises(InvalidArgument, match="none would fit"):
            await docs.reindex({"title": "integer"})
        info = await docs.reindex({"title": "keyword"})
        info = await docs.cancel_reindex()
        assert (info.version, info.change) == (2, None)
        assert (await docs.search("run")).total == 300
        await docs.reindex({"title": "keyword"})
        assert (await docs.wait_indexed()).version == 4
        assert (await docs.search('title:"running shoes"', facets=["title"])).facets["title"].values[0].count == 300


async def test_a_change_survives_a_leaf_that_is_killed_and_shards_that_are_split(own_cluster: UpProcess) -> None:
    async with connected(own_cluster) as kv:
        docs = kv.collection("docs")
        await docs.create({"title": "text"})
        (
            await docs.put_many({f"d{n:04d}": {"title": "word", "lang": "en"} for n in range(400)}, refresh=True)
        ).raise_for_failures()
        await docs.add_fields({"lang": "keyword"})
        await kv.split_shards([0, 1])
        os.kill(own_cluster.leaf_pid("leaf-2"), signal.SIGKILL)
        written = 0
        while (await kv.status()).map.collections["docs"].change is not None:
            await docs.put(f"w{written:04d}", {"title": "other", "lang": "fr"})
            written += 1
            assert (await docs.search("title:word", limit=1)).total == 400
            await asyncio.sleep(0.05)
        assert (await docs.search("lang:en", limit=1)).total == 400
        assert (await docs.search("lang:fr", limit=1, refresh=True)).total == written
