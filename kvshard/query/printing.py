"""Prints a query. Parsing the canonical text of what a query string can say gives the same tree again (tests/property).

What only structured queries can say is printed for people, and does not parse.

Pure: imports only the standard library and other pure files.
"""

from kvshard.query.glob import parts_of
from kvshard.query.regex import written
from kvshard.query.syntax import (
    OPERATORS,
    SPECIAL,
    Alike,
    AnyOf,
    Best,
    Boost,
    Chosen,
    Constant,
    Exists,
    Fuzzy,
    Group,
    Keys,
    MatchAll,
    MatchNone,
    Node,
    Phrase,
    Prefix,
    Range,
    Regex,
    Wildcard,
    Within,
    Word,
)

_BEGINS_OTHERWISE = frozenset("+-!<>#/")
"""At the start of a word + - ! are operators; after a field's colon < and > begin a range; # marks a filter in print; / may
begin a regular expression."""


def print_query(node: Node) -> str:
    """The canonical text of a query."""
    if isinstance(node, Group) and node.minimum is None:
        return _clauses(node)
    return _inner(node)


def _inner(node: Node) -> str:
    match node:
        case Group():
            return f"({_clauses(node)})" + ("" if node.minimum is None else f"~{node.minimum}")
        case Boost():
            inner = _inner(node.node)
            # Without parentheses the second ^ of a doubled boost would belong to the first number.
            return f"({inner})^{node.factor!r}" if isinstance(node.node, Boost) else f"{inner}^{node.factor!r}"
        case Best():
            tie = f"~{node.tie_breaker!r}" if node.tie_breaker else ""
            return f"({' | '.join(map(_inner, node.nodes))}){tie}"
        case Constant():
            return f"{_inner(node.node)}^={node.score!r}"
        case Within():
            fields = ",".join(name if boost == 1.0 else f"{name}^{boost!r}" for name, boost in node.fields)
            return f"<{fields}>:({print_query(node.node)})"
        case _:
            return _leaf(node)


def _clauses(group: Group) -> str:
    return " ".join(f"{clause.occur.value}{_inner(clause.node)}" for clause in group.clauses)


def _leaf(node: Node) -> str:
    match node:
        case MatchAll():
            return "*"
        case Exists():
            return f"{node.field}:*"
        case Range():
            return f"{node.field}:{_range(node)}"
        case Word():
            return f"{_field(node.field)}{_escape(node.text)}"
        case Prefix():
            return f"{_field(node.field)}{_escape(node.text)}*"
        case Wildcard():
            return f"{_field(node.field)}{_pattern(node.pattern)}"
        case Regex():
            return f"{_field(node.field)}/{written(node.pattern)}/"
        case Fuzzy():
            return f"{_field(node.field)}{_escape(node.text)}~{'' if node.distance is None else node.distance}"
        case Phrase():
            return f"{_field(node.field)}{_quote(node.text)}" + (f"~{node.slop}" if node.slop else "")
        case AnyOf():
            return f"{node.field}:({' '.join(map(_quote, node.values))})^=1.0"
        case Keys():
            return f"keys({', '.join(map(repr, node.keys))})"
        case Alike():
            return f"like({', '.join(map(_quote, node.texts))})"
        case Chosen():
            return f"like({' '.join(term for term, _ in node.words)})"
        case MatchNone():
            return "-*"
    raise AssertionError(f"{type(node).__name__} is no leaf")


def _field(name: str | None) -> str:
    return "" if name is None else f"{name}:"


def _range(node: Range) -> str:
    lower = "*" if node.lower is None else _quote(node.lower)
    upper = "*" if node.upper is None else _quote(node.upper)
    return f"{'[' if node.includes_lower else '{'}{lower} TO {upper}{']' if node.includes_upper else '}'}"


def _quote(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _escape(text: str) -> str:
    if text in OPERATORS:
        return "\\" + "\\".join(text)
    escaped = "".join(map(_literal, text))
    return "\\" + escaped if text[:1] in _BEGINS_OTHERWISE else escaped


def _pattern(pattern: str) -> str:
    written = "".join(char if is_wild else _literal(char) for char, is_wild in parts_of(pattern))
    return "\\" + written if written[:1] in _BEGINS_OTHERWISE else written


def _literal(char: str) -> str:
    return "\\" + char if char in SPECIAL or char.isspace() else char
