import pytest

import kvshard as kv
from kvshard.errors import InvalidArgument
from kvshard.query.asked import USUAL
from kvshard.query.bounds import QUERY_MAX_NESTING
from kvshard.rpc.query_convert import (
    options_of,
    structured_of,
    structured_of_json,
    structured_of_search,
    structured_to_proto,
)
from kvshard.v1 import query_pb2, search_pb2

QUERIES = [
    kv.MatchAll(),
    kv.MatchNone(),
    kv.Match("a", ("f^2",), "and", "2", "auto"),
    kv.Match("a", (), "or", None, 0),
    kv.MatchPhrase("a b", ("f",), 3),
    kv.Term("f", "5"),
    kv.AnyOf("f", ("a", "b")),
    kv.Prefix("f", "a"),
    kv.Wildcard("f", "a*"),
    kv.Regex("f", "a+"),
    kv.Fuzzy("f", "a"),
    kv.Fuzzy("f", "a", 0),
    kv.Range("f", gt="1", lte="2"),
    kv.Range("f", gte="", lt="x"),
    kv.Exists("f"),
    kv.Bool((kv.MatchAll(),), (kv.Exists("s"),), (kv.Exists("n"),), (kv.Exists("f"),), "75%"),
    kv.DisMax((kv.MatchAll(), kv.MatchNone()), 0.25),
    kv.ConstantScore(kv.MatchAll(), 0.0),
    kv.Boost(kv.Bool(), 2.0),
    kv.QueryString("a b", ("f",), "and", "1"),
    kv.MoreLikeThis(("a",), (b"k",), ("f",), 3, 1, 0, 9, 4, "50%"),
    kv.MoreLikeThis(("a",)),
]


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: type(query).__name__)
def test_there_and_back(query):
    assert structured_of(structured_to_proto(query)) == query


def test_every_kind_is_known():
    kinds = {kind.name for kind in query_pb2.Query.DESCRIPTOR.oneofs_by_name["kind"].fields}
    assert {structured_to_proto(query).WhichOneof("kind") for query in QUERIES} == kinds


def test_values_become_text():
    assert structured_to_proto(kv.Term("f", True)).term.value == "true"
    assert structured_to_proto(kv.AnyOf("f", [1, 2.5, False, "x"])).terms.values == ["1", "2.5", "false", "x"]
    assert structured_to_proto(kv.Match("a", minimum_should_match=-1)).match.minimum_should_match == "-1"
    assert structured_to_proto(kv.MoreLikeThis(keys=["k"])).more_like_this.keys == [b"k"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("a", "query"),
        (None, "query"),
        (kv.Bool([None]), "query.bool.must[0]"),
        (kv.Match(5), "query"),
        (kv.Match("a", "title"), "query.match.fields"),
        (kv.Match("a", operator="xor"), "query.match.operator"),
        (kv.MatchPhrase("a", slop=-1), "query.match_phrase.slop"),
        (kv.MatchPhrase("a", slop=1.5), "query.match_phrase.slop"),
        (kv.Fuzzy("f", "a", -1), "query.fuzzy.distance"),
        (kv.Term("f", None), "value"),
        (kv.AnyOf("f", "ab"), "query.terms.values"),
        (kv.Boost(kv.MatchAll(), "x"), "query"),
        (kv.MoreLikeThis("text"), "query.more_like_this.texts"),
        (kv.MoreLikeThis(["a"], min_doc_freq=2**33), "query.more_like_this.min_doc_freq"),
    ],
)
def test_what_cannot_be_sent(query, field):
    with pytest.raises(InvalidArgument) as caught:
        structured_to_proto(query)
    assert caught.value.details.field == field


def test_depth_is_bounded_both_ways():
    deep = kv.MatchAll()
    for _ in range(QUERY_MAX_NESTING):
        deep = kv.Bool(should=(deep,))
    assert structured_of(structured_to_proto(deep)) == deep
    with pytest.raises(InvalidArgument, match="nested at most 32 deep"):
        structured_to_proto(kv.Bool(should=(deep,)))
    message = structured_to_proto(deep)
    for _ in range(3):
        message = query_pb2.Query(constant_score=query_pb2.ConstantScoreQuery(query=message))
    with pytest.raises(InvalidArgument, match="nested at most 32 deep"):
        structured_of(query_pb2.Query.FromString(message.SerializeToString()))


def test_messages_that_say_nothing():
    for message, field in (
        (query_pb2.Query(), "structured"),
        (query_pb2.Query(bool=query_pb2.BoolQuery(must=[query_pb2.Query()])), "structured.bool.must[0]"),
        (query_pb2.Query(match=query_pb2.MatchQuery(fuzziness="x")), "structured.match.fuzziness"),
        (query_pb2.Query(match=query_pb2.MatchQuery(operator=7)), "structured.match.operator"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            structured_of(message)
        assert caught.value.details.field == field


def test_options():
    assert options_of(search_pb2.SearchRequest(query="a", default_operator=query_pb2.OPERATOR_OR)) is USUAL
    request = search_pb2.SearchRequest(
        structured=structured_to_proto(kv.MatchAll()), default_fields=["f"], minimum_should_match="2", default_operator=2
    )
    options = options_of(request)
    assert (options.structured, options.fields, options.minimum, options.operator) == (kv.MatchAll(), ("f",), "2", "and")
    with pytest.raises(InvalidArgument) as caught:
        options_of(search_pb2.SearchRequest(default_operator=9))
    assert caught.value.details.field == "default_operator"


def test_what_a_search_is_given():
    one, other = kv.Exists("a"), kv.Exists("b")
    assert structured_of_search("text", None) is None
    assert structured_of(structured_of_search("text", one)) == one
    assert structured_of(structured_of_search(one, None)) == one
    assert structured_of(structured_of_search(one, other)) == kv.Bool((one, other))


def test_json():
    assert structured_of_json('{"match": {"text": "a", "fields": ["t^2"]}}') == kv.Match("a", ("t^2",))
    nested = '{"bool": {"filter": [{"range": {"field": "n", "gte": "1"}}]}}'
    assert structured_of_json(nested) == kv.Bool(filter=(kv.Range("n", gte="1"),))
    for text in ("", "[]", "{", '{"nope": {}}', '{"match": {"text": 5}}', "{}", "[" * 5_000):
        with pytest.raises(InvalidArgument) as caught:
            structured_of_json(text)
        assert caught.value.details.field == "structured"
