"""The figures of the foundation: what the router costs, how fast batches and searches are, what an idle cluster takes."""

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

import grpc

from benchmarks.echo_server import METHOD
from benchmarks.figures import Figure, percentile
from benchmarks.processes import RunningCluster
from kvshard import Client

BLOCKS = 10
"""Blocks per arm: the machine's noise comes in stretches of seconds, so the arms take turns."""

CALLS_PER_BLOCK = 400
BATCH_KEYS = 1_000
VALUE_BYTES = 100
BATCHES_PER_BLOCK = 20
BATCHES_IN_FLIGHT = 4
"""Batches one client keeps under way, so that the disk's fsync and the client's encoding overlap."""

DOCUMENTS = 8_000
QUERIES_PER_BLOCK = 60
VOCABULARY = 4_000

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


def _text(rng: random.Random, words: int) -> str:
    # Word frequencies fall as in natural text (Zipf), so that queries meet rare and common words.
    return " ".join(f"w{min(int(rng.paretovariate(0.7)), VOCABULARY)}" for _ in range(words))


async def searches(client: Client[str], echo_address: str, shards: Sequence[int]) -> list[Figure]:
    """A search over all shards against its lower bound: the slowest leg asked alone, plus one unary echo."""
    rng = random.Random(1)
    docs = client.collection("bench")
    await docs.create(schema={"title": "text", "body": "text"})
    for first in range(0, DOCUMENTS, 500):
        batch = {f"d{n}": {"title": _text(rng, 6), "body": _text(rng, 60)} for n in range(first, first + 500)}
        (await docs.put_many(batch)).raise_for_failures()
    await docs.search("w1", refresh=True)
    queries = [_text(rng, 2) for _ in range(QUERIES_PER_BLOCK)]
    gathered: list[float] = []
    echoed: list[float] = []
    legs: dict[int, list[float]] = {shard: [] for shard in shards}
    async with grpc.aio.insecure_channel(echo_address) as channel:
        call: Echo = channel.unary_unary(METHOD)
        for block in range(BLOCKS + 1):
            echoes = await _seconds(QUERIES_PER_BLOCK, lambda: call(b"x" * VALUE_BYTES))
            whole: list[float] = []
            for query in queries:
                started = time.perf_counter()
                await docs.search(query, limit=10)
                whole.append(time.perf_counter() - started)
            if block:
                echoed += echoes
                gathered += whole
            for shard in shards:
                for query in queries[:: len(shards)]:
                    page = await docs.search(query, limit=10, shards=[shard], explain_timing=True)
                    assert page.timing is not None
                    if block:
                        legs[shard].append(page.timing.legs[0].total_us / 1e6)
    slowest = max(percentile(taken, 0.5) for taken in legs.values())
    bound = slowest + percentile(echoed, 0.5)
    p50 = percentile(gathered, 0.5)
    note = f"{DOCUMENTS:,} documents, {len(shards)} shards, top 10"
    return [
        Figure("search, p50", p50 * 1e3, "ms", len(gathered), note=note),
        Figure("slowest leg asked alone, p50", slowest * 1e3, "ms", min(map(len, legs.values()))),
        Figure("search / (slowest leg + echo), p50", p50 / bound, "x", len(gathered), bound=3.0, note=note),
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
