"""The figures of the foundation: what the router costs, how fast batches and searches are, what an idle cluster takes.

`python -m benchmarks.foundation`. Exits 1 when a bound is not kept.
"""

import asyncio
import os
import pathlib
import random
import re
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
import uvloop

from benchmarks.bookkeeping import bookkeeping
from benchmarks.echo_server import METHOD
from benchmarks.figures import Figure, percentile, show
from benchmarks.processes import RunningCluster, cluster, echo
from kvshard import Client
from kvshard.cli import pydocs

BLOCKS = 10
"""Blocks per arm: the machine's noise comes in stretches of seconds, so the arms take turns."""

CALLS_PER_BLOCK = 400
BATCH_KEYS = 1_000
VALUE_BYTES = 100
BATCHES_PER_BLOCK = 20
BATCHES_IN_FLIGHT = 4
"""Batches one client keeps under way, so that the disk's fsync and the client's encoding overlap."""

DOCUMENTS = 8_000
"""Docstrings of the running Python: 1,000 a shard."""

QUERIES_PER_BLOCK = 60

Echo: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"


async def _seconds(calls: int, call: Callable[[], Awaitable[object]]) -> list[float]:
    taken = []
    for _ in range(calls):
        started = time.perf_counter()
        await call()
        taken.append(time.perf_counter() - started)
    return taken


async def point_reads(client: Client[str], echo_address: str) -> list[Figure]:
    """Get through the router against a bare unary echo, one call at a time, in alternating blocks."""
    await client.put("bench:point", os.urandom(VALUE_BYTES))
    async with grpc.aio.insecure_channel(echo_address) as channel:
        call: Echo = channel.unary_unary(METHOD)
        payload = os.urandom(VALUE_BYTES)
        arms: dict[str, Callable[[], Awaitable[object]]] = {
            "echo": lambda: call(payload),
            "get": lambda: client.get("bench:point"),
        }
        taken: dict[str, list[float]] = {name: [] for name in arms}
        for block in range(BLOCKS + 1):
            for name in sorted(arms, reverse=bool(block % 2)):
                seconds = await _seconds(CALLS_PER_BLOCK, arms[name])
                if block:  # the first block only warms up
                    taken[name] += seconds
    echo, get = (percentile(taken[name], 0.5) for name in ("echo", "get"))
    samples = len(taken["get"])
    return [
        Figure("bare unary echo, p50", echo * 1e6, "us", samples),
        Figure("get through the router, p50", get * 1e6, "us", samples),
        Figure("get / echo, p50", get / echo, "x", samples, bound=2.5),
    ]


async def _rate(batches: int, batch: Callable[[int], Awaitable[object]]) -> float:
    """Batches a second with BATCHES_IN_FLIGHT of them under way."""
    numbers = iter(range(batches))

    async def worker() -> None:
        for number in numbers:
            await batch(number)

    started = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(BATCHES_IN_FLIGHT)))
    return batches / (time.perf_counter() - started)


async def batches(client: Client[str]) -> list[Figure]:
    """Durable put_many and get_many of 1,000 keys of 100 bytes, in alternating blocks."""
    value = os.urandom(VALUE_BYTES)
    keys = [[f"bench:{batch}:{n}" for n in range(BATCH_KEYS)] for batch in range(BATCHES_PER_BLOCK)]

    async def put(number: int) -> None:
        results = await client.put_many(dict.fromkeys(keys[number], value))
        results.raise_for_failures()

    async def get(number: int) -> None:
        items = await client.get_many(keys[number])
        if any(item is None or isinstance(item, Exception) for item in items):
            raise RuntimeError("a key that was written is not there")

    puts, gets = [], []
    for _ in range(BLOCKS):
        puts.append(await _rate(BATCHES_PER_BLOCK, put) * BATCH_KEYS)
        gets.append(await _rate(BATCHES_PER_BLOCK, get) * BATCH_KEYS)
    samples = BLOCKS * BATCHES_PER_BLOCK
    note = f"{BATCHES_IN_FLIGHT} batches of {BATCH_KEYS} in flight, median of {BLOCKS} blocks; n counts batches"
    return [
        Figure("put_many, durable", percentile(puts, 0.5), "keys/s", samples, 20_000, is_upper_bound=False, note=note),
        Figure("get_many", percentile(gets, 0.5), "keys/s", samples, 100_000, is_upper_bound=False, note=note),
    ]


def _queries(rng: random.Random, texts: Sequence[str]) -> list[str]:
    """Two words each, drawn as they come in the texts: common ones often, rare ones seldom."""
    words = [word for text in texts for word in re.findall(r"[A-Za-z]{3,}", text)]
    # Lower case: AND, OR and NOT are operators.
    return [f"{rng.choice(words)} {rng.choice(words)}".lower() for _ in range(QUERIES_PER_BLOCK)]


async def searches(client: Client[str], echo_address: str, shards: Sequence[int]) -> list[Figure]:
    """A search over all shards against its lower bound, in which nothing adds up: its slowest leg plus one unary echo."""
    rng = random.Random(1)
    docs = client.collection("bench")
    await docs.create(schema=pydocs.SCHEMA)
    corpus = dict(pydocs.documents(DOCUMENTS))
    (await docs.put_many(corpus)).raise_for_failures()
    await docs.search("*", refresh=True)
    queries = _queries(rng, [str(document["doc"]) for document in corpus.values()])
    taken = _SearchTimes()
    async with grpc.aio.insecure_channel(echo_address) as channel:
        call: Echo = channel.unary_unary(METHOD)
        for block in range(BLOCKS + 1):
            times = taken if block else _SearchTimes()  # the first block only warms up
            times.echo += await _seconds(QUERIES_PER_BLOCK, lambda: call(b"x" * VALUE_BYTES))
            for query in queries:
                started = time.perf_counter()
                page = await docs.search(query, limit=10, explain_timing=True)
                times.whole.append(time.perf_counter() - started)
                assert page.timing is not None
                times.slowest_leg.append(max(leg.total_us for leg in page.timing.legs) / 1e6)
            for shard in shards:
                for query in queries[:: len(shards)]:
                    page = await docs.search(query, limit=10, shards=[shard], explain_timing=True)
                    assert page.timing is not None
                    times.lone_legs.setdefault(shard, []).append(page.timing.legs[0].total_us / 1e6)
    return taken.figures(f"{len(corpus):,} real texts, {len(shards)} shards, top 10")


@dataclass(slots=True)
class _SearchTimes:
    """Seconds. slowest_leg: of each scattered search, seen at the router. lone_legs: by shard, asked for that shard alone."""

    echo: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    slowest_leg: list[float] = field(default_factory=list)
    lone_legs: dict[int, list[float]] = field(default_factory=dict)

    def figures(self, note: str) -> list[Figure]:
        echo, whole, slowest = (percentile(taken, 0.5) for taken in (self.echo, self.whole, self.slowest_leg))
        lone = max(percentile(taken, 0.5) for taken in self.lone_legs.values())
        count, lone_count = len(self.whole), min(map(len, self.lone_legs.values()))
        shared = "8 legs at once on this machine's cores"
        return [
            Figure("search, p50", whole * 1e3, "ms", count, note=note),
            Figure("its slowest leg, p50", slowest * 1e3, "ms", count, note=shared),
            Figure("search / (its slowest leg + echo), p50", whole / (slowest + echo), "x", count, bound=3.0),
            Figure("a leg asked alone, slowest shard, p50", lone * 1e3, "ms", lone_count),
            Figure("search / (leg asked alone + echo), p50", whole / (lone + echo), "x", count, note="for information"),
        ]


async def footprint(client: Client[str], cluster: RunningCluster) -> list[Figure]:
    """What a cluster takes that has just started and does nothing."""
    status = await client.status()
    resident = [leaf.report.resident_bytes / 1e6 for leaf in status.leaves if leaf.report is not None]
    return [
        Figure("start of up with 3 leaves", cluster.start_s, "s", 1, bound=6.0),
        Figure("idle leaf, resident", max(resident), "MB", len(resident), bound=90.0, note="the largest of them"),
    ]


async def run(cluster: RunningCluster, echo_address: str) -> list[Figure]:
    """All figures, the idle ones first."""
    async with Client(cluster.address, timeout=60.0) as client:
        figures = await footprint(client, cluster)
        figures += await point_reads(client, echo_address)
        figures += await batches(client)
        shards = sorted((await client.map()).shards)
        figures += await searches(client, echo_address, shards)
    return figures


def main() -> int:
    """Measure on a cluster of its own; print and write the figures."""
    figures = uvloop.run(bookkeeping())
    with echo() as bare, cluster() as running:
        figures += uvloop.run(run(running, bare.address))
    return 0 if show(figures, pathlib.Path("bench-results/foundation.json")) else 1


if __name__ == "__main__":
    sys.exit(main())
