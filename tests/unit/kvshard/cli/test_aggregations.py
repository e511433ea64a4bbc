"""The short form of aggregations, and how their answers are shown."""

import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from kvshard.aggregations.model import (
    Cardinality,
    DateHistogram,
    Filter,
    Histogram,
    Missing,
    Percentiles,
    Ranges,
    Stats,
    Terms,
)
from kvshard.aggregations.results import Bucket, BucketsResult, CardinalityResult, PercentilesResult, StatsResult
from kvshard.cli.aggregations import aggregations_json, bar, figure_text, parse_aggregations, show_aggregations
from kvshard.errors import InvalidArgument


@pytest.mark.parametrize(
    ("text", "name", "aggregation"),
    [
        ("terms:tag", "terms:tag", Terms("tag")),
        ("terms:tag:25", "terms:tag:25", Terms("tag", size=25)),
        ("t=terms:tag:5:key", "t", Terms("tag", size=5, order="key")),
        ("t=terms:tag::-s.max/s=stats:year", "t", Terms("tag", order="-s.max", aggs={"s": Stats("year")})),
        ("terms:tag/stats:n/terms:n:3", "terms:tag", Terms("tag", aggs={"stats:n": Stats("n"), "terms:n:3": Terms("n", 3)})),
        ("ranges:year:..2000,2000..2010,2010..", "", Ranges("year", [(None, "2000"), ("2000", "2010"), ("2010", None)])),
        ("histogram:x:0.5", "", Histogram("x", 0.5)),
        (
            "dates:at:month/cardinality:tag",
            "dates:at:month",
            DateHistogram("at", "month", aggs={"cardinality:tag": Cardinality("tag")}),
        ),
        ("missing:tag", "", Missing("tag")),
        ("filter:tag:rpc AND a/b", "", Filter("tag:rpc AND a/b")),
        ("f=filter:tag:rpc", "f", Filter("tag:rpc")),
        ("percentiles:x", "", Percentiles("x")),
        ("percentiles:x:50,99.9", "", Percentiles("x", (50.0, 99.9))),
    ],
)
def test_short_forms(text, name, aggregation):
    assert parse_aggregations([text]) == {name or text: aggregation}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "terms",
        "terms:",
        "counts:tag",
        "terms:tag:many",
        "histogram:x",
        "ranges:x:1-2",
        "stats:x:3",
        "stats:x/stats:y",
        "percentiles:x:half",
        "terms:tag/",
    ],
)
def test_what_is_none_is_refused_with_the_form(text):
    with pytest.raises(InvalidArgument, match="is no aggregation"):
        parse_aggregations([text])


def test_a_name_twice_is_refused():
    with pytest.raises(InvalidArgument, match="stands twice"):
        parse_aggregations(["stats:n", "stats:n"])
    assert len(parse_aggregations(["stats:n", "again=stats:n"])) == 2


def shown(results) -> str:
    text = io.StringIO()
    show_aggregations(Console(file=text, width=120), results)
    return text.getvalue()


def test_tables_with_bars():
    buckets = BucketsResult(
        (Bucket("rpc", 40, {"y": StatsResult(2, 3.0, 1.0, 2.0, 1.5, 0.25)}), Bucket("tail", 1), Bucket("none", 0)), 3, 7
    )
    first, *rows = shown({"tags": buckets}).splitlines()
    assert first == "tags (each up to 3 too low), 7 more in others"
    assert rows[0].split(maxsplit=3) == [
        "rpc",
        "█" * 30,
        "40",
        "y: 2 values, min 1, max 2, mean 1.5, stddev 0.5, sum 3",
    ]
    assert rows[1].split() == ["tail", "▊", "1"]
    assert rows[2].split() == ["none", "0"]
    assert "nothing" in shown({"tags": BucketsResult(())})


def test_keys_and_figures_in_words():
    days = BucketsResult((Bucket(datetime(2020, 1, 1, tzinfo=UTC), 1), Bucket(datetime(2020, 1, 1, 12, tzinfo=UTC), 2)))
    assert figure_text(days) == "2020-01-01 1, 2020-01-01T12:00:00+00:00 2"
    assert figure_text(BucketsResult((Bucket(True, 1), Bucket(0.5, 2), Bucket("", 3), Bucket("a\nb", 4)))) == (
        'true 1, 0.5 2, "" 3, a b 4'
    )
    assert figure_text(StatsResult(0, 0.0, None, None, None, None)) == "no values"
    assert figure_text(PercentilesResult({50.0: 1234.5, 99.0: None}, 0.01)) == "50% 1,234.5, 99% none (within 1.00%)"
    assert figure_text(PercentilesResult({50.0: 1e15}, 0.0, 7_200_000_000)).endswith("(within 2.0 h)")
    assert figure_text(CardinalityResult(12_345)) == "12,345"
    assert figure_text(CardinalityResult(12_345, 0.01)) == "12,345 (give or take 2.0%)"
    assert [len(bar(count, 1_000)) for count in (0, 1, 500, 1_000)] == [0, 1, 15, 30]


def test_json():
    results = {
        "d": BucketsResult((Bucket(datetime(2020, 1, 1, tzinfo=UTC), 1, {"c": CardinalityResult(3)}),), 0, 2),
        "s": StatsResult(1, 2.0, 2.0, 2.0, 2.0, 0.0),
        "p": PercentilesResult({99.9: 1.0}),
    }
    assert aggregations_json(results) == {
        "d": {
            "buckets": [
                {
                    "key": "2020-01-01T00:00:00+00:00",
                    "count": 1,
                    "aggregations": {"c": {"value": 3, "standard_error": 0.0}},
                }
            ],
            "error_bound": 0,
            "others": 2,
        },
        "s": {"count": 1, "sum": 2.0, "min": 2.0, "max": 2.0, "mean": 2.0, "variance": 0.0, "stddev": 0.0},
        "p": {"values": {"99.9": 1.0}, "relative_error": 0.0, "absolute_error_us": 0},
    }
