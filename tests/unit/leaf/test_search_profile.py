from leaf.bm25 import BestOf, ScoredTerms
from leaf.search_profile import TERMS_MAX, UNTIMED, Phases, profiled_terms
from tests.fakes.clock import ManualClock


def test_each_phase_gets_the_time_since_the_last_end() -> None:
    clock = ManualClock()
    phases = Phases(clock.monotonic)
    for name, seconds in (("find", 0.5), ("documents", 0.25), ("find", 0.125), ("facets", 0.0)):
        clock.advance(seconds)
        phases.end(name)
    assert [(each.name, each.took_us) for each in phases.took] == [("find", 625_000), ("documents", 250_000), ("facets", 0)]


def test_a_search_that_was_not_asked_measures_nothing() -> None:
    UNTIMED.end("find")
    assert UNTIMED.took == []


def test_terms_come_once_in_their_order() -> None:
    parts = [ScoredTerms("title", ("b", "a")), BestOf(), ScoredTerms("body", ("a",)), ScoredTerms("title", ("a",))]
    terms = profiled_terms(parts, lambda field, term: len(field), lambda field, term: term.upper())
    assert [(each.field, each.term, each.documents) for each in terms] == [
        ("title", "B", 5),
        ("title", "A", 5),
        ("body", "A", 4),
    ]
    many = [ScoredTerms("title", (str(n),)) for n in range(2 * TERMS_MAX)]
    assert len(profiled_terms(many, lambda field, term: 1, lambda field, term: term)) == TERMS_MAX
