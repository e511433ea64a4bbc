"""What is shown of hits: fragments of their texts with the matches marked, and the fields of the documents that are wanted."""

from collections.abc import Callable
from functools import partial
from typing import Final, NamedTuple

import msgspec
import tantivy

from kvshard.model import HighlightFragment, ShardHit, ShardSearch, changed
from kvshard.query import Node
from leaf.index_fields import marked_in
from leaf.projection import Projection
from leaf.text_index import TextIndex

LOOKED_AT_MAX_CHARS: Final = 100_000
"""Of each text, looked at for fragments: analysing more takes milliseconds a hit."""


class _Marker(NamedTuple):
    """Marks the words in a text that stands in this index field."""

    field: str
    generator: tantivy.SnippetGenerator


class Highlighter:
    """Finds the fragments of the documents of one search."""

    def __init__(
        self, request: ShardSearch, node: Node, hits: list[ShardHit], index: TextIndex, searcher: tantivy.Searcher
    ) -> None:
        self._wanted = request.shape.fragments
        self._generators: dict[str, _Marker] = {}
        for name in request.highlight:
            words = index.compiler.highlight_query(node, name, partial(_texts_of, hits, name))
            if words is not None:
                field = marked_in(name, index.schema[name])
                generator = tantivy.SnippetGenerator.create(searcher, words, index.fields, field)
                generator.set_max_num_chars(request.shape.fragment_chars)
                self._generators[name] = _Marker(field, generator)

    def fragments(self, document: bytes) -> list[HighlightFragment]:
        """The best fragments of each field, as many as are wanted, in the order in which they stand there."""
        if not self._generators:
            return []
        decoded = msgspec.json.decode(document)
        found: list[HighlightFragment] = []
        for name, marker in self._generators.items():
            left = self._wanted
            for text in _texts_in(decoded, name):
                best = _best_fragments(name, text, marker, left)
                found += best
                left -= len(best)
                if not left:
                    break
        return found


def shown_as(
    request: ShardSearch, hits: list[ShardHit], highlighter: Callable[[], Highlighter] | None, check: Callable[[], object]
) -> list[ShardHit]:
    """The hits as they are to be shown. highlighter: None: without fragments. check: called before each; ends it by raising."""
    marks = highlighter() if highlighter is not None and request.highlight and hits else None
    projection = Projection(request.shape.fields) if request.shape.fields else None
    if marks is None and projection is None and not request.highlight:
        return hits
    shown: list[ShardHit] = []
    for hit in hits:
        check()
        fragments = marks.fragments(hit.document) if marks is not None else []
        document = b"" if request.keys_only else hit.document
        if projection is not None:
            document = projection.cut(document)
        shown.append(changed(hit, highlights=fragments, document=document))
    return shown


def _texts_of(hits: list[ShardHit], name: str) -> list[str]:
    """The texts that the documents have in a field, as far as they are looked at."""
    return [text for hit in hits for text in _texts_in(msgspec.json.decode(hit.document), name)]


def _texts_in(document: dict[str, object], name: str) -> list[str]:
    given = document.get(name)
    values = given if isinstance(given, list) else [given]
    return [text[:LOOKED_AT_MAX_CHARS] for text in values if isinstance(text, str)]


def _best_fragments(name: str, text: str, marker: _Marker, wanted: int) -> list[HighlightFragment]:
    """tantivy finds the best fragment of a text; the next best one is the best of what stands before and behind it."""
    taken: list[tuple[int, HighlightFragment]] = []
    open_parts = [(0, text)]
    candidates: list[tuple[int, HighlightFragment, str, int]] = []
    while len(taken) < wanted:
        for begin, part in open_parts:
            fragment = _best_fragment(name, part, marker)
            if fragment is not None:
                candidates.append((begin, fragment, part, part.index(fragment.fragment)))
        if not candidates:
            break
        best = max(candidates, key=lambda each: (len(each[1].spans), -each[0]))
        candidates.remove(best)
        begin, fragment, part, at = best
        taken.append((begin + at, fragment))
        end = at + len(fragment.fragment)
        open_parts = [(begin, part[:at]), (begin + end, part[end:])]
    return [fragment for _, fragment in sorted(taken, key=lambda each: each[0])]


def _best_fragment(name: str, text: str, marker: _Marker) -> HighlightFragment | None:
    if not text.strip():
        return None
    document = tantivy.Document()
    document.add_text(marker.field, text)
    snippet = marker.generator.snippet_from_doc(document)
    ranges = snippet.highlighted()
    if not ranges:
        return None
    fragment = snippet.fragment()
    raw = fragment.encode()  # tantivy counts bytes
    spans = [(_chars(raw, each.start), _chars(raw, each.end)) for each in ranges]
    return HighlightFragment(name, fragment, spans)


def _chars(raw: bytes, end: int) -> int:
    return len(raw[:end].decode(errors="replace"))
