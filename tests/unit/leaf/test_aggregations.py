"""What a leaf says to aggregations, compared with the same computed the plain way."""

import json
import random

import pytest
from fakes.brute_aggregations import Brute, differences, plain, spread_documents

from kvshard import hashing
from kvshard.aggregations.check import check_aggregations
from kvshard.aggregations.finish import finish_all
from kvshard.aggregations.merge import merge_named
from kvshard.aggregations.model import (
    Cardinality,
    DateHistogram,
    Filter,
    Filters,
    Histogram,
    Missing,
    Percentiles,
    Ranges,
    Stats,
    Terms,
)
from kvshard.errors import Cancelled, InvalidArgument
from kvshard.query import prepare
from leaf import aggregations as leaf_aggregations
from leaf.aggregations import Aggregator
from leaf.text_index import TextIndex

SCHEMA = {"body": "text", "tag": "keyword", "n": "integer", "x": "float", "on": "boolean", "at": "date"}

INSIDE = {
    "stats": Stats("n"),
    "p": Percentiles("n", (10.0, 50.0, 90.0)),
    "different": Cardinality("tag"),
    "tags": Terms("tag", size=3),
    "years": DateHistogram("at", "year", min_doc_count=1),
    "parts": Ranges("x", [(None, 0), (0, 5)]),
    "no": Missing("at"),
}

ASKED = {
    "stats": {name: Stats(name) for name in ("n", "x", "on", "at")},
    "percentiles": {name: Percentiles(name, (0.0, 1.0, 50.0, 99.0, 100.0)) for name in ("n", "x", "at")},
    "cardinality": {name: Cardinality(name) for name in ("tag", "n", "x", "on", "at")},
    "terms": {name: Terms(name, size=5) for name in ("tag", "n", "on", "at")},
    "orders": {order: Terms("n", size=7, order=order) for order in ("-count", "count", "key", "-key")},
    "rare": {"rare": Terms("n", size=100, min_doc_count=4), "by key": Terms("n", size=3, order="key", min_doc_count=4)},
    "histogram": {
        "n": Histogram("n", 7),
        "offset": Histogram("n", 10, 3, min_doc_count=2),
        "x": Histogram("x", 0.1, min_doc_count=1),
    },
    "dates": {each: DateHistogram("at", each) for each in ("day", "week", "month", "quarter", "year", "36h")},
    "ranges": {"n": Ranges("n", [(None, -3), (-5, 5), (5, None), (None, None)]), "x": Ranges("x", [(0, 0.3), (0.3, 1)])},
    "missing": {name: Missing(name, INSIDE) for name in ("tag", "n", "body")},
    "filters": {"f": Filter("tag:rpc", INSIDE), "fs": Filters({"all": "*", "rpc": "tag:rpc"}, {"n": Stats("n")})},
    "terms with all inside": {"tag": Terms("tag", size=4, aggs=INSIDE), "on": Terms("on", aggs=INSIDE)},
    "terms, natively": {"tag": Terms("tag", size=4, aggs={"s": Stats("x"), "p": Percentiles("n"), "t": Terms("on")})},
    "by a metric": {
        "mean": Terms("tag", order="-s", aggs={"s": Stats("x")}),
        "max": Terms("tag", order="s.max", aggs={"s": Stats("n")}),
        "different": Terms("tag", order="-c", aggs={"c": Cardinality("n")}),
    },
    "histogram with all inside": {"n": Histogram("n", 20, aggs=INSIDE), "at": DateHistogram("at", "year", aggs=INSIDE)},
    "ranges with all inside": {"n": Ranges("n", [(0, 10)], INSIDE)},
}


def matches(query, document):
    return query == "*" or "rpc" in (document["tag"] if isinstance(document["tag"], list) else [document["tag"]])


def index_of(path, documents, commits=2, schema=SCHEMA):
    index = TextIndex.create(path, schema, lambda key: hashing.slot(key, 0))
    items = [(b"%d" % number, (json.dumps(each).encode(), 0)) for number, each in enumerate(documents)]
    for part in range(commits):
        index.write(dict(items[part::commits]))
        index.commit(part + 1)
    return index


def partials(index, aggregations, query="*", check=lambda: None):
    check_aggregations(aggregations, index.schema, lambda text, where: prepare(text, index.schema, where))

    def compile_node(node):
        return index.compiler.compile(node, [], None)

    aggregator = Aggregator(index.searcher(), index.fields, index.schema, compile_node, check)
    return aggregator.run(compile_node(prepare(query, index.schema)), aggregations)


def answer(indexes, aggregations, query="*"):
    """As a router makes it of several shards."""
    merged = merge_named([partials(index, aggregations, query) for index in indexes])
    found = finish_all(aggregations, merged, SCHEMA)
    return {name: plain(result) for name, result in found.items()}


@pytest.fixture(scope="module", params=["single", "several"])
def corpus(request, tmp_path_factory):
    """Documents, and three indexes that hold a part of them each; in "single" no field has several values."""
    documents = spread_documents(300, random.Random(5))
    if request.param == "single":
        for document in documents:
            document.update({name: value[0] if value else None for name, value in document.items() if isinstance(value, list)})
    folder = tmp_path_factory.mktemp(request.param)
    return documents, [index_of(folder / str(part), documents[part::3]) for part in range(3)]


@pytest.mark.parametrize("asked", ASKED)
def test_same_as_the_plain_way(corpus, asked):
    documents, indexes = corpus
    wanted = Brute(SCHEMA, matches).run(ASKED[asked], documents)
    assert differences(answer(indexes, ASKED[asked]), wanted) == []


@pytest.mark.parametrize("asked", ["percentiles", "cardinality", "terms, natively", "terms with all inside", "by a metric"])
def test_slices_change_nothing(corpus, asked, monkeypatch):
    documents, indexes = corpus
    monkeypatch.setattr(leaf_aggregations, "SLICE_DOCS", 9)
    monkeypatch.setattr(leaf_aggregations, "MERGED_AT_ONCE", 3)
    wanted = Brute(SCHEMA, matches).run(ASKED[asked], documents)
    assert differences(answer(indexes, ASKED[asked]), wanted) == []


def test_only_what_the_query_matches(corpus):
    documents, indexes = corpus
    asked = {"n": Histogram("n", 7, aggs={"c": Cardinality("x")}), "t": Terms("tag")}
    wanted = Brute(SCHEMA).run(asked, [each for each in documents if matches("tag:rpc", each)])
    assert differences(answer(indexes, asked, "tag:rpc"), wanted) == []


def test_nothing_matches(corpus):
    _, indexes = corpus
    asked = {name: each for group in ASKED.values() for name, each in group.items()}
    asked = dict(list(asked.items())[-10:])
    assert differences(answer(indexes, asked, "tag:nowhere"), Brute(SCHEMA, matches).run(asked, [])) == []


def test_more_values_than_a_shard_lists(tmp_path, monkeypatch):
    monkeypatch.setattr(leaf_aggregations, "TERMS_MAX", 5)
    documents = [{"n": number // (1 + number % 7)} for number in range(200)]
    index = index_of(tmp_path / "i", documents, commits=1)
    found = finish_all({"n": Terms("n", size=3)}, partials(index, {"n": Terms("n", size=3)}), SCHEMA)["n"]
    wanted = Brute(SCHEMA).run({"n": Terms("n", size=500)}, documents)["n"]
    assert plain(found) == wanted[:3]  # one segment: what it lists is exact
    assert found.error_bound >= wanted[5][1]
    assert found.others == 200 - sum(count for _, count, _ in wanted[:3])
    by_key = {"n": Terms("n", size=3, order="key", aggs={"p": Percentiles("n")})}
    assert finish_all(by_key, partials(index, by_key), SCHEMA)["n"].error_bound == 0
    assert differences(answer([index], by_key), Brute(SCHEMA).run(by_key, documents)) == []
    with pytest.raises(InvalidArgument, match="narrow the query") as caught:
        partials(index, {"n": Terms("n", order="count")})
    assert (caught.value.details.field, caught.value.details.limit) == ("aggregations.n.order", 5)


def test_too_much_inside_is_cut_with_an_error_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(leaf_aggregations, "WEIGHT_MAX", 2_000)
    monkeypatch.setattr(leaf_aggregations, "INNER_ROWS_MIN", 2)
    documents = [{"n": number % 20, "tag": f"{number % 9}"} for number in range(400)]
    index = index_of(tmp_path / "i", documents)
    asked = {"n": Terms("n", size=20, aggs={"t": Terms("tag", size=1)})}
    found = finish_all(asked, partials(index, asked), SCHEMA)["n"]
    assert found.error_bound == 20
    assert all(bucket.count == 20 for bucket in found)
    with pytest.raises(InvalidArgument, match="too large"):
        partials(index, {"n": Histogram("n", 1, aggs={"p": Percentiles("n"), "c": Cardinality("tag")})})


@pytest.mark.parametrize(
    ("documents", "asked"),
    [
        ([{"n": 0}, {"n": 1_000_000}], Histogram("n", 1)),
        ([{"x": -1e300}, {"x": 1e300}], Histogram("x", 1e-9)),
        ([{"x": -1e300}, {"x": 1e300}], Histogram("x", 1e-9, min_doc_count=1)),
        ([{"at": "2000-01-01"}, {"at": "2020-01-01"}], DateHistogram("at", "1s")),
    ],
)
def test_too_many_buckets_are_refused_before_they_are_made(tmp_path, documents, asked):
    index = index_of(tmp_path / "i", documents)
    with pytest.raises(InvalidArgument, match="at most 10,000") as caught:
        partials(index, {"h": asked})
    assert (caught.value.details.field, caught.value.details.limit) == ("aggregations.h.interval", 10_000)


def test_a_sparse_histogram_lists_what_there_is(tmp_path):
    documents = [{"n": 0}, {"n": 1_000_000}, {"n": [1_000_000, -5]}]
    index = index_of(tmp_path / "i", documents)
    asked = {"n": Histogram("n", 1, min_doc_count=1, aggs={"no": Missing("tag")})}
    found = answer([index], asked)["n"]
    assert found == [
        (-5, 1, {"no": [("missing", 1, {})]}),
        (0, 1, {"no": [("missing", 1, {})]}),
        (1_000_000, 2, {"no": [("missing", 2, {})]}),
    ]


def test_integers_beyond_doubles(tmp_path):
    big = 2**62
    documents = [{"n": big + offset} for offset in (0, 1, 1, 2)] + [{"n": -(2**63)}, {"n": 2**63 - 1}]
    index = index_of(tmp_path / "i", documents)
    found = answer([index], {"t": Terms("n"), "r": Ranges("n", [(big + 1, big + 2)]), "h": Histogram("n", 2**60)})
    assert found["t"][0] == (big + 1, 2, {})
    assert found["r"][0][1] == 2
    assert [count for _, count, _ in found["h"] if count] == [1, 4, 1]


def test_dates_beyond_doubles(tmp_path):
    texts = ["2999-12-31T23:59:59.999999Z", "3000-01-01T00:00:00Z", "3000-01-01T00:00:00.000001Z"]
    index = index_of(tmp_path / "i", [{"at": text} for text in texts])
    assert [count for _, count, _ in answer([index], {"d": DateHistogram("at", "year")})["d"]] == [1, 2]


def test_stops_when_told(corpus):
    _, indexes = corpus
    calls = iter([None] * 5)

    def check():
        if next(calls, "over") == "over":
            raise Cancelled("enough")

    with pytest.raises(Cancelled):
        partials(indexes[0], {"n": Ranges("n", [(number, number + 1) for number in range(60)])}, check=check)


def test_deleted_documents_do_not_count(tmp_path):
    index = index_of(tmp_path / "i", [{"n": number % 3} for number in range(30)])
    index.write({b"0": None, b"1": (b'{"n": 2}', 0)})
    index.commit(9)
    assert answer([index], {"n": Terms("n", order="key")})["n"] == [(0, 9, {}), (1, 9, {}), (2, 11, {})]
