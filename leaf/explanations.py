"""How a hit's score came about, for people: tantivy's explanation in the schema's terms, with the statistics that were used.

What tantivy explains is the query with its scored parts numbered (`leaf/bm25.py`); what each number stands for, the names of
fields and the words of keywords, and with shipped statistics every figure that rests on them, are put in here.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Callable, Sequence
from math import fsum
from typing import Final

from kvshard.model import TermStatistics
from kvshard.search_accounts import ScoreExplanation
from leaf.bm25 import (
    K1,
    B,
    BestOf,
    Bm25,
    Enough,
    Excluded,
    Excluding,
    Explanation,
    Fixed,
    Part,
    Required,
    ScoredTerms,
    average_length,
    idf,
    part_of,
    terms_idf,
)

_BOOST: Final = "Boost x"
_SUM: Final = "BooleanClause"
_PHRASE: Final = "Phrase Scorer"
_EVERY_DOCUMENT: Final = "AllQuery"


class Explainer:
    """Explains the hits of one search. parts: of the query that tantivy explains, by their numbers.

    statistics: by which the scores were made; None: those of tantivy's index. shown: (field, the index's term) -> the word.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        statistics: TermStatistics | None,
        shown: Callable[[str, str], str] = lambda field, term: term,
    ) -> None:
        self._parts = parts
        self._statistics = statistics
        self._shown = shown
        self._scores = None if statistics is None else Bm25(statistics, parts)

    def explain(self, node: Explanation) -> ScoreExplanation:
        """What tantivy says of a document that matches."""
        return self._explain(node) or ScoreExplanation(0.0, "does not match")

    def _explain(self, node: Explanation) -> ScoreExplanation | None:
        """None: it does not match, as in `leaf/bm25.py`."""
        description = node.description
        if description.startswith(_BOOST):
            factor = float(description[len(_BOOST) :].split(" ", 1)[0])
            if factor < 0.0:
                return self._part(self._parts[round(-factor) - 1], node)
            inner = self._explain(node.details[0])
            return None if inner is None else ScoreExplanation(factor * inner.value, f"{factor:g} times", [inner])
        if description.startswith(_SUM):
            return self._sum(node)
        if description.startswith(_EVERY_DOCUMENT):
            return ScoreExplanation(node.value, "every document")
        return _fixed(node.value)

    def _sum(self, node: Explanation, least: int = 1) -> ScoreExplanation | None:
        parts: list[ScoreExplanation] = []
        for each in node.details:
            found = self._explain(each)
            if found is not None:
                parts.append(found)
            elif isinstance(part_of(each, self._parts), Required):
                return None
        if len(parts) < least:
            return None
        return parts[0] if len(parts) == 1 else ScoreExplanation(fsum([each.value for each in parts]), "sum of", parts)

    def _excluding(self, node: Explanation) -> ScoreExplanation | None:
        told: ScoreExplanation | None = None
        for each in node.details:
            found = self._explain(each)
            if not isinstance(part_of(each, self._parts), Excluded):
                told = found
            elif found is not None:
                return None
        return told

    def _best(self, part: BestOf, node: Explanation) -> ScoreExplanation | None:
        parts = [found for found in map(self._explain, node.details) if found is not None]
        if len(parts) < 2:
            return parts[0] if parts else None
        best, all_ = max(each.value for each in parts), fsum([each.value for each in parts])
        others = f", and {part.tie_breaker:g} times the others" if part.tie_breaker else ""
        return ScoreExplanation(best + part.tie_breaker * (all_ - best), f"the best of{others}", parts)

    def _part(self, part: Part, node: Explanation) -> ScoreExplanation | None:
        inner = node.details[0]
        match part:
            case BestOf():
                return self._best(part, inner)
            case Excluding():
                return self._excluding(inner)
            case Excluded() | Required():
                return self._explain(inner)
            case Enough():
                return self._sum(inner, part.least)
            case Fixed():
                return None if self._explain(inner) is None else _fixed(part.score)
        made = inner.details[0] if inner.description.startswith(_PHRASE) else inner
        rarity, share = self._rarity(part, made.details[1]), self._share(part, made.details[2])
        value = made.value if self._scores is None else self._scores.score(node)
        return ScoreExplanation(value, f"{self._name(part)}: rarity times share of", [rarity, share])

    def _name(self, part: ScoredTerms) -> str:
        words = " ".join(self._shown(part.field, term) for term in part.terms)
        return f'{"term" if len(part.terms) == 1 else "phrase"} "{words}" in {part.field}'

    def _rarity(self, part: ScoredTerms, node: Explanation) -> ScoreExplanation:
        formula = "rarity, ln(1 + (N - n + 0.5) / (n + 0.5))" + (", summed over the terms" if len(part.terms) > 1 else "")
        statistics = self._statistics
        if statistics is None:
            return ScoreExplanation(node.value, formula, [_copied(each) for each in node.details])
        counts, documents = statistics.counts.get(part.field, {}), statistics.documents
        details = [
            ScoreExplanation(min(counts.get(term, 0), documents), f'n, documents with "{self._shown(part.field, term)}"')
            for term in part.terms
        ]
        value = (
            idf(counts.get(part.terms[0], 0), documents) if len(part.terms) == 1 else terms_idf(part.terms, counts, documents)
        )
        return ScoreExplanation(value, formula, [*details, ScoreExplanation(documents, "N, documents of the collection")])

    def _share(self, part: ScoredTerms, node: Explanation) -> ScoreExplanation:
        frequency, _, _, length, own_average = (each.value for each in node.details)
        statistics = self._statistics
        average = own_average if statistics is None else average_length(statistics, part.field)
        value = (K1 + 1.0) * frequency / (frequency + K1 * (1.0 - B + B * length / average))
        whose = "of this shard's index" if statistics is None else "of the collection"
        return ScoreExplanation(
            value,
            f"share, {K1 + 1.0:g} f / (f + {K1:g} ({1.0 - B:g} + {B:g} l / a))",
            [
                ScoreExplanation(frequency, "f, times in the document"),
                ScoreExplanation(length, "l, length of the field in the document, in tokens"),
                ScoreExplanation(average, f"a, average length {whose}"),
            ],
        )


def _fixed(score: float) -> ScoreExplanation:
    return ScoreExplanation(score, "matches, with a fixed score" if score else "matches, without a score")


def _copied(node: Explanation) -> ScoreExplanation:
    description = node.description.replace(
        "number of docs containing this term", "documents of this shard's index with the term"
    )
    return ScoreExplanation(node.value, description.replace("total number of docs", "documents of this shard's index"))
