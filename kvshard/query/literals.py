"""Fits a parsed query to a schema: are its fields known, do its values have the fields' types, and what are they?

Pure: imports only the standard library and other pure files.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NoReturn, TypeAlias

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.query.bounds import BOOST_PRODUCT_MAX, QUERY_MAX_PATTERNS, WILDCARD_MAX_CHARS
from kvshard.query.parser import parse_query
from kvshard.query.regex import RegexError, parse_regex
from kvshard.query.syntax import (
    NO_POSITION,
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
from kvshard.query.tree import decode_tree
from kvshard.schema import (
    BOOLEAN,
    DATE,
    FLOAT,
    INTEGER,
    INTEGER_MAX,
    INTEGER_MIN,
    KEYWORD,
    KEYWORD_MAX_CHARS,
    TEXT,
    VECTOR,
    Schema,
    base_type,
    date_micros,
)
from kvshard.unknown_fields import unknown_field

_DAY_MICROS: Final = 86_400_000_000
_DAY = re.compile(r"\d{4}-\d\d-\d\d\Z", re.ASCII)
_INTEGER = re.compile(r"[+-]?\d{1,20}\Z", re.ASCII)
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)

CACHED_QUERIES: Final = 256
"""A leaf gets each query once for every shard it holds, and popular ones come again; syntax trees are immutable."""

CACHED_MAX_CHARS: Final = 512
"""Longer queries are rare, and 256 of the longest would hold tens of megabytes."""

Value: TypeAlias = str | int | float


@dataclass(frozen=True, slots=True)
class Interval:
    """The values that a literal stands for, both ends included; one value for all but a day, which is all its instants."""

    first: Value
    last: Value


def prepare(text: str, schema: Schema, source: str = "query", tree: str = "") -> Node:
    """The query, checked against the schema: parsed, or if there is a tree (`kvshard.query.tree`) that instead.

    Raises InvalidArgument (MalformedQuery for its syntax).
    """
    if max(len(text), len(tree)) > CACHED_MAX_CHARS:
        return _prepare(text, schema, source, tree)
    return _prepare_cached(text, tuple(schema.items()), source, tree)


def _prepare(text: str, schema: Schema, source: str, tree: str) -> Node:
    node = decode_tree(tree) if tree else parse_query(text, source)
    source = "structured" if tree else source
    check_query(node, schema, source)
    check_patterns(node, source)
    return node


@lru_cache(CACHED_QUERIES)
def _prepare_cached(text: str, schema: tuple[tuple[str, str], ...], source: str, tree: str) -> Node:
    return _prepare(text, dict(schema), source, tree)


def check_query(node: Node, schema: Schema, source: str = "query", boost: float = 1.0) -> None:
    """Raise InvalidArgument, with the position, where the query does not fit the schema. boost: of what it stands in."""
    match node:
        case MatchAll() | MatchNone() | Keys() | Chosen():
            return
        case Group():
            for clause in node.clauses:
                check_query(clause.node, schema, source, boost)
        case Best():
            for each in node.nodes:
                check_query(each, schema, source, boost)
        case Boost():
            check_query(node.node, schema, source, _boosted(boost, node.factor, source))
        case Constant():
            check_query(node.node, schema, source)
        case Within():
            _check_searched(tuple(name for name, _ in node.fields), schema, source)
            check_query(node.node, schema, source, _boosted(boost, max(factor for _, factor in node.fields), source))
        case Alike():
            _check_texts(node, schema, source)
        case Exists():
            _type_of(node.field, schema, node.position, source)
        case Range():
            _check_range(node, schema, source)
        case AnyOf():
            _check_any_of(node, schema, source)
        case Word() | Phrase() | Prefix() | Wildcard() | Regex() | Fuzzy():
            _check_term(node, schema, source)


def check_patterns(node: Node, source: str = "query") -> None:
    """Raise InvalidArgument if the query has too many prefixes, patterns and fuzzy words."""
    pending, found = [node], 0
    while pending:
        match pending.pop():
            case Group() as group:
                pending += [clause.node for clause in group.clauses]
            case Best() as best:
                pending += best.nodes
            case Boost() | Constant() | Within() as outer:
                pending.append(outer.node)
            case Prefix() | Wildcard() | Regex() | Fuzzy() as pattern:
                found += 1
                if found > QUERY_MAX_PATTERNS:
                    details = ErrorDetails(field=source, limit=QUERY_MAX_PATTERNS, position=_known(pattern.position))
                    message = f"a query may have at most {QUERY_MAX_PATTERNS} prefixes, patterns and fuzzy words together"
                    raise InvalidArgument(message, details)


def _boosted(boost: float, factor: float, source: str) -> float:
    product = boost * factor
    if product > BOOST_PRODUCT_MAX:
        details = ErrorDetails(field=source, limit=int(BOOST_PRODUCT_MAX), position=0)
        raise InvalidArgument(f"boosts inside each other multiply to more than {BOOST_PRODUCT_MAX:,.0f}", details)
    return product


def default_fields(schema: Schema) -> list[str]:
    """Where a word without a field is looked for: the text fields, or if there is none the keyword fields."""
    texts = [name for name, field_type in schema.items() if base_type(field_type) == TEXT]
    return texts or [name for name, field_type in schema.items() if field_type == KEYWORD]


def interval_of(field_type: str, text: str) -> Interval | None:
    """The values a literal stands for in a field of this base type; None if it is none of that type's."""
    if field_type in {KEYWORD, TEXT}:
        return Interval(text, text)
    if field_type == INTEGER:
        value = int(text) if _INTEGER.match(text) else INTEGER_MAX + 1
        return Interval(value, value) if INTEGER_MIN <= value <= INTEGER_MAX else None
    if field_type == FLOAT:
        number = float(text) + 0.0 if _FLOAT.match(text) else float("nan")  # + 0.0: -0.0 and 0.0 are one value
        return Interval(number, number) if number - number == 0.0 else None
    if field_type == BOOLEAN:
        truth = {"true": 1, "false": 0}.get(text.lower())
        return None if truth is None else Interval(truth, truth)
    try:
        instant = date_micros(text)
    except ValueError:
        return None
    return Interval(instant, instant + _DAY_MICROS - 1 if _DAY.match(text) else instant)


def _check_range(node: Range, schema: Schema, source: str) -> None:
    field_type = _type_of(node.field, schema, node.position, source)
    if field_type in {TEXT, BOOLEAN, VECTOR}:
        _refuse(f"{node.field} is a {field_type} field and has no ranges", node.position, source)
    for bound in (node.lower, node.upper):
        if bound is not None:
            _check_literal(node.field, field_type, bound, node.position, source)


def _check_any_of(node: AnyOf, schema: Schema, source: str) -> None:
    field_type = _type_of(node.field, schema, node.position, source)
    if field_type == TEXT:
        _refuse(f"{node.field} is a text field and holds words, not values; match looks for words", node.position, source)
    for value in node.values:
        _check_literal(node.field, field_type, value, node.position, source)


def _check_searched(names: tuple[str, ...], schema: Schema, source: str) -> None:
    """Fields that words may be looked for in."""
    for name in names:
        field_type = _type_of(name, schema, NO_POSITION, source)
        if field_type not in {TEXT, KEYWORD}:
            _refuse(f"{name} is of type {field_type}; words are looked for in text and keyword fields", NO_POSITION, source)


def _check_texts(node: Alike, schema: Schema, source: str) -> None:
    for name in node.fields:
        field_type = _type_of(name, schema, node.position, source)
        if field_type != TEXT:
            _refuse(f"{name} is of type {field_type}; only text fields are like a text", node.position, source)
    if not node.fields and not any(base_type(each) == TEXT for each in schema.values()):
        _refuse("the collection has no text fields, so nothing in it is like a text", node.position, source)


def _check_term(node: Word | Phrase | Prefix | Wildcard | Regex | Fuzzy, schema: Schema, source: str) -> None:
    if isinstance(node, Wildcard) and len(node.pattern) > 2 * WILDCARD_MAX_CHARS:
        _refuse(f"a word with wildcards may have at most {WILDCARD_MAX_CHARS} characters", node.position, source)
    if isinstance(node, Regex):
        _check_regex(node, source)
    if node.field is None:
        names = default_fields(schema)
        if not names:
            message = "the collection has neither text nor keyword fields, so a word needs a field, as in field:word"
            _refuse(message, node.position, source)
        if isinstance(node, Fuzzy) and base_type(schema[names[0]]) != TEXT:
            _refuse("the collection has no text fields; only those know fuzzy words", node.position, source)
        return
    field_type = _type_of(node.field, schema, node.position, source)
    if isinstance(node, Prefix | Wildcard | Regex):
        if field_type not in {TEXT, KEYWORD}:
            what = {Prefix: "prefixes", Wildcard: "wildcards", Regex: "regular expressions"}[type(node)]
            message = f"{node.field} is of type {field_type}; only text and keyword fields know {what}"
            _refuse(message, node.position, source)
    elif isinstance(node, Fuzzy):
        if field_type != TEXT:
            _refuse(f"{node.field} is of type {field_type}; only text fields know fuzzy words", node.position, source)
    else:
        _check_literal(node.field, field_type, node.text, node.position, source)


def _check_regex(node: Regex, source: str) -> None:
    try:
        parse_regex(node.pattern)
    except RegexError as error:
        if node.position != NO_POSITION:  # behind the slash
            _refuse(str(error), node.position + 1 + error.at, source)
        _refuse(f"{error} (character {error.at + 1} of the pattern)", NO_POSITION, source)


def _check_literal(name: str, field_type: str, text: str, position: int, source: str) -> None:
    if field_type == VECTOR:
        _refuse(f"{name} is a vector field and holds no words or values; ask for its nearest instead", position, source)
    if field_type == KEYWORD and len(text) > KEYWORD_MAX_CHARS:
        _refuse(f"a keyword has at most {KEYWORD_MAX_CHARS} characters", position, source)
    if interval_of(field_type, text) is None:
        shown = repr(text) if len(text) <= 40 else f"{text[:40]!r}..."
        expected = {DATE: "a date (RFC 3339 or YYYY-MM-DD)", BOOLEAN: "true or false"}
        wanted = expected.get(field_type, f"{'an' if field_type == INTEGER else 'a'} {field_type}")
        _refuse(f"{shown} is not {wanted} (the type of {name})", position, source)


def _type_of(name: str, schema: Schema, position: int, source: str) -> str:
    """The base type of a field that the query names."""
    field_type = schema.get(name)
    if field_type is not None:
        return base_type(field_type)
    details = ErrorDetails(field=source, position=_known(position))
    raise InvalidArgument(unknown_field(name, schema, otherwise=" (a literal colon is written \\:)"), details)


def _refuse(what: str, position: int, source: str) -> NoReturn:
    where = "" if position == NO_POSITION else f" at character {position + 1}"
    raise InvalidArgument(f"{what}{where}", ErrorDetails(field=source, position=_known(position)))


def _known(position: int) -> int | None:
    return None if position == NO_POSITION else position
