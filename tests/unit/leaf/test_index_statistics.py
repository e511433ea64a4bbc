import json

import pytest

from kvshard.clustermap import TOKEN_SLOTS
from kvshard.model import TermStatistics
from leaf.bm25 import ScoredTerms, idf
from leaf.index_fields import keyword_term
from leaf.scoring import completed
from leaf.text_index import TextIndex

SCHEMA = {"body": "text", "tag": "keyword"}
X = keyword_term("x")


def slot_of(key):
    return 100 * int(key[1:])


def write(index, documents, through):
    index.write({key: None if body is None else (json.dumps(body).encode(), 0) for key, body in documents.items()})
    index.commit(through)


@pytest.fixture
def index(tmp_path):
    index = TextIndex.create(tmp_path / "i", SCHEMA, slot_of)
    write(index, {b"k%d" % n: {"body": "one two" if n % 2 else "one", "tag": ["x", "y"]} for n in range(10)}, 1)
    yield index
    index.discard_changes()


def test_what_is_live_counts(index):
    assert index.statistics.of({"body": ["one", "two", "six"], "tag": [X]}) == TermStatistics(
        10, {"body": 15, "tag": 20}, {"body": {"one": 10, "two": 5, "six": 0}, "tag": {X: 10}}, 1
    )
    before = index.statistics
    write(index, {b"k1": None, b"k2": {"body": "two two two"}, b"k3": {"tag": "x"}}, 2)
    expected = TermStatistics(9, {"body": 13, "tag": 15}, {"body": {"one": 7, "two": 4}, "tag": {X: 8}}, 2)
    assert index.statistics.of({"body": ["one", "two"], "tag": [X]}) == expected
    index.close_writer()
    assert index.statistics.of({"body": ["one", "two"], "tag": [X]}) == expected
    assert before.of({"body": ["one"]}).documents == 10  # what a search under way has


def test_what_has_left_by_a_split_does_not_count(index):
    assert index.statistics.of({"body": ["one", "two"]}, last_slot=450) == TermStatistics(
        5, {"body": 7}, {"body": {"one": 5, "two": 2}}, 1
    )
    assert index.statistics.documents(TOKEN_SLOTS - 1) == 10


def test_what_tantivy_itself_scores_by_has_the_deleted_too(index):
    assert index.statistics.own_idf(ScoredTerms("body", ("two",))) == pytest.approx(idf(5, 10))
    assert index.statistics.own_average("body", ["six", "two"]) == pytest.approx(1.5)
    write(index, {b"k1": None}, 2)
    assert index.statistics.own_idf(ScoredTerms("body", ("two", "one"))) == pytest.approx(idf(5, 10) + idf(10, 10))
    assert index.statistics.own_average("body", ["two"]) == pytest.approx(1.5)
    assert index.statistics.own_average("tag", ["nothing"]) == 0.0


def test_an_empty_index_has_none(tmp_path):
    index = TextIndex.create(tmp_path / "e", SCHEMA, slot_of)
    assert index.statistics.of({"body": ["one"]}) == TermStatistics(0, {"body": 0}, {"body": {"one": 0}}, 0)
    assert index.statistics.own_average("body", ["one"]) == 0.0


def test_what_shipped_statistics_lack_is_scaled_up_from_here():
    own = TermStatistics(10, {"body": 50, "tag": 20}, {"body": {"one": 3, "two": 1}, "tag": {X: 2}})
    shipped = TermStatistics(40, {"body": 100}, {"body": {"one": 7}})
    assert completed(shipped, own) == TermStatistics(
        40, {"body": 100, "tag": 80}, {"body": {"one": 7, "two": 4}, "tag": {X: 8}}
    )
    assert completed(TermStatistics(), own) is own
