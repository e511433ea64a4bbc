"""Nodes as text and back: how a query that is not just a query string travels from a router to a leaf.

A query string travels as itself: any version of a leaf parses it, and it is the shortest form there is. What else a query may
consist of has no syntax, and its values would have to be quoted and parsed anew by every shard; so it travels as JSON, a list
for each node with its kind in front. That form is data, hashes and compares as text, and a leaf decodes it in C.

What comes in is checked as if anybody could have sent it, for its types, its depth and its size.

Pure: imports only the standard library and other pure files.
"""

import json
import math
from typing import Final, NoReturn, TypeAlias

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.query.bounds import (
    BOOST_MAX,
    DISTANCE_MAX,
    LIKE_MAX_TEXTS,
    QUERY_MAX_CLAUSES,
    SLOP_MAX,
    STRUCTURED_MAX_CHARS,
    TREE_MAX_DEPTH,
)
from kvshard.query.syntax import (
    Alike,
    AnyOf,
    Best,
    Boost,
    Clause,
    Constant,
    Exists,
    Fuzzy,
    Group,
    Keys,
    MatchAll,
    MatchNone,
    Minimum,
    Node,
    Occur,
    Phrase,
    Prefix,
    Range,
    Regex,
    Wildcard,
    Within,
    Word,
)

TREE_MAX_CHARS: Final = 12 * 2 * STRUCTURED_MAX_CHARS
"""All the texts there may be, each character escaped as two halves of a pair, with as much room for the nodes around them."""

NEEDS_TREE: Final = "needs_a_newer_leaf:*"
"""The query string beside a tree. A leaf that does not know trees refuses it, by an error that says why."""

_Json: TypeAlias = "str | int | float | bool | list[_Json] | None"

_FIELDLESS: Final[dict[object, Node]] = {"all": MatchAll(), "none": MatchNone()}
_BY_OCCUR: Final = {occur.value: occur for occur in Occur}


def encode_tree(node: Node) -> str:
    """The nodes as text."""
    return json.dumps(_encode(node), separators=(",", ":"), allow_nan=False)


def decode_tree(text: str) -> Node:
    """The nodes of such a text. Raises InvalidArgument for any other."""
    if len(text) > TREE_MAX_CHARS:
        raise InvalidArgument("a tree is too long", ErrorDetails(field="tree", limit=TREE_MAX_CHARS))
    try:
        given: object = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        _refuse(f"no JSON: {str(error)[:100]}")
    return _Decoder().node(given, 0)


def _encode(node: Node) -> _Json:
    match node:
        case MatchAll():
            return ["all"]
        case MatchNone():
            return ["none"]
        case Group():
            clauses: list[_Json] = [[clause.occur.value, _encode(clause.node)] for clause in node.clauses]
            return ["group", clauses, _encode_minimum(node.minimum)]
        case Boost():
            return ["boost", _encode(node.node), node.factor]
        case Constant():
            return ["constant", _encode(node.node), node.score]
        case Best():
            return ["best", [_encode(each) for each in node.nodes], node.tie_breaker]
        case Within():
            return ["within", [[name, boost] for name, boost in node.fields], _encode(node.node)]
        case _:
            return _encode_leaf(node)


def _encode_leaf(node: Node) -> _Json:
    match node:
        case Word():
            return ["word", node.field, node.text, node.position]
        case Phrase():
            return ["phrase", node.field, node.text, node.slop, node.position]
        case Prefix():
            return ["prefix", node.field, node.text, node.position]
        case Wildcard():
            return ["wildcard", node.field, node.pattern, node.position]
        case Regex():
            return ["regex", node.field, node.pattern, node.position]
        case Fuzzy():
            return ["fuzzy", node.field, node.text, node.distance, node.position]
        case Exists():
            return ["exists", node.field, node.position]
        case Range():
            bounds: list[_Json] = [node.lower, node.upper, node.includes_lower, node.includes_upper]
            return ["range", node.field, *bounds, node.position]
        case AnyOf():
            return ["any", node.field, list(node.values), node.position]
        case Keys():
            return ["keys", [key.hex() for key in node.keys]]
        case Alike():
            counts: list[_Json] = [node.max_words, node.min_word_count, node.min_word_chars]
            documents: list[_Json] = [node.min_documents, node.max_documents]
            return ["like", list(node.fields), list(node.texts), counts, documents, _encode_minimum(node.minimum)]
    raise AssertionError(f"{type(node).__name__} has nodes inside")


def _encode_minimum(minimum: Minimum | None) -> _Json:
    return None if minimum is None else [minimum.number, minimum.is_percent]


class _Decoder:
    """Of one tree. Counts its clauses."""

    def __init__(self) -> None:
        self._clauses = 0

    def node(self, given: object, depth: int) -> Node:
        if depth > TREE_MAX_DEPTH:
            raise InvalidArgument("a tree is too deep", ErrorDetails(field="tree", limit=TREE_MAX_DEPTH))
        kind, *parts = _list(given) or [None]
        match kind, parts:
            case ("all" | "none") as name, []:
                return _FIELDLESS[name]
            case "group", [clauses, minimum]:
                return Group(tuple(self._clause(each, depth) for each in _list(clauses)), _minimum(minimum))
            case "boost", [inner, factor]:
                return Boost(self.node(inner, depth + 1), _positive(factor, BOOST_MAX))
            case "constant", [inner, score]:
                return Constant(self.node(inner, depth + 1), _number(score, 0.0, BOOST_MAX))
            case "best", [nodes, tie_breaker]:
                return Best(tuple(self.node(each, depth + 1) for each in _list(nodes)), _number(tie_breaker, 0.0, 1.0))
            case "within", [fields, inner]:
                return Within(tuple(map(_field_and_boost, _list(fields) or _refuse("no fields"))), self.node(inner, depth + 1))
            case _:
                return self._leaf(kind, parts)

    def _clause(self, given: object, depth: int) -> Clause:
        match _list(given):
            case [str() as occur, inner] if occur in _BY_OCCUR:
                return Clause(_BY_OCCUR[occur], self.node(inner, depth + 1))
        raise _wrong("no clause")

    def _leaf(self, kind: object, parts: list[object]) -> Node:
        self._count(1)
        match kind, parts:
            case "word", [field, text, position]:
                return Word(_field(field), _text(text), _position(position))
            case "phrase", [field, text, slop, position]:
                return Phrase(_field(field), _text(text), _integer(slop, 0, SLOP_MAX), _position(position))
            case "prefix", [field, text, position]:
                return Prefix(_field(field), _text(text), _position(position))
            case "wildcard", [field, pattern, position]:
                return Wildcard(_field(field), _text(pattern), _position(position))
            case "regex", [field, pattern, position]:
                return Regex(_field(field), _text(pattern), _position(position))
            case "fuzzy", [field, text, distance, position]:
                edits = None if distance is None else _integer(distance, 0, DISTANCE_MAX)
                return Fuzzy(_field(field), _text(text), edits, _position(position))
            case "exists", [field, position]:
                return Exists(_text(field), _position(position))
            case "range", [field, lower, upper, bool() as has_lower, bool() as has_upper, position]:
                return Range(_text(field), _field(lower), _field(upper), has_lower, has_upper, _position(position))
            case "any", [field, values, position]:
                found = AnyOf(_text(field), tuple(map(_text, _list(values))), _position(position))
                self._count(len(found.values) - 1)
                return found
            case "keys", [keys]:
                return Keys(tuple(map(_key, _list(keys))))
            case "like", [fields, texts, counts, documents, minimum]:
                return self._alike(_list(fields), _list(texts), [*_list(counts), *_list(documents)], minimum)
        raise _wrong(f"unknown kind {str(kind)[:40]!r}")

    def _alike(self, fields: list[object], texts: list[object], numbers: list[object], minimum: object) -> Node:
        if len(numbers) != 5 or len(texts) > LIKE_MAX_TEXTS:
            _refuse("no likeness")
        words, word_count, chars, least, most = (_integer(number, 0, 2**31) for number in numbers)
        self._count(words)
        limits = (words, word_count, chars, least, most, _minimum(minimum))
        return Alike(tuple(map(_text, fields)), tuple(map(_text, texts)), *limits)

    def _count(self, clauses: int) -> None:
        self._clauses += clauses
        if self._clauses > QUERY_MAX_CLAUSES + TREE_MAX_DEPTH:
            raise InvalidArgument("a tree has too many clauses", ErrorDetails(field="tree", limit=QUERY_MAX_CLAUSES))


def _minimum(given: object) -> Minimum | None:
    match given:
        case None:
            return None
        case [number, bool() as is_percent]:
            return Minimum(_integer(number, -(10**6), 10**6), is_percent)
    raise _wrong("no minimum")


def _field_and_boost(given: object) -> tuple[str, float]:
    match given:
        case [str() as name, boost]:
            return name, _positive(boost, BOOST_MAX)
    raise _wrong("no field")


def _list(given: object) -> list[object]:
    return given if isinstance(given, list) else _refuse("no list")


def _text(given: object) -> str:
    return given if isinstance(given, str) else _refuse("no text")


def _field(given: object) -> str | None:
    return None if given is None else _text(given)


def _key(given: object) -> bytes:
    try:
        return bytes.fromhex(_text(given))
    except ValueError:
        _refuse("no key")


def _integer(given: object, least: int, most: int) -> int:
    return given if type(given) is int and least <= given <= most else _refuse("a number out of bounds")


def _position(given: object) -> int:
    return _integer(given, -1, 10**6)


def _number(given: object, least: float, most: float) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not least <= given <= most:
        _refuse("a number out of bounds")
    return float(given)


def _positive(given: object, most: float) -> float:
    return _number(given, math.ulp(0.0), most)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _wrong(what: str) -> InvalidArgument:
    return InvalidArgument(f"a tree that cannot be read: {what}", ErrorDetails(field="tree"))


def _refuse(what: str) -> NoReturn:
    raise _wrong(what)
