import json

from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.errors import InvalidArgument
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
    check_query,
    parse_query,
    print_query,
)
from kvshard.query.edits import is_within
from kvshard.query.glob import expression_of, literal_prefix, parts_of, pattern_of
from kvshard.query.tree import decode_tree, encode_tree

QUERYISH = st.lists(
    st.one_of(
        st.sampled_from(
            [
                "AND",
                "OR",
                "NOT",
                "&&",
                "||",
                "TO",
                "(",
                ")",
                "[",
                "]",
                "{",
                "}",
                '"',
                "\\",
                "*",
                ":",
                "^",
                "^2",
                "+",
                "-",
                "!",
                " ",
                "  ",
                "a",
                "title:",
                "year:",
                "nope:",
                ">=",
                "<",
                "5",
                "a*",
                "?",
                "~",
                "~1",
                '"a b"~2',
                "_exists_:",
                "[1 TO 2]",
            ]
        ),
        st.text(max_size=3),
    ),
    max_size=14,
).map("".join)

WILD = [("*", True), ("?", True)]
TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
FIELDS = st.none() | NAMES
PATTERNS = st.lists(st.tuples(st.characters(exclude_categories=("Cs",)), st.just(False)) | st.sampled_from(WILD)).map(
    pattern_of
)


def is_simpler(pattern):
    """Whether it is a word, a prefix, or everything."""
    return [is_wild for _, is_wild in parts_of(pattern)][:-1].count(True) == 0 and not pattern.endswith("?")


LEAVES = st.one_of(
    st.just(MatchAll()),
    st.builds(Word, FIELDS, TEXTS.filter(bool)),
    st.builds(Phrase, FIELDS, TEXTS, st.integers(0, 100)),
    st.builds(Fuzzy, FIELDS, TEXTS.filter(bool), st.none() | st.integers(0, 2)),
    st.builds(Wildcard, FIELDS, PATTERNS.filter(lambda pattern: not is_simpler(pattern))),
    st.builds(Regex, FIELDS, st.sampled_from(["a", "a\\/b", "[a-c]+x?", "(a|b){2}", "\\ .", "\\\\"])),
    st.builds(Prefix, FIELDS, TEXTS.filter(bool)),
    st.builds(Exists, NAMES),
    st.builds(Range, NAMES, st.none() | TEXTS, st.none() | TEXTS, st.booleans(), st.booleans()),
)


def groups(nodes):
    clauses = st.builds(Clause, st.sampled_from([Occur.MUST, Occur.SHOULD, Occur.MUST_NOT]), nodes)
    several = st.lists(clauses, min_size=2, max_size=4)
    one = st.builds(Clause, st.just(Occur.MUST_NOT), nodes).map(lambda clause: [clause])
    return st.builds(Group, st.one_of(several, one).map(tuple))


NODES = st.recursive(
    LEAVES,
    lambda inner: groups(inner) | st.builds(Boost, inner, st.floats(0.001, 1000.0)),
    max_leaves=12,
)


def refusal(action):
    """What the action returns, and the InvalidArgument it raises instead."""
    try:
        return action(), None
    except InvalidArgument as error:
        return None, error


@settings(max_examples=400, deadline=None)
@given(QUERYISH | st.text(max_size=30))
def test_any_text_parses_or_says_where_it_does_not(text):
    node, error = refusal(lambda: parse_query(text))
    if error is None:
        assert parse_query(print_query(node)) == node
        _, error = refusal(lambda: check_query(node, {"title": "text", "year": "integer"}))
    else:
        assert f"at character {error.details.position + 1}" in error.message or error.details.limit
    if error is not None:
        assert 0 <= error.details.position < len(text)


@settings(max_examples=300, deadline=None)
@given(NODES)
def test_a_printed_tree_parses_to_itself(node):
    assert parse_query(print_query(node)) == node


@settings(max_examples=300, deadline=None)
@given(QUERYISH | st.text(max_size=30))
def test_any_text_with_and_between_its_words_parses_as_often(text):
    _, error = refusal(lambda: parse_query(text))
    _, with_and = refusal(lambda: parse_query(text, is_and=True))
    assert (error is None) == (with_and is None)


def naive_match(parts, text):
    """By trying every way."""
    if not parts:
        return not text
    char, is_wild = parts[0]
    if is_wild and char == "*":
        return any(naive_match(parts[1:], text[at:]) for at in range(len(text) + 1))
    return bool(text) and (is_wild or text[0] == char) and naive_match(parts[1:], text[1:])


ALPHABET = st.text("ab*?\\\n", max_size=7)
SMALL_PATTERNS = st.lists(st.tuples(st.sampled_from("ab*?\\\n"), st.just(False)) | st.sampled_from(WILD), max_size=7)


@settings(max_examples=400, deadline=None)
@given(SMALL_PATTERNS, ALPHABET)
def test_a_pattern_matches_what_it_says(parts, text):
    pattern = pattern_of(parts)
    is_match = expression_of(pattern).fullmatch(text) is not None
    assert is_match == naive_match(parts, text)
    assert not is_match or text.startswith(literal_prefix(pattern))


def naive_distance(one, other):
    """Of optimal string alignment, by its definition."""
    if not one or not other:
        return len(one) + len(other)
    best = min(
        naive_distance(one[1:], other) + 1,
        naive_distance(one, other[1:]) + 1,
        naive_distance(one[1:], other[1:]) + (one[0] != other[0]),
    )
    if len(one) > 1 and len(other) > 1 and one[0] == other[1] and one[1] == other[0]:
        best = min(best, naive_distance(one[2:], other[2:]) + 1)
    return best


@settings(max_examples=300, deadline=None)
@given(st.text("abc", max_size=5), st.text("abc", max_size=5), st.integers(0, 3))
def test_words_within_so_many_edits(one, other, edits):
    assert is_within(one, other, edits) == (naive_distance(one, other) <= edits)


TREE_LEAVES = LEAVES | st.one_of(
    st.just(MatchNone()),
    st.builds(AnyOf, NAMES, st.lists(TEXTS, max_size=3).map(tuple)),
    st.builds(Keys, st.lists(st.binary(max_size=3), max_size=3).map(tuple)),
    st.builds(Alike, st.lists(NAMES, max_size=2).map(tuple), st.lists(TEXTS, max_size=2).map(tuple)),
)
TREES = st.recursive(
    TREE_LEAVES,
    lambda inner: st.one_of(
        st.builds(
            Group,
            st.lists(st.builds(Clause, st.sampled_from(Occur), inner), max_size=3).map(tuple),
            st.none() | st.builds(Minimum, st.integers(-9, 9), st.booleans()),
        ),
        st.builds(Boost, inner, st.floats(0.001, 1000.0)),
        st.builds(Best, st.lists(inner, max_size=3).map(tuple), st.floats(0, 1)),
        st.builds(Constant, inner, st.floats(0, 1000.0)),
        st.builds(Within, st.lists(st.tuples(NAMES, st.floats(0.1, 9)), min_size=1, max_size=2).map(tuple), inner),
    ),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(TREES)
def test_a_tree_travels_as_it_is(node):
    text = encode_tree(node)
    assert decode_tree(text) == node
    assert encode_tree(decode_tree(text)) == text
    assert isinstance(print_query(node), str)
    refusal(lambda: check_query(node, {"title": "text", "a": "integer", "b": "keyword"}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["word", "group", "like", "best", "+", "f"]),
    lambda inner: st.lists(inner, max_size=6),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(JSON.map(json.dumps) | st.text(max_size=20))
def test_what_is_no_tree_is_refused(text):
    node, error = refusal(lambda: decode_tree(text))
    assert error is not None or decode_tree(encode_tree(node)) == node
