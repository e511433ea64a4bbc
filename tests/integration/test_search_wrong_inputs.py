"""Searches that ask for what is wrong, or for too much: each is answered with an error that says so, beside short searches that
go on meanwhile."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from harness.cluster import UpProcess

from kvshard import Client, Histogram, InvalidArgument, InvalidToken, MalformedQuery, Match, Nearest, Terms
from kvshard.client.collection import Collection
from kvshard.errors import KvShardError

STALLED_S = 3.0
"""Of a short search. On an idle machine they take 5 ms; what stalls a leaf does so until its deadline, TIMEOUT_S."""

TIMEOUT_S = 20.0
DOCUMENTS = 100
WORDS_EACH = 700
"""Different words of each document: 70,000 in all, in one shard."""


@dataclass(frozen=True)
class Wrong:
    """A search that is refused. mentions: what the message must say; position: where in the query."""

    name: str
    query: Any
    error: type[KvShardError] = InvalidArgument
    mentions: str = ""
    position: int | None = None
    options: dict[str, Any] = field(default_factory=dict)


WRONG = [
    Wrong("unbalanced quotes", 'good "bad', MalformedQuery, "character 6", 5),
    Wrong("an unbalanced group", "(good", MalformedQuery),
    Wrong("a field that does not exist", "boddy:good", InvalidArgument, "body"),
    Wrong("a range on a text", "body:[a TO b]", InvalidArgument, "body"),
    Wrong("a sort on a text", "good", InvalidArgument, "body", options={"sort": "body"}),
    Wrong("a wildcard for 70,000 words", "body:w*", InvalidArgument, "w*"),
    Wrong("a wildcard at the front for all words", "body:*1*2*3*4*5*6*7*8*9*", KvShardError),
    Wrong("a regular expression bomb", "body:/w(((1|11)*)*)*x/", InvalidArgument, "65,536 words"),
    Wrong("a larger one", "body:/w(((a{100}){100}){100}){100}/", MalformedQuery, "at most 256 characters", 6),
    Wrong("half a regular expression", "body:/w(1/", MalformedQuery, "character 8", 7),
    Wrong("10,000 clauses", " ".join(["a"] * 5_000), InvalidArgument),
    Wrong("a longer query", "a " * 10_000, InvalidArgument, "10000"),
    Wrong("10,000 clauses in a message", Match("body", " ".join(f"x{n}" for n in range(10_000))), InvalidArgument),
    Wrong("groups in groups", "(" * 200 + "a" + ")" * 200, InvalidArgument),
    Wrong("too many hits", "good", InvalidArgument, "1,000", options={"limit": 1_001}),
    Wrong("no token at all", "good", InvalidToken, options={"next": b"never given out"}),
    Wrong("a million buckets", "*", InvalidArgument, options={"aggs": {"n": Histogram("n", 0.001)}}),
    Wrong("a million values", "*", InvalidArgument, options={"aggs": {"t": Terms("tag", size=1_000_000)}}),
    Wrong("a vector of the wrong length", "", InvalidArgument, "4", options={"nearest": Nearest("at", [1.0, 2.0])}),
    Wrong("a number in letters", "n:many", InvalidArgument, "n"),
    Wrong("an unknown aggregated field", "*", InvalidArgument, "tga", options={"aggs": {"t": Terms("tga")}}),
]


@pytest.fixture(scope="module")
def documents() -> dict[str, dict[str, object]]:
    rng = random.Random(1)
    made: dict[str, dict[str, object]] = {}
    for number in range(DOCUMENTS):
        words = " ".join(f"w{number * WORDS_EACH + n}" for n in range(WORDS_EACH))
        document: dict[str, object] = {
            "body": f"good {words}",
            "tag": f"t{number}",
            "n": number,
            "at": [rng.random() for _ in "1234"],
        }
        made["{one shard}" + f"{number}"] = document
    return made


@pytest.fixture
async def docs(shared_cluster: UpProcess, documents: dict[str, dict[str, object]]) -> AsyncIterator[Collection[str]]:
    async with Client(shared_cluster.address, timeout=TIMEOUT_S) as kv:
        docs = kv.collection("wrong")
        await docs.create(schema={"body": "text", "tag": "keyword", "n": "integer", "at": "vector(4)"})
        if not (await docs.search("*", limit=1, refresh=True)).total:
            (await docs.put_many(documents, refresh=True)).raise_for_failures()
        yield docs


async def _short_searches(docs: Collection[str], until: asyncio.Event) -> float:
    """The longest of those that were made until then, in seconds."""
    longest = 0.0
    while not until.is_set():
        began = time.monotonic()
        page = await docs.search("good", limit=1, keys_only=True)
        assert page.complete
        longest = max(longest, time.monotonic() - began)
        await asyncio.sleep(0.01)
    return longest


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: wrong.name)
async def test_what_is_wrong_is_told_and_stalls_nobody(docs: Collection[str], wrong: Wrong) -> None:
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        short = group.create_task(_short_searches(docs, done))
        with pytest.raises(wrong.error) as raised:
            await docs.search(wrong.query, **wrong.options)
        done.set()
    assert wrong.mentions in raised.value.message
    if wrong.position is not None:
        assert raised.value.details.position == wrong.position
    assert short.result() < STALLED_S


async def test_a_token_of_another_query_is_refused(docs: Collection[str]) -> None:
    page = await docs.search("good", limit=5)
    with pytest.raises(InvalidToken):
        await docs.search("good w1", limit=5, next=page.next)
    with pytest.raises(InvalidToken):
        await docs.search("good", limit=5, sort="n", next=page.next)


async def test_the_slowest_queries_that_are_allowed_run_beside_short_ones(docs: Collection[str]) -> None:
    """As many clauses as a query may have, each of thousands of words, several at once."""
    letters = [f"w{n}*" for n in range(10, 100)]
    slow = " ".join(letters * 11)
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        short = group.create_task(_short_searches(docs, done))
        found = await asyncio.gather(*(docs.search(slow, limit=1, keys_only=True) for _ in range(3)), return_exceptions=True)
        done.set()
    for each in found:
        assert not isinstance(each, BaseException) or isinstance(each, KvShardError)
    assert short.result() < STALLED_S
