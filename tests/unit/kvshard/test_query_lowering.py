import pytest

import kvshard as kv
from kvshard.errors import InvalidArgument, MalformedQuery
from kvshard.query import (
    Alike,
    AnyOf,
    Best,
    Boost,
    Clause,
    Constant,
    Exists,
    Fuzzy,
    Group,
    Keys,
    MatchAll,
    MatchNone,
    Minimum,
    Occur,
    Phrase,
    Prefix,
    Range,
    Regex,
    Wildcard,
    Within,
    Word,
    parse_query,
)
from kvshard.query.asked import USUAL, QueryOptions, for_legs
from kvshard.query.bounds import LIKE_MAX_CHARS, QUERY_MAX_CLAUSES, QUERY_MAX_NESTING
from kvshard.query.lowering import fields_of, lower, minimum_of
from kvshard.query.tree import NEEDS_TREE, decode_tree

SCHEMA = {"title": "text", "body": "text(english)", "tag": "keyword", "year": "integer", "live": "boolean", "at": "date"}
A, B = Word(None, "a"), Word(None, "b")
MUST, SHOULD, NOT, FILTER = Occur.MUST, Occur.SHOULD, Occur.MUST_NOT, Occur.FILTER


def group(*clauses, minimum=None):
    return Group(tuple(Clause(occur, node) for occur, node in clauses), minimum)


@pytest.mark.parametrize(
    ("query", "node"),
    [
        (kv.MatchAll(), MatchAll()),
        (kv.MatchNone(), MatchNone()),
        (kv.Match("a"), A),
        (kv.Match(" a  b "), group((SHOULD, A), (SHOULD, B))),
        (kv.Match("a b", operator="and"), group((MUST, A), (MUST, B))),
        (kv.Match("a b", minimum_should_match="75%"), group((SHOULD, A), (SHOULD, B), minimum=Minimum(75, True))),
        (kv.Match("a", ["title^3", "body"]), Within((("title", 3.0), ("body", 1.0)), A)),
        (kv.Match("a OR", fuzziness=1), group((SHOULD, Fuzzy(None, "a", 1)), (SHOULD, Fuzzy(None, "OR", 1)))),
        (kv.Match("a", fuzziness="auto"), Fuzzy(None, "a", None)),
        (kv.Match("  "), MatchNone()),
        (kv.MatchPhrase("a b", slop=2), Phrase(None, "a b", 2)),
        (kv.MatchPhrase("a b", ["tag"]), Within((("tag", 1.0),), Phrase(None, "a b"))),
        (kv.Term("tag", "a b"), Word("tag", "a b")),
        (kv.Term("year", -5), Word("year", "-5")),
        (kv.Term("live", True), Word("live", "true")),
        (kv.AnyOf("year", [1, 2]), AnyOf("year", ("1", "2"))),
        (kv.AnyOf("tag", []), AnyOf("tag", ())),
        (kv.Prefix("tag", "a"), Prefix("tag", "a")),
        (kv.Prefix("tag", ""), Exists("tag")),
        (kv.Wildcard("title", "a**?"), Wildcard("title", "a*?")),
        (kv.Regex("title", "a/b+"), Regex("title", "a/b+")),
        (kv.Fuzzy("title", "word"), Fuzzy("title", "word", None)),
        (kv.Range("year", gt=1, lte=5), Range("year", "1", "5", False, True)),
        (kv.Range("at", lt="2020-01-01"), Range("at", None, "2020-01-01", True, False)),
        (kv.Exists("at"), Exists("at")),
        (kv.Bool(), MatchAll()),
        (
            kv.Bool([kv.Match("a")], [kv.Match("b")], [kv.MatchAll()], [kv.Exists("at")], "-1"),
            group((MUST, A), (SHOULD, B), (NOT, MatchAll()), (FILTER, Exists("at")), minimum=Minimum(-1)),
        ),
        (kv.DisMax([kv.Match("a"), kv.Match("b")], 0.5), Best((A, B), 0.5)),
        (kv.DisMax([]), MatchNone()),
        (kv.ConstantScore(kv.Match("a")), Constant(A, 1.0)),
        (kv.Boost(kv.Match("a"), 2), Boost(A, 2.0)),
        (kv.QueryString("a AND b"), parse_query("a AND b")),
        (kv.QueryString("a b", ["title^2"], "and"), Within((("title", 2.0),), parse_query("a AND b"))),
        (kv.QueryString("a b c", minimum_should_match=2), Group(parse_query("a b c").clauses, Minimum(2))),
        (kv.MoreLikeThis(["x y"]), Alike((), ("x y",), minimum=Minimum(30, True))),
    ],
)
def test_lowering(query, node):
    assert lower(query, SCHEMA) == node


@pytest.mark.parametrize(
    ("query", "message", "field"),
    [
        (kv.Match("a", ["titel"]), "unknown field titel; did you mean title?", "structured.match.fields"),
        (kv.Match("a", ["year"]), "words are looked for in text and keyword fields", "structured.match.fields"),
        (kv.Match("a", ["title", "title^2"]), "'title' stands twice", "structured.match.fields[1]"),
        (kv.Match("a", ["title^x"]), "a field's boost is a number above 0", "structured.match.fields[0]"),
        (kv.Match("a", ["title^nan"]), "a field's boost is a number above 0", "structured.match.fields[0]"),
        (kv.Match("a", ["title^1e9"]), "a field's boost is a number above 0", "structured.match.fields[0]"),
        (kv.Match("a", ["tag"], fuzziness=1), "", None),
        (kv.Match("a b", minimum_should_match="many"), "does not say how many", "structured.match.minimum_should_match"),
        (kv.Match("a b", minimum_should_match="101%"), "does not say how many", "structured.match.minimum_should_match"),
        (kv.Match("a", fuzziness=3), "fuzzy by 0 to 2 letters, not 3", "structured.match.fuzziness"),
        (kv.Match("a", operator="xor"), "'xor' is no operator", "structured.match.operator"),
        (kv.MatchPhrase("a", slop=-1), "a slop is a number from 0 to 100", "structured.match_phrase.slop"),
        (kv.Term("title", "a"), "title is a text field and holds words, not values; use match", "structured.term"),
        (kv.Term("year", "x"), "'x' is not an integer (the type of year)", "structured.term"),
        (kv.AnyOf("title", ["a"]), "title is a text field", "structured.terms"),
        (kv.AnyOf("year", [1, "x"]), "'x' is not an integer", "structured.terms"),
        (kv.Fuzzy("tag", "a"), "only text fields know fuzzy words", "structured.fuzzy"),
        (kv.Wildcard("year", "1*"), "only text and keyword fields know wildcards", "structured.wildcard"),
        (kv.Regex("year", "1+"), "only text and keyword fields know regular expressions", "structured.regex"),
        (kv.Regex("title", ""), "an empty regular expression", "structured.regex"),
        (kv.Regex("tag", "a(b"), "unbalanced parenthesis (character 2 of the pattern)", "structured.regex"),
        (kv.Wildcard("title", "a*" * 300), "may have at most 256 characters", "structured.wildcard"),
        (kv.Range("title", gt="a"), "title is a text field and has no ranges", "structured.range"),
        (kv.Range("year"), "a range needs a bound", "structured.range"),
        (kv.Range("year", gt=1, gte=1), "a range has either gt or gte", "structured.range"),
        (kv.Range("year", gt=float("nan")), "'nan' is not an integer", "structured.range"),
        (kv.Exists("nope"), "unknown field nope", "structured.exists"),
        (kv.Boost(kv.Match("a"), 0), "a boost is a number above 0", "structured.boost.factor"),
        (kv.Boost(kv.Match("a"), float("nan")), "a boost is a number above 0", "structured.boost.factor"),
        (kv.ConstantScore(kv.Match("a"), -1), "a score is a number from 0", "structured.constant_score.score"),
        (kv.DisMax([kv.Match("a")], 2), "a tie_breaker is a number from 0 to 1", "structured.dis_max.tie_breaker"),
        (
            kv.Bool(must_not=[kv.MatchAll(), kv.DisMax([kv.Term("nope", 1)])]),
            "unknown field nope",
            "structured.bool.must_not[1].dis_max.queries[0].term",
        ),
        (kv.MoreLikeThis(), "documents are like 1 to 16 texts and keys together, not 0", "structured.more_like_this"),
        (kv.MoreLikeThis(["a"] * 17), "not 17", "structured.more_like_this"),
        (kv.MoreLikeThis(["a" * (LIKE_MAX_CHARS + 1)]), "at most 20000", "structured.more_like_this.texts[0]"),
        (kv.MoreLikeThis(keys=[b""]), "a key has 1 to 1024 bytes", "structured.more_like_this.keys[0]"),
        (kv.MoreLikeThis(["a"], fields=["tag"]), "only text fields are like a text", "structured.more_like_this"),
        (kv.MoreLikeThis(["a"], max_query_terms=101), "1 to 100, not 101", "structured.more_like_this.max_query_terms"),
        (kv.Match("\ud800"), "half a surrogate pair", "structured.match"),
    ],
)
def test_what_does_not_fit(query, message, field):
    with pytest.raises(InvalidArgument) as caught:
        lower(query, SCHEMA if field else {"tag": "keyword"})
    assert message in caught.value.message
    assert field is None or caught.value.details.field == field
    assert " at character " not in caught.value.message


def test_a_query_string_inside_points_at_its_place():
    with pytest.raises(MalformedQuery, match="unbalanced quote at character 3") as caught:
        lower(kv.Bool([kv.QueryString('a "b')]), SCHEMA)
    assert (caught.value.details.field, caught.value.details.position) == ("structured.bool.must[0].query_string.query", 2)


def test_bounds():
    deep = kv.Match("a")
    for _ in range(QUERY_MAX_NESTING):
        deep = kv.Bool([deep])
    assert decode_tree(for_legs("", QueryOptions(deep), SCHEMA)[1])
    for _ in range(10_000 - QUERY_MAX_NESTING):
        deep = kv.Bool([deep])
    for query, limit in [
        (deep, QUERY_MAX_NESTING),
        (kv.Bool(should=[kv.Match("a b")] * 513), QUERY_MAX_CLAUSES),
        (kv.AnyOf("tag", ["a"] * 10_000), QUERY_MAX_CLAUSES),
        (kv.Bool(should=[kv.QueryString("a " * 600)] * 2), QUERY_MAX_CLAUSES),
        (kv.Bool(should=[kv.MatchPhrase("a" * 60_000)] * 2), 100_000),
        (kv.Boost(kv.Boost(kv.Boost(kv.Match("a"), 1000), 1000), 1000), 1_000_000),
    ]:
        with pytest.raises(InvalidArgument) as caught:
            lower(query, SCHEMA)
        assert caught.value.details.limit == limit
    many = kv.Bool(should=[kv.AnyOf("tag", ["a"] * 512), kv.Match("a " * 512)])
    assert decode_tree(for_legs("", QueryOptions(many), SCHEMA)[1])


def test_documents_that_others_are_to_be_like():
    documents = {b"k": {"title": "one", "body": ["two", 3, "four"], "tag": "five"}}
    query = kv.MoreLikeThis(["x"], ["k", b"gone"], max_query_terms=3)
    node = lower(query, SCHEMA, documents=documents)
    alike = Alike((), ("x", "one\ntwo\nfour"), 3, minimum=Minimum(30, True))
    assert node == group((MUST, alike), (NOT, Keys((b"k", b"gone"))))
    only = kv.MoreLikeThis(keys=["k"], fields=["title"])
    assert lower(only, SCHEMA, documents=documents).clauses[0].node.texts == ("one",)
    options = QueryOptions(kv.Bool(should=[kv.DisMax([query]), kv.Boost(kv.ConstantScore(only), 2)]))
    assert sorted(options.document_keys()) == [b"gone", b"k"]
    assert USUAL.document_keys() == []


def test_how_many_and_which_fields():
    assert minimum_of(None, "m") is minimum_of("", "m") is None
    assert [minimum_of(share, "m") for share in (2, "2", "-1", " 75 % ", "-25%")] == [
        Minimum(2), Minimum(2), Minimum(-1), Minimum(75, True), Minimum(-25, True),
    ]  # fmt: skip
    for share in (True, 1.5, "1.5", "x", "%", "1%%", "99999999"):
        with pytest.raises(InvalidArgument):
            minimum_of(share, "m")
    assert fields_of(["a", "b^0.5"], "f") == (("a", 1.0), ("b", 0.5))
    for name in ("a^", "a^0", "a^-1", "a^inf", "a^1001"):
        with pytest.raises(InvalidArgument):
            fields_of([name], "f")


def legs(text, **options):
    query, tree = for_legs(text, QueryOptions(**options), SCHEMA)
    assert query == (NEEDS_TREE if tree else text)
    return decode_tree(tree) if tree else None


def test_what_legs_carry():
    assert legs("a b") is None
    assert legs("a b", operator="and") == parse_query("a AND b")
    assert legs("a b", minimum="2") == Group(parse_query("a b").clauses, Minimum(2))
    assert legs("a", fields=["title^2"]) == Within((("title", 2.0),), A)
    assert legs("*", fields=["title^2"]) is None
    assert legs("", structured=kv.Match("a")) == legs("*", structured=kv.Match("a")) == A
    assert legs("b", structured=kv.Match("a")) == group((MUST, B), (MUST, A))
    for options, field in (
        ({"structured": kv.Match("a " * 65, fuzziness=1)}, "structured"),
        ({"structured": kv.DisMax([kv.Wildcard("tag", "a*b")] * 65)}, "structured"),
        ({"fields": ["nope"]}, "default_fields"),
        ({"minimum": "x"}, "minimum_should_match"),
        ({"structured": kv.Exists("nope")}, "structured.exists"),
    ):
        with pytest.raises(InvalidArgument) as caught:
            legs("a", **options)
        assert caught.value.details.field == field
    with pytest.raises(MalformedQuery) as caught:
        legs("a (", operator="and")
    assert (caught.value.details.field, caught.value.details.position) == ("query", 2)
