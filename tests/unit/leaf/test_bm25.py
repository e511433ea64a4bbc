import itertools

import pytest

from kvshard.model import TermStatistics
from leaf.bm25 import K1, B, BestOf, Bm25, Explanation, ScoredTerms, average_length, bounds, idf

STATISTICS = TermStatistics(100, {"body": 1_000}, {"body": {"a": 10, "b": 50}})


def term(frequency, length):
    """A term's explanation as tantivy gives it; the numbers of its own statistics are not looked at."""
    parts = [Explanation(value, "") for value in (frequency, K1, B, length, 7.0)]
    return Explanation(
        99.0, "TermQuery, product of...", [Explanation(2.2, ""), Explanation(1.0, ""), Explanation(1.0, "", parts)]
    )


def boosted(by, inner):
    return Explanation(99.0, f"Boost x{by} of ...", [inner])


def summed(*inner):
    return Explanation(99.0, "BooleanClause. sum of ...", list(inner))


def right(word, frequency, length):
    count = STATISTICS.counts["body"][word]
    return idf(count, 100) * (K1 + 1) * frequency / (frequency + K1 * (1 - B + B * length / 10))


PARTS = [ScoredTerms("body", ("a",)), ScoredTerms("body", ("b",)), BestOf(), BestOf(0.5), ScoredTerms("body", ("a", "b"))]
A, OTHER = boosted(-1, term(2.0, 20.0)), boosted(-2, term(1.0, 5.0))
SCORE_A, SCORE_OTHER = right("a", 2, 20), right("b", 1, 5)


@pytest.mark.parametrize(
    ("explanation", "score"),
    [
        (A, SCORE_A),
        (boosted("2.5", A), 2.5 * SCORE_A),
        (summed(A, OTHER, Explanation(1.0, "Const")), SCORE_A + SCORE_OTHER + 1.0),
        (boosted(-3, summed(A, OTHER)), max(SCORE_A, SCORE_OTHER)),
        (boosted(-4, summed(OTHER, A)), SCORE_A + SCORE_OTHER / 2),
        (
            boosted(-5, Explanation(9.0, "Phrase Scorer", [term(2.0, 20.0)])),
            SCORE_A * (idf(10, 100) + idf(50, 100)) / idf(10, 100),
        ),
    ],
)
def test_scores_of_explanations(explanation, score):
    assert Bm25(STATISTICS, PARTS).score(explanation) == pytest.approx(score, rel=1e-12)


def test_the_order_of_clauses_does_not_touch_the_last_bit():
    clauses = [boosted(-1, term(float(n), 3.0 * n)) for n in range(1, 6)]
    assert len({Bm25(STATISTICS, PARTS).score(summed(*each)) for each in itertools.permutations(clauses)}) == 1


def test_a_count_heard_later_than_the_documents_may_be_larger():
    assert idf(11, 10) == idf(10, 10) > 0


@pytest.mark.parametrize("own", [4.0, 9.9, 10.0, 10.1, 25.0])
def test_a_score_lies_within_its_bounds(own):
    found = bounds([(average_length(STATISTICS, "body"), own), (5.0, 0.0)])
    for frequency, length in itertools.product([1, 2, 5, 100], [1, 10, 40, 1_000, 100_000]):
        given = frequency / (frequency + K1 * (1 - B + B * length / own))
        wanted = frequency / (frequency + K1 * (1 - B + B * length / 10))
        assert found.least * given <= wanted <= found.most * given
