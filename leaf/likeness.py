"""Documents like some texts: which words tell what the texts are about. Those that they have often, and few documents have.

All shards have to look for the same words, or their scores would mean different things. So the words are chosen by how often
the texts have them, which all shards see alike, and by the statistics of all shards that came with the search. The words that
were chosen from are noted as terms of the query: that is how those statistics come to be known, if they were not.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

import tantivy

from kvshard.model import TermStatistics
from kvshard.query import Alike, Best, Boost, Chosen, Clause, Constant, Group, Node, Within
from kvshard.schema import TEXT, Schema, base_type
from leaf.analysis import analyzer_in
from leaf.bm25 import idf
from leaf.index_fields import searched

CONSIDERED_MAX: Final = 400
"""Terms that the telling ones are chosen from, those that the texts have most often: each is a number to ship and to count."""


def settled(node: Node, schema: Schema, searcher: tantivy.Searcher, statistics: TermStatistics | None = None) -> Node:
    """The query with words in the place of texts that others are to be like. statistics: of all shards, if they came."""

    def replaced(each: Node) -> Node:
        match each:
            case Alike():
                return chosen(each, schema, frequency, documents)
            case Group():
                return replace(each, clauses=tuple(Clause(one.occur, replaced(one.node)) for one in each.clauses))
            case Best():
                return replace(each, nodes=tuple(map(replaced, each.nodes)))
            case Boost() | Constant() | Within():
                return replace(each, node=replaced(each.node))
            case _:
                return each

    own = max(searcher.num_docs, 1)
    shipped = statistics if statistics is not None and statistics.documents > 0 else None
    documents = own if shipped is None else shipped.documents
    known: Mapping[str, Mapping[str, int]] = {} if shipped is None else shipped.counts

    def frequency(name: str, term: str) -> int:
        found = known.get(name, {}).get(term)
        return round(searcher.doc_freq(searched(name), term) * documents / own) if found is None else found

    return replaced(node)


def chosen(node: Alike, schema: Schema, frequency: Callable[[str, str], int], documents: int) -> Chosen:
    """The most telling words of the texts. frequency: documents with a term in a field, of so many in all."""
    considered = _considered(node, schema)
    most = node.max_documents or documents
    weights: dict[str, float] = {}
    fields: dict[str, list[str]] = {}
    for (name, term), count in considered.items():
        found = frequency(name, term)
        if found and node.min_documents <= found <= most:
            weights[term] = max(weights.get(term, 0.0), count * idf(found, max(documents, found)))
            fields.setdefault(term, []).append(name)
    best = sorted(weights, key=lambda term: (-weights[term], term))[: node.max_words]
    return Chosen(tuple((term, tuple(sorted(fields[term]))) for term in best), tuple(considered), node.minimum)


def _considered(node: Alike, schema: Schema) -> dict[tuple[str, str], int]:
    """(field, term) -> how often the texts have it, cut as the field cuts them; the most frequent ones."""
    names = node.fields or tuple(name for name, field_type in schema.items() if base_type(field_type) == TEXT)
    counts: Counter[tuple[str, str]] = Counter()
    for name in names:
        cut = analyzer_in(schema[name]).analyze
        counts.update((name, term) for text in node.texts for term in cut(text) if len(term) >= node.min_word_chars)
    often = [(count, each) for each, count in counts.items() if count >= node.min_word_count]
    often.sort(key=lambda pair: (-pair[0], pair[1]))
    return {each: count for count, each in often[:CONSIDERED_MAX]}
