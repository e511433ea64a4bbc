"""What the load asks: data to load, and the calls that read it. Every answer is checked, so that no run measures wrong ones."""

import os
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from kvshard import Client
from kvshard.cli import pydocs
from kvshard.client.options import ReadOverrides
from kvshard.clustermap import ClusterMap
from loadtests.arrivals import Arrival
from loadtests.scenarios import Arm

KEYS_PER_SHARD = 2_000
VALUE_BYTES = 100
LOAD_BATCH_KEYS = 4_000
DOCUMENTS = 8_000
"""Docstrings of the running Python: 1,000 a shard."""

QUERIES = 500
COLLECTION = "loadtest_docs"

ReadCall = Callable[[Arrival], Awaitable[None]]


class WrongAnswer(Exception):
    """The cluster answered without an error, and not with what was stored: the run is void."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """What was loaded. keys: by shard. queries: two words each, drawn as they come in the texts."""

    keys: tuple[tuple[str, ...], ...]
    shards: tuple[int, ...]
    queries: tuple[str, ...] = ()


def keys_by_shard(cluster_map: ClusterMap, per_shard: int) -> tuple[tuple[str, ...], ...]:
    """So many keys of every shard, in the order of the shards."""
    found: dict[int, list[str]] = {shard: [] for shard in sorted(cluster_map.shards)}
    lacking, number = set(found), 0
    while lacking:
        key = f"lt:{number}"
        shard = cluster_map.shard_of_key(key.encode())
        number += 1
        if len(found[shard]) < per_shard:
            found[shard].append(key)
            if len(found[shard]) == per_shard:
                lacking.discard(shard)
    return tuple(map(tuple, found.values()))


async def load_keys(client: Client[str]) -> Corpus:
    """Store the keys of the point reads and batches."""
    cluster_map = await client.map()
    keys = keys_by_shard(cluster_map, KEYS_PER_SHARD)
    flat = [key for part in keys for key in part]
    value = os.urandom(VALUE_BYTES)
    for first in range(0, len(flat), LOAD_BATCH_KEYS):
        (await client.put_many(dict.fromkeys(flat[first : first + LOAD_BATCH_KEYS], value))).raise_for_failures()
    return Corpus(keys, tuple(sorted(cluster_map.shards)))


async def load_documents(client: Client[str], corpus: Corpus, count: int = DOCUMENTS) -> Corpus:
    """Store and index the documents of the searches."""
    docs = client.collection(COLLECTION)
    await docs.create(schema=pydocs.SCHEMA)
    found = dict(pydocs.documents(count))
    (await docs.put_many(found)).raise_for_failures()
    await docs.search("*", refresh=True)
    return Corpus(corpus.keys, corpus.shards, queries([str(each["doc"]) for each in found.values()], random.Random(1)))


def queries(texts: Sequence[str], rng: random.Random) -> tuple[str, ...]:
    """Two words each, common ones often, rare ones seldom; lower case, since AND, OR and NOT are operators."""
    words = [word for text in texts for word in re.findall(r"[A-Za-z]{3,}", text)]
    return tuple(f"{rng.choice(words)} {rng.choice(words)}".lower() for _ in range(QUERIES))


def read_options(arm: Arm, deadline_s: float) -> ReadOverrides:
    """How a read under this arm is asked for."""
    return {"hedge": arm.hedge, "replica_choice": arm.replica_choice, "timeout": deadline_s}  # type: ignore[typeddict-item]


def point_batch(client: Client[str], corpus: Corpus, arm: Arm, deadline_s: float) -> ReadCall:
    """Reads one key from each of `int(arrival.kind)` shards."""
    options = read_options(arm, deadline_s)
    parts = corpus.keys

    async def call(arrival: Arrival) -> None:
        rng = random.Random(arrival.seed)
        keys = [rng.choice(parts[index]) for index in rng.sample(range(len(parts)), min(len(parts), int(arrival.kind)))]
        items = await client.get_many(keys, **options)
        items.raise_for_failures()
        if len(items) != len(keys) or None in items:
            raise WrongAnswer(f"a key that was written is not there: {keys}")

    return call


def search(client: Client[str], corpus: Corpus, arm: Arm, deadline_s: float) -> ReadCall:
    """Searches `int(arrival.kind)` shards for two words."""
    options = read_options(arm, deadline_s)
    docs = client.collection(COLLECTION)

    async def call(arrival: Arrival) -> None:
        rng = random.Random(arrival.seed)
        fan_out = int(arrival.kind)
        shards = None if fan_out >= len(corpus.shards) else rng.sample(corpus.shards, fan_out)
        page = await docs.search(rng.choice(corpus.queries), limit=10, shards=shards, **options)
        if not page.complete:
            raise WrongAnswer(f"an incomplete page without an error: {page.coverage}")

    return call


WORKLOADS: dict[str, Callable[[Client[str], Corpus, Arm, float], ReadCall]] = {"point-batch": point_batch, "search": search}
"""By name: makes the call of an arm."""
