"""Query strings and structured queries over a cluster of several processes: the client, gRPC, the router, lanes, leaves."""

import json
from collections.abc import AsyncIterator

import grpc
import pytest
from harness.cluster import UpProcess

import kvshard
from kvshard import Bool, Boost, Client, DisMax, InvalidArgument, MalformedQuery, Match, MoreLikeThis, Range, Term
from kvshard.cli import main
from kvshard.sync import Client as SyncClient
from kvshard.v1 import query_pb2, search_pb2, search_pb2_grpc

SCHEMA = {"title": "text", "body": "text", "tag": "keyword", "year": "integer"}
WORDS = ("amber", "birch", "cedar", "delta")


@pytest.fixture(scope="module")
def filled(shared_cluster: UpProcess) -> None:
    with SyncClient(shared_cluster.address, timeout=20.0) as kv:
        docs = kv.collection("built-queries")
        docs.create(schema=SCHEMA)
        written = {}
        for number in range(64):
            words = [word for bit, word in enumerate(WORDS) if number >> bit & 1]
            tag = "even" if number % 2 == 0 else "odd"
            written[f"d{number}"] = {"title": " ".join(words), "body": f"number n{number} of them", "tag": tag, "year": number}
        docs.put_many(written, refresh=True)


@pytest.fixture
async def kv(shared_cluster: UpProcess, filled: None) -> AsyncIterator[Client[str]]:
    async with Client(shared_cluster.address, timeout=20.0) as client:
        yield client


async def found(kv: Client[str], *query: object, **options: object) -> set[int]:
    page = await kv.collection("built-queries").search(*query, limit=100, **options)  # type: ignore[arg-type]
    assert page.complete
    assert page.total == len(page.hits)
    return {int(hit.key[1:]) for hit in page.hits}


def having(*words: str) -> set[int]:
    return {number for number in range(64) if all(number >> WORDS.index(word) & 1 for word in words)}


async def test_query_strings(kv: Client[str]) -> None:
    assert await found(kv, "b?rch") == await found(kv, "*rch") == await found(kv, "brich~") == having("birch")
    assert await found(kv, '"amber cedar"') == having("amber", "cedar") - having("birch")
    assert await found(kv, '"amber cedar"~1') == having("amber", "cedar")
    assert await found(kv, "amber birch", operator="and") == having("amber", "birch")
    assert await found(kv, "_exists_:title AND tag:od?") == {number for number in range(64) if number % 2}
    two = await found(kv, "amber birch cedar", minimum_should_match=2, fields=["title^2", "body"])
    assert two == having("amber", "birch") | having("amber", "cedar") | having("birch", "cedar")
    assert await found(kv, "amber", fields=["body"]) == set()
    assert await found(kv, "amber", matching=Range("year", lt=10)) == {number for number in having("amber") if number < 10}


async def test_structured_queries(kv: Client[str]) -> None:
    query = Bool(
        must=[Match("amber", fields=["title^3", "body"])],
        should=[Boost(Match("birch"), 100)],
        must_not=[Term("year", 5)],
        filter=[Range("year", gte=3, lt=40)],
    )
    assert await found(kv, query) == {number for number in having("amber") if 3 <= number < 40} - {5}
    page = await kv.collection("built-queries").search(query, limit=3, highlight=["title"])
    assert all("birch" in hit.document["title"] for hit in page.hits if hit.document)
    assert page.hits[0].highlights[0].spans
    best = DisMax([Boost(Match("birch"), 100), Match("amber")])
    ranked = await kv.collection("built-queries").search(best, limit=100)
    names = [hit.document["title"] for hit in ranked.hits if hit.document]
    assert ["birch" in name for name in names] == sorted(("birch" in name for name in names), reverse=True)
    assert await found(kv, kvshard.MatchNone()) == set()
    assert len(await found(kv, kvshard.AnyOf("tag", ["even", "odd"]))) == 64


async def test_pages_of_a_structured_query(kv: Client[str]) -> None:
    docs, seen, token = kv.collection("built-queries"), [], None
    while token != b"":
        page = await docs.search(Match("amber birch"), limit=7, next=token)
        seen += [hit.key for hit in page.hits]
        token = page.next
    assert len(seen) == len(set(seen)) == len(having("amber") | having("birch"))
    first = await docs.search(Match("amber birch"), limit=7)
    with pytest.raises(kvshard.InvalidToken):
        await docs.search(Match("amber cedar"), limit=7, next=first.next)


async def test_documents_like_others(kv: Client[str]) -> None:
    alike = MoreLikeThis(keys=["d3"], fields=["title"], min_term_freq=1, min_doc_freq=1, minimum_should_match="100%")
    assert await found(kv, alike) == having("amber", "birch") - {3}
    by_text = MoreLikeThis(["cedar, cedar"], fields=["title"], min_doc_freq=1)
    assert await found(kv, by_text) == having("cedar")
    gone = MoreLikeThis(keys=["gone"], min_term_freq=1, min_doc_freq=1)
    assert await found(kv, gone) == set()


async def test_what_is_wrong_is_said(kv: Client[str]) -> None:
    docs = kv.collection("built-queries")
    with pytest.raises(MalformedQuery) as malformed:
        await docs.search('amber "birch')
    assert malformed.value.details.position == 6
    for query, message, field in (
        ("titel:x", "did you mean title?", "query"),
        (Bool(filter=[Term("titel", "x")]), "did you mean title?", "structured.bool.filter[0].term"),
        (Bool(must=[kvshard.QueryString("a^nan")]), "a boost is a number", "structured.bool.must[0].query_string.query"),
        (Match("a b " * 600), "at most 1024 clauses", "structured.match"),
        (MoreLikeThis(["a"] * 20), "1 to 16 texts", "structured.more_like_this"),
    ):
        with pytest.raises(InvalidArgument, match=message.replace("?", "\\?")) as caught:
            await docs.search(query)
        assert caught.value.details.field == field


async def test_a_pattern_that_stands_for_too_many_words_is_refused(shared_cluster: UpProcess) -> None:
    async with Client(shared_cluster.address, timeout=20.0) as kv:
        docs = kv.collection("wide")
        await docs.create(schema={"body": "text"})
        await docs.put("all", {"body": " ".join(f"w{number}" for number in range(70_000))}, refresh=True)
        for query in ("w*", "*9", "w?*9", Bool(must_not=[kvshard.Wildcard("body", "*")])):
            with pytest.raises(InvalidArgument, match="more than 65,536 words of a shard") as caught:
                await docs.search(query)
            assert caught.value.details.limit == 65_536
        assert (await docs.search("w123*")).total == (await docs.search("w12?4")).total == 1


async def test_wire_messages_that_no_client_makes(shared_cluster: UpProcess, filled: None) -> None:
    async with grpc.aio.insecure_channel(shared_cluster.address) as channel:
        search = search_pb2_grpc.SearchStub(channel).Search
        deep = query_pb2.Query(match_all=query_pb2.MatchAllQuery())
        for _ in range(40):
            deep = query_pb2.Query(bool=query_pb2.BoolQuery(must=[deep]))
        for request in (
            search_pb2.SearchRequest(structured=query_pb2.Query()),
            search_pb2.SearchRequest(default_operator=7),
            search_pb2.SearchRequest(structured=deep),
        ):
            request.collection = "built-queries"
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await search(request)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        request = search_pb2.SearchRequest(collection="built-queries", structured=query_pb2.Query(match_all={}))
        assert (await search(request)).total == 64


def test_the_command_line(shared_cluster: UpProcess, filled: None, capsys: pytest.CaptureFixture[str]) -> None:
    structured = json.dumps({"range": {"field": "year", "gte": "60"}})
    args = ["search", "built-queries", "amber birch", "--operator", "and", "--field", "title^2", "--structured", structured]
    assert main([*args, "--json", "--router", shared_cluster.address]) == 0
    assert {hit["key"] for hit in json.loads(capsys.readouterr().out)["hits"]} == {"d63"}
    assert main(["search", "built-queries", "amber", "--structured", "{", "--router", shared_cluster.address]) == 2
    assert "not a structured query" in capsys.readouterr().err
