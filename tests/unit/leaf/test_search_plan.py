import json

import pytest

from kvshard.clustermap import Collection
from kvshard.model import ShardSearch
from leaf import search_plan
from leaf.made_query import holds_best
from leaf.search_plan import PLAN_MAX_CHARS, SearchPlan, SearchPlans
from leaf.text_index import TextIndex
from leaf.weighting import Weighting

SCHEMA = {"body": "text", "tag": "keyword", "n": "integer"}
COLLECTION = Collection("docs", 7, SCHEMA)


def asked(query="word", filters=(), **others):
    return ShardSearch(1, 1, 7, query, list(filters), 10, **others)


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    index = TextIndex.create(tmp_path_factory.mktemp("plans") / "i", SCHEMA, lambda key: 0)
    index.write({b"1": (json.dumps({"body": "word and wound", "tag": "x", "n": 1}).encode(), 0)})
    index.commit(1)
    yield index
    index.discard_changes()


def compiled(plan, index):
    return plan.compiled(index.compiler, index.fields, index.searcher(), None, lambda: None)


@pytest.mark.parametrize(
    "other",
    [
        asked("words"),
        asked(filters=["tag:x"]),
        asked(synonyms=["word, term"]),
        asked(fuzziness="auto"),
    ],
)
def test_a_search_has_its_plan_until_it_says_something_else(other):
    plans = SearchPlans()
    plan = plans.of(asked(), COLLECTION)
    assert plans.of(asked(facets=["tag"]), COLLECTION) is plan
    assert plans.of(other, COLLECTION) is not plan
    assert plans.of(asked(), COLLECTION) is plan


def test_a_filter_is_not_taken_for_a_synonym():
    plans = SearchPlans()
    assert plans.of(asked(filters=["a, b"]), COLLECTION) is not plans.of(asked(synonyms=["a, b"]), COLLECTION)


def test_another_schema_is_another_plan():
    plans = SearchPlans()
    later = Collection("docs", 7, SCHEMA | {"more": "text"}, version=2)
    assert plans.of(asked(), COLLECTION) is not plans.of(asked(), later)


def test_plans_are_bounded_and_the_least_asked_for_goes_first(monkeypatch):
    monkeypatch.setattr(search_plan, "PLANS_MAX", 3)
    plans = SearchPlans()
    first, second = plans.of(asked("w1"), COLLECTION), plans.of(asked("w2"), COLLECTION)
    plans.of(asked("w3"), COLLECTION)
    assert plans.of(asked("w1"), COLLECTION) is first
    plans.of(asked("w4"), COLLECTION)
    assert plans.of(asked("w1"), COLLECTION) is first
    assert plans.of(asked("w2"), COLLECTION) is not second


def test_long_searches_are_not_kept():
    plans = SearchPlans()
    long = asked(filters=["tag:" + "x" * 100] * (1 + PLAN_MAX_CHARS // 100))
    assert plans.of(long, COLLECTION) is not plans.of(long, COLLECTION)


@pytest.mark.parametrize(("query", "is_kept"), [("word", True), ('"a b" -n:1', True), ("w*", False), ("tag:?x OR word", False)])
def test_what_the_words_of_an_index_decide_is_compiled_anew(index, query, is_kept):
    plan = SearchPlan(asked(query), SCHEMA)
    assert (compiled(plan, index) is compiled(plan, index)) is is_kept


def test_what_is_compiled_fits_indexes_with_the_same_fields_alone(index, tmp_path):
    plan = SearchPlan(asked(), SCHEMA)
    same = TextIndex.create(tmp_path / "same", SCHEMA, lambda key: 0)
    other = TextIndex.create(tmp_path / "other", dict(reversed(SCHEMA.items())), lambda key: 0)
    first = compiled(plan, index)
    assert compiled(plan, same) is first
    assert compiled(plan, other) is not first


def test_a_compiled_search_knows_what_it_is_scored_by(index):
    found = compiled(SearchPlan(asked('word "of two" -unwanted tag:x n:1'), SCHEMA), index)
    assert found.terms == {"body": ["of", "two", "word"], "tag": ["kx".replace("x", "78")]}
    assert found.term_count == 4
    query, parts = found.numbered
    assert index.searcher().search(query, 10).hits
    assert len(parts) > 3


@pytest.mark.parametrize(
    "query", ["word wound", "word OR absent", "absent", "+absent word", "word -wound", '(word absent)^2 "of two"']
)
def test_what_no_document_has_may_be_left_out_of_the_alternatives(tmp_path, query):
    schema = {"body": "text", "title": "text"}
    index = TextIndex.create(tmp_path / "two", schema, lambda key: 0)
    bodies = {b"1": "word wound", b"2": "word of two", b"3": "wound wound"}
    index.write({key: (json.dumps({"body": body}).encode(), 0) for key, body in bodies.items()})
    index.commit(1)
    made = compiled(SearchPlan(asked(query), schema), index).query
    fewer = made.among(index.statistics.has_term)
    assert holds_best(made.part)
    assert not holds_best(fewer.part) or "-" in query or "(" in query

    def found(each):
        hits = index.searcher().search(each.made(Weighting(index.fields)), 10).hits
        return sorted((address.doc, score) for score, address in hits)

    assert found(fewer) == found(made)
    index.discard_changes()
