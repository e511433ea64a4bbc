"""Analyzers and suggestions through the client, a router and a leaf with real indexes of four shards."""

import asyncio
import json
import pathlib

import pytest
from harness.small_cluster import small_cluster

from kvshard import Client, InvalidArgument, InvalidToken
from kvshard.cli import main

SCHEMA = {
    "title": "text",
    "body": "text(english)",
    "typed": "text(ngram)",
    "name": "text(keyword)",
    "tag": "keyword",
    "year": "integer",
}
TITLES = [
    "asyncio gather",
    "asyncio gateway",
    "asyncio gather tasks",
    "threading gather",
    "the tail latency",
    "latency of leaves",
    "Straße der Übung",
]


@pytest.fixture
async def address(tmp_path: pathlib.Path):
    async with small_cluster(tmp_path) as address:
        yield address


@pytest.fixture
async def kv(address: str):
    async with Client(address, timeout=20) as client:
        docs = client.collection("docs")
        await docs.create(schema=SCHEMA)
        documents = {
            f"d{number}": {"title": title, "body": title + " running", "typed": title, "name": title, "tag": f"T {title[:3]}"}
            for number, title in enumerate(TITLES)
        }
        (await docs.put_many(documents, refresh=True)).raise_for_failures()
        yield client


async def test_analyzers_and_suggestions(kv: Client[str], address: str, capsys: pytest.CaptureFixture[str]) -> None:
    docs = kv.collection("docs")

    async def found(query: str) -> set[str]:
        return {hit.key for hit in (await docs.search(query)).hits}

    assert (await kv.collections())[-1].schema == SCHEMA
    assert await found("body:runs") == {f"d{number}" for number in range(len(TITLES))}
    assert await found("title:runs") == set()
    assert await found("typed:gat") == {"d0", "d1", "d2", "d3"}
    assert await found('name:"ASYNCIO gather"') == {"d0"}

    # Slips: the word itself comes first.
    assert await found("latnecy") == set()
    assert {hit.key for hit in (await docs.search("latnecy", fuzziness="auto")).hits} == {"d4", "d5"}
    assert {hit.key for hit in (await docs.search("title:latenc", fuzziness=1, highlight=["title"])).hits} == {"d4", "d5"}
    page = await docs.search("title:gateway title:gather", fuzziness=2, limit=1)
    assert page.next
    with pytest.raises(InvalidToken):
        await docs.search("title:gateway title:gather", fuzziness=1, limit=1, next=page.next)
    with pytest.raises(InvalidArgument, match="fuzziness is auto"):
        await docs.search("tail", fuzziness=3)

    # Completion: by documents over all shards, among those that have the words before.
    page = await docs.suggest("gat", field="title")
    assert [(each.text, each.documents) for each in page.completions] == [("gather", 3), ("gateway", 1)]
    assert (page.complete, page.error_bound, page.corrected, page.words) == (True, 0, None, ())
    page = await docs.suggest("Asyncio gat", field="title")
    assert [(each.text, each.documents) for each in page.completions] == [("Asyncio gather", 2), ("Asyncio gateway", 1)]
    assert list(await docs.suggest("asyncio gat", field="typed", limit=1)) == ["asyncio gather"]
    assert [each.documents for each in (await docs.suggest("asyncio gat")).completions] == [2, 1]  # not twice for two fields
    assert list(await docs.suggest("ASYNCIO GATE", field="name")) == ["asyncio gateway"]
    assert list(await docs.suggest("T as", field="tag")) == ["T asy"]
    assert list(await docs.suggest("gat", field="title", filters=["title:threading"])) == ["gather"]
    assert list(await docs.suggest("gather ", field="title")) == []

    # What was meant: the context is corrected too.
    page = await docs.suggest("asynco gath")
    assert page.corrected == "asyncio gath"
    assert [(each.text, each.documents) for each in page.completions] == [("asyncio gather", 2)]
    page = await docs.suggest("latnecy", field="title")
    assert page.corrected == "latency"
    (word,) = page.words
    assert (word.word, word.start, word.end, word.documents) == ("latnecy", 0, 7, 0)
    assert [(each.text, each.documents, each.distance) for each in word.corrections] == [("latency", 2, 1)]
    assert list(page) == ["latency"]
    assert (await docs.suggest("Übnug", field="title")).corrected == "übung"
    nothing = await docs.suggest("zzzzzz")
    assert (list(nothing), nothing.corrected) == ([], None)

    async def cli(*argv: str) -> str:
        assert await asyncio.to_thread(main, [*argv, "--router", address]) == 0
        return capsys.readouterr().out

    told = (await cli("suggest", "docs", "asynco gath")).splitlines()
    assert told[0] == "did you mean: asyncio gath"
    assert told[1].split() == ["asyncio", "gather", "2", "documents"]
    assert await cli("suggest", "docs", "zzzzzz") == "nothing to suggest\n"
    answer = json.loads(await cli("suggest", "docs", "gat", "--field", "title", "--limit", "1", "--json"))
    assert answer["completions"] == [{"text": "gather", "documents": 3}]
    slow = await kv.slow_reads(method="Suggest", limit=100)
    assert all(read.method == "Suggest" for read in slow)

    # A document that is gone does not count.
    await docs.delete("d3", refresh=True)
    assert [each.documents for each in (await docs.suggest("gat", field="title")).completions] == [2, 1]

    assert list(await docs.suggest("runn", field="body")) == ["running"]
    assert (await docs.suggest("runnnig", field="body")).corrected == "running"
    with pytest.raises(InvalidArgument, match="is of type integer"):
        await docs.suggest("20", field="year")
    with pytest.raises(InvalidArgument, match="did you mean title"):
        await docs.suggest("gat", field="titel")
    with pytest.raises(InvalidArgument, match="unknown analyzer 'englsh'"):
        await kv.collection("more").create({"title": "text(englsh)"})


async def test_synonyms(kv: Client[str], address: str, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    docs = kv.collection("docs")

    async def found(query: str, **how) -> set[str]:
        return {hit.key for hit in (await docs.search(query, **how)).hits}

    assert await found("title:delay") == set()
    info = await docs.update(synonyms=["Latency, delay", "waiter => asyncio gather, threading"])
    assert info.synonyms == ("latency, delay", "waiter => asyncio gather, threading")
    assert await found("title:delay") == {"d4", "d5"}
    assert await found("title:waiter") == {"d0", "d2", "d3"}
    assert await found("title:threading") == {"d3"}
    assert await found("*", filters=["title:delay"]) == {"d4", "d5"}
    assert await found("title:delay -latency") == set()
    assert await found("title:dealy", fuzziness="auto") == set()  # a rule names what was typed
    page = await docs.search("title:delay", highlight=["title"])
    assert all(hit.highlights[0].fragment[slice(*hit.highlights[0].spans[0])] == "latency" for hit in page.hits)
    best = await docs.search("title:latency")
    assert [hit.score for hit in page.hits] == pytest.approx([hit.score for hit in best.hits])

    rules = tmp_path / "rules.txt"
    rules.write_text("# ours\ndelay, latency\n")
    assert await asyncio.to_thread(main, ["collection", "set", "docs", "--synonyms", str(rules), "--router", address]) == 0
    assert capsys.readouterr().out.endswith("; 1 synonym rule\n")
    assert await found("title:waiter") == set()
    assert await asyncio.to_thread(main, ["collection", "set", "docs", "--synonym", "car", "--router", address]) == 2
    assert "synonym rule 1 needs at least two different terms" in capsys.readouterr().err
    assert (await kv.collections())[-1].synonyms == ("delay, latency",)
    assert await asyncio.to_thread(main, ["collection", "set", "docs", "--no-synonyms", "--router", address]) == 0
    assert await found("title:delay") == set()
    with pytest.raises(InvalidArgument, match="not one string"):
        await docs.update(synonyms="car, automobile")
