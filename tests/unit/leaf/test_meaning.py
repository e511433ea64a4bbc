"""What synonyms and forgiven slips find in an index, and in which order."""

import json

import pytest

from kvshard import hashing
from kvshard.meaning import meant
from kvshard.query import prepare
from kvshard.sorting import BY_SCORE
from leaf.text_index import TextIndex
from leaf.text_search import IndexView

SCHEMA = {"title": "text", "body": "text(english)", "typed": "text(ngram)", "tag": "keyword"}
TITLES = {
    b"1": "latency latency latency of tails",
    b"2": "latancy",
    b"3": "a motor car",
    b"4": "car motor",
    b"5": "the automobile",
    b"6": "new york hotel",
    b"7": "nyc hotel",
    b"8": "new hotel",
}
RULES = ("car, automobile, motor car", "new york, nyc")


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = TextIndex.create(tmp_path_factory.mktemp("index") / "i", SCHEMA, lambda key: hashing.slot(key, 0))
    for key, title in TITLES.items():
        index.write({key: (json.dumps(dict.fromkeys(SCHEMA, title)).encode(), 0)})
    index.commit(1)
    return index


def found(index, text, rules=RULES, fuzziness=""):
    """The keys, best first."""
    node = meant(prepare(text, SCHEMA), SCHEMA, rules, fuzziness)
    view = IndexView(index.searcher(), index.fields, SCHEMA, index.parse)
    page = view.page(index.compiler.compile(node, [], None), BY_SCORE, 10, has_one_score=index.compiler.has_one_score(node))
    return "".join(hit.key.decode() for hit in page.found)


@pytest.mark.parametrize(
    ("text", "fuzziness", "expected"),
    [
        ("title:latency", "", "1"),
        ("title:latency", "1", "12"),  # the word itself first, though the other text is shorter
        ("title:latancy", "auto", "21"),
        ("title:latenyc", "auto", "12"),
        ("title:latenyc", "1", "1"),
        ("title:tals", "auto", "1"),
        ("title:tls", "auto", ""),
        ("typed:lat", "auto", "12"),  # half a word goes on finding the whole one
        ("body:hotles", "auto", "786"),
        ("body:latencys", "1", "12"),  # by its stem
        ('title:"latency of"', "2", "1"),
        ("tag:nyc", "2", ""),
    ],
)
def test_slips_are_forgiven(index, text, fuzziness, expected):
    assert sorted(found(index, text, (), fuzziness)) == sorted(expected)
    if len(expected) == 2:
        assert found(index, text, (), fuzziness) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title:car", "345"),
        ("title:automobile", "345"),
        ('title:"motor car"', "345"),
        ("title:motor", "34"),
        ("title:nyc", "67"),
        ("+title:new +title:york", "67"),
        ("+title:new +title:york +title:hotel", "67"),
        ("title:new AND title:york AND NOT title:nyc", ""),
        ("body:nyc", "67"),
        ("nyc", "67"),
        ("tag:nyc", ""),
        ("title:new", "68"),
    ],
)
def test_synonyms_find_each_other(index, text, expected):
    assert "".join(sorted(found(index, text))) == expected


def test_a_synonym_scores_as_if_it_had_been_asked_for(index):
    assert found(index, "title:automobile title:tails") == found(index, "title:car title:tails")
