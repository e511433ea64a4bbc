"""Aggregations over the eight shards of a real cluster, compared with the same computed the plain way."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from fakes.brute_aggregations import Brute, differences, plain, spread_documents
from harness.cluster import UpProcess

from kvshard import (
    Aggregation,
    Cardinality,
    Client,
    DateHistogram,
    Filter,
    Filters,
    Histogram,
    InvalidArgument,
    MalformedQuery,
    Missing,
    Percentiles,
    Ranges,
    Stats,
    Terms,
)
from kvshard.sync import Client as SyncClient
from kvshard.v1 import aggregations_pb2, search_pb2, search_pb2_grpc

SCHEMA = {"body": "text", "tag": "keyword", "n": "integer", "x": "float", "on": "boolean", "at": "date"}
DOCUMENTS = spread_documents(400, random.Random(11))

INSIDE: dict[str, Aggregation] = {"mean": Stats("x"), "half": Percentiles("n", (50.0,)), "tags": Terms("tag", size=3)}
ASKED: dict[str, Aggregation] = {
    "tags": Terms("tag", size=4, aggs={**INSIDE, "years": DateHistogram("at", "year")}),
    "numbers": Terms("n", size=20, order="-key", aggs={"no": Missing("at")}),
    "by mean": Terms("n", size=8, order="-s.mean", aggs={"s": Stats("x")}),
    "on": Terms("on"),
    "tens": Histogram("n", 10, 3, aggs=INSIDE),
    "months": DateHistogram("at", "month"),
    "parts": Ranges("n", [(None, 0), (-5, 5), (0, None)], {"c": Cardinality("tag")}),
    "no tag": Missing("tag"),
    "rpc": Filter("tag:rpc", {"n": Stats("n")}),
    "both": Filters({"rpc": "tag:rpc", "all": "*"}),
    "n": Stats("n"),
    "at": Percentiles("at", (1.0, 50.0, 100.0)),
    "x": Cardinality("x"),
}


def matches(query: str, document: Any) -> bool:
    return query == "*" or "rpc" in (document["tag"] if isinstance(document["tag"], list) else [document["tag"]])


@pytest.fixture
async def kv(shared_cluster: UpProcess) -> AsyncIterator[Client[str]]:
    async with Client(shared_cluster.address, timeout=20.0) as client:
        docs = client.collection("aggregated")
        await docs.create(schema=SCHEMA)
        if await docs.get("0") is None:  # once for all tests of the file
            await docs.put_many({str(number): document for number, document in enumerate(DOCUMENTS)}, refresh=True)
        yield client


async def test_eight_shards_say_what_one_list_says(kv: Client[str]) -> None:
    page = await kv.collection("aggregated").search("*", limit=0, aggs=ASKED)
    assert page.hits == []
    assert page.total == len(DOCUMENTS)
    assert list(page.aggregations) == list(ASKED)
    found = {name: plain(result) for name, result in page.aggregations.items()}
    assert differences(found, Brute(SCHEMA, matches).run(ASKED, DOCUMENTS)) == []
    buckets: Any = page.aggregations["tags"]
    assert buckets.error_bound == 0
    assert buckets["rpc"].count == buckets["rpc"].aggregations["mean"].count + sum(
        1 for document in DOCUMENTS if matches("tag:rpc", document) and document["x"] in (None, [])
    ) - sum(
        len(set(document["x"])) - 1
        for document in DOCUMENTS
        if matches("tag:rpc", document) and isinstance(document["x"], list) and document["x"]
    )


async def test_filters_and_hits_beside_them(kv: Client[str]) -> None:
    page = await kv.collection("aggregated").search("*", limit=5, filters=["tag:rpc"], aggs={"n": Terms("n", size=100)})
    wanted = Brute(SCHEMA).run({"n": Terms("n", size=100)}, [each for each in DOCUMENTS if matches("tag:rpc", each)])
    assert len(page.hits) == 5
    assert plain(page.aggregations["n"]) == wanted["n"]
    assert page.next
    second = await kv.collection("aggregated").search("*", limit=5, filters=["tag:rpc"], aggs=ASKED, next=page.next)
    assert len(second.hits) == 5
    assert len(second.aggregations) == len(ASKED)


async def test_facets_of_a_hundred_values_are_exact(kv: Client[str]) -> None:
    many = kv.collection("many-values")
    await many.create(schema={"tag": "keyword"})
    seed = random.Random(2)
    tags = [f"t{min(int(seed.paretovariate(0.5)), 150)}" for _ in range(600)]
    await many.put_many({str(number): {"tag": tag} for number, tag in enumerate(tags)}, refresh=True)
    facet = (await many.search("*", limit=0, facets=["tag"], facet_limit=5)).facets["tag"]
    wanted = sorted(Counter(tags).items(), key=lambda each: (-each[1], each[0]))[:5]
    assert [(value.value, value.count) for value in facet.values] == wanted
    assert facet.error_bound == 0


async def test_over_several_collections(kv: Client[str]) -> None:
    here = kv.collection("aggregated")
    more = kv.collection("aggregated-too")
    others = spread_documents(60, random.Random(12))
    await more.create(schema=SCHEMA)
    await more.put_many({str(number): document for number, document in enumerate(others)}, refresh=True)
    asked = {name: ASKED[name] for name in ("tags", "tens", "n", "at", "x", "both")}
    page = await here.search("*", limit=1, collections=["aggregated-too"], aggs=asked)
    found = {name: plain(result) for name, result in page.aggregations.items()}
    assert differences(found, Brute(SCHEMA, matches).run(asked, [*DOCUMENTS, *others])) == []


async def test_the_sync_client_and_bare_grpc(kv: Client[str], shared_cluster: UpProcess) -> None:
    def work() -> Any:
        with SyncClient(shared_cluster.address, timeout=20.0) as sync:
            return sync.collection("aggregated").search("*", limit=0, aggs={"tags": Terms("tag", size=2)})

    page = await asyncio.to_thread(work)
    async with grpc.aio.insecure_channel(shared_cluster.address) as channel:
        terms = aggregations_pb2.TermsAggregation(field="tag")
        request = search_pb2.SearchRequest(
            collection="aggregated", limit=0, aggregations=[aggregations_pb2.Aggregation(name="tags", terms=terms)]
        )
        response = await search_pb2_grpc.SearchStub(channel).Search(request)
        rows = response.aggregations[0].buckets.buckets
        assert [(row.text, row.count) for row in rows][:2] == [(each.key, each.count) for each in page.aggregations["tags"]]
        request.aggregations.append(aggregations_pb2.Aggregation(name="nothing"))
        with pytest.raises(grpc.aio.AioRpcError, match="does not say what to compute"):
            await search_pb2_grpc.SearchStub(channel).Search(request)


@pytest.mark.parametrize(
    ("aggs", "field", "limit", "message"),
    [
        ({"h": Histogram("n", 1e-5)}, "aggregations.h.interval", 10_000, "buckets; an answer has at most 10,000"),
        ({"d": DateHistogram("at", "1m")}, "aggregations.d.interval", 10_000, "widen the interval"),
        ({"t": Terms("tags")}, "aggregations.t.field", None, "did you mean tag?"),
        ({"t": Terms("body")}, "aggregations.t.field", None, "body is a text field"),
        ({"f": Filter("n:[1 TO")}, "aggregations.f.query", None, "position|character"),
        ({str(number): Stats("n") for number in range(33)}, "aggregations", 32, "at most 32"),
    ],
)
async def test_what_cannot_be_is_refused(kv: Client[str], aggs: Any, field: str, limit: int | None, message: str) -> None:
    with pytest.raises(InvalidArgument, match=message) as refused:
        await kv.collection("aggregated").search("*", aggs=aggs)
    assert (refused.value.details.field, refused.value.details.limit) == (field, limit)
    assert isinstance(refused.value, MalformedQuery) == (field == "aggregations.f.query")


async def test_what_is_no_aggregation_is_refused_by_the_client(kv: Client[str]) -> None:
    for aggs in ({"t": Terms("tag", size="many")}, {"t": "tag"}, ["tag"]):
        with pytest.raises(InvalidArgument) as refused:
            await kv.collection("aggregated").search("*", aggs=aggs)  # type: ignore[arg-type]
        assert refused.value.details.field == "aggs"
