"""What `Collection.suggest` answers, and how it is read from the message."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvshard.client.results import Coverage, Timing
from kvshard.client.wire import coverage_of, timing_of
from kvshard.v1 import search_pb2


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole text that goes on as the typed one. documents: that have its last word, together with those before it."""

    text: str
    documents: int


@dataclass(frozen=True, slots=True)
class Correction:
    """A word that may have been meant. documents: that have it. distance: letters that differ."""

    text: str
    documents: int
    distance: int


@dataclass(frozen=True, slots=True)
class CorrectedWord:
    """A word of the text, at its place in characters, that hardly any document has. corrections: the likeliest first."""

    word: str
    start: int
    end: int
    documents: int
    corrections: tuple[Correction, ...]


@dataclass(frozen=True, slots=True)
class Suggestions:
    """Completions, those that most documents have first; iterating gives their texts.

    corrected: the text with its misspelt words corrected, None where there are none; words: these one by one. error_bound: the
    most by which the documents of a completion may be too few.
    """

    completions: tuple[Completion, ...]
    words: tuple[CorrectedWord, ...]
    corrected: str | None
    error_bound: int
    coverage: Coverage
    timing: Timing | None = None

    @property
    def complete(self) -> bool:
        """True when every shard answered."""
        return self.coverage.complete

    def __iter__(self) -> Iterator[str]:
        return (each.text for each in self.completions)


def field_names(field: str | Sequence[str] | None) -> list[str]:
    """One field, several, or none, as a list."""
    return [] if field is None else [field] if isinstance(field, str) else list(field)


def suggestions_of(response: search_pb2.SuggestResponse) -> Suggestions:
    """An answer of Search.Suggest."""
    words = (
        CorrectedWord(
            word.word,
            word.start,
            word.end,
            word.documents,
            tuple(Correction(each.text, each.documents, each.distance) for each in word.corrections),
        )
        for word in response.words
    )
    return Suggestions(
        tuple(Completion(each.text, each.documents) for each in response.completions),
        tuple(words),
        response.corrected or None,
        response.error_bound,
        coverage_of(response.coverage),
        timing_of(response),
    )
