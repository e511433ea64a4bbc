"""A cluster with the corpus in it, and what the parts of the benchmark ask of it."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks.fleet import ROUTER, Fleet
from benchmarks.search.corpus import SCHEMA
from kvshard import Client
from kvshard.client.collection import Collection

LEAVES: Final = 2
SHARDS: Final = 8
COLLECTION: Final = "texts"
TIMEOUT_S: Final = 60.0
"""Of every call: a slow machine shows in the figures, it does not end the run."""

BATCH: Final = 1_000
"""Documents of one put_many."""

IN_FLIGHT: Final = 4
"""Batches under way at a time, so that encoding, replication and fsync overlap."""

Documents = Mapping[str, dict[str, object]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """A running cluster and the collection with the corpus."""

    fleet: Fleet
    client: Client[str]
    texts: Collection[str]

    @property
    def processes(self) -> dict[str, list[int]]:
        """Pids by role: router and leaves."""
        return {ROUTER: [self.fleet.router.pid], "leaf": [leaf.pid for leaf in self.fleet.leaves.values()]}


@asynccontextmanager
async def running(folder: Path, replicas: int, leaves: int = LEAVES, shards: int = SHARDS) -> AsyncIterator[Loaded]:
    """An empty cluster of its own processes with a collection for the corpus. folder: a new one, made by the caller."""
    async with Fleet(folder, leaves=leaves, shards=shards, replicas=replicas) as fleet:
        await fleet.wait_whole(TIMEOUT_S)
        async with Client(fleet.address, timeout=TIMEOUT_S) as client:
            texts = client.collection(COLLECTION)
            await texts.create(schema=SCHEMA)
            yield Loaded(fleet, client, texts)


def new_folder(parent: Path, name: str) -> Path:
    """An empty folder."""
    made = parent / name
    made.mkdir(parents=True)
    return made


REFRESHES: Final = 30
"""Searches that wait until they see all writes, each at any replica of each shard, so that none of the 16 is passed over by
all of them, but once in 60 million times."""


async def write(texts: Collection[str], documents: Documents) -> float:
    """Store documents durably and wait until searches see all of them; returns the seconds that took."""
    keys = list(documents)
    starts = iter(range(0, len(keys), BATCH))

    async def worker() -> None:
        for first in starts:
            batch = {key: documents[key] for key in keys[first : first + BATCH]}
            (await texts.put_many(batch)).raise_for_failures()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(IN_FLIGHT):
            group.create_task(worker())
    for _ in range(REFRESHES):
        await texts.search("*", limit=1, refresh=True, replica_choice="random")
    return time.perf_counter() - began


async def settled(texts: Collection[str], queries: Sequence[str], rounds: int = 2) -> int:
    """Wait until the indexes of all replicas are merged, as they are when nothing was written for a while; then warm up.

    Returns the most segments that one of them has, should MERGED_LOOKS not do.
    """
    most = 0
    for _ in range(MERGED_LOOKS):
        most = await segments(texts)
        if most <= 1:
            break
        await asyncio.sleep(1.0)
    for _ in range(rounds):
        await each_search(texts, queries)
    return most


MERGED_LOOKS: Final = 120
"""One a second. A leaf merges one index at a time, with rests of some seconds, once it was not written to for 5 s."""


async def segments(texts: Collection[str]) -> int:
    """The most segments that the index of a shard has, at any replica."""
    most = 0
    for _ in range(REFRESHES):
        page = await texts.search("*", limit=1, profile=True, replica_choice="random")
        assert page.profile is not None
        most = max([most, *(leg.segments for leg in page.profile.legs)])
    return most


async def each_search(texts: Collection[str], queries: Iterable[str], callers: int = 4, limit: int = 10) -> None:
    """Ask every query once, some at a time."""
    left = iter(queries)

    async def caller() -> None:
        for query in left:
            await texts.search(query, limit=limit)

    async with asyncio.TaskGroup() as group:
        for _ in range(callers):
            group.create_task(caller())
