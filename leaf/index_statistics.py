"""The statistics of one generation of an index: what is between two commits, or merges, and so never changes.

Two kinds of them. What scores rest on counts live documents alone (`TermStatistics`): the same at every replica that holds the
same entries, whatever it has merged. And what tantivy itself scores by, where deleted documents count until they are merged:
needed to tell by how much tantivy errs.

All methods may be called on several threads at once: what is found twice is found alike.
"""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
import tantivy
from tantivy import Occur, Query

from kvshard.clustermap import TOKEN_SLOTS
from kvshard.model import TermStatistics
from kvshard.schema import TEXT, Schema, base_type
from leaf.bm25 import Explanation, ScoredTerms, idf
from leaf.index_fields import KEY, length_of, searched, slots

TERMS_MAX: Final = 20_000
"""Counts kept of a generation, about 3 MB, and as many of tantivy's own. Beyond it they are counted anew, which takes
microseconds for a rare term."""

_decode = msgspec.json.Decoder(Explanation).decode


def explained(query: Query, searcher: tantivy.Searcher, address: tantivy.DocAddress) -> Explanation:
    """tantivy's explanation of a document that the query matches."""
    return _decode(query.explain(searcher, address).to_json())


class IndexStatistics:
    """Statistics of what this searcher sees. fields: tantivy's schema. generation: the seqno whose effects it holds."""

    def __init__(self, searcher: tantivy.Searcher, fields: tantivy.Schema, schema: Schema, generation: int) -> None:
        self.searcher = searcher
        self.generation = generation
        self.fields = fields
        self._schema = schema
        self._live = int(searcher.num_docs)
        self._all: int | None = None
        self._averages: dict[str, float] = {}
        self._totals: dict[tuple[str, int], int] = {}
        self._counts: dict[tuple[str, str, int], int] = {}
        self._frequencies: dict[tuple[str, str], int] = {}
        self._idfs: dict[ScoredTerms, float] = {}

    def __repr__(self) -> str:
        return f"IndexStatistics({self.generation}, {len(self._counts)} counts)"

    def of(self, terms: Mapping[str, Iterable[str]], last_slot: int = TOKEN_SLOTS - 1) -> TermStatistics:
        """The statistics for these terms, by field. last_slot: documents beyond it have left the shard."""
        return TermStatistics(
            documents=self.documents(last_slot),
            tokens={name: self._tokens(name, last_slot) for name in terms},
            counts={name: {term: self._count(name, term, last_slot) for term in each} for name, each in terms.items()},
            generation=self.generation,
        )

    def documents(self, last_slot: int = TOKEN_SLOTS - 1) -> int:
        """Live documents."""
        if last_slot == TOKEN_SLOTS - 1:
            return self._live
        found = self._totals.get(("", last_slot))
        if found is None:
            found = self._totals["", last_slot] = self._matches(Query.all_query(), last_slot)
        return found

    def has_lengths(self, name: str) -> bool:
        """Whether the lengths of this field are kept, document by document."""
        return base_type(self._schema[name]) == TEXT

    def own_idf(self, part: ScoredTerms) -> float:
        """The weight that tantivy gives a term or a phrase."""
        found = self._idfs.get(part)
        if found is None:
            documents = self._all_documents()
            found = sum(idf(self._frequency(part.field, term), documents) for term in part.terms)
            if len(self._idfs) >= TERMS_MAX:
                self._idfs.clear()
            self._idfs[part] = found
        return found

    def has_term(self, name: str, term: str) -> bool:
        """Whether any document has this term, deleted ones among them."""
        return self._frequency(name, term) > 0

    def _frequency(self, name: str, term: str) -> int:
        """Documents with a term, deleted ones among them."""
        found = self._frequencies.get((name, term))
        if found is None:
            found = int(self.searcher.doc_freq(searched(name), term))
            if len(self._frequencies) >= TERMS_MAX:
                self._frequencies.clear()
            self._frequencies[name, term] = found
        return found

    def own_average(self, name: str, terms: Iterable[str]) -> float:
        """The average length of a field that tantivy scores by; 0.0: it has none of these terms, so that does not matter."""
        found = self._averages.get(name)
        if found is None:
            for term in terms:
                query = Query.term_query(self.fields, searched(name), term, self._option(name))
                hits = self.searcher.search(query, 1, count=False).hits
                if hits:
                    found = self._averages[name] = _average_in(explained(query, self.searcher, hits[0][1]))
                    break
        return found or 0.0

    def _all_documents(self) -> int:
        """Deleted ones among them."""
        if self._all is None:
            hits = self.searcher.search(Query.all_query(), 1, count=False).hits
            if not hits:
                return 0
            address = hits[0][1]
            query = Query.term_query(self.fields, KEY, str(self.searcher.doc(address).get_first(KEY)), "basic")
            self._all = int(explained(query, self.searcher, address).details[1].details[1].value)
        return self._all

    def _tokens(self, name: str, last_slot: int) -> int:
        found = self._totals.get((name, last_slot))
        if found is None:
            wanted = {"value_count": {"field": searched(name)}}
            if self.has_lengths(name):
                wanted = {"sum": {"field": length_of(name)}}
            answer = self.searcher.aggregate(self._restricted(Query.all_query(), last_slot), {"tokens": wanted})
            found = self._totals[name, last_slot] = int(answer["tokens"]["value"] or 0)
        return found

    def _count(self, name: str, term: str, last_slot: int) -> int:
        if last_slot == TOKEN_SLOTS - 1 and self._all_documents() == self._live:
            return self._frequency(name, term)  # Nothing is deleted.
        found = self._counts.get((name, term, last_slot))
        if found is None:
            found = self._matches(Query.term_query(self.fields, searched(name), term, "basic"), last_slot)
            if len(self._counts) >= TERMS_MAX:
                self._counts.clear()
            self._counts[name, term, last_slot] = found
        return found

    def _matches(self, query: Query, last_slot: int) -> int:
        result = self.searcher.search(self._restricted(query, last_slot), 1)
        count: int = result.count  # type: ignore[attr-defined]  # missing in tantivy's stubs
        return count

    def _restricted(self, query: Query, last_slot: int) -> Query:
        if last_slot == TOKEN_SLOTS - 1:
            return query
        gone = slots(self.fields, last_slot + 1, TOKEN_SLOTS - 1)
        return Query.boolean_query([(Occur.Must, query), (Occur.MustNot, gone)])

    def _option(self, name: str) -> str:
        return "position" if self.has_lengths(name) else "basic"


def _average_in(explanation: Explanation) -> float:
    return explanation.details[2].details[4].value
