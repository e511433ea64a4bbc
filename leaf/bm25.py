"""BM25 with the statistics of all shards: what a document scores, read off tantivy's explanation of its match.

tantivy scores by the statistics of its own index, deleted documents among them until it merges. What they do not touch is in
its explanation: how often each term stands in the document, and how long the field is there. The length is the one that
tantivy keeps, a byte a document; over 40 it is rounded down, everywhere alike. Put together with shipped statistics,
as Python's floats, that gives each document one score, to the last bit, at every replica.

The formula is tantivy's: the sum over the terms of `idf * (k1 + 1) * tf / (tf + k1 * (1 - b + b * length / average))`, with
`idf = ln(1 + (N - n + 0.5) / (n + 0.5))`. A phrase is one term with the sum of its terms' idf.

An explanation does not name every part of its query. So the query that is explained has each scored part wrapped in a boost by
a negative number, which no query of a user has: part k by -(k + 1).

Pure: imports only the standard library, other pure files, and the base of the structs.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, log1p
from typing import Final, NamedTuple, TypeAlias

from msgspec import Struct

from kvshard.model import TermStatistics

K1: Final = 1.2
B: Final = 0.75

ROUNDING: Final = 1e-5
"""tantivy computes in 32 bits: each of its steps errs by up to 6e-8 of the result, and a sum of 100 terms takes 100 of them."""

_BOOST: Final = "Boost x"
_SUM: Final = "BooleanClause"
_PHRASE: Final = "Phrase Scorer"


class Explanation(Struct, frozen=True, gc=False):
    """tantivy's explanation of a score."""

    value: float
    description: str
    details: "list[Explanation]" = []


class ScoredTerms(NamedTuple):
    """A part of a query that is scored by BM25: a term, or a phrase of several. field: of the schema."""

    field: str
    terms: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class BestOf:
    """A part whose score is that of its best alternative; of the others tie_breaker times their scores."""

    tie_breaker: float = 0.0


@dataclass(frozen=True, slots=True)
class Excluding:
    """A part that does not match where an `Excluded` part in it matches; else it scores as the other one in it."""


@dataclass(frozen=True, slots=True)
class Excluded:
    """A part that must not match: see `Excluding`."""


@dataclass(frozen=True, slots=True)
class Required:
    """A part that may hold an `Excluding` one: where it does not match, what it stands in does not."""


@dataclass(frozen=True, slots=True)
class Enough:
    """A sum of parts that may hold an `Excluding` one: it matches where so many of them do."""

    least: int


@dataclass(frozen=True, slots=True)
class Fixed:
    """A part that may hold an `Excluding` one, and has this score where it matches."""

    score: float


Worth: TypeAlias = Callable[[float, float], float]
"""(how often a term stands in a field, how long that is) -> what it adds to the score."""

Part: TypeAlias = ScoredTerms | BestOf | Excluding | Excluded | Required | Enough | Fixed


def idf(count: int, documents: int) -> float:
    """The weight of a term that stands in `count` of so many documents."""
    count = min(count, documents)  # They may have been counted at different times.
    return log1p((documents - count + 0.5) / (count + 0.5))


def terms_idf(terms: Sequence[str], counts: Mapping[str, int], documents: int) -> float:
    """The weight of a phrase of these terms, each as often as it stands there."""
    return sum(idf(counts.get(term, 0), documents) for term in terms)


class Bm25:
    """Scores by these statistics. parts: of the query that is explained, by their numbers."""

    def __init__(self, statistics: TermStatistics, parts: Sequence[Part]) -> None:
        self._statistics = statistics
        self._parts = parts
        self._idfs: dict[ScoredTerms, float] = {}
        self._worths: dict[ScoredTerms, Worth] = {}

    def score(self, node: Explanation) -> float:
        """The score of the document that this explains."""
        return self._score(node) or 0.0

    def _score(self, node: Explanation) -> float | None:
        """None: it does not match, since a part that must not match does."""
        description = node.description
        if description.startswith(_BOOST):
            factor, inner = _factor(node), node.details[0]
            if factor < 0.0:
                return self._part(self._parts[round(-factor) - 1], inner)
            score = self._score(inner)
            return None if score is None else factor * score
        return self._sum(node) if description.startswith(_SUM) else node.value

    def _sum(self, node: Explanation, least: int = 1) -> float | None:
        scores: list[float] = []
        for each in node.details:
            score = self._score(each)
            if score is not None:
                scores.append(score)
            elif isinstance(part_of(each, self._parts), Required):
                return None
        # An exact sum does not depend on the order of the clauses, which tantivy is free to change.
        return fsum(scores) if len(scores) >= least or not node.details else None

    def _part(self, part: Part, node: Explanation) -> float | None:
        match part:
            case Excluding():
                return self._excluding(node)
            case Excluded() | Required():
                return self._score(node)
            case Enough():
                return self._sum(node, part.least)
            case Fixed():
                return None if self._score(node) is None else part.score
            case BestOf():
                return self._best(part, node)
        if node.description.startswith(_PHRASE):
            node = node.details[0]
        frequency, _, _, length, _ = node.details[2].details
        return self.worth_of(part)(frequency.value, length.value)

    def idf(self, part: ScoredTerms) -> float:
        """The weight of a term or a phrase."""
        found = self._idfs.get(part)
        if found is None:
            counts = self._statistics.counts.get(part.field, {})
            found = self._idfs[part] = terms_idf(part.terms, counts, self._statistics.documents)
        return found

    def worth_of(self, part: ScoredTerms) -> Worth:
        """What a term, or a phrase, is worth by how often it stands in a field and how long that is."""
        found = self._worths.get(part)
        if found is None:
            weight = self.idf(part) * (K1 + 1.0)
            found = self._worths[part] = _worth(weight, B / average_length(self._statistics, part.field))
        return found

    def _excluding(self, node: Explanation) -> float | None:
        score: float | None = None
        for each in node.details:
            found = self._score(each)
            if not isinstance(part_of(each, self._parts), Excluded):
                score = found
            elif found is not None:
                return None
        return score

    def _best(self, part: BestOf, node: Explanation) -> float | None:
        return best_of([score for score in map(self._score, node.details) if score is not None], part.tie_breaker)


def _worth(weight: float, per_token: float) -> Worth:
    """weight: idf times (k1 + 1). per_token: b / average length."""
    return lambda frequency, length: weight * frequency / (frequency + K1 * (1.0 - B + per_token * length))


def best_of(scores: Sequence[float], tie_breaker: float) -> float | None:
    """The best of some scores, and so many times the others; None: there are none."""
    if not scores:
        return None
    best = max(scores)
    return best + tie_breaker * (fsum(scores) - best) if tie_breaker else best


def part_of(node: Explanation, parts: Sequence[Part]) -> Part | None:
    """The part that this explains, if it is one."""
    factor = _factor(node) if node.description.startswith(_BOOST) else 0.0
    return parts[round(-factor) - 1] if factor < 0.0 else None


def _factor(node: Explanation) -> float:
    """What an explained boost multiplies by."""
    return float(node.description[len(_BOOST) :].split(" ", 1)[0])


def average_length(statistics: TermStatistics, field: str) -> float:
    """Of a field, over all documents, as tantivy has it: those without the field count as empty."""
    return max(statistics.tokens.get(field, 0), 1) / max(statistics.documents, 1)


@dataclass(frozen=True, slots=True)
class Bounds:
    """By what a score may differ from the one that tantivy gives with the right weights but its own average lengths.

    least * given <= score <= most * given.

    One term gives `w * tf / (tf + K)` with `K = k1 * (1 - b + b * length / average)`. With g for the right average and l for
    tantivy's own, the ratio of the score to what tantivy gives is `(tf + K_l) / (tf + K_g)`. Both K grow with the length from
    the same start, so for every tf >= 0 and every length the ratio lies between 1 and its limit, `g / l`. Sums, the largest of
    several, and products with positive numbers of values within some bounds stay within them; constants have ratio 1.
    """

    least: float
    most: float


def bounds(averages: Sequence[tuple[float, float]]) -> Bounds:
    """The bounds of a query over fields with these (right, tantivy's own) average lengths."""
    ratios = [1.0, *(right / own for right, own in averages if own > 0.0)]
    return Bounds(min(ratios) * (1.0 - ROUNDING), max(ratios) * (1.0 + ROUNDING))
