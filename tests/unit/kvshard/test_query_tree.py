import json

import pytest

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
    prepare,
    print_query,
)
from kvshard.query.bounds import QUERY_MAX_CLAUSES, TREE_MAX_DEPTH
from kvshard.query.tree import NEEDS_TREE, decode_tree, encode_tree

NODES = [
    MatchAll(),
    MatchNone(),
    Word(None, "a", 3),
    Phrase("f", 'a "b"\n', 2, 7),
    Prefix("f", "ä", 1),
    Wildcard(None, "a\\**?", -1),
    Regex("f", "a/[b ]+", 3),
    Fuzzy("f", "x", None),
    Fuzzy("f", "x", 2),
    Exists("f", 4),
    Range("f", None, "5", False, True, 2),
    AnyOf("f", ("1", "")),
    Keys((b"\x00\xff", b"k")),
    Alike(("f",), ("a text",), 9, 1, 2, 3, 4, Minimum(30, is_percent=True)),
    Group((Clause(Occur.MUST, MatchAll()), Clause(Occur.FILTER, Word("f", "a"))), Minimum(-1)),
    Boost(Best((Word(None, "a"), MatchNone()), 0.3), 1e-3),
    Constant(Within((("f", 3.0), ("g", 1.0)), Word(None, "a")), 0.0),
]


@pytest.mark.parametrize("node", NODES, ids=lambda node: type(node).__name__)
def test_a_tree_comes_back_as_it_was(node):
    again = decode_tree(encode_tree(node))
    assert again == node
    assert getattr(again, "position", 0) == getattr(node, "position", 0)
    assert print_query(node)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        "1",
        '["nope"]',
        '["all", 1]',
        '["word", "f"]',
        '["word", 1, "a", 0]',
        '["word", "f", null, 0]',
        '["word", "f", "a", true]',
        '["word", "f", "a", 1.0]',
        '["phrase", "f", "a", 101, 0]',
        '["phrase", "f", "a", -1, 0]',
        '["fuzzy", "f", "a", 3, 0]',
        '["boost", ["all"], 0]',
        '["boost", ["all"], NaN]',
        '["boost", ["all"], Infinity]',
        '["boost", ["all"], 1e999]',
        '["boost", ["all"], true]',
        '["constant", ["all"], -1]',
        '["best", [["all"]], 1.5]',
        '["best", ["all"], 0]',
        '["within", [], ["all"]]',
        '["within", [["f"]], ["all"]]',
        '["group", [["?", ["all"]]], null]',
        '["group", [["+", ["all"]]], [1]]',
        '["group", [["+", ["all"]]], ["1", true]]',
        '["keys", ["xyz"]]',
        '["range", "f", null, null, 1, true, 0]',
        '["like", [], [], [1, 1], [1, 1], null]',
        "[" * 100_000,
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidArgument) as caught:
        decode_tree(text)
    assert caught.value.details.field == "tree"


def test_a_tree_has_bounds():
    def nested(depth):
        return '["boost",' * depth + '["all"]' + ",1]" * depth

    assert decode_tree(nested(TREE_MAX_DEPTH))
    with pytest.raises(InvalidArgument, match="too deep"):
        decode_tree(nested(TREE_MAX_DEPTH + 1))
    words = json.dumps(["best", [["word", None, "a", 0]] * (QUERY_MAX_CLAUSES + TREE_MAX_DEPTH + 1), 0])
    values = json.dumps(["any", "f", ["a"] * (QUERY_MAX_CLAUSES + TREE_MAX_DEPTH + 1), 0])
    for text in (words, values):
        with pytest.raises(InvalidArgument, match="too many clauses"):
            decode_tree(text)
    with pytest.raises(InvalidArgument, match="too long"):
        decode_tree(" " * 3_000_000)


def test_a_tree_stands_for_the_query_string_and_is_checked_like_it():
    schema = {"t": "text", "n": "integer"}
    tree = encode_tree(Range("n", "1", None))
    assert prepare(NEEDS_TREE, schema, tree=tree) == Range("n", "1", None)
    with pytest.raises(InvalidArgument, match="unknown field needs_a_newer_leaf"):
        prepare(NEEDS_TREE, schema)  # what a leaf does that does not know trees
    with pytest.raises(InvalidArgument, match="'x' is not an integer") as caught:
        prepare(NEEDS_TREE, schema, tree=encode_tree(Range("n", "x", None)))
    assert caught.value.details.field == "structured"
