import pytest

from kvshard.errors import InvalidArgument, MalformedQuery
from kvshard.limits import QUERY_MAX_CHARS
from kvshard.query import (
    Boost,
    Clause,
    Exists,
    Fuzzy,
    Group,
    Interval,
    MatchAll,
    Minimum,
    Occur,
    Phrase,
    Prefix,
    Range,
    Regex,
    Wildcard,
    Word,
    check_query,
    default_fields,
    interval_of,
    parse_query,
    prepare,
    print_query,
)
from kvshard.query.bounds import QUERY_MAX_CLAUSES, QUERY_MAX_NESTING

A, B, C = Word(None, "a"), Word(None, "b"), Word(None, "c")
MUST, SHOULD, NOT = Occur.MUST, Occur.SHOULD, Occur.MUST_NOT


def group(*clauses):
    return Group(tuple(Clause(occur, node) for occur, node in clauses))


@pytest.mark.parametrize(
    ("text", "node"),
    [
        ("", MatchAll()),
        ("  \n", MatchAll()),
        ("*", MatchAll()),
        ("a", A),
        ("e-mail", Word(None, "e-mail")),
        ("asyncio.gather", Word(None, "asyncio.gather")),
        ("a b", group((SHOULD, A), (SHOULD, B))),
        ("a OR b", group((SHOULD, A), (SHOULD, B))),
        ("a || b", group((SHOULD, A), (SHOULD, B))),
        ("a AND b", group((MUST, A), (MUST, B))),
        ("a && b", group((MUST, A), (MUST, B))),
        ("a b AND c", group((SHOULD, A), (SHOULD, group((MUST, B), (MUST, C))))),
        ("a AND b OR c", group((SHOULD, group((MUST, A), (MUST, B))), (SHOULD, C))),
        ("a AND NOT b", group((MUST, A), (NOT, B))),
        ("+a -b c", group((MUST, A), (NOT, B), (SHOULD, C))),
        ("a NOT b", group((SHOULD, A), (NOT, B))),
        ("a !b", group((SHOULD, A), (NOT, B))),
        ("a OR NOT b", group((SHOULD, A), (SHOULD, group((NOT, B))))),
        ("NOT a OR b", group((SHOULD, group((NOT, A))), (SHOULD, B))),
        ("a OR -b", group((SHOULD, A), (NOT, B))),
        ("-a", group((NOT, A))),
        ("+a", A),
        ("((a))", A),
        ("a (b c)", group((SHOULD, A), (SHOULD, group((SHOULD, B), (SHOULD, C))))),
        ("and or not", group((SHOULD, Word(None, "and")), (SHOULD, Word(None, "or")), (SHOULD, Word(None, "not")))),
        ('"a b"', Phrase(None, "a b")),
        ('"a \\" b"', Phrase(None, 'a " b')),
        ("pre*", Prefix(None, "pre")),
        ('"a b"~2', Phrase(None, "a b", 2)),
        ('f:"a b"~0^2', Boost(Phrase("f", "a b"), 2.0)),
        ("a~", Fuzzy(None, "a")),
        ("f:a~1", Fuzzy("f", "a", 1)),
        ("(a~2 b)", group((SHOULD, Fuzzy(None, "a", 2)), (SHOULD, B))),
        ("a~2^3", Boost(Fuzzy(None, "a", 2), 3.0)),
        ("~a", Word(None, "~a")),
        ("a ~", group((SHOULD, A), (SHOULD, Word(None, "~")))),
        ("a~b", Word(None, "a~b")),
        ("a\\~1", Word(None, "a~1")),
        ("a*c", Wildcard(None, "a*c")),
        ("*a", Wildcard(None, "*a")),
        ("a**", Prefix(None, "a")),
        ("a?", Wildcard(None, "a?")),
        ("f:?", Wildcard("f", "?")),
        ("**", MatchAll()),
        ("f:a\\*b?c", Wildcard("f", "a\\*b?c")),
        ("a\\*", Word(None, "a*")),
        ("\\-*b", Wildcard(None, "-*b")),
        ("/ab+c/", Regex(None, "ab+c")),
        ("f:/a\\/b/^2", Boost(Regex("f", "a\\/b"), 2.0)),
        ("(/(a|b){2,3}[)\\ ]/)", Regex(None, "(a|b){2,3}[)\\ ]")),
        ("-/a/ /b/", group((NOT, Regex(None, "a")), (SHOULD, Regex(None, "b")))),
        ("/usr/lib", Word(None, "/usr/lib")),
        ("f:/usr/lib/x", Word("f", "/usr/lib/x")),
        ("a/b/", Word(None, "a/b/")),
        ("\\/a/", Word(None, "/a/")),
        ("//", Word(None, "//")),
        ("_exists_:f", Exists("f")),
        ("f:[a~1 TO b?]", Range("f", "a~1", "b?")),
        ("f:>=what?", Range("f", "what?", None)),
        ("a^2", Boost(A, 2.0)),
        ("(a b)^0.5", Boost(group((SHOULD, A), (SHOULD, B)), 0.5)),
        ("f:a", Word("f", "a")),
        ('f:"a b"', Phrase("f", "a b")),
        ("f:a*", Prefix("f", "a")),
        ("f:*", Exists("f")),
        ("f:(a g:b)", group((SHOULD, Word("f", "a")), (SHOULD, Word("g", "b")))),
        ("f:-5", Word("f", "-5")),
        ("f:10:30", Word("f", "10:30")),
        ("f:[1 TO 2]", Range("f", "1", "2")),
        ("f:{1 TO 2}", Range("f", "1", "2", False, False)),
        ("f:[1 TO 2}", Range("f", "1", "2", True, False)),
        ('f:["a b" TO *]', Range("f", "a b", None)),
        ("f:[2020-01-01T10:00:00Z TO *]", Range("f", "2020-01-01T10:00:00Z", None)),
        ("f:>=5", Range("f", "5", None)),
        ("f:>-5", Range("f", "-5", None, False, True)),
        ("f:<5", Range("f", None, "5", True, False)),
        ('f:<="x y"', Range("f", None, "x y")),
        ("a\\:b", Word(None, "a:b")),
        ("\\*", Word(None, "*")),
        ("\\AND", Word(None, "AND")),
        ("\\-a", Word(None, "-a")),
    ],
)
def test_parse(text, node):
    assert parse_query(text) == node
    assert parse_query(print_query(node)) == node


@pytest.mark.parametrize(
    ("text", "message", "position"),
    [
        ('a "b c', "unbalanced quote at character 3", 2),
        ("a (b", "unbalanced parenthesis at character 3", 2),
        ("(", "unbalanced parenthesis at character 1", 0),
        ("a) b", "unbalanced closing parenthesis at character 2", 1),
        ("()", "empty parentheses at character 1", 0),
        ("a AND", "AND needs something after it at character 3", 2),
        ("(a OR )", "OR needs something after it at character 4", 3),
        ("AND a", "AND needs something before it at character 1", 0),
        ("a OR OR b", "OR needs something before it at character 6", 5),
        ("a NOT", "NOT needs something after it at character 3", 2),
        ("NOT NOT a", "unexpected NOT at character 5", 4),
        ("a +", "+ needs something after it at character 3", 2),
        ("a:", "a value must follow directly after a: at character 2", 1),
        ("a: b", "a value must follow directly after a: at character 2", 1),
        ("12:30", "'12' is no field name (a literal colon is written \\:) at character 1", 0),
        (":a", "unexpected : at character 1", 0),
        ("a b*c~1", "a word is either fuzzy or has wildcards at character 3", 2),
        ("a b~3", "a word may be fuzzy by 0 to 2 letters, as in word~1 at character 4", 3),
        ("b~0.8", "a word may be fuzzy by 0 to 2 letters, as in word~1 at character 2", 1),
        ("f:b~22^2", "a word may be fuzzy by 0 to 2 letters, as in word~1 at character 4", 3),
        ('"a b"~x', 'the slop of a phrase is a number from 0 to 100, as in "a b"~2 at character 6', 5),
        ('"a b"~-1', 'the slop of a phrase is a number from 0 to 100, as in "a b"~2 at character 6', 5),
        ('"a b"~101', 'the slop of a phrase is a number from 0 to 100, as in "a b"~2 at character 6', 5),
        ('"a b"~2.5', "a slop must be followed by a space at character 8", 7),
        ('"a b"~99999999999', 'the slop of a phrase is a number from 0 to 100, as in "a b"~2 at character 6', 5),
        ("a /b[c/", "unbalanced bracket at character 5", 4),
        ("f:/b**/", "unexpected * behind a repetition at character 6", 5),
        ("/a{999}/", "a regular expression spells at most 256 characters with its repetitions, not 999 at character 2", 1),
        ("_exists_:a*", "'a' is no field name at character 10", 9),
        ("t*:a", "'t' is no field name (a literal colon is written \\:) at character 1", 0),
        ("f:[a* TO b]", "a * stands alone in a range at character 4", 3),
        ("f:>a*", "a * has no place in a comparison at character 4", 3),
        ("a^nan", "a boost is a number above 0 and up to 1000, as in ^2 at character 2", 1),
        ("a^1e99", "a boost is a number above 0 and up to 1000, as in ^2 at character 2", 1),
        ("a^-2", "a boost is a number above 0 and up to 1000, as in ^2 at character 2", 1),
        ("a*" * 129, "a word with wildcards may have at most 256 characters at character 1", 0),
        ("a OR", "OR needs something after it at character 3", 2),
        ("f:[1 2]", "a range is written [from TO to]; TO is missing at character 3", 2),
        ("f:[1 TO", "unbalanced range bracket at character 3", 2),
        ("f:[1 TO 2", "unbalanced range bracket at character 3", 2),
        ("f:[ TO 2]", "a range is written [from TO to]; TO is missing at character 3", 2),
        ("f:[1 TO ]", "a range needs two bounds (* for an open one) at character 9", 8),
        ("f:>", "a value must follow directly after > at character 3", 2),
        ("[1 TO 2]", "unexpected [ at character 1", 0),
        ("a^", "a boost is a number above 0 and up to 1000, as in ^2 at character 2", 1),
        ("a^0", "a boost is a number above 0 and up to 1000, as in ^2 at character 2", 1),
        ("a^2x", "a boost must be followed by a space at character 4", 3),
        ("a\\", "a backslash needs a character after it at character 2", 1),
        ("a \ud800", "half a surrogate pair is not text at character 3", 2),
    ],
)
def test_malformed(text, message, position):
    with pytest.raises(MalformedQuery) as caught:
        parse_query(text, "filters[3]")
    assert caught.value.message == message
    assert (caught.value.details.position, caught.value.details.field) == (position, "filters[3]")


def test_words_that_must_all_match():
    def parsed(text):
        return parse_query(text, is_and=True)

    assert parsed("a b") == parse_query("a AND b")
    assert parsed("a b OR c") == parse_query("(a AND b) OR c")
    assert parsed("a OR b c") == parse_query("a OR (b AND c)")
    assert parsed("a AND b c") == parse_query("a AND b AND c")
    assert parsed("a -b +c") == parse_query("a AND NOT b AND c")
    assert parsed("(a b) c") == parse_query("(a AND b) AND c")
    assert parsed("a || b") == parse_query("a OR b")
    assert parsed("a") == A
    assert parsed(" ") == MatchAll()
    for text in ("a b OR", "a AND", "(a b", "a OR OR b"):
        with pytest.raises(MalformedQuery):
            parsed(text)


def test_how_many_have_to_match():
    assert [Minimum(2).of(count) for count in (0, 1, 2, 3)] == [0, 1, 2, 2]
    assert [Minimum(-1).of(count) for count in (0, 1, 2, 3)] == [0, 0, 1, 2]
    assert [Minimum(75, True).of(count) for count in (0, 1, 3, 4)] == [0, 0, 2, 3]
    assert [Minimum(-25, True).of(count) for count in (0, 1, 4, 5)] == [0, 1, 3, 4]
    assert (str(Minimum(-1)), str(Minimum(75, True))) == ("-1", "75%")


def test_boosts_do_not_multiply_without_end():
    prepare("((a^100)^100)^100", {"t": "text"})
    with pytest.raises(InvalidArgument, match="boosts inside each other multiply to more than 1,000,000") as caught:
        prepare("((a^100)^1000)^100", {"t": "text"})
    assert caught.value.details.limit == 1_000_000


def test_patterns_are_counted():
    schema = {"t": "text"}
    prepare("a* b~ c?d (" + "a* " * 61 + ")^2", schema)
    with pytest.raises(InvalidArgument, match="at most 64 prefixes, patterns and fuzzy words together") as caught:
        prepare("a b " + "t:a?b /c+/ " * 33, schema)
    assert caught.value.details.limit == 64
    assert caught.value.details.position is not None


def test_nothing_recurses_without_end():
    for text in ("(" * 10_000, "a:(" * 3_000, "-(" * 4_000, "a OR " * 2_000 + "a", "NOT a OR " * 1_100, '"' * 9_999):
        with pytest.raises(InvalidArgument):
            parse_query(text)


def test_bounds():
    assert len(parse_query("a " * QUERY_MAX_CLAUSES).clauses) == QUERY_MAX_CLAUSES
    deep = "(" * QUERY_MAX_NESTING + "a" + ")" * QUERY_MAX_NESTING
    assert parse_query(deep) == A
    for text, limit in [
        ("a " * (QUERY_MAX_CLAUSES + 1), QUERY_MAX_CLAUSES),
        (f"({deep})", QUERY_MAX_NESTING),
        ("a" * (QUERY_MAX_CHARS + 1), QUERY_MAX_CHARS),
    ]:
        with pytest.raises(InvalidArgument) as caught:
            parse_query(text)
        assert caught.value.details.limit == limit


SCHEMA = {"title": "text", "tag": "keyword", "year": "integer", "price": "float", "live": "boolean", "at": "date"}


@pytest.mark.parametrize(
    "text",
    ["word", "title:word", "tag:a*", "title:a*", "year:-5", "year:[1 TO *]", "price:<=1.5e3", "live:TRUE", "at:2020-01-01",
     "at:[2020-01-01 TO 2020-01-02T10:00:00Z}", "tag:[a TO b]", "year:*", "(title:x^2 -live:false)"],
)  # fmt: skip
def test_queries_that_fit_the_schema(text):
    prepare(text, SCHEMA)


@pytest.mark.parametrize(
    ("text", "message", "position"),
    [
        ("a titel:x", "unknown field titel; did you mean title?", 8),
        ("-nope:x", "unknown field nope; the collection's fields are at, live, price, tag, title, year", 6),
        ("year:abc", "'abc' is not an integer (the type of year) at character 6", 5),
        ("year:[1 TO x]", "'x' is not an integer (the type of year) at character 6", 5),
        ("year:1.5", "'1.5' is not an integer", 5),
        ("year:9223372036854775808", "is not an integer", 5),
        ("year:1*", "year is of type integer; only text and keyword fields know prefixes at character 6", 5),
        ("year:1?", "year is of type integer; only text and keyword fields know wildcards at character 6", 5),
        ("year:/1+/", "year is of type integer; only text and keyword fields know regular expressions at character 6", 5),
        ("tag:a~1", "tag is of type keyword; only text fields know fuzzy words at character 5", 4),
        ("year:12~1", "year is of type integer; only text fields know fuzzy words at character 6", 5),
        ("_exists_:titel", "unknown field titel; did you mean title?", 9),
        ("price:nan", "'nan' is not a float", 6),
        ("price:1e999", "is not a float", 6),
        ("live:yes", "'yes' is not true or false", 5),
        ("live:[true TO false]", "live is a boolean field and has no ranges at character 6", 5),
        ("title:[a TO b]", "title is a text field and has no ranges at character 7", 6),
        ("at:today", "'today' is not a date (RFC 3339 or YYYY-MM-DD)", 3),
    ],
)
def test_queries_that_do_not_fit_the_schema(text, message, position):
    with pytest.raises(InvalidArgument) as caught:
        prepare(text, SCHEMA)
    assert message in caught.value.message
    assert (caught.value.details.position, caught.value.details.field) == (position, "query")


def test_words_without_a_field():
    assert default_fields(SCHEMA) == ["title"]
    assert default_fields({"tag": "keyword", "n": "integer"}) == ["tag"]
    with pytest.raises(InvalidArgument, match="a word needs a field"):
        check_query(A, {"n": "integer"})


def test_a_day_is_all_its_instants():
    day = interval_of("date", "1970-01-02")
    assert day == Interval(86_400_000_000, 2 * 86_400_000_000 - 1)
    assert interval_of("date", "1970-01-01T00:00:01Z") == Interval(1_000_000, 1_000_000)
    assert interval_of("float", "-0") == Interval(0.0, 0.0)
    assert interval_of("boolean", "true") == Interval(1, 1)
    assert interval_of("integer", "1_0") is None
