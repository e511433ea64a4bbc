"""A compiled query whose scored parts are not made yet: the same for every index with its schema, whatever that scores by.

The compiler (`leaf/query.py`) makes what does not score; each scored part, and what holds some, stands here as a node. `made`
turns it into tantivy's query with the parts as a weighting makes them (`leaf/weighting.py`): once for each shard with the
boosts of that shard, once for all of them with the numbers that explanations go by.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

from tantivy import Occur, Query

from leaf.bm25 import ScoredTerms
from leaf.weighting import Weighting


class TermPart(NamedTuple):
    """The documents with a term in a field. index_option: of that field."""

    field: str
    term: str
    index_option: str


class PhrasePart(NamedTuple):
    """The documents with these (position, term) in a field, moved by at most slop in all."""

    field: str
    words: Sequence[tuple[int, str]]
    slop: int


class BestPart(NamedTuple):
    """Those that match one of these, with the score of the best and tie_breaker times the others'."""

    inner: "Sequence[Part]"
    tie_breaker: float


class BoostPart(NamedTuple):
    """Those of another, with so many times its score."""

    inner: "Part"
    factor: float


class GroupPart(NamedTuple):
    """Those that match all clauses which must, at least `minimum` of those which may, and nothing unwanted."""

    wanted: "Sequence[tuple[Occur, Part]]"
    unwanted: "Sequence[Part]"
    minimum: int


class RequiredPart(NamedTuple):
    """A clause that has to match, and in which something must not."""

    inner: "Part"


class FixedPart(NamedTuple):
    """What another matches, with this score; something in it must not match."""

    inner: "Part"
    score: float


Part: TypeAlias = Query | TermPart | PhrasePart | BestPart | BoostPart | GroupPart | RequiredPart | FixedPart
"""A Query: what does not score, or has one score whatever it is asked by."""


class MadeQuery(NamedTuple):
    """A query. considered: (field, term) that it might have had, see `Weighting.consider`."""

    part: Part
    considered: Sequence[tuple[str, str]] = ()

    def made(self, weighting: Weighting) -> Query:
        """tantivy's query, with the scored parts of this weighting, which notes them."""
        for name, term in self.considered:
            weighting.consider(name, term)
        return made(self.part, weighting)

    def among(self, has_term: Callable[[str, str], bool]) -> "MadeQuery":
        """The same for one index: without alternatives that nothing in it matches. has_term: tells of a field and a term."""
        return MadeQuery(_among(self.part, has_term), self.considered)

    @property
    def terms(self) -> dict[str, set[str]]:
        """The terms that it is scored by, or might be, by field."""
        found: dict[str, set[str]] = {}
        for name, term in self.considered:
            found.setdefault(name, set()).add(term)
        for part in scored_terms(self.part):
            found.setdefault(part.field, set()).update(part.terms)
        return found


def made(part: Part, weighting: Weighting) -> Query:
    """A part as tantivy's query."""
    match part:
        case TermPart():
            return weighting.term(*part)
        case PhrasePart():
            return weighting.phrase(*part)
        case BestPart():
            return weighting.best_of([made(each, weighting) for each in part.inner], part.tie_breaker)
        case BoostPart():
            return Query.boost_query(made(part.inner, weighting), part.factor)
        case GroupPart():
            return _group(part, weighting)
        case RequiredPart():
            return weighting.required(made(part.inner, weighting))
        case FixedPart():
            return weighting.fixed(made(part.inner, weighting.for_unscored), part.score)
    return part


def _group(part: GroupPart, weighting: Weighting) -> Query:
    for_unwanted = weighting.for_unwanted
    unwanted = [made(each, for_unwanted) for each in part.unwanted]
    return weighting.group([(occur, made(each, weighting)) for occur, each in part.wanted], unwanted, part.minimum)


def _among(part: Part, has_term: Callable[[str, str], bool]) -> Part:
    match part:
        case BestPart():
            # Most words stand in few of the fields that they are looked for in: each term costs a look into each segment.
            left = [each for each in part.inner if not isinstance(each, TermPart) or has_term(each.field, each.term)]
            return BestPart(left, part.tie_breaker) if len(left) > 1 else (left or part.inner)[0]
        case GroupPart() if not part.unwanted:
            return GroupPart([(occur, _among(each, has_term)) for occur, each in part.wanted], (), part.minimum)
    return part


def scored_terms(part: Part) -> list[ScoredTerms]:
    """The terms and phrases in a part that are scored by how rare they are; not those of what must not match."""
    match part:
        case TermPart():
            return [ScoredTerms(part.field, (part.term,))]
        case PhrasePart():
            return [ScoredTerms(part.field, tuple(term for _, term in part.words))]
        case BestPart():
            return [found for each in part.inner for found in scored_terms(each)]
        case BoostPart() | RequiredPart():
            return scored_terms(part.inner)
        case GroupPart():
            return [found for _, each in part.wanted for found in scored_terms(each)]
    return []


def holds_best(part: Part) -> bool:
    """Whether a document may get the best of several scores for something in it."""
    match part:
        case BestPart():
            return True
        case BoostPart() | RequiredPart():
            return holds_best(part.inner)
        case GroupPart():
            return any(holds_best(each) for _, each in part.wanted)
    return False
