"""The nearest by a vector, over real gRPC: alone, filtered, fused with a text; and what is wrong about them."""

import json
import pathlib
from collections.abc import AsyncIterator
from math import fsum, sqrt
from random import Random

import pytest
from harness.cluster import UpProcess

from kvshard import Client, InvalidArgument, Match, Nearest
from kvshard.cli import main
from kvshard.client.collection import Collection

DIM = 8
WORDS = ("red", "green", "blue", "round", "square")


def cosine(one: list[float], other: list[float]) -> float:
    product = fsum(x * y for x, y in zip(one, other, strict=True))
    return (1 + product / sqrt(fsum(x * x for x in one)) / sqrt(fsum(x * x for x in other))) / 2


@pytest.fixture(scope="module")
def things() -> dict[str, dict[str, object]]:
    rng = Random(1)
    return {
        f"thing-{n}": {
            "body": " ".join(rng.sample(WORDS, 2)),
            "tag": rng.choice("ab"),
            "at": [round(rng.gauss(0, 1), 3) for _ in range(DIM)],
        }
        for n in range(300)
    }


@pytest.fixture
async def docs(shared_cluster: UpProcess, things: dict[str, dict[str, object]]) -> AsyncIterator[Collection[str]]:
    async with Client(shared_cluster.address, timeout=20.0) as kv:
        docs = kv.collection("vectors")
        await docs.create(schema={"body": "text", "tag": "keyword", "at": f"vector({DIM})"})
        if not (await docs.search("*", limit=1, refresh=True)).total:
            (await docs.put_many(things)).raise_for_failures()
        yield docs


def nearest_of(things: dict[str, dict[str, object]], vector: list[float], tag: str = "") -> list[str]:
    scored = [(cosine(each["at"], vector), key) for key, each in things.items() if tag in ("", each["tag"])]  # type: ignore[arg-type]
    return [key for _, key in sorted(scored, key=lambda each: (-each[0], each[1]))]


async def test_the_nearest_alone(docs: Collection[str], things: dict[str, dict[str, object]]) -> None:
    vector = [1.0, -0.5, 0.25, 0, 0, 2, 0, 0]
    for choice in ("adaptive", "random", "primary"):
        page = await docs.search(nearest=Nearest("at", vector), refresh=True, replica_choice=choice)
        assert [hit.key for hit in page.hits] == nearest_of(things, vector)[:10]
        assert page.hits[0].score == pytest.approx(cosine(things[page.hits[0].key]["at"], vector), rel=1e-6)  # type: ignore[arg-type]
        assert page.hits[0].document == things[page.hits[0].key]
        assert (page.total, page.complete, bool(page.next)) == (300, True, False)
    filtered = await docs.search(nearest=Nearest("at", vector), filters=["tag:a"], limit=50, refresh=True)
    assert [hit.key for hit in filtered.hits] == nearest_of(things, vector, "a")[:50]
    few = await docs.search(nearest=Nearest("at", vector, k=3))
    assert len(few.hits) == 3


async def test_fused_with_a_text(docs: Collection[str], things: dict[str, dict[str, object]]) -> None:
    vector = [0.5] * DIM
    nearest = nearest_of(things, vector)[:20]
    texts = [hit.key for hit in (await docs.search("red", limit=20, refresh=True)).hits]
    fused = await docs.search("red", nearest=Nearest("at", vector), highlight=["body"])
    scores: dict[str, float] = {}
    for order in (nearest, texts):
        for rank, key in enumerate(order, 1):
            scores[key] = scores.get(key, 0.0) + 1 / (60 + rank)
    assert [hit.key for hit in fused.hits] == sorted(scores, key=lambda key: (-scores[key], key))[:10]
    assert [hit.score for hit in fused.hits] == pytest.approx([scores[hit.key] for hit in fused.hits])
    assert any(hit.highlights for hit in fused.hits)
    structured = await docs.search(matching=Match("red", fields=["body"]), nearest=Nearest("at", vector))
    assert [hit.key for hit in structured.hits] == [hit.key for hit in fused.hits]


async def test_it_follows_the_writes(docs: Collection[str], things: dict[str, dict[str, object]]) -> None:
    vector = [0, 0, 0, 0, 0, 0, 0, 9.0]
    await docs.put("new", {"tag": "new", "at": vector})
    first = await docs.search(nearest=Nearest("at", vector), limit=1, refresh=True)
    assert (first.hits[0].key, first.hits[0].score) == ("new", 1.0)
    await docs.put("new", {"tag": "new", "at": [-each for each in vector]})
    assert (await docs.search(nearest=Nearest("at", vector), limit=1, refresh=True)).hits[0].key == nearest_of(things, vector)[
        0
    ]
    await docs.delete("new")
    assert (await docs.search(nearest=Nearest("at", vector), filters=["tag:new"], refresh=True)).hits == []


@pytest.mark.parametrize(
    ("wanted", "more", "field"),
    [
        (Nearest("at", [1.0] * (DIM + 1)), {}, "nearest.vector"),
        (Nearest("at", [0.0] * DIM), {}, "nearest.vector"),
        (Nearest("body", [1.0] * DIM), {}, "nearest.field"),
        (Nearest("att", [1.0] * DIM), {}, "nearest.field"),
        (Nearest("at", [1.0] * DIM, k=1_001), {}, "nearest.k"),
        (Nearest("at", ["x"] * DIM), {}, "nearest.vector"),  # type: ignore[list-item]
        (Nearest("at", [1.0] * DIM), {"sort": "tag"}, "sort"),
    ],
)
async def test_wishes_that_cannot_be(docs: Collection[str], wanted: Nearest, more: dict[str, str], field: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        await docs.search(nearest=wanted, sort=more.get("sort", ""))
    assert caught.value.details.field == field


async def test_documents_and_queries_that_do_not_fit(docs: Collection[str]) -> None:
    with pytest.raises(InvalidArgument, match="8 components, not 3"):
        await docs.put("bad", {"at": [1, 2, 3]})
    for query, why in (("at:3", "no words or values"), ("at:[1 TO 2]", "no ranges"), ("at:x*", "only text and keyword")):
        with pytest.raises(InvalidArgument, match=why):
            await docs.search(query)
    with pytest.raises(InvalidArgument, match="has no order"):
        await docs.search("*", sort="at")
    assert (await docs.search("at:*", limit=1, refresh=True)).total == 300


def test_the_command_line(
    shared_cluster: UpProcess,
    things: dict[str, dict[str, object]],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("KVSHARD_ROUTER", shared_cluster.address)
    vector = [1.0] * DIM
    (tmp_path / "vector.json").write_text(json.dumps(vector))
    for given in (f"at={json.dumps(vector)}", f"at=@{tmp_path}/vector.json"):
        assert main(["search", "vectors", "--nearest", given, "--json", "--refresh", "--limit", "5"]) == 0
        hits = json.loads(capsys.readouterr().out)["hits"]
        assert [hit["key"] for hit in hits] == nearest_of(things, vector)[:5]
    for wrong in ("at", "at=x", "=[1]", "at=@/nowhere", 'at={"a": 1}', "at=[1]"):
        assert main(["search", "vectors", "--nearest", wrong]) == 2
        assert "nearest" in capsys.readouterr().err
