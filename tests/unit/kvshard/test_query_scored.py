import pytest

from kvshard.query import Best, Boost, Clause, Constant, Group, MatchAll, Occur, Phrase, Within, Word
from kvshard.query.scored import is_of_one_text, scored_texts

SCHEMA = {"title": "text", "body": "text", "tag": "keyword", "n": "integer"}


def test_only_what_scores_needs_statistics():
    clauses = [Clause(occur, Word("title", occur.name.lower())) for occur in Occur]
    assert scored_texts(Group(tuple(clauses)), SCHEMA) == [("title", "must", False), ("title", "should", False)]
    assert scored_texts(Constant(Word("title", "a"), 1.0), SCHEMA) == []
    assert scored_texts(Group((Clause(Occur.MUST, MatchAll()), Clause(Occur.MUST, Word("n", "1")))), SCHEMA) == []
    within = Within((("tag", 2.0),), Boost(Word(None, "a"), 2.0))
    assert scored_texts(within, SCHEMA) == [("tag", "a", False)]


A, B = Word("tag", "a"), Word("tag", "b")


@pytest.mark.parametrize(
    ("node", "is_one"),
    [
        (A, True),
        (Phrase("title", "a b"), True),
        (Boost(Within((("tag", 2.0),), Word(None, "a")), 2.0), True),
        (Group((Clause(Occur.MUST, A), Clause(Occur.FILTER, B), Clause(Occur.MUST_NOT, B))), True),
        (Best((A,)), True),
        (Best((A, B)), False),
        (Group((Clause(Occur.SHOULD, A), Clause(Occur.SHOULD, B))), False),
        (Group((Clause(Occur.MUST, A), Clause(Occur.SHOULD, Constant(B, 1.0)))), False),
        (Group((Clause(Occur.MUST_NOT, A),)), False),
        (Constant(A, 1.0), False),
    ],
)
def test_whether_scores_rest_on_one_text_alone(node, is_one):
    assert is_of_one_text(node) is is_one
