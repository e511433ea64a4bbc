"""Sorting, paging, collapsing and projecting through the client, a router and a leaf with real indexes of four shards."""

import asyncio
import json
import pathlib

import grpc.aio
import pytest
from harness.small_cluster import small_cluster

from kvshard import Client, InvalidArgument, InvalidToken, SortBy
from kvshard.cli import main
from kvshard.rpc.status import error_from_rpc
from kvshard.v1 import search_pb2, search_pb2_grpc

SCHEMA = {"title": "text", "tag": "keyword", "year": "integer", "rating": "float"}
TAGS = ["red", "green", "blue", None]


def document(number: int) -> dict[str, object]:
    return {
        "title": "tail " * (1 + number % 3) + "end",
        "tag": TAGS[number % 4],
        "year": 2000 + number % 5 if number % 7 else None,
        "rating": (number % 10) / 4,
        "author": {"name": f"n{number}", "age": number},
    }


DOCUMENTS = {f"d{number:03}": document(number) for number in range(200)}


@pytest.fixture
async def address(tmp_path: pathlib.Path):
    async with small_cluster(tmp_path) as address:
        yield address


@pytest.fixture
async def kv(address: str):
    async with Client(address, timeout=20) as client:
        docs = client.collection("docs")
        await docs.create(schema=SCHEMA)
        (await docs.put_many(DOCUMENTS, refresh=True)).raise_for_failures()
        yield client


async def all_pages(kv: Client[str], limit: int, **options: object) -> list[str]:
    keys: list[str] = []
    token = b""
    while True:
        page = await kv.collection("docs").search("tail", limit=limit, next=token, keys_only=True, **options)
        keys += [hit.key for hit in page.hits]
        assert page.total == 200
        token = page.next
        if not token:
            return keys


async def test_sorting_and_paging(kv: Client[str]) -> None:
    def newest_then_tag(key: str) -> tuple[object, ...]:
        found = DOCUMENTS[key]
        year = (1, 0) if found["year"] is None else (0, -found["year"])
        return year, (0, "") if found["tag"] is None else (1, found["tag"]), [-ord(char) for char in key]

    expected = sorted(DOCUMENTS, key=newest_then_tag)
    assert await all_pages(kv, 17, sort="-year,tag:missing_first,-_key") == expected
    sorts = [SortBy("year", descending=True), SortBy("tag", missing_first=True), "-_key"]
    assert await all_pages(kv, 90, sort=sorts) == expected
    by_score = await all_pages(kv, 13)
    assert sorted(by_score) == sorted(DOCUMENTS)
    page = await kv.collection("docs").search("tail", sort="-year,tag:missing_first,_score,_key", limit=1)
    (hit,) = page.hits
    assert hit.sort_values == (2004, None, hit.score, hit.key)
    assert hit.score > 0


@pytest.mark.parametrize("sort", ["-year,tag", "", "-_key"])
async def test_pages_are_stable_while_documents_come_and_go(kv: Client[str], sort: str) -> None:
    """What comes and goes also changes what scores rest on; the pages go on with what the first one had."""
    docs = kv.collection("docs")
    seen, token, number = [], b"", 0
    while True:
        page = await docs.search("tail end", limit=20, sort=sort, next=token)
        seen += [hit.key for hit in page.hits if hit.key in DOCUMENTS]
        token, number = page.next, number + 1
        if not token:
            break
        await docs.put_many({f"new{number}-{n}": document(n) for n in range(20)}, refresh=True)
        await docs.delete_many([f"new{number - 1}-{n}" for n in range(20)], refresh=True)
    assert sorted(seen) == sorted(DOCUMENTS), "what was there throughout is on one page exactly"


async def test_collapsing(kv: Client[str]) -> None:
    docs = kv.collection("docs")
    page = await docs.search("tail", collapse="tag", sort="-rating,_key")
    assert page.total == 200
    assert {hit.document["tag"] for hit in page.hits} == set(TAGS)
    assert [(hit.collapsed.count, hit.collapsed.is_exact) for hit in page.hits] == [(50, True)] * 4
    best = {tag: max((d["rating"], -int(k[1:])) for k, d in DOCUMENTS.items() if d["tag"] == tag) for tag in TAGS}
    assert [hit.key for hit in page.hits] == [
        f"d{-number:03}" for _, number in sorted(best.values(), key=lambda each: (-each[0], -each[1]))
    ]
    assert page.next == b""
    for sort in ("", "year,_key"):
        groups, token = [], b""
        while True:
            part = await docs.search("tail", collapse="year", sort=sort, limit=2, next=token)
            groups += [hit.collapsed.value for hit in part.hits]
            assert all(hit.collapsed.value == hit.document["year"] for hit in part.hits)
            token = part.next
            if not token:
                break
        assert sorted(groups, key=str) == [2000, 2001, 2002, 2003, 2004, None]


async def test_collapsing_over_several_collections(kv: Client[str]) -> None:
    more = kv.collection("more")
    await more.create(schema=SCHEMA)
    added = {f"m{number:03}": {**document(number), "year": 2003 + number % 5} for number in range(40)}
    (await more.put_many(added, refresh=True)).raise_for_failures()
    years = [each["year"] for each in (*DOCUMENTS.values(), *added.values())]
    for sort in ("", "-year,_key", "year,_key"):
        groups, token, pages = [], b"", 0
        while pages < 20:
            page = await kv.collection("docs").search(
                "tail", collections=["more"], collapse="year", sort=sort, limit=2, next=token
            )
            groups += [hit.collapsed.value for hit in page.hits]
            for hit in page.hits:
                assert hit.collapsed.value == hit.document["year"]
                count = years.count(hit.collapsed.value)
                assert hit.collapsed.count == count if hit.collapsed.is_exact else hit.collapsed.count <= count
            token, pages = page.next, pages + 1
            if not token:
                break
        assert sorted(groups, key=str) == [*range(2000, 2008), None], sort
    whole = await kv.collection("docs").search("tail", collections=["more"], collapse="year", sort="-year,_key", limit=20)
    assert [(hit.collection, hit.collapsed.value) for hit in whole.hits] == [
        *(("more", year) for year in (2007, 2006, 2005)),
        *(("docs", year) for year in (2004, 2003, 2002, 2001, 2000)),
        ("docs", None),
    ]
    assert [(hit.collapsed.count, hit.collapsed.is_exact) for hit in whole.hits] == [
        (years.count(hit.collapsed.value), True) for hit in whole.hits
    ]
    first = await kv.collection("docs").search("tail", collections=["more"], collapse="year", limit=2)
    with pytest.raises(InvalidToken):
        await kv.collection("docs").search("tail", collections=["more"], limit=2, next=first.next)
    other = kv.collection("other")
    await other.create(schema={"title": "text", "year": "keyword"})
    with pytest.raises(InvalidArgument, match="year is integer in docs, keyword in other") as refused:
        await kv.collection("docs").search("tail", collections=["other"], collapse="year")
    assert refused.value.details.field == "collapse"


async def test_fields_fragments_and_totals(kv: Client[str]) -> None:
    docs = kv.collection("docs")
    page = await docs.search("tail", return_fields=["year", "author.name", "nothing", "title.x"], sort="_key", limit=1)
    assert page.hits[0].document == {"year": None, "author": {"name": "n0"}}
    text = " ".join(f"filler{n} " * 10 + f"needle{n % 2} here" for n in range(6))
    await docs.put("long", {"title": text}, refresh=True)
    (hit,) = (await docs.search("needle0", highlight=["title"], fragments=2, fragment_chars=40)).hits
    assert len(hit.highlights) == 2
    for mark in hit.highlights:
        assert len(mark.fragment) <= 40
        assert [mark.fragment[start:end] for start, end in mark.spans] == ["needle0"]
    exact = await docs.search("tail")
    rough = await docs.search("tail", track_total=False)
    assert (exact.total, exact.is_total_exact) == (200, True)
    assert (10 <= rough.total <= 200, rough.is_total_exact) == (True, False)
    bounded = await docs.search("tail", track_total=1_000)
    assert (bounded.total, bounded.is_total_exact) == (200, True)


async def test_what_is_refused(kv: Client[str], address: str) -> None:
    docs = kv.collection("docs")
    for options, field, part in (
        ({"sort": "title"}, "sort", "title is a text field"),
        ({"sort": "-yaer"}, "sort", "did you mean year?"),
        ({"sort": [SortBy("year"), "year"]}, "sort", "stands twice"),
        ({"collapse": "rating"}, "collapse", "'rating' is of type float"),
        ({"collapse": "tga"}, "collapse", "did you mean tag?"),
        ({"return_fields": ["a"], "keys_only": True}, "return_fields", "ask for one of the two"),
        ({"return_fields": "title"}, "return_fields", "not one string"),
        ({"fragments": 21}, "highlight_options.fragments", "1 to 20, not 21"),
        ({"fragment_chars": 5}, "highlight_options.fragment_chars", "20 to 2000 characters, not 5"),
        ({"track_total": -1}, "track_total", "not -1"),
        ({"limit": 1001}, "limit", "1,000"),
    ):
        with pytest.raises(InvalidArgument) as refused:
            await docs.search("tail", **options)
        assert (refused.value.details.field, part in refused.value.message) == (field, True), refused.value.message
    token = (await docs.search("tail", sort="year")).next
    for other in ({"sort": "-year"}, {"sort": "year", "collapse": "tag"}, {"sort": "year", "filters": ["tag:red"]}):
        with pytest.raises(InvalidToken, match="another request"):
            await docs.search("tail", next=token, **other)
    assert (await docs.search("tail", next=token, sort="year:asc")).hits, "the same sort, written otherwise"
    async with grpc.aio.insecure_channel(address) as channel:
        search = search_pb2_grpc.SearchStub(channel).Search
        both = search_pb2.SearchRequest(collection="docs", sort="year", sorts=[search_pb2.SortBy(field="tag")])
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await search(both)
        assert "two ways" in error_from_rpc(failed.value).message
        sorts = [search_pb2.SortBy(field="year", descending=True, missing_first=True), search_pb2.SortBy(field="_key")]
        found = await search(search_pb2.SearchRequest(collection="docs", query="tail", sorts=sorts, limit=1))
        assert found.hits[0].key == b"d000"
        assert [value.WhichOneof("value") for value in found.hits[0].sort_values] == [None, "key"]


async def test_the_command_line(kv: Client[str], address: str, capsys: pytest.CaptureFixture[str]) -> None:
    def search(*flags: str) -> str:
        assert main(["search", "docs", "tail", "--router", address, *flags]) == 0
        return capsys.readouterr().out

    shown = json.loads(
        await asyncio.to_thread(
            search, "--json", "--sort", "-year,tag,_key", "--fields", "author.age,tag", "--limit", "2", "--total", "none"
        )
    )
    assert [hit["document"] for hit in shown["hits"]] == [
        {"tag": "blue", "author": {"age": number}} for number in [n for n in range(200) if n % 7 and n % 20 == 14][:2]
    ]
    assert shown["hits"][0]["sort_values"] == [2004, "blue", shown["hits"][0]["key"]]
    assert not shown["is_total_exact"]
    text = await asyncio.to_thread(search, "--collapse", "tag")
    assert "without a value: 50" in text
    assert "red: 50" in text
