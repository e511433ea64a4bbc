"""Fragments: the best ones of each field, apart from each other, in the order of the text."""

import json

import pytest

from kvshard import hashing
from kvshard.model import SearchShape, ShardHit, ShardSearch
from kvshard.query import prepare
from leaf.highlights import Highlighter, shown_as
from leaf.text_index import TextIndex

SCHEMA = {"title": "text", "body": "text"}


def filler(count):
    return "nothing of note is written here " * count


@pytest.fixture
def index(tmp_path):
    index = TextIndex.create(tmp_path / "i", SCHEMA, lambda key: hashing.slot(key, 0))
    index.write({b"k": (b'{"title": "needle", "body": "needle"}', 0)})
    index.commit(1)
    return index


def highlighted(index, document, query="needle", keys_only=False, kept=(), **shape):
    shape = SearchShape(fields=list(kept), **shape)
    request = ShardSearch(0, 1, 1, query, [], 10, highlight=["title", "body"], keys_only=keys_only, shape=shape)
    hits = [ShardHit(b"k", 1.0, json.dumps(document).encode(), 1)]
    node = prepare(query, SCHEMA)
    (hit,) = shown_as(request, hits, lambda: Highlighter(request, node, hits, index, index.searcher()), lambda: None)
    return hit


def marked(hit):
    return [(mark.field, [mark.fragment[start:end] for start, end in mark.spans]) for mark in hit.highlights]


def test_one_fragment_of_each_field_is_the_rule(index):
    document = {"title": "A Needle", "body": filler(9) + "one needle" + filler(9) + "a needle, a needle"}
    assert marked(highlighted(index, document)) == [("title", ["Needle"]), ("body", ["needle", "needle"])]


def test_more_fragments_stand_in_the_order_of_the_text(index):
    body = "first needle " + filler(9) + "needle needle needle " + filler(9) + "needle at last, needle"
    hit = highlighted(index, {"body": body}, fragments=3, fragment_chars=60)
    assert [len(spans) for _, spans in marked(hit)] == [1, 3, 2]
    places = [body.index(mark.fragment) for mark in hit.highlights]
    assert places == sorted(places)
    assert all(len(mark.fragment) <= 60 for mark in hit.highlights)
    assert [len(spans) for _, spans in marked(highlighted(index, {"body": body}, fragments=2, fragment_chars=60))] == [3, 2]
    assert len(highlighted(index, {"body": body}, fragments=20, fragment_chars=60).highlights) == 3


def test_the_texts_of_a_list_are_looked_at_in_turn(index):
    document = {"body": ["nothing", "é needle ü", filler(3), "Needle"]}
    assert marked(highlighted(index, document)) == [("body", ["needle"])]
    assert marked(highlighted(index, document, fragments=5)) == [("body", ["needle"]), ("body", ["Needle"])]


@pytest.mark.parametrize("document", [{}, {"body": None}, {"body": ""}, {"body": [1, {"a": "needle"}]}, {"body": "other"}])
def test_what_has_no_match_has_no_fragment(index, document):
    assert highlighted(index, document, fragments=3).highlights == []


def test_what_is_left_of_the_document(index):
    document = {"title": "needle", "body": "needle", "n": 1}
    assert highlighted(index, document, keys_only=True).document == b""
    hit = highlighted(index, document, kept=["n"])
    assert (json.loads(hit.document), len(hit.highlights)) == ({"n": 1}, 2)
