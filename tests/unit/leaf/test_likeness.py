import json

import pytest

from kvshard import hashing
from kvshard.model import TermStatistics
from kvshard.query import Alike, Best, Boost, Chosen, Clause, Constant, Group, MatchAll, Minimum, Occur, Within
from leaf.likeness import CONSIDERED_MAX, chosen, settled
from leaf.text_index import TextIndex
from leaf.text_search import IndexView
from leaf.weighting import Weighting

SCHEMA = {"title": "text", "body": "text(english)", "tag": "keyword"}
TEXT = "the tail of the tail latency, the latency of tails; rare"


def slot_of(key: bytes) -> int:
    return hashing.slot(key, 0)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = TextIndex.create(tmp_path_factory.mktemp("index") / "i", SCHEMA, slot_of)
    titles = ["the tail"] * 4 + ["the latency"] * 2 + ["the rare"] + ["the rest"] * 20
    for number, title in enumerate(titles):
        index.write({f"{number:02}".encode(): (json.dumps({"title": title, "body": title}).encode(), 0)})
    index.commit(1)
    return index


def words(node, counts, documents=100):
    return chosen(node, SCHEMA, lambda name, term: counts.get((name, term), 0), documents).words


def alike(fields=("title",), **wanted):
    return Alike(fields, (TEXT,), **({"min_documents": 1, "min_word_count": 1} | wanted))


COUNTS = {("title", "the"): 100, ("title", "tail"): 5, ("title", "latency"): 5, ("title", "rare"): 1, ("title", "of"): 90}


def test_the_most_telling_words_are_chosen():
    # Twice of 5 documents tells more than once of 1; of equals, the first by the alphabet comes first.
    assert [term for term, _ in words(alike(), COUNTS)] == ["latency", "tail", "rare", "of", "the"]
    assert [term for term, _ in words(alike(max_words=2), COUNTS)] == ["latency", "tail"]
    assert [term for term, _ in words(alike(min_word_count=2), COUNTS)] == ["latency", "tail", "of", "the"]
    assert [term for term, _ in words(alike(min_documents=5), COUNTS)] == ["latency", "tail", "of", "the"]
    assert [term for term, _ in words(alike(max_documents=50), COUNTS)] == ["latency", "tail", "rare"]
    assert [term for term, _ in words(alike(min_word_chars=5), COUNTS)] == ["latency"]
    assert words(alike(), {}) == ()


def test_a_word_is_looked_for_in_each_field_that_has_it():
    found = dict(words(alike(("title", "body")), COUNTS | {("body", "tail"): 3}))
    assert found["tail"] == ("body", "title")
    assert found["latency"] == ("title",)


def test_what_is_chosen_from_is_bounded_and_the_same_everywhere():
    many = Alike(("title",), (" ".join(f"w{number}" for number in range(1_000)) + " w7 w8",), min_word_count=1)
    one = chosen(many, SCHEMA, lambda *_: 1, 10)
    other = chosen(many, SCHEMA, lambda *_: 2, 10)
    assert one.considered == other.considered
    assert len(one.considered) == CONSIDERED_MAX
    assert one.considered[:2] == (("title", "w7"), ("title", "w8"))


def test_the_statistics_of_all_shards_decide(index):
    searcher = index.searcher()
    node = alike(max_words=1)
    assert settled(node, SCHEMA, searcher).words == (("latency", ("title",)),)
    shipped = TermStatistics(1_000, {}, {"title": {"the": 900, "tail": 500, "latency": 3, "rare": 800, "of": 700}})
    assert settled(node, SCHEMA, searcher, shipped).words == (("latency", ("title",)),)
    shipped = TermStatistics(1_000, {}, {"title": {"the": 900, "tail": 3, "latency": 500, "rare": 800, "of": 700}})
    assert settled(node, SCHEMA, searcher, shipped).words == (("tail", ("title",)),)


def test_it_is_found_wherever_it_stands(index):
    searcher = index.searcher()
    for outer in (
        lambda inner: Group((Clause(Occur.MUST, inner),)),
        lambda inner: Best((MatchAll(), inner)),
        lambda inner: Boost(inner, 2.0),
        lambda inner: Constant(inner, 2.0),
        lambda inner: Within((("title", 1.0),), inner),
    ):
        assert settled(outer(alike()), SCHEMA, searcher) == outer(settled(alike(), SCHEMA, searcher))
    assert isinstance(settled(alike(), SCHEMA, searcher), Chosen)


def found(index, node):
    query = index.compiler.compile(node, [], None)
    view = IndexView(index.searcher(), index.fields, SCHEMA, index.parse)
    return view.count(query)


def test_documents_like_a_text(index):
    assert found(index, alike(max_words=2, max_documents=10)) == 6
    assert found(index, alike(max_documents=10, minimum=Minimum(100, is_percent=True))) == 0
    assert found(index, alike(("body",), max_documents=10)) == 7
    assert found(index, alike(min_documents=1_000)) == 0
    assert found(index, Alike((), ())) == 0


def test_what_was_considered_is_told(index):
    for node in (alike(), Constant(alike(), 1.0), Group((Clause(Occur.FILTER, alike()),))):
        noting = Weighting(index.fields)
        index.compiler.scored(node, noting)
        assert noting.terms == {"title": {"the", "tail", "of", "latency", "tails", "rare"}}
