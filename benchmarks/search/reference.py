"""The reference: one tantivy index of the whole corpus in this process, ranked by tantivy itself.

It is built without any of kvshard's code for indexes and queries, so that it shares no mistake with what it judges. A word is
looked for in every text field, a document gets the score of its best field, and the words of a query add up.
"""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import tantivy
from tantivy import Occur, Query

TEXT_FIELDS: Final = ("name", "doc")
KEYWORD_FIELDS: Final = ("kind", "source")
NUMBER_FIELD: Final = "words"
KEY: Final = "key"
STORED: Final = "stored"

HEAP_BYTES: Final = 120_000_000
"""Of the writer: bulk indexing writes few segments, none of which has to be merged."""

SCORE_TOLERANCE: Final = 1e-4
"""Relative: scores are 32-bit sums, and the order of their summands is not the same everywhere."""


@dataclass(frozen=True, slots=True)
class Best:
    """What a query finds. scores: of the first hits by key, best first; more than the page if those behind it are equal."""

    scores: Mapping[str, float]
    total: int


def words_query(schema: tantivy.Schema, text: str, names: Sequence[str]) -> Query:
    """A query string of plain words as tantivy's own query. names: of the fields that each word is looked for in."""
    words = [Query.disjunction_max_query([Query.term_query(schema, name, word) for name in names]) for word in text.split()]
    return words[0] if len(words) == 1 else Query.boolean_query([(Occur.Should, word) for word in words])


class Reference:
    """One index in memory or on disk. documents: key -> document."""

    def __init__(self, documents: Mapping[str, dict[str, object]], path: Path | None = None) -> None:
        builder = tantivy.SchemaBuilder()
        builder.add_text_field(KEY, stored=True, fast=True, tokenizer_name="raw", index_option="basic")
        builder.add_bytes_field(STORED, stored=True)
        for name in TEXT_FIELDS:
            builder.add_text_field(name, tokenizer_name="default", index_option="position")
        for name in KEYWORD_FIELDS:
            builder.add_text_field(name, fast=True, tokenizer_name="raw", index_option="basic")
        builder.add_integer_field(NUMBER_FIELD, indexed=True, fast=True)
        self._schema = builder.build()
        if path is not None:
            path.mkdir(parents=True)
        self._index = tantivy.Index(self._schema, str(path) if path else None)
        began = time.perf_counter()
        self._write(documents)
        self.seconds = time.perf_counter() - began
        self._searcher = self._index.searcher()

    def __repr__(self) -> str:
        return f"Reference({self._searcher.num_docs} documents, {self._searcher.num_segments} segments)"

    def _write(self, documents: Mapping[str, dict[str, object]]) -> None:
        writer = self._index.writer(HEAP_BYTES, num_threads=1)
        for key, document in documents.items():
            added = tantivy.Document()
            added.add_text(KEY, key)
            added.add_bytes(STORED, msgspec.json.encode(document))
            for name in (*TEXT_FIELDS, *KEYWORD_FIELDS):
                added.add_text(name, str(document[name]))
            added.add_integer(NUMBER_FIELD, int(str(document[NUMBER_FIELD])))
            writer.add_document(added)
        writer.commit()
        writer.wait_merging_threads()
        self._index.reload()

    def query(self, text: str) -> Query:
        """A query string of plain words, as tantivy's own query."""
        return words_query(self._schema, text, TEXT_FIELDS)

    def answer(self, text: str, limit: int) -> tuple[list[bytes], int]:
        """The documents of the first hits and how many match: what a search has to do at least."""
        found = self._searcher.search(self.query(text), limit)
        documents = [self._searcher.doc(address) for _, address in found.hits]
        total: int = found.count  # type: ignore[attr-defined]  # missing in tantivy's stubs
        return [bytes(document.get_first(STORED) or b"") for document in documents], total

    def best(self, text: str, limit: int) -> Best:
        """The first hits and all those that are as good as the last of them."""
        query, window = self.query(text), limit + 32
        while True:
            found = self._searcher.search(query, window)
            total: int = found.count  # type: ignore[attr-defined]  # missing in tantivy's stubs
            if len(found.hits) < window or found.hits[-1][0] < found.hits[limit - 1][0] * (1 - 2 * SCORE_TOLERANCE):
                break
            window = min(window * 8, total + 1)
        last = found.hits[min(limit, len(found.hits)) - 1][0] if found.hits else 0.0
        kept = [(score, address) for score, address in found.hits if score >= last * (1 - SCORE_TOLERANCE)]
        return Best({str(self._searcher.doc(address).get_first(KEY)): score for score, address in kept}, total)

    def counts(self, text: str, field: str, size: int) -> dict[str, int]:
        """Matches of each value of a keyword field."""
        query = self.query(text) if text else Query.all_query()
        answer = self._searcher.aggregate(query, {"x": {"terms": {"field": field, "size": size, "segment_size": size}}})
        return {str(bucket["key"]): int(bucket["doc_count"]) for bucket in answer["x"]["buckets"]}


def is_same(found: Iterable[str], best: Best, limit: int) -> bool:
    """Whether this is a right page: at each place a document with the score that the reference has there.

    Documents with equal scores may stand in either order, and any of those that compete for the last places may be on it.
    """
    keys = list(found)
    ordered = sorted(best.scores.values(), reverse=True)[:limit]
    if len(keys) != len(ordered) or len(set(keys)) != len(keys):
        return False
    return all(
        key in best.scores and abs(best.scores[key] - score) <= SCORE_TOLERANCE * max(abs(score), 1e-9)
        for key, score in zip(keys, ordered, strict=True)
    )


def is_same_set(found: Iterable[str], best: Best, limit: int) -> bool:
    """Whether the page has the right documents, in whatever order."""
    keys = set(found)
    places = min(limit, len(best.scores))
    last = min(sorted(best.scores.values(), reverse=True)[:limit], default=0.0)
    surely = {key for key, score in best.scores.items() if score > last * (1 + SCORE_TOLERANCE)}
    return len(keys) == places and surely <= keys <= best.scores.keys()
