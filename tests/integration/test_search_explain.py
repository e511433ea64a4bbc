"""What searches tell about themselves over real processes: how scores came about, and what the legs did."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
from harness.cluster import UpProcess

from kvshard import Client, InvalidArgument, Nearest
from kvshard.cli import main
from kvshard.client.results import Explanation

SCHEMA = {"title": "text", "body": "text", "tag": "keyword", "n": "integer"}


@pytest.fixture
async def kv(shared_cluster: UpProcess) -> AsyncIterator[Client[str]]:
    async with Client(shared_cluster.address, timeout=20.0) as client:
        docs = client.collection("explained")
        await docs.create(schema=SCHEMA)
        documents = {
            f"d{n}": {"title": f"hello world {n}", "body": "tail latency " * (n % 4 + 1), "tag": ["rpc"], "n": n}
            for n in range(60)
        }
        await docs.put_many(documents, refresh=True)
        yield client


def text_of(explanation: Explanation) -> str:
    return " | ".join([explanation.description, *map(text_of, explanation.details)])


async def test_each_hit_tells_how_its_score_came_about(kv: Client[str]) -> None:
    docs = kv.collection("explained")
    page = await docs.search('title:hello^2 AND (tag:rpc OR "tail latency") AND n:[3 TO *]', limit=20, explain=True)
    assert len(page.hits) == 20
    for hit in page.hits:
        assert hit.explanation is not None
        assert hit.explanation.value == pytest.approx(hit.score, rel=1e-5)
        assert 'term "rpc" in tag' in text_of(hit.explanation)
        assert 'phrase "tail latency" in body' in text_of(hit.explanation)
    page = await docs.search("hello", sort="-n", limit=3, explain=True)
    assert [hit.explanation and hit.explanation.description for hit in page.hits] == ["sorted by -n, without a score"] * 3
    assert all(hit.explanation is None for hit in (await docs.search("hello")).hits)
    with pytest.raises(InvalidArgument, match="at most 100 hits are explained") as refused:
        await docs.search("hello", limit=101, explain=True)
    assert (refused.value.details.field, refused.value.details.limit) == ("explain", 100)


async def test_a_fused_hit_tells_its_ranks(kv: Client[str]) -> None:
    docs = kv.collection("explained-vectors")
    await docs.create(schema={"body": "text", "at": "vector(2)"})
    await docs.put_many({f"d{n}": {"body": f"tail {n % 3}", "at": [1.0, n / 10]} for n in range(12)}, refresh=True)
    page = await docs.search("tail 1", nearest=Nearest("at", [1.0, 0.5]), explain=True, profile=True)
    for hit in page.hits:
        assert hit.explanation is not None
        assert hit.explanation.value == hit.score == pytest.approx(sum(each.value for each in hit.explanation.details))
        assert "by the nearest rank" in text_of(hit.explanation)
        assert "nearness of at to the vector" in text_of(hit.explanation)
    assert page.profile is not None
    assert "nearest" in page.profile.legs[0].phases_us
    alone = await docs.search(nearest=Nearest("at", [1.0, 0.5]), explain=True, limit=1)
    assert [hit.explanation and hit.explanation.value for hit in alone.hits] == [alone.hits[0].score]


async def test_a_profile_tells_of_each_leg_what_it_did(kv: Client[str]) -> None:
    docs = kv.collection("explained")
    page = await docs.search("hello tail NOT nope", filters=["tag:rpc"], facets=["tag"], profile=True, limit=5)
    assert page.timing is None
    profile = page.profile
    assert profile is not None
    assert [leg.shard for leg in profile.legs] == [leg.shard for leg in profile.timing.legs] == list(range(8))
    assert sum(leg.matches for leg in profile.legs) == page.total == 60
    counts = {(term.field, term.term): 0 for leg in profile.legs for term in leg.terms}
    for leg in profile.legs:
        assert list(leg.phases_us)[:5] == ["parse", "compile", "find", "documents", "facets"]
        assert leg.leaf.startswith("leaf-")
        assert leg.indexed_through > 0
        for term in leg.terms:
            counts[term.field, term.term] += term.documents
    # A document that was written twice may count twice in an index that is not merged yet.
    assert counts["title", "hello"] >= 60
    assert counts["tag", "rpc"] >= 60
    assert counts["title", "nope"] == 0
    assert (await docs.search("hello")).profile is None


async def test_the_command_line_shows_them(
    kv: Client[str], shared_cluster: UpProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> str:
        assert main(["search", "explained", "hello", "--limit", "2", "--router", shared_cluster.address, *words]) == 0
        return capsys.readouterr().out

    text = await asyncio.to_thread(run, "--explain")
    assert text.count('term "hello" in title: rarity times share of') == 2
    assert "answered by" not in text, "the score, and not where the time went"
    text = await asyncio.to_thread(run, "--profile")
    assert "title: hello in" in text
    assert "find ms" in text
    assert "ms in the router" in text
    assert "ms in the router" in await asyncio.to_thread(run, "--timing")
    told = json.loads(await asyncio.to_thread(run, "--explain", "--profile", "--json"))
    assert told["hits"][0]["explanation"]["value"] == pytest.approx(told["hits"][0]["score"], rel=1e-5)
    assert len(told["profile"]["legs"]) == len(told["timing"]["legs"]) == 8
