import pytest

from kvshard.aggregations.check import check_aggregations
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
from kvshard.errors import InvalidArgument, MalformedQuery
from kvshard.query import prepare

SCHEMA = {"body": "text", "tag": "keyword", "n": "integer", "x": "float", "on": "boolean", "at": "date"}


def check(**aggregations):
    check_aggregations(aggregations, SCHEMA, lambda text, where: prepare(text, SCHEMA, where))


def test_what_is_possible():
    check(
        a=Terms("tag", order="-c", aggs={"c": Cardinality("n"), "p": Percentiles("x")}),
        b=Terms("n", order="p.99", aggs={"p": Percentiles("x", (99.0,))}),
        c=Ranges("x", [(None, 1), (0.5, None), ("2", 3.0)], {"m": Missing("body")}),
        d=Ranges("at", [("2020-01-01", "2020-06-01T12:00:00Z")]),
        e=Ranges("n", [(1.0, 2.0)]),
        f=Filters({"one": "tag:a", "two": ""}, {"h": Histogram("n", 1)}),
    )


@pytest.mark.parametrize(
    ("aggregation", "field", "limit", "message"),
    [
        (Terms("tags"), "field", None, "did you mean tag"),
        (Terms("nothing"), "field", None, "fields are at, body"),
        (Terms("body"), "field", None, "body is a text field; terms needs one of keyword"),
        (Terms("x"), "field", None, "x is a float field"),
        (Terms("tag", size=0), "size", 10_000, "1 to 10000"),
        (Terms("tag", size=10_001), "size", 10_000, "1 to 10000"),
        (Terms("tag", min_doc_count=0), "min_doc_count", None, "at least 1"),
        (Terms("tag", order="s"), "order", None, "they can by count, key"),
        (Terms("tag", order="key.max"), "order", None, "they can by"),
        (Terms("tag", order="s.median", aggs={"s": Stats("n")}), "order", None, "count, key, s"),
        (Terms("tag", order="p.7", aggs={"p": Percentiles("n")}), "order", None, "they can by"),
        (Terms("tag", order="t", aggs={"t": Terms("n")}), "order", None, "they can by"),
        (Terms("tag", size=200, aggs={"t": Terms("n", size=51)}), "aggs.t.size", 10_000, "more than the 10000"),
        (Terms("tag", aggs={"t": Terms("n", aggs={"s": Stats("n")})}), "aggs.t", 1, "inside another one already"),
        (Terms("tag", aggs={"t": Stats("m")}), "aggs.t.field", None, "unknown field m;"),
        (Ranges("tag", [(1, 2)]), "field", None, "keyword"),
        (Ranges("n", []), "ranges", 64, "1 to 64"),
        (Ranges("n", [(1, 2)] * 65), "ranges", 64, "not 65"),
        (Ranges("n", [(1, 2), (3, 3)]), "ranges[1]", None, "empty"),
        (Ranges("n", [("a", 3)]), "ranges[0]", None, "is no integer"),
        (Ranges("n", [(0.5, 3)]), "ranges[0]", None, "is no integer"),
        (Ranges("x", [(float("nan"), 3)]), "ranges[0]", None, "is no float"),
        (Ranges("at", [("yesterday", None)]), "ranges[0]", None, "is no date"),
        (Histogram("at", 5), "field", None, "date"),
        (Histogram("n", 0), "interval", None, "over 0"),
        (Histogram("n", float("inf")), "interval", None, "over 0"),
        (Histogram("n", 1, float("nan")), "offset", None, "finite"),
        (DateHistogram("at", "fortnight"), "interval", None, "is no interval"),
        (DateHistogram("at", "0d"), "interval", None, "is no interval"),
        (DateHistogram("n", "day"), "field", None, "integer"),
        (Stats("tag"), "field", None, "keyword"),
        (Percentiles("on"), "field", None, "boolean"),
        (Percentiles("n", ()), "percents", 100, "1 to 100"),
        (Percentiles("n", (101.0,)), "percents", 100, "0 to 100"),
        (Percentiles("n", (float("nan"),)), "percents", 100, "0 to 100"),
        (Cardinality("body"), "field", None, "text"),
        (Filters({}), "queries", 64, "1 to 64"),
        (Filters({"": "x"}), "queries", 64, "1 to 64 characters"),
        (Filter("nothing:x"), "query", None, "unknown field"),
    ],
)
def test_what_is_not_names_the_place_and_the_limit(aggregation, field, limit, message):
    with pytest.raises(InvalidArgument, match=message) as refused:
        check(a=aggregation)
    assert (refused.value.details.field, refused.value.details.limit) == (f"aggregations.a.{field}", limit)


def test_a_malformed_query_points_at_its_position():
    with pytest.raises(MalformedQuery) as refused:
        check(a=Filters({"one": 'tag:"a'}))
    assert refused.value.details.field == "aggregations.a.queries.one"
    assert refused.value.details.position == 4


def test_too_many_and_too_long_names():
    check(**{f"a{number}": Terms("tag", aggs={"s": Stats("n")}) for number in range(16)})
    with pytest.raises(InvalidArgument, match="at most 32"):
        check(**{f"a{number}": Terms("tag", aggs={"s": Stats("n")}) for number in range(17)})
    with pytest.raises(InvalidArgument, match="1 to 64 characters"):
        check(**{"a" * 65: Stats("n")})
