"""Which words of a text tell what it is about: those that it has often and few documents have."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import NamedTuple

from kvshard.query import Alike
from kvshard.schema import Schema
from leaf.analysis import analyzer_in
from leaf.bm25 import idf


class TellingWord(NamedTuple):
    """A term of the index, and the fields it is to be looked for in."""

    term: str
    fields: tuple[str, ...]


def word_counts(node: Alike, fields: tuple[str, ...], schema: Schema) -> dict[str, Counter[str]]:
    """How often the texts have each term, cut as each of the fields cuts them; those that they have often enough."""
    found: dict[str, Counter[str]] = {}
    for name in fields:
        cut = analyzer_in(schema[name]).analyze
        counts = Counter(term for text in node.texts for term in cut(text) if len(term) >= node.min_word_chars)
        found[name] = Counter({term: count for term, count in counts.items() if count >= node.min_word_count})
    return found


def telling_words(
    node: Alike, counts: Mapping[str, Mapping[str, int]], frequency: Callable[[str, str], int], documents: int
) -> list[TellingWord]:
    """The words to look for, the most telling first; equally telling ones by the alphabet, so that all shards agree.

    counts: term -> how often the texts have it, by field. frequency: documents with a term in a field, of so many.
    """
    most = node.max_documents or documents
    weights: dict[str, float] = {}
    fields: dict[str, list[str]] = {}
    for name, terms in counts.items():
        for term, count in terms.items():
            found = frequency(name, term)
            if found and node.min_documents <= found <= most:
                weights[term] = max(weights.get(term, 0.0), count * idf(found, max(documents, found)))
                fields.setdefault(term, []).append(name)
    chosen = sorted(weights, key=lambda term: (-weights[term], term))[: node.max_words]
    return [TellingWord(term, tuple(fields[term])) for term in chosen]
