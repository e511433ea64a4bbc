"""The query language as data: what a query consists of, whether it came as a string or as structured messages.

Query strings know the nodes up to `Boost`; `printing` gives their canonical text. The others come from structured queries.
`tree` carries any of them from a router to a leaf.

Positions count characters of the query string from 0; NO_POSITION where the node was not read from one.

Pure: imports only the standard library.
"""

from dataclasses import dataclass
from dataclasses import field as attribute  # `field` is a word of the language itself
from enum import Enum
from typing import TypeAlias

SPECIAL = frozenset('\\"()[]{}^:*?~')
"""Characters that mean something inside a word; everywhere else in a query a backslash makes the next character literal."""

OPERATORS = frozenset(("AND", "OR", "NOT", "TO", "&&", "||", "!", "+", "-"))


NO_POSITION = -1


class Occur(Enum):
    """What a clause of a group means for a document: it must match, it may (and scores), it must not, it must unscored."""

    MUST = "+"
    SHOULD = ""
    MUST_NOT = "-"
    FILTER = "#"


@dataclass(frozen=True, slots=True)
class MatchAll:
    """`*`: every document."""


@dataclass(frozen=True, slots=True)
class Word:
    """One word; in a field, or (field None) in the collection's default fields."""

    field: str | None
    text: str
    position: int = attribute(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Phrase:
    """`"several words"`: in this order, next to each other; with `~2` up to two places off."""

    field: str | None
    text: str
    slop: int = 0
    position: int = attribute(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Prefix:
    """`begin*`."""

    field: str | None
    text: str
    position: int = attribute(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Wildcard:
    """`w?ld*rd`. pattern: as `glob` has it."""

    field: str | None
    pattern: str
    position: int = attribute(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Regex:
    """`/colou?rs?/`. pattern: what stands between the slashes, as `regex` has it."""

    field: str | None
    pattern: str
    position: int = attribute(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Fuzzy:
    """`word~1`: with so many letters wrong, missing, too many or swapped. None, as in `word~`: by the length of the word."""

    field: str | None
    text: str
    distance: int | None = None
    position: int = attribute(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Exists:
    """`field:*`, `_exists_:field`: documents that have a value there."""

    field: str
    position: int = attribute(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Range:
    """`field:[a TO b]`, `field:{a TO b}`, `field:>=a`. A bound of None is open."""

    field: str
    lower: str | None
    upper: str | None
    includes_lower: bool = True
    includes_upper: bool = True
    position: int = attribute(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Minimum:
    """How many SHOULD clauses have to match: a number or a percentage (rounded down); negative: how many may be missing."""

    number: int
    is_percent: bool = False

    def of(self, clauses: int) -> int:
        """The number for so many clauses: from 0 to all of them."""
        wanted = abs(self.number) * clauses // 100 if self.is_percent else abs(self.number)
        return max(0, min(clauses, wanted if self.number >= 0 else clauses - wanted))

    def __str__(self) -> str:
        return f"{self.number}%" if self.is_percent else str(self.number)


@dataclass(frozen=True, slots=True)
class Clause:
    """One member of a group."""

    occur: Occur
    node: "Node"


@dataclass(frozen=True, slots=True)
class Group:
    """Clauses together. Without a MUST or FILTER clause at least one SHOULD clause has to match, if there is any.

    minimum: so many SHOULD clauses have to match in any case. A group of MUST_NOT clauses alone stands for every document but
    those. A group from a query string never holds just one MUST or SHOULD clause: that is the clause's node itself.
    """

    clauses: tuple[Clause, ...]
    minimum: Minimum | None = None


@dataclass(frozen=True, slots=True)
class Boost:
    """`query^2`: the scores of the query, multiplied."""

    node: "Node"
    factor: float


@dataclass(frozen=True, slots=True)
class MatchNone:
    """No document."""


@dataclass(frozen=True, slots=True)
class AnyOf:
    """Documents that have one of these values in a field; each of them scores 1."""

    field: str
    values: tuple[str, ...]
    position: int = attribute(default=NO_POSITION, compare=False)


@dataclass(frozen=True, slots=True)
class Keys:
    """The documents of these keys; each of them scores 1."""

    keys: tuple[bytes, ...]


@dataclass(frozen=True, slots=True)
class Best:
    """What matches any of the nodes, with the score of the best one plus tie_breaker times those of the others."""

    nodes: tuple["Node", ...]
    tie_breaker: float = 0.0


@dataclass(frozen=True, slots=True)
class Constant:
    """What the node matches, with this score."""

    node: "Node"
    score: float


@dataclass(frozen=True, slots=True)
class Within:
    """The node, with its words that name no field looked for in these: (field, boost) each."""

    fields: tuple[tuple[str, float], ...]
    node: "Node"


@dataclass(frozen=True, slots=True)
class Alike:
    """Documents that share the telling words of the texts in any of the fields.

    fields: empty: the default ones. min_word_count: a word counts if the texts have it so often. min_documents, max_documents:
    and so many documents (0: any). max_words: the most telling ones are taken. minimum: so many of them have to match.
    """

    fields: tuple[str, ...]
    texts: tuple[str, ...]
    max_words: int = 25
    min_word_count: int = 2
    min_word_chars: int = 0
    min_documents: int = 5
    max_documents: int = 0
    minimum: Minimum | None = None
    position: int = attribute(default=NO_POSITION, compare=False)


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a leaf makes of `Alike`: terms of its index and the fields to look for each in, and the (field, term) that they
    were chosen from. It does not travel.
    """

    words: tuple[tuple[str, tuple[str, ...]], ...]
    considered: tuple[tuple[str, str], ...] = ()
    minimum: Minimum | None = None


Node: TypeAlias = (
    MatchAll
    | MatchNone
    | Word
    | Phrase
    | Prefix
    | Wildcard
    | Regex
    | Fuzzy
    | Exists
    | Range
    | AnyOf
    | Keys
    | Alike
    | Chosen
    | Group
    | Boost
    | Best
    | Constant
    | Within
)
