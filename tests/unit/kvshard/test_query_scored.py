from kvshard.query import Boost, Clause, Constant, Group, MatchAll, Occur, Within, Word
from kvshard.query.scored import scored_texts

SCHEMA = {"title": "text", "body": "text", "tag": "keyword", "n": "integer"}


def test_only_what_scores_needs_statistics():
    clauses = [Clause(occur, Word("title", occur.name.lower())) for occur in Occur]
    assert scored_texts(Group(tuple(clauses)), SCHEMA) == [("title", "must", False), ("title", "should", False)]
    assert scored_texts(Constant(Word("title", "a"), 1.0), SCHEMA) == []
    assert scored_texts(Group((Clause(Occur.MUST, MatchAll()), Clause(Occur.MUST, Word("n", "1")))), SCHEMA) == []
    within = Within((("tag", 2.0),), Boost(Word(None, "a"), 2.0))
    assert scored_texts(within, SCHEMA) == [("tag", "a", False)]
