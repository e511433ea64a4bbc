import pytest

from kvshard.query import prepare
from kvshard.query.scored import scored_texts
from kvshard.query.syntax import Best, Clause, Constant, Group, Occur, Within, Word

SCHEMA = {"title": "text", "begun": "text(ngram)", "tag": "keyword", "year": "integer"}


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("tail", [("title", "tail", False), ("begun", "tail", False)]),
        ("title:tail", [("title", "tail", False)]),
        ("title:tail^2 title:Tail title:tail", [("title", "tail", False), ("title", "Tail", False)]),
        ('title:"at scale"~2', [("title", "at scale", False)]),
        ("tag:x AND title:tail", [("tag", "x", False), ("title", "tail", False)]),
        ("title:tail -title:scale", [("title", "tail", False)]),
        ("year:2010 year:[1 TO 2] title:* *", []),
        ("title:tai* tag:x* title:t?il title:tale~1", []),
        ("begun:tai* title:asyncio.*", [("begun", "tai", True), ("title", "asyncio.", True)]),
    ],
)
def test_what_is_scored_by_how_rare_it_is(text, texts):
    assert scored_texts(prepare(text, SCHEMA), SCHEMA) == texts


def test_what_only_structured_queries_have():
    word, other = Word("title", "tail"), Word(None, "scale")
    assert scored_texts(Best((word, Constant(other, 2.0))), SCHEMA) == [("title", "tail", False)]
    assert scored_texts(Within((("tag", 2.0),), other), SCHEMA) == [("tag", "scale", False)]
    group = Group((Clause(Occur.FILTER, word), Clause(Occur.SHOULD, Word("title", "x"))))
    assert scored_texts(group, SCHEMA) == [("title", "x", False)]
