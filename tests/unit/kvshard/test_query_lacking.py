"""A query over several collections, as one of them is asked that lacks some of its fields."""

import pytest

from kvshard.errors import InvalidArgument, MalformedQuery
from kvshard.query import (
    Clause,
    Group,
    MatchAll,
    MatchNone,
    Occur,
    Within,
    Word,
    prepare,
)
from kvshard.query.lacking import narrowed, without
from kvshard.query.tree import NEEDS_TREE, decode_tree, encode_tree

HERE = {"title": "text", "year": "integer"}
ELSEWHERE = {"title": "text", "year": "integer", "lang": "keyword", "body": "text"}


def test_what_has_all_its_fields_stays_as_it_is() -> None:
    assert narrowed("title:a year:[1 TO 2]", "", ["b"], HERE, ELSEWHERE) == ("title:a year:[1 TO 2]", "", ["b"])
    tree = encode_tree(Word("title", "a"))
    assert narrowed(NEEDS_TREE, tree, [], HERE, ELSEWHERE) == (NEEDS_TREE, tree, [])


def test_a_clause_with_a_field_of_others_matches_nothing() -> None:
    text, tree, filters = narrowed("title:a OR lang:en", "", [], HERE, ELSEWHERE)
    assert (text, filters) == (NEEDS_TREE, [])
    assert decode_tree(tree) == Group((Clause(Occur.SHOULD, Word("title", "a")), Clause(Occur.SHOULD, MatchNone())))
    prepare(text, HERE, tree=tree)  # A leaf takes it.


@pytest.mark.parametrize(
    "clause", ["lang:en", "lang:en*", "lang:e?n", "lang:*", "lang:[a TO b]", 'body:"a b"', "body:a~1", "lang:en^2"]
)
def test_every_kind_of_clause(clause: str) -> None:
    _, tree, _ = narrowed(f"title:a OR {clause}", "", [], HERE, ELSEWHERE)
    assert "lang" not in tree
    assert "body" not in tree


def test_filters_go_with_the_query_where_one_of_them_lacks_its_field() -> None:
    _, tree, filters = narrowed("title:a", "", ["NOT lang:en", "year:1"], HERE, ELSEWHERE)
    assert filters == []
    group = decode_tree(tree)
    assert isinstance(group, Group)
    assert [clause.occur for clause in group.clauses] == [Occur.MUST, Occur.FILTER, Occur.FILTER]
    _, tree, _ = narrowed("*", "", ["lang:en"], HERE, ELSEWHERE)
    assert decode_tree(tree) == Group((Clause(Occur.FILTER, MatchNone()),))


def test_default_fields_that_a_collection_lacks_are_left_out() -> None:
    word = Word(None, "a")
    assert without(Within((("title", 1.0), ("body", 2.0)), word), HERE) == Within((("title", 1.0),), word)
    assert without(Within((("body", 2.0),), word), HERE) == MatchNone()
    assert without(MatchAll(), HERE) == MatchAll()


def test_a_field_that_no_collection_has_is_an_error() -> None:
    with pytest.raises(InvalidArgument, match="unknown field nothing"):
        narrowed("nothing:a", "", [], HERE, ELSEWHERE)
    with pytest.raises(MalformedQuery):
        narrowed('"a', "", [], HERE, ELSEWHERE)
