"""Scores of a query that is made of nothing but terms, put together from how often each stands in a document.

An explanation of the whole query costs as much as several of its terms: tantivy makes the query anew for each, and its text has
to be read. That of a single term takes a sixth of it, and only two numbers of it are wanted. What stands between the terms
(the best of some, sums, boosts) is worked out here as `Bm25` does it, to the last bit.
"""

from collections.abc import Callable
from math import fsum
from typing import Final

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


class TermScores:
    """Of one query in one index. part: see `is_made_of_terms`. has_term: whether the index has a term in a field at all."""

    def __init__(
        self,
        part: Part,
        bm25: Bm25,
        fields: tantivy.Schema,
        searcher: tantivy.Searcher,
        has_term: Callable[[str, str], bool],
    ) -> None:
        self._part = part
        self._bm25 = bm25
        self._fields = fields
        self._searcher = searcher
        self._has_term = has_term
        self._queries: dict[TermPart, tuple[ScoredTerms, Query | None]] = {}

    def score(self, address: tantivy.DocAddress) -> float:
        """The score of a document that the query matches."""
        return self._score(self._part, address) or 0.0

    def _score(self, part: Part, address: tantivy.DocAddress) -> float | None:
        """None: it does not match."""
        match part:
            case TermPart():
                return self._term(part, address)
            case BestPart():
                found = [score for each in part.inner if (score := self._score(each, address)) is not None]
                return best_of(found, part.tie_breaker)
            case BoostPart():
                score = self._score(part.inner, address)
                return None if score is None else part.factor * score
            case GroupPart():
                return self._group(part, address)
        raise AssertionError(f"{part!r} is not made of terms")

    def _group(self, part: GroupPart, address: tantivy.DocAddress) -> float | None:
        found: list[float] = []
        optional = 0
        for occur, each in part.wanted:
            score = self._score(each, address)
            if score is not None:
                found.append(score)
                optional += occur == Occur.Should
            elif occur == Occur.Must:
                return None
        return fsum(found) if found and optional >= part.minimum else None

    def _term(self, part: TermPart, address: tantivy.DocAddress) -> float | None:
        known = self._queries.get(part)
        if known is None:
            query = None
            if self._has_term(part.field, part.term):
                query = Query.term_query(self._fields, searched(part.field), part.term, part.index_option)
            known = self._queries[part] = ScoredTerms(part.field, (part.term,)), query
        terms, query = known
        told = None if query is None else term_in_document(query, self._searcher, address)
        return None if told is None else self._bm25.term(terms, *told)


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
