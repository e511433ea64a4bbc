"""Every shard of a real cluster is split, twice, with a leaf killed in between, while calls of every kind go on."""

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator

from harness.cluster import UpProcess, running_cluster
from harness.workload import running

from kvshard import Client
from kvshard.errors import KvShardError, Unavailable

SHARDS = 8
DOCUMENTS = 1_000
TAKEN_OVER_WITHIN_S = 30.0
"""A failover, on a machine that does other things too."""


class Observers:
    """Scans and searches of a corpus that nobody changes: each must find all of it, once."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.done: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.is_leaf_down = False
        self.task: asyncio.Task[None] | None = None
        self._is_over = False

    async def run(self) -> None:
        async with Client(self.address, timeout=20.0) as kv:
            while not self._is_over:
                looks = ("scan", self._scan), ("search", self._search), ("page", self._page), ("token", self._token)
                for name, look in looks:
                    try:
                        await look(kv)
                        self.done[name] += 1
                    except Unavailable:
                        # With a leaf down an answer may take longer than a shard can be waited for; it must say so.
                        if not self.is_leaf_down:
                            raise
                        self.refused[name] += 1

    async def _scan(self, kv: Client[str]) -> None:
        keys = [item.key async for item in kv.collection("docs").scan(keys_only=True)]
        assert keys == [key_of(n) for n in range(DOCUMENTS)]

    async def _search(self, kv: Client[str]) -> None:
        page = await kv.collection("docs").search("common", limit=10, facets=["tag"])
        assert page.complete
        assert (page.total, page.coverage.documents_considered) == (DOCUMENTS, DOCUMENTS)
        assert sum(each.count for each in page.facets["tag"].values) == DOCUMENTS

    async def _page(self, kv: Client[str]) -> None:
        page = await kv.collection("docs").search("odd", limit=1_000, sort="n")
        assert [hit.key for hit in page.hits] == [key_of(n) for n in range(1, DOCUMENTS, 2)]

    async def _token(self, kv: Client[str]) -> None:
        """The token names all that was written, in shards as they were then: what is new is seen whichever has it by now."""
        fresh, number = kv.collection("fresh"), self.done["token"]
        await fresh.put(f"fresh-{number}", {"body": f"word{number}"})
        page = await fresh.search(f"word{number} OR word0", min_versions=fresh.watermark())
        assert page.total == (2 if number else 1)

    async def progress(self, rounds: int = 2) -> None:
        goal = self.done["page"] + rounds
        async with asyncio.timeout(TAKEN_OVER_WITHIN_S):
            while self.done["page"] < goal:
                if self.task is not None and self.task.done():
                    self.task.result()
                await asyncio.sleep(0.02)

    def stop(self) -> None:
        self._is_over = True


def key_of(number: int) -> str:
    return f"doc-{number:05}"


async def load_corpus(address: str) -> None:
    async with Client(address, timeout=20.0) as kv:
        docs = kv.collection("docs")
        await docs.create(schema={"body": "text", "tag": "keyword", "n": "integer"})
        await kv.collection("fresh").create(schema={"body": "text"})
        batch = {
            key_of(n): {"body": "common " + ("odd" if n % 2 else "even"), "tag": f"t{n % 7}", "n": n} for n in range(DOCUMENTS)
        }
        assert not [each for each in (await docs.put_many(batch, refresh=True)).values() if isinstance(each, KvShardError)]


@contextlib.asynccontextmanager
async def observing(address: str) -> AsyncIterator[Observers]:
    observers = Observers(address)
    observers.task = task = asyncio.create_task(observers.run())
    try:
        yield observers
        observers.stop()
        await task
    finally:
        observers.stop()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def split_all(up: UpProcess) -> dict[int, int]:
    """`kvshard shard split --all --wait`: shard -> its child."""
    command = [sys.executable, "-m", "kvshard.cli", "shard", "split", "--all", "--wait", "--json", "--router", up.address]
    process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
    async with asyncio.timeout(40.0):
        output, _ = await process.communicate()
    assert process.returncode == 0
    return {each["shard"]: each["child"] for each in json.loads(output)["splits"]}


async def settled(up: UpProcess) -> None:
    """Every replica is in sync again and every split is wound up."""
    async with Client(up.address, timeout=20.0) as kv, asyncio.timeout(TAKEN_OVER_WITHIN_S):
        while True:
            status = await kv.status()
            shards = status.map.shards
            is_whole = all(len(shard.in_sync) == 3 for shard in shards.values()) and all(leaf.is_up for leaf in status.leaves)
            if is_whole and not any(replica.split for leaf in status.leaves for replica in leaf.replicas):
                return
            await asyncio.sleep(0.1)


async def test_shards_are_split_twice_under_load_with_a_leaf_killed_in_between(tmp_path: pathlib.Path) -> None:
    extra = ("--leaves", "3", "--replicas", "3", "--shards", str(SHARDS))
    with running_cluster(tmp_path / "data", extra) as up:
        await load_corpus(up.address)
        async with observing(up.address) as observers, running(up.address, seed=5, keys=24, timeout_s=20.0) as load:
            await observers.progress()
            first = await split_all(up)
            assert sorted(first) == list(range(SHARDS))
            assert not load.errors, repr(load)
            await observers.progress()
            observers.is_leaf_down = True
            os.kill(up.leaf_pid("leaf-2"), signal.SIGKILL)
            second = await split_all(up)
            assert sorted(second) == list(range(2 * SHARDS))
            await settled(up)
            observers.is_leaf_down = False
            await observers.progress()
        assert not load.errors, repr(load)
        async with Client(up.address, timeout=20.0) as kv:
            current = await kv.map()
            assert len(current.shards) == 4 * SHARDS
            assert not any(shard.split for shard in current.shards.values())
            counted = (await kv.status()).documents(current.collections["docs"].id)
            assert counted == DOCUMENTS
        assert observers.done["search"] >= 5
        assert observers.done["token"] >= 5
    assert "Traceback" not in up.errors.read_text()
