from datetime import UTC, datetime

import pytest

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
from kvshard.aggregations.results import Bucket, BucketsResult, CardinalityResult, PercentilesResult, StatsResult
from kvshard.errors import InvalidArgument
from kvshard.rpc.aggregation_convert import (
    aggregations_from_proto,
    aggregations_to_proto,
    results_from_proto,
    results_to_proto,
)
from kvshard.v1 import aggregations_pb2 as pb

INSIDE = {"s": Stats("n"), "p": Percentiles("n", (50.0, 99.9)), "c": Cardinality("n")}


def test_aggregations_there_and_back():
    asked = {
        "terms": Terms("tag", 3, "-s.max", 2, INSIDE),
        "usual": Terms("tag"),
        "ranges": Ranges("n", [(None, "5"), ("5", None)], INSIDE),
        "histogram": Histogram("n", 0.5, 0.25, 1, INSIDE),
        "dates": DateHistogram("at", "month", 1, INSIDE),
        "missing": Missing("n", INSIDE),
        "filter": Filter("tag:a", INSIDE),
        "filters": Filters({"a": "tag:a", "b": "*"}, INSIDE),
        **INSIDE,
    }
    assert aggregations_from_proto(aggregations_to_proto(asked)) == asked
    assert list(aggregations_from_proto(aggregations_to_proto(asked))) == list(asked)
    numbers = {"r": Ranges("n", [(1, 2.5)])}
    assert aggregations_from_proto(aggregations_to_proto(numbers)) == {"r": Ranges("n", [("1", "2.5")])}


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([pb.Aggregation(name="a")], "aggregations.a"),
        ([pb.Aggregation(name="a", stats=pb.StatsAggregation())] * 2, "aggregations"),
        (
            [
                pb.Aggregation(
                    name="a",
                    stats=pb.StatsAggregation(),
                    aggregations=[pb.Aggregation(name="b", missing=pb.MissingAggregation())],
                )
            ],
            "aggregations.a.aggs",
        ),
        (
            [pb.Aggregation(name="a", filters=pb.FiltersAggregation(queries=[pb.NamedQuery(name="x")] * 2))],
            "aggregations.a.queries",
        ),
    ],
)
def test_messages_that_make_no_sense(messages, field):
    with pytest.raises(InvalidArgument) as refused:
        aggregations_from_proto(messages)
    assert refused.value.details.field == field


@pytest.mark.parametrize("wrong", [["tag"], {"a": "tag"}, {"a": Terms("tag", size=-1)}, {"a": Terms(5)}, {1: Stats("n")}])
def test_what_is_no_aggregation(wrong):
    with pytest.raises(InvalidArgument, match="aggs is a dict") as refused:
        aggregations_to_proto(wrong)
    assert refused.value.details.field == "aggs"


def test_results_there_and_back():
    inside = {
        "s": StatsResult(2, 3.0, 1.0, 2.0, 1.5, 0.25),
        "none": StatsResult(0, 0.0, None, None, None, None),
        "p": PercentilesResult({50.0: 1.0, 99.9: None}, 0.01, 5),
        "c": CardinalityResult(7, 0.008),
    }
    keys = ["a", "", 5, -(2**63), 0.5, True, False, datetime(2020, 2, 29, 12, 30, 1, 7, tzinfo=UTC)]
    results = {"b": BucketsResult(tuple(Bucket(key, 3, inside, 1) for key in keys), 9, 4), **inside}
    found = results_from_proto(results_to_proto(results))
    assert found == results
    assert [type(bucket.key) for bucket in found["b"]] == [type(key) for key in keys]
