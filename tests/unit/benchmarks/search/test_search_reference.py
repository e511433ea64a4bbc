import pytest

from benchmarks.search.counting import count_error
from benchmarks.search.reference import Best, Reference, is_same, is_same_set


def _document(name, doc, kind="manual"):
    return {"name": name, "doc": doc, "kind": kind, "source": "1", "words": len(doc.split())}


@pytest.fixture(scope="module")
def reference():
    documents = {f"same-{n:02}": _document("same", "three equal words") for n in range(60)}
    documents["best"] = _document("equal words", "equal words", "function")
    return Reference(documents)


def test_the_best_page_has_all_that_are_as_good_as_its_last_hit(reference):
    best = reference.best("equal words", 10)
    assert len(best.scores) == 61
    assert next(iter(best.scores)) == "best"
    assert best.total == 61


def test_any_of_equal_documents_may_be_on_the_page(reference):
    best = reference.best("equal words", 3)
    assert is_same(["best", "same-03", "same-51"], best, 3)
    assert not is_same(["same-03", "best", "same-51"], best, 3)
    assert not is_same(["best", "same-03", "same-03"], best, 3)
    assert not is_same(["best", "same-03"], best, 3)
    assert not is_same(["best", "same-03", "other"], best, 3)


def test_a_page_that_is_short_is_right_only_if_there_are_no_more():
    assert is_same(["a"], Best({"a": 1.0}, 1), 10)
    assert not is_same([], Best({"a": 1.0}, 1), 10)
    assert is_same([], Best({}, 0), 10)


def test_a_page_may_have_the_right_documents_in_another_order(reference):
    best = reference.best("equal words", 3)
    assert is_same_set(["same-03", "best", "same-51"], best, 3)
    assert not is_same_set(["same-03", "same-04", "same-51"], best, 3)
    assert not is_same_set(["best", "same-03", "other"], best, 3)
    assert not is_same_set(["best", "same-03"], best, 3)


def test_scores_that_differ_in_their_last_bits_are_equal():
    assert is_same(["b", "a"], Best({"a": 1.0, "b": 0.9999999}, 2), 10)
    assert not is_same(["b", "a"], Best({"a": 1.0, "b": 0.99}, 2), 10)


def test_the_reference_answers_with_documents_and_counts(reference):
    documents, total = reference.answer("equal", 10)
    assert len(documents) == 10
    assert total == 61
    assert reference.counts("", "kind", 10) == {"manual": 60, "function": 1}
    assert reference.counts("three", "kind", 10) == {"manual": 60}


def test_the_error_of_counts_is_the_largest_one():
    assert count_error({"a": 3, "b": 5}, {"a": 3, "b": 5}) == 0
    assert count_error({"a": 3, "b": 5}, {"a": 4, "b": 7}) == 2
    assert count_error({"a": 3}, {"a": 3, "b": 7}) == 7
    assert count_error({"a": 3}, {}) == 3
