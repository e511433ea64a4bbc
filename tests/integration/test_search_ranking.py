"""Scores over all shards, through the client, a router and three leaves that each hold a replica of eight shards."""

import asyncio
import json
import pathlib
import random

import pytest
from harness.small_cluster import small_cluster

from kvshard import Client, InvalidArgument, hashing
from kvshard.clustermap import TOKEN_SLOTS
from kvshard.model import ShardSearch
from kvshard.sorting import parse_sort
from leaf.scoring import weighed
from leaf.search_plan import SearchPlan
from leaf.text_index import TextIndex
from leaf.text_search import IndexView

SCHEMA = {"title": "text", "body": "text", "tag": "keyword"}
WORDS = [f"word{number}" for number in range(40)]
LEAVES = ("leaf-1", "leaf-2", "leaf-3")
TOP = 10


def document(rng: random.Random) -> dict[str, object]:
    def text(longest: int) -> str:
        return " ".join(rng.choice(WORDS[: rng.randint(1, len(WORDS))]) for _ in range(rng.randint(1, longest)))

    return {"title": text(4), "body": text(60), "tag": rng.choice(["x", "y"])}


def queries(rng: random.Random, count: int) -> list[str]:
    made = [" ".join(rng.sample(WORDS, rng.randint(1, 4))) for _ in range(count)]
    return [*made, '"word0 word1"', "title:word3^2 OR body:word5 -word9", "tag:x", "tag:y OR (word7 AND word1)", "*"]


def right_pages(
    folder: pathlib.Path, held: dict[str, dict[str, object]], wanted: list[str]
) -> dict[str, list[tuple[str, float]]]:
    """What one index of all the documents gives, scored in the same way."""
    index = TextIndex.create(folder / "reference", SCHEMA, lambda key: hashing.slot(key, 0))
    index.write({key.encode(): (json.dumps(value).encode(), 0) for key, value in held.items()})
    index.commit(1)
    pages: dict[str, list[tuple[str, float]]] = {}
    for text in wanted:
        request = ShardSearch(0, 1, 1, text, [], TOP, is_alone=True)
        compiled = SearchPlan(request, SCHEMA).compiled(index.compiler, index.fields, index.searcher(), None, lambda: None)
        ranked = weighed(compiled, index.statistics, request, lambda query: query, TOKEN_SLOTS - 1, lambda: None)
        view = IndexView(index.searcher(), index.fields, SCHEMA, index.parse, exact=ranked.exact)
        found = view.page(ranked.query, parse_sort(""), TOP, has_one_score=compiled.has_one_score).found
        pages[text] = [(each.key.decode(), each.score) for each in found]
    index.discard_changes()
    return pages


async def caught_up(docs) -> None:
    """Every replica of every shard has been asked for all writes, but for one chance in a million."""
    for _ in range(8):
        await asyncio.gather(*(docs.search("*", limit=1, refresh=True, replica_choice="random") for _ in range(5)))


async def test_any_replica_ranks_as_one_index_of_all_documents(tmp_path: pathlib.Path) -> None:
    rng = random.Random(7)
    held = {f"d{number:03}": document(rng) for number in range(500)}
    wanted = queries(rng, 15)
    async with small_cluster(tmp_path, shards=8, leaves=LEAVES) as address, Client(address, timeout=20) as client:
        docs = client.collection("docs")
        await docs.create(schema=SCHEMA)
        (await docs.put_many(held, refresh=True)).raise_for_failures()
        await caught_up(docs)
        local = 0
        for text, right in right_pages(tmp_path, held, wanted).items():
            page = await docs.search(text, limit=TOP, replica_choice="random")
            assert [(hit.key, hit.score) for hit in page.hits] == right, text
            assert page.statistics.kind == "exact"
            other = await docs.search(text, limit=TOP, statistics="local")
            assert other.statistics.kind == "local"
            local += [hit.key for hit in other.hits] == [hit.key for hit in page.hits]
        assert local < len(wanted) - 5  # Otherwise this shows nothing.

        changed = {key: document(rng) for key in rng.sample(sorted(held), 100)}
        gone = rng.sample(sorted(held.keys() - changed.keys()), 20)
        (await docs.put_many(changed, refresh=True)).raise_for_failures()
        await asyncio.gather(*(docs.delete(key) for key in gone))
        held = {key: value for key, value in (held | changed).items() if key not in gone}
        await caught_up(docs)
        trips = 0
        for text, right in right_pages(tmp_path, held, wanted).items():
            first = await docs.search(text, limit=TOP, replica_choice="random")  # hears how things are now
            trips += first.statistics.extra_round_trips
            for _ in range(2):
                page = await docs.search(text, limit=TOP, replica_choice="random")
                assert [(hit.key, hit.score) for hit in page.hits] == right, text
                assert (page.statistics.kind, page.statistics.extra_round_trips) == ("exact", 0)
        assert trips <= len(wanted)


async def test_a_ranking_is_paged_through_without_holes(tmp_path: pathlib.Path) -> None:
    rng = random.Random(3)
    held = {f"d{number:03}": document(rng) for number in range(150)}
    async with small_cluster(tmp_path) as address, Client(address, timeout=20) as client:
        docs = client.collection("docs")
        await docs.create(schema=SCHEMA)
        (await docs.put_many(held, refresh=True)).raise_for_failures()
        whole = await docs.search("word0 word3", limit=1_000)
        found, token = [], b""
        while True:
            page = await docs.search("word0 word3", limit=7, next=token)
            found += [(hit.key, hit.score) for hit in page.hits]
            token = page.next
            if not token:
                break
        assert found == [(hit.key, hit.score) for hit in whole.hits]
        assert len(found) == whole.total
        with pytest.raises(InvalidArgument, match="statistics is one of exact, local"):
            await docs.search("word0", statistics="global")
