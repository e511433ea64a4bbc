"""Scores of a query that is made of nothing but terms, put together from how often each stands in a document.

An explanation of the whole query costs as much as several of its terms: tantivy makes the query anew for each, and its text has
to be read. That of a single term takes a sixth of it, and only two numbers of it are wanted. What stands between the terms
(the best of some, sums, boosts) is worked out here as `Bm25` does it, to the last bit.
"""

from collections.abc import Callable, Sequence
from math import fsum
from typing import Final, TypeAlias

import tantivy
from tantivy import Occur, Query

from leaf.bm25 import Bm25, ScoredTerms, best_of
from leaf.index_fields import searched
from leaf.made_query import BestPart, BoostPart, GroupPart, Part, TermPart

BOOST_DIGITS: Final = 6
"""An explanation shows a boost as a 32 bit float; one of so many digits is the same there."""

_FREQUENCY: Final = '"description": "freq,'
_LENGTH: Final = '"description": "dl,'
_VALUE: Final = '"value": '
_NO_MATCH: Final = "does not match"


def is_made_of_terms(part: Part) -> bool:
    """Whether `TermScores` can score what this matches."""
    match part:
        case TermPart():
            return True
        case BestPart():
            return all(map(is_made_of_terms, part.inner))
        case BoostPart():
            return float(f"{part.factor:.{BOOST_DIGITS}g}") == part.factor and is_made_of_terms(part.inner)
        case GroupPart():
            return not part.unwanted and all(
                occur in (Occur.Must, Occur.Should) and is_made_of_terms(each) for occur, each in part.wanted
            )
    return False


Scorer: TypeAlias = Callable[[tantivy.DocAddress], float | None]
"""What a part gives a document; None: it does not match."""


class TermScores:
    """Of one query in one index. part: see `is_made_of_terms`. has_term: whether the index has a term in a field at all.

    What is the same for every document is settled here: the terms that the index has, their queries and weights.
    """

    def __init__(
        self,
        part: Part,
        bm25: Bm25,
        fields: tantivy.Schema,
        searcher: tantivy.Searcher,
        has_term: Callable[[str, str], bool],
    ) -> None:
        self._bm25 = bm25
        self._fields = fields
        self._searcher = searcher
        self._has_term = has_term
        self._score = self._scorer(part)

    def score(self, address: tantivy.DocAddress) -> float:
        """The score of a document that the query matches."""
        return (self._score and self._score(address)) or 0.0

    def _scorer(self, part: Part) -> Scorer | None:
        """None: it matches nothing in this index."""
        match part:
            case TermPart():
                return self._term_scorer(part) if self._has_term(part.field, part.term) else None
            case BestPart():
                return _best_scorer([each for each in map(self._scorer, part.inner) if each], part.tie_breaker)
            case BoostPart():
                return _boost_scorer(self._scorer(part.inner), part.factor)
            case GroupPart():
                return _group_scorer([(occur == Occur.Must, self._scorer(each)) for occur, each in part.wanted], part.minimum)
        raise AssertionError(f"{part!r} is not made of terms")

    def _term_scorer(self, part: TermPart) -> Scorer:
        query = Query.term_query(self._fields, searched(part.field), part.term, part.index_option)
        worth, searcher = self._bm25.worth_of(ScoredTerms(part.field, (part.term,))), self._searcher

        def score(address: tantivy.DocAddress) -> float | None:
            told = term_in_document(query, searcher, address)
            return None if told is None else worth(*told)

        return score


def _best_scorer(inner: Sequence[Scorer], tie_breaker: float) -> Scorer | None:
    if len(inner) <= 1:
        return inner[0] if inner else None
    return lambda address: best_of([score for each in inner if (score := each(address)) is not None], tie_breaker)


def _boost_scorer(inner: Scorer | None, factor: float) -> Scorer | None:
    if inner is None:
        return None

    def score(address: tantivy.DocAddress) -> float | None:
        found = inner(address)
        return None if found is None else factor * found

    return score


def _group_scorer(wanted: Sequence[tuple[bool, Scorer | None]], minimum: int) -> Scorer | None:
    """wanted: whether each clause must match, and what it scores."""
    if any(must and scorer is None for must, scorer in wanted):
        return None
    clauses = [(must, scorer) for must, scorer in wanted if scorer is not None]

    def score(address: tantivy.DocAddress) -> float | None:
        found: list[float] = []
        optional = 0
        for must, scorer in clauses:
            given = scorer(address)
            if given is not None:
                found.append(given)
                optional += not must
            elif must:
                return None
        return fsum(found) if found and optional >= minimum else None

    return score


def term_in_document(query: Query, searcher: tantivy.Searcher, address: tantivy.DocAddress) -> tuple[float, float] | None:
    """How often a query's one term stands in a document, and how long the field is there; None: not at all."""
    try:
        text = query.explain(searcher, address).to_json()
    except ValueError as error:
        if _NO_MATCH in str(error):
            return None
        raise
    at = text.index(_FREQUENCY)
    return _value_before(text, at), _value_before(text, text.index(_LENGTH, at))


def _value_before(text: str, at: int) -> float:
    """A description comes after the value that it describes."""
    begin = text.rindex(_VALUE, 0, at) + len(_VALUE)
    return float(text[begin : text.index(",", begin)])
