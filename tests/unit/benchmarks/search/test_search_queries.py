import pytest

from benchmarks.search.queries import Vocabulary, sample_queries, vocabulary

TEXTS = [f"the word{n % 40} once{n} a" for n in range(400)]


def test_words_are_told_apart_by_how_many_documents_have_them():
    words = vocabulary(TEXTS)
    assert "the" in words.common
    assert "word7" in words.common  # 10 of 400
    assert "once7" in words.rare
    assert "a" not in {*words.common, *words.middling, *words.rare}  # one letter


def test_queries_are_different_and_the_same_for_a_seed():
    words = vocabulary(TEXTS)
    queries = sample_queries(words, 200, seed=1)
    assert len(set(queries)) == 200
    assert {len(query.split()) for query in queries} == {1, 2, 3, 4}
    assert queries == sample_queries(words, 200, seed=1)
    assert queries != sample_queries(words, 200, seed=2)


def test_too_few_words_are_refused():
    with pytest.raises(ValueError, match="200 queries"):
        sample_queries(Vocabulary(["a"], [], []), 200, seed=1)
