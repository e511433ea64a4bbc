"""How the scored parts of a query are made: as they are, weighted for all shards, or numbered for an explanation.

The compiler (`leaf/query.py`) makes every scored part through one of these. They take the names of the schema's fields. Each
notes which parts it made, so whoever compiles a query knows its terms.
"""

from collections.abc import Callable, Sequence
from typing import Final

import tantivy
from tantivy import Occur, Query

from leaf.bm25 import BestOf, Enough, Excluded, Excluding, Fixed, Part, Required, ScoredTerms
from leaf.index_fields import searched

PARTS_MAX: Final = 1 << 24
"""Numbers of parts travel as 32 bit floats, which are exact so far."""


class Weighting:
    """Parts as they are, scored by tantivy's own statistics of the index. is_noting: keep what was made in `parts`."""

    def __init__(self, fields: tantivy.Schema, is_noting: bool = True) -> None:
        self._fields = fields
        self._is_noting = is_noting
        self.parts: list[Part] = []

    def term(self, name: str, term: str, index_option: str) -> Query:
        """The documents with a term in a field."""
        return self._made(ScoredTerms(name, (term,)), Query.term_query(self._fields, searched(name), term, index_option))

    def phrase(self, name: str, words: Sequence[tuple[int, str]], slop: int = 0) -> Query:
        """The documents with these (position, term) in a field, moved by at most slop in all."""
        query = Query.phrase_query(self._fields, searched(name), list(words), slop)
        return self._made(ScoredTerms(name, tuple(term for _, term in words)), query)

    def best_of(self, queries: Sequence[Query], tie_breaker: float = 0.0) -> Query:
        """The documents that match any of these, with the score of the best, and tie_breaker times those of the others."""
        return self._made(BestOf(tie_breaker), Query.disjunction_max_query(list(queries), tie_breaker))

    def group(self, wanted: Sequence[tuple[Occur, Query]], unwanted: Sequence[Query], minimum: int) -> Query:
        """The documents that match clauses, so many of those that may match, and none of the unwanted queries."""
        clauses = [*wanted, *((Occur.MustNot, query) for query in unwanted)]
        return Query.boolean_query(clauses, minimum) if minimum else Query.boolean_query(clauses)

    def required(self, query: Query) -> Query:
        """A clause that has to match, and in which something must not."""
        return query

    def fixed(self, query: Query, score: float) -> Query:
        """What the query matches, with this score; something in it must not match."""
        return Query.const_score_query(query, score)

    @property
    def for_unwanted(self) -> "Weighting":
        """Makes the parts of what must not match: they do not score."""
        return self

    @property
    def for_unscored(self) -> "Weighting":
        """Makes the parts of what has a score of its own, or none."""
        return self if not self._is_noting else Weighting(self._fields, is_noting=False)

    def consider(self, name: str, term: str) -> None:
        """Note a term that the query might have: its statistics have a say in which ones it has."""
        if self._is_noting:
            self.parts.append(ScoredTerms(name, (term,)))

    @property
    def terms(self) -> dict[str, set[str]]:
        """The terms of the parts made so far, by field."""
        found: dict[str, set[str]] = {}
        for part in self.parts:
            if isinstance(part, ScoredTerms):
                found.setdefault(part.field, set()).update(part.terms)
        return found

    def _made(self, part: Part, query: Query) -> Query:
        if self._is_noting:
            self.parts.append(part)
        return query


class Boosted(Weighting):
    """Parts whose score is multiplied: boost_of tells by what.

    several: of what the best counts, each time.
    """

    def __init__(self, fields: tantivy.Schema, boost_of: Callable[[ScoredTerms], float]) -> None:
        super().__init__(fields)
        self._boost_of = boost_of
        self.several: list[list[Query]] = []

    def best_of(self, queries: Sequence[Query], tie_breaker: float = 0.0) -> Query:
        """The documents that match any of these, with the score of the best, and tie_breaker times those of the others."""
        self.several.append(list(queries))
        return super().best_of(queries, tie_breaker)

    def _made(self, part: Part, query: Query) -> Query:
        self.parts.append(part)
        return Query.boost_query(query, self._boost_of(part)) if isinstance(part, ScoredTerms) else query


class Numbered(Weighting):
    """Parts that an explanation names: see `leaf/bm25.py`.

    An explanation looks at each part from its first document on. tantivy then takes some documents before the first match for
    matches that an unwanted query rules out, where what it is taken from matches every document. So both are explained, and
    what is left of a part is found out from that: whatever holds something that must not match may match more.
    """

    def required(self, query: Query) -> Query:
        """The clause, so that the explanation tells where it does not match."""
        return self._made(Required(), query)

    def fixed(self, query: Query, score: float) -> Query:
        """The query, and not a constant: tantivy's explanation of that does not say what in it matched."""
        return self._made(Fixed(score), query)

    @property
    def for_unwanted(self) -> Weighting:
        """Makes them so that the explanation tells whether they match."""
        return Telling(self._fields, self.parts)

    @property
    def for_unscored(self) -> Weighting:
        """Makes them so that the explanation tells whether they match."""
        return Telling(self._fields, self.parts)

    def group(self, wanted: Sequence[tuple[Occur, Query]], unwanted: Sequence[Query], minimum: int) -> Query:
        """The documents that match the clauses or one of the unwanted queries: the explanation tells which."""
        found = super().group(wanted, (), minimum)
        if minimum:
            required = sum(occur == Occur.Must for occur, _ in wanted)
            found = self._made(Enough(required + minimum), found)
        if not unwanted:
            return found
        either = [found, *(self._made(Excluded(), query) for query in unwanted)]
        return self._made(Excluding(), Query.boolean_query([(Occur.Should, query) for query in either]))

    def _made(self, part: Part, query: Query) -> Query:
        self.parts.append(part)
        assert len(self.parts) < PARTS_MAX, "a query has fewer clauses"
        return Query.boost_query(query, float(-len(self.parts)))


class Telling(Numbered):
    """Parts beside those that are scored, of which an explanation has to tell nothing but whether they match.

    parts: of the query that it is for; what tells whether something matches gets its number there.
    """

    def __init__(self, fields: tantivy.Schema, parts: list[Part]) -> None:
        super().__init__(fields)
        self.parts = parts

    def term(self, name: str, term: str, index_option: str) -> Query:
        """The documents with a term in a field."""
        return Query.term_query(self._fields, searched(name), term, index_option)

    def phrase(self, name: str, words: Sequence[tuple[int, str]], slop: int = 0) -> Query:
        """The documents with these (position, term) in a field, moved by at most slop in all."""
        return Query.phrase_query(self._fields, searched(name), list(words), slop)

    def best_of(self, queries: Sequence[Query], tie_breaker: float = 0.0) -> Query:
        """The documents that match any of these."""
        return Query.boolean_query([(Occur.Should, query) for query in queries])

    def consider(self, name: str, term: str) -> None:
        """What does not score needs no statistics."""
