"""What a router asks a leaf to suggest, and the answer: parts of `ShardSearch` and `ShardSearchReply`, with their rules.

Pure: imports only the standard library.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class SuggestPart:
    """What a shard is asked to suggest for a text, from these fields. limit: completions wanted; 0: none.

    has_context: only among documents that have the words before the last one. wants_corrections: of words that it hardly has.
    """

    text: str
    fields: list[str]
    limit: int
    has_context: bool = True
    wants_corrections: bool = True


@dataclass(frozen=True, slots=True)
class SuggestedWord:
    """A word of the text, at its place in characters. documents: that have it. near: words nearest to it, nearest first, as
    (word, documents, letters that differ); empty where it is well known.
    """

    word: str
    start: int
    end: int
    documents: int
    near: list[tuple[str, int, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SuggestReply:
    """What a shard suggests. completions: whole texts with their documents, most first. missed: the most documents that a text
    not listed may have; 0 when all are.
    """

    completions: list[tuple[str, int]]
    missed: int = 0
    words: list[SuggestedWord] = field(default_factory=list)
