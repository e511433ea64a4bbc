"""What a half typed, or mistyped, text may have meant: which words are near which, and what shards found as one answer.

Completions stand by how many documents have them. Corrections stand by how few letters differ, then by documents: a likelier
slip beats a more frequent word. A word is corrected only when hardly any document has it and many have the other.

Pure: imports only the standard library and other pure files.
"""

import heapq
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from kvshard import limits
from kvshard.analyzers import CJK, KEYWORD_LOWER
from kvshard.errors import ErrorDetails, FailedPrecondition, InvalidArgument
from kvshard.query import prepare
from kvshard.query.bounds import fuzzy_distance
from kvshard.query.edits import distance_within
from kvshard.schema import KEYWORD, TEXT, Schema, analyzer_of, base_type
from kvshard.suggest_messages import SuggestedWord, SuggestPart, SuggestReply
from kvshard.unknown_fields import unknown_field

TEXT_MAX_CHARS: Final = 256
"""Of a text to complete: people type queries, not pages, and each word is looked up on every shard."""

WORDS_MAX: Final = 16
"""Words that are looked at for corrections, the last ones of the text."""

FILTERS_MAX: Final = 32
"""As of a search."""

EXTRA_COMPLETIONS: Final = 10
"""Asked of each shard beyond half as many again, as facets are: the overall favourites are rarely missed then."""

CORRECTIONS_ASKED: Final = 20
"""Of each shard and word. The nearest words are few; more of them would be guesses."""

CORRECTIONS_SHOWN: Final = 5
"""Of a word, in the answer."""

FEW_DOCUMENTS: Final = 2
"""A word that more documents have is taken for meant: it is theirs, whatever it looks like."""

MORE_FREQUENT: Final = 100
"""So many times as many documents have the correction of a word that some have: less would correct rare words away."""

_NO_WORDS = frozenset((CJK, KEYWORD_LOWER))
"""Analyzers that do not cut a text into words. Of stems and beginnings the index holds the words as they are besides."""


@dataclass(frozen=True, slots=True)
class SuggestQuery:
    """A request for suggestions in domain terms; see search.proto for the fields."""

    text: str
    fields: list[str]
    limit: int
    filters: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Completions:
    """Texts with how many documents have them, most first. error_bound: the most by which a number may be too low."""

    texts: list[tuple[str, int]]
    error_bound: int


@dataclass(frozen=True, slots=True)
class Correction:
    """A word that the index has in place of one that it has not. distance: letters that differ."""

    text: str
    documents: int
    distance: int


@dataclass(frozen=True, slots=True)
class CorrectedWord:
    """A word of the text, at its place in characters, with what may have been meant, the likeliest first."""

    word: str
    start: int
    end: int
    documents: int
    corrections: list[Correction]


def nearest(
    word: str, known: Sequence[tuple[str, int]], limit: int, check: Callable[[], object] = lambda: None
) -> list[tuple[str, int, int]]:
    """The known words (with their documents) nearest to a word that are not it: (word, documents, distance), nearest first.

    check: called every thousand words; ends the search by raising.
    """
    most = fuzzy_distance(None, len(word))
    letters, shortest, longest = set(word), len(word) - most, len(word) + most
    found: list[tuple[str, int, int]] = []
    for first in range(0, len(known) if most else 0, 1_000):
        check()
        for other, documents in known[first : first + 1_000]:
            # Each slip brings or takes at most two different letters: that spares most words the arithmetic.
            if shortest <= len(other) <= longest and len(letters.symmetric_difference(other)) <= 2 * most and other != word:
                distance = distance_within(word, other, most)
                if distance is not None:
                    found.append((other, documents, distance))
    return heapq.nsmallest(limit, found, key=lambda each: (each[2], -each[1], each[0]))


def completions_asked(limit: int, shards: int) -> int:
    """How many completions each shard is asked for."""
    return limit if shards == 1 else limit + limit // 2 + EXTRA_COMPLETIONS


def merge_completions(replies: Iterable[SuggestReply], limit: int) -> Completions:
    """The completions that most documents have over all shards.

    A shard that did not list a text may still have up to its `missed` documents with it; one that listed it counted it.
    """
    counts: dict[str, int] = {}
    certain: dict[str, int] = {}
    uncertain = 0
    for reply in replies:
        uncertain += reply.missed
        for text, documents in reply.completions:
            counts[text] = counts.get(text, 0) + documents
            certain[text] = certain.get(text, 0) + reply.missed
    best = heapq.nsmallest(limit, counts.items(), key=lambda each: (-each[1], each[0]))
    return Completions(best, uncertain - min((certain[text] for text, _ in best), default=0))


def merge_words(replies: Iterable[SuggestReply]) -> list[CorrectedWord]:
    """The words of the text that are to be corrected, in its order."""
    places: dict[tuple[int, int], list[SuggestedWord]] = {}
    for reply in replies:
        for word in reply.words:
            places.setdefault((word.start, word.end), []).append(word)
    merged = [_merge_word(words) for _, words in sorted(places.items())]
    return [word for word in merged if word.corrections]


def _merge_word(words: Sequence[SuggestedWord]) -> CorrectedWord:
    documents = sum(word.documents for word in words)
    found: dict[str, Correction] = {}
    for text, count, distance in (each for word in words for each in word.near):
        before = found.get(text)
        found[text] = Correction(text, count + (before.documents if before else 0), distance)
    kept = [
        each for each in found.values() if documents <= FEW_DOCUMENTS and each.documents >= max(1, documents * MORE_FREQUENT)
    ]
    best = heapq.nsmallest(CORRECTIONS_SHOWN, kept, key=lambda each: (each.distance, -each.documents, each.text))
    return CorrectedWord(words[0].word, words[0].start, words[0].end, documents, best)


def corrected(text: str, words: Sequence[CorrectedWord]) -> str:
    """The text with the best correction of each word in its place."""
    for word in sorted(words, key=lambda each: -each.start):
        text = text[: word.start] + word.corrections[0].text + text[word.end :]
    return text


def is_last_word(text: str, word: CorrectedWord) -> bool:
    """Whether this is the word that is being typed."""
    return word.end == len(text)


def asked_again(part: SuggestPart, words: Sequence[CorrectedWord]) -> SuggestPart | None:
    """What to ask where nothing goes on as the text does: with its words corrected, else without those before the last one.

    None where that would ask for the same.
    """
    if words:
        return replace(part, text=corrected(part.text, words), wants_corrections=False)
    is_one_word = part.text.strip().isalnum()
    return None if is_one_word else replace(part, has_context=False, wants_corrections=False)


def suggest_fields(schema: Schema, given: Sequence[str]) -> list[str]:
    """The fields that suggestions come from: those given, or all texts that have words; if there are none, whole values.

    Raises InvalidArgument for a field that there is not, or that knows no suggestions.
    """
    for name in given:
        _check_field(schema, name)
    if given:
        return list(dict.fromkeys(given))
    words = [name for name, kind in schema.items() if keeps_words(kind)]
    values = [name for name, kind in schema.items() if keeps_values(kind)]
    if not words and not values:
        message = "no field has suggestions: text fields do, all but text(cjk), and keyword fields"
        raise InvalidArgument(message, ErrorDetails(field="fields"))
    return words or values


def keeps_words(field_type: str) -> bool:
    """Whether a field of this type has words to suggest."""
    return base_type(field_type) == TEXT and analyzer_of(field_type) not in _NO_WORDS


def keeps_values(field_type: str) -> bool:
    """Whether a field of this type holds whole values."""
    return field_type == KEYWORD or (base_type(field_type) == TEXT and analyzer_of(field_type) == KEYWORD_LOWER)


def check_suggest(query: SuggestQuery, collection: str, schema: Mapping[str, str]) -> list[str]:
    """The fields to ask; everything about the request that can be told without a leaf is checked. Raises InvalidArgument."""
    if not schema:
        details = ErrorDetails(field="collection")
        raise FailedPrecondition(f"collection {collection!r} has no schema, so there is nothing to suggest", details)
    _bound("text", "characters", len(query.text), 1, TEXT_MAX_CHARS)
    _bound("limit", "suggestions", query.limit, 1, limits.SUGGEST_MAX_LIMIT)
    _bound("filters", "queries", len(query.filters), 0, FILTERS_MAX)
    _bound("fields", "names", len(query.fields), 0, limits.SCHEMA_MAX_FIELDS)
    for at, text in enumerate(query.filters):
        prepare(text, schema, f"filters[{at}]")
    return suggest_fields(schema, query.fields)


def _bound(name: str, of: str, given: int, least: int, most: int) -> None:
    if not least <= given <= most:
        raise InvalidArgument(f"{name} must have {least} to {most} {of}, not {given}", ErrorDetails(field=name, limit=most))


def _check_field(schema: Schema, name: str) -> None:
    kind = schema.get(name)
    if kind is None:
        raise InvalidArgument(unknown_field(name, schema), ErrorDetails(field="fields"))
    if not keeps_words(kind) and not keeps_values(kind):
        message = f"{name} is of type {kind} and has no suggestions; text fields have, all but text(cjk), and keyword fields"
        raise InvalidArgument(message, ErrorDetails(field="fields"))
