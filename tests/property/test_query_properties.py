from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.errors import InvalidArgument
from kvshard.query import (
    Boost,
    Clause,
    Exists,
    Group,
    MatchAll,
    Occur,
    Phrase,
    Prefix,
    Range,
    Word,
    check_query,
    parse_query,
    print_query,
)

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
                "[1 TO 2]",
            ]
        ),
        st.text(max_size=3),
    ),
    max_size=14,
).map("".join)

TEXTS = st.text(st.characters(exclude_categories=("Cs",)), max_size=6)
NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,5}", fullmatch=True)
FIELDS = st.none() | NAMES
LEAVES = st.one_of(
    st.just(MatchAll()),
    st.builds(Word, FIELDS, TEXTS.filter(bool)),
    st.builds(Phrase, FIELDS, TEXTS),
    st.builds(Prefix, FIELDS, TEXTS.filter(bool)),
    st.builds(Exists, NAMES),
    st.builds(Range, NAMES, st.none() | TEXTS, st.none() | TEXTS, st.booleans(), st.booleans()),
)


def groups(nodes):
    clauses = st.builds(Clause, st.sampled_from(Occur), nodes)
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
