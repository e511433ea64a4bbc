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
    Excluded,
    Excluding,
    Explanation,
    Part,
    Required,
    ScoredTerms,
    average_length,
    idf,
    is_ruled_out,
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
        """What tantivy says of a document."""
        description = node.description
        if description.startswith(_BOOST):
            factor = float(description[len(_BOOST) :].split(" ", 1)[0])
            if factor < 0.0:
                return self._part(self._parts[round(-factor) - 1], node)
            inner = self.explain(node.details[0])
            return ScoreExplanation(factor * inner.value, f"{factor:g} times", [inner])
        if description.startswith(_SUM):
            parts = [self.explain(each) for each in node.details]
            return parts[0] if len(parts) == 1 else ScoreExplanation(fsum([each.value for each in parts]), "sum of", parts)
        if description.startswith(_EVERY_DOCUMENT):
            return ScoreExplanation(node.value, "every document")
        return ScoreExplanation(node.value, "matches, with a fixed score" if node.value else "matches, without a score")

    def _part(self, part: Part, node: Explanation) -> ScoreExplanation:
        inner = node.details[0]
        if isinstance(part, BestOf):
            parts = [self.explain(each) for each in inner.details]
            if len(parts) == 1:
                return parts[0]
            best, all_ = max(each.value for each in parts), fsum([each.value for each in parts])
            others = f", and {part.tie_breaker:g} times the others" if part.tie_breaker else ""
            return ScoreExplanation(best + part.tie_breaker * (all_ - best), f"the best of{others}", parts)
        if isinstance(part, Excluded):
            return ScoreExplanation(0.0, "must not match")
        if isinstance(part, Required):
            return self.explain(inner)
        if isinstance(part, Excluding):
            if is_ruled_out(inner, self._parts):
                return ScoreExplanation(0.0, "matches what must not match")
            return self.explain(inner)
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


def _copied(node: Explanation) -> ScoreExplanation:
    description = node.description.replace(
        "number of docs containing this term", "documents of this shard's index with the term"
    )
    return ScoreExplanation(node.value, description.replace("total number of docs", "documents of this shard's index"))
