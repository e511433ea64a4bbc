"""The query language as data: what a parsed query consists of, and how it is printed.

Printing gives the canonical text of a tree; parsing that text gives the same tree again (tests/property).

Pure: imports only the standard library.
"""

from dataclasses import dataclass
from dataclasses import field as attribute  # `field` is a word of the language itself
from enum import Enum
from typing import TypeAlias

SPECIAL = frozenset('\\"()[]{}^:*')
"""Characters that mean something inside a word; everywhere else in a query a backslash makes the next character literal."""

OPERATORS = frozenset(("AND", "OR", "NOT", "TO", "&&", "||", "!", "+", "-"))


class Occur(Enum):
    """What a clause of a group means for a document: it must match, it may (and scores), it must not."""

    MUST = "+"
    SHOULD = ""
    MUST_NOT = "-"


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
    """`"several words"`: next to each other, in this order."""

    field: str | None
    text: str
    position: int = attribute(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Prefix:
    """`begin*`."""

    field: str | None
    text: str
    position: int = attribute(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Exists:
    """`field:*`: documents that have a value there."""

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
class Clause:
    """One member of a group."""

    occur: Occur
    node: "Node"


@dataclass(frozen=True, slots=True)
class Group:
    """Clauses together. Without a MUST clause at least one SHOULD clause has to match, if there is any.

    A group of MUST_NOT clauses alone stands for every document but those. A group never holds just one MUST or SHOULD clause:
    that is the clause's node itself.
    """

    clauses: tuple[Clause, ...]


@dataclass(frozen=True, slots=True)
class Boost:
    """`query^2`: the scores of the query, multiplied."""

    node: "Node"
    factor: float


Node: TypeAlias = MatchAll | Word | Phrase | Prefix | Exists | Range | Group | Boost


def print_query(node: Node) -> str:
    """The canonical text of a query."""
    if isinstance(node, Group):
        return " ".join(f"{clause.occur.value}{_print_inner(clause.node)}" for clause in node.clauses)
    return _print_inner(node)


def _print_inner(node: Node) -> str:
    match node:
        case MatchAll():
            return "*"
        case Group():
            return f"({print_query(node)})"
        case Boost():
            inner = _print_inner(node.node)
            # Without parentheses the second ^ of a doubled boost would belong to the first number.
            return f"({inner})^{node.factor!r}" if isinstance(node.node, Boost) else f"{inner}^{node.factor!r}"
        case Exists():
            return f"{node.field}:*"
        case Range():
            return f"{node.field}:{_print_range(node)}"
        case Word():
            return f"{_print_field(node.field)}{_escape(node.text)}"
        case Prefix():
            return f"{_print_field(node.field)}{_escape(node.text)}*"
        case Phrase():
            return f"{_print_field(node.field)}{_quote(node.text)}"


def _print_field(name: str | None) -> str:
    return "" if name is None else f"{name}:"


def _print_range(node: Range) -> str:
    lower = "*" if node.lower is None else _quote(node.lower)
    upper = "*" if node.upper is None else _quote(node.upper)
    return f"{'[' if node.includes_lower else '{'}{lower} TO {upper}{']' if node.includes_upper else '}'}"


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escape(text: str) -> str:
    if text in OPERATORS:
        return "\\" + "\\".join(text)
    escaped = "".join("\\" + char if char in SPECIAL or char.isspace() else char for char in text)
    # At the start of a word these are operators; after a field's colon < and > begin a range.
    return "\\" + escaped if text[:1] in {"+", "-", "!", "<", ">"} else escaped
