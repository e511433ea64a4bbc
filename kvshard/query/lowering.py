"""Makes of a structured query the nodes that a leaf runs, checked against a schema.

Errors name the part at fault as details.field, as in "structured.bool.must[2].match.fields".

Pure: imports only the standard library and other pure files.
"""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Final, NoReturn, TypeAlias

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.limits import KEY_MAX_BYTES
from kvshard.query import structured as s
from kvshard.query import syntax
from kvshard.query.bounds import (
    BOOST_MAX,
    DISTANCE_MAX,
    LIKE_MAX_CHARS,
    LIKE_MAX_TEXTS,
    LIKE_MAX_WORDS,
    QUERY_MAX_CLAUSES,
    QUERY_MAX_NESTING,
    SLOP_MAX,
    STRUCTURED_MAX_CHARS,
)
from kvshard.query.glob import parts_of, pattern_of
from kvshard.query.literals import check_query
from kvshard.query.parser import parse_query
from kvshard.query.syntax import NO_POSITION, Clause, Group, Minimum, Node, Occur
from kvshard.schema import TEXT, Schema, base_type

_SHARE = re.compile(r"\s*(-?\d{1,6})\s*(%?)\s*\Z", re.ASCII)
_FREQUENCY_MAX: Final = 2**31 - 1

Documents: TypeAlias = Mapping[bytes, Mapping[str, object]]
"""Key -> its document."""


def lower(query: s.StructuredQuery, schema: Schema, source: str = "structured", documents: Documents | None = None) -> Node:
    """The nodes of a structured query. documents: of the keys that `keys_of` names. Raises InvalidArgument."""
    return _Lowering(schema, documents or {}).lower(query, source, 0)


def minimum_of(share: s.Share | None, source: str) -> Minimum | None:
    """How many have to match. Raises InvalidArgument."""
    if share is None or share == "":
        return None
    match = _SHARE.match(str(share)) if isinstance(share, int | str) and not isinstance(share, bool) else None
    if match is None or (match[2] and abs(int(match[1])) > 100):
        message = f"{_short(share)} does not say how many have to match: a number or a percentage, as in 2, -1, 75%"
        _refuse(message, source)
    return Minimum(int(match[1]), bool(match[2]))


def fields_of(names: Sequence[str], source: str) -> tuple[tuple[str, float], ...]:
    """(field, boost) of names like "title^3". Raises InvalidArgument, but not for fields that do not exist."""
    found: dict[str, float] = {}
    for at, given in enumerate(names):
        name, has_boost, boost = given.partition("^")
        factor = 1.0
        if has_boost:
            try:
                factor = float(boost)
            except ValueError:
                factor = math.nan
        if not 0.0 < factor <= BOOST_MAX:
            _refuse(f"a field's boost is a number above 0 and up to {BOOST_MAX:g}, as in title^3", f"{source}[{at}]")
        if name in found:
            _refuse(f"{_short(name)} stands twice among the fields", f"{source}[{at}]")
        found[name] = factor
    return tuple(found.items())


def query_string(query: s.QueryString, schema: Schema, source: str, fields_source: str, minimum_source: str) -> Node:
    """The nodes of a query string with options. Raises InvalidArgument, MalformedQuery."""
    if query.operator not in {"or", "and"}:
        _refuse(f'{_short(query.operator)} is no operator; there are "or" and "and"', source)
    node = parse_query(query.query, source, is_and=query.operator == "and")
    minimum = minimum_of(query.minimum_should_match, minimum_source)
    if minimum is not None and isinstance(node, Group):
        node = Group(node.clauses, minimum)
    fields = fields_of(query.fields, fields_source)
    check_query(node, schema, source)
    if not fields or isinstance(node, syntax.MatchAll):
        return node
    found = syntax.Within(fields, node)
    check_query(syntax.Within(fields, syntax.MatchAll()), schema, fields_source)
    check_query(found, schema, source)
    return found


class _Lowering:
    """One query. Counts what it is made of."""

    def __init__(self, schema: Schema, documents: Documents) -> None:
        self._schema = schema
        self._documents = documents
        self._clauses = 0
        self._chars = 0

    def lower(self, query: s.StructuredQuery, source: str, depth: int) -> Node:
        if depth > QUERY_MAX_NESTING:
            details = ErrorDetails(field=source, limit=QUERY_MAX_NESTING)
            raise InvalidArgument(f"a query may be nested at most {QUERY_MAX_NESTING} deep", details)
        match query:
            case s.Bool():
                return self._bool(query, f"{source}.bool", depth)
            case s.DisMax():
                return self._dis_max(query, f"{source}.dis_max", depth)
            case s.ConstantScore():
                inside = f"{source}.constant_score"
                if not 0.0 <= query.score <= BOOST_MAX:
                    _refuse(f"a score is a number from 0 to {BOOST_MAX:g}", f"{inside}.score")
                return syntax.Constant(self.lower(query.query, f"{inside}.query", depth + 1), float(query.score))
            case s.Boost():
                inside = f"{source}.boost"
                if not 0.0 < query.factor <= BOOST_MAX:
                    _refuse(f"a boost is a number above 0 and up to {BOOST_MAX:g}", f"{inside}.factor")
                boosted = syntax.Boost(self.lower(query.query, f"{inside}.query", depth + 1), float(query.factor))
                check_query(boosted, self._schema, source)  # boosts inside each other
                return boosted
            case _:
                return self._leaf(query, source)

    def _bool(self, query: s.Bool, source: str, depth: int) -> Node:
        clauses: list[Clause] = []
        for name, occur, queries in (
            ("must", Occur.MUST, query.must),
            ("should", Occur.SHOULD, query.should),
            ("must_not", Occur.MUST_NOT, query.must_not),
            ("filter", Occur.FILTER, query.filter),
        ):
            clauses += [Clause(occur, self.lower(each, f"{source}.{name}[{at}]", depth + 1)) for at, each in enumerate(queries)]
        minimum = minimum_of(query.minimum_should_match, f"{source}.minimum_should_match")
        return Group(tuple(clauses), minimum) if clauses else syntax.MatchAll()

    def _dis_max(self, query: s.DisMax, source: str, depth: int) -> Node:
        if not 0.0 <= query.tie_breaker <= 1.0:
            _refuse("a tie_breaker is a number from 0 to 1", f"{source}.tie_breaker")
        nodes = [self.lower(each, f"{source}.queries[{at}]", depth + 1) for at, each in enumerate(query.queries)]
        return syntax.Best(tuple(nodes), float(query.tie_breaker)) if nodes else syntax.MatchNone()

    def _leaf(self, query: s.StructuredQuery, source: str) -> Node:
        match query:
            case s.Match():
                return self._match(query, f"{source}.match")
            case s.MatchPhrase():
                inside = f"{source}.match_phrase"
                self._count(1, query.text, inside)
                if not 0 <= query.slop <= SLOP_MAX:
                    _refuse(f"a slop is a number from 0 to {SLOP_MAX}", f"{inside}.slop", SLOP_MAX)
                return self._within(query.fields, syntax.Phrase(None, query.text, query.slop, NO_POSITION), inside)
            case s.QueryString():
                inside = f"{source}.query_string"
                node = query_string(
                    query, self._schema, f"{inside}.query", f"{inside}.fields", f"{inside}.minimum_should_match"
                )
                self._count(_size(node), query.query, inside)
                return node
            case s.MoreLikeThis():
                return self._more_like_this(query, f"{source}.more_like_this")
            case s.MatchAll():
                return syntax.MatchAll()
            case s.MatchNone():
                return syntax.MatchNone()
        return self._in_field(query, source)

    def _in_field(self, query: s.StructuredQuery, source: str) -> Node:
        node: Node
        match query:
            case s.Term():
                source += ".term"
                self._count(1, "", source)
                if base_type(self._schema.get(query.field, "")) == TEXT:
                    _refuse(f"{query.field} is a text field and holds words, not values; use match", source)
                node = syntax.Word(query.field, value_text(query.value), NO_POSITION)
            case s.AnyOf():
                source += ".terms"
                self._count(len(query.values), "", source)
                node = syntax.AnyOf(query.field, tuple(map(value_text, query.values)), NO_POSITION)
            case s.Prefix():
                source += ".prefix"
                self._count(1, query.text, source)
                node = syntax.Prefix(query.field, query.text, NO_POSITION) if query.text else syntax.Exists(query.field, -1)
            case s.Wildcard():
                source += ".wildcard"
                self._count(1, query.pattern, source)
                node = syntax.Wildcard(query.field, pattern_of(parts_of(query.pattern)), NO_POSITION)
            case s.Regex():
                source += ".regex"
                self._count(1, query.pattern, source)
                node = syntax.Regex(query.field, query.pattern, NO_POSITION)
            case s.Fuzzy():
                source += ".fuzzy"
                self._count(1, query.text, source)
                node = syntax.Fuzzy(query.field, query.text, _distance(query.distance, f"{source}.distance"), NO_POSITION)
            case s.Range():
                source += ".range"
                self._count(1, "", source)
                node = _range(query, source)
            case s.Exists():
                source += ".exists"
                self._count(1, "", source)
                node = syntax.Exists(query.field, NO_POSITION)
            case _:
                raise InvalidArgument(f"a {type(query).__name__} is no query", ErrorDetails(field=source))
        check_query(node, self._schema, source)
        return node

    def _match(self, query: s.Match, source: str) -> Node:
        words = query.text.split()
        self._count(len(words), query.text, source)
        if query.operator not in {"or", "and"}:
            _refuse(f'{_short(query.operator)} is no operator; there are "or" and "and"', f"{source}.operator")
        fuzziness = query.fuzziness
        distance = None if fuzziness == "auto" else _distance(fuzziness, f"{source}.fuzziness")
        occur = Occur.MUST if query.operator == "and" else Occur.SHOULD
        nodes: list[Node] = [
            syntax.Word(None, word, NO_POSITION) if fuzziness is None else syntax.Fuzzy(None, word, distance, NO_POSITION)
            for word in words
        ]
        minimum = minimum_of(query.minimum_should_match, f"{source}.minimum_should_match")
        if not nodes:
            return syntax.MatchNone()
        node = nodes[0] if len(nodes) == 1 else Group(tuple(Clause(occur, each) for each in nodes), minimum)
        return self._within(query.fields, node, source)

    def _within(self, names: Sequence[str], node: Node, source: str) -> Node:
        fields = fields_of(names, f"{source}.fields")
        if fields:
            check_query(syntax.Within(fields, syntax.MatchAll()), self._schema, f"{source}.fields")
            node = syntax.Within(fields, node)
        check_query(node, self._schema, source)
        return node

    def _more_like_this(self, query: s.MoreLikeThis, source: str) -> Node:
        keys = like_keys(query, source)
        for name, number, least, most in (
            ("max_query_terms", query.max_query_terms, 1, LIKE_MAX_WORDS),
            ("min_term_freq", query.min_term_freq, 1, _FREQUENCY_MAX),
            ("min_doc_freq", query.min_doc_freq, 0, _FREQUENCY_MAX),
            ("max_doc_freq", query.max_doc_freq, 0, _FREQUENCY_MAX),
            ("min_word_length", query.min_word_length, 0, _FREQUENCY_MAX),
        ):
            if not least <= number <= most:
                _refuse(f"{name} must be {least} to {most}, not {number}", f"{source}.{name}", most)
        for at, text in enumerate(query.texts):
            if len(text) > LIKE_MAX_CHARS:
                _refuse(f"a text may have at most {LIKE_MAX_CHARS} characters", f"{source}.texts[{at}]", LIKE_MAX_CHARS)
            self._count(0, text, source)
        if len(query.fields) != len(set(query.fields)):
            _refuse("a field stands twice among the fields", f"{source}.fields")
        self._count(query.max_query_terms, "", source)
        names = query.fields or [name for name, field_type in self._schema.items() if base_type(field_type) == TEXT]
        most = min(LIKE_MAX_CHARS, (STRUCTURED_MAX_CHARS - self._chars) // max(1, len(keys)))
        of_keys = [_text_of(self._documents.get(key, {}), names)[:most] for key in keys]
        node = syntax.Alike(
            tuple(query.fields),
            tuple(text for text in [*query.texts, *of_keys] if text),
            query.max_query_terms,
            query.min_term_freq,
            query.min_word_length,
            query.min_doc_freq,
            query.max_doc_freq,
            minimum_of(query.minimum_should_match, f"{source}.minimum_should_match"),
        )
        check_query(node, self._schema, source)
        if not keys:
            return node
        return Group((Clause(Occur.MUST, node), Clause(Occur.MUST_NOT, syntax.Keys(tuple(keys)))))

    def _count(self, clauses: int, text: str, source: str) -> None:
        self._clauses += clauses
        self._chars += len(text)
        if self._clauses > QUERY_MAX_CLAUSES:
            message = f"a query may have at most {QUERY_MAX_CLAUSES} clauses, words and values together"
            _refuse(message, source, QUERY_MAX_CLAUSES)
        if self._chars > STRUCTURED_MAX_CHARS:
            _refuse(f"the texts of a query may have at most {STRUCTURED_MAX_CHARS} characters", source, STRUCTURED_MAX_CHARS)
        try:
            text.encode()
        except UnicodeEncodeError:
            _refuse("half a surrogate pair is not text", source)


def like_keys(query: s.MoreLikeThis, source: str) -> list[bytes]:
    """The keys of the documents that others are to be like. Raises InvalidArgument."""
    keys = [key.encode() if isinstance(key, str) else key for key in query.keys]
    if not 1 <= len(keys) + len(query.texts) <= LIKE_MAX_TEXTS:
        message = f"documents are like 1 to {LIKE_MAX_TEXTS} texts and keys together, not {len(keys) + len(query.texts)}"
        _refuse(message, source, LIKE_MAX_TEXTS)
    for at, key in enumerate(keys):
        if not 0 < len(key) <= KEY_MAX_BYTES:
            _refuse(f"a key has 1 to {KEY_MAX_BYTES} bytes, not {len(key)}", f"{source}.keys[{at}]", KEY_MAX_BYTES)
    return keys


def _text_of(document: Mapping[str, object], names: Sequence[str]) -> str:
    """All that a document has in some text fields."""
    given = [document.get(name) for name in names]
    values = [value for each in given for value in (each if isinstance(each, list) else [each])]
    return "\n".join(value for value in values if isinstance(value, str))


def likes_of(query: s.StructuredQuery) -> list[s.MoreLikeThis]:
    """The parts of a query that look for documents like others."""
    found: list[s.MoreLikeThis] = []
    pending = [query]
    while pending:
        each = pending.pop()
        match each:
            case s.MoreLikeThis():
                found.append(each)
            case s.Bool():
                pending += [*each.must, *each.should, *each.must_not, *each.filter]
            case s.DisMax():
                pending += each.queries
            case s.ConstantScore() | s.Boost():
                pending.append(each.query)
    return found


def _size(node: Node) -> int:
    """Clauses of a node from a query string."""
    if isinstance(node, Group):
        return sum(_size(clause.node) for clause in node.clauses)
    return _size(node.node) if isinstance(node, syntax.Boost | syntax.Within) else 1


def _range(query: s.Range, source: str) -> Node:
    for one, other in (("gt", "gte"), ("lt", "lte")):
        if getattr(query, one) is not None and getattr(query, other) is not None:
            _refuse(f"a range has either {one} or {other}", source)
    lower = query.gt if query.gte is None else query.gte
    upper = query.lt if query.lte is None else query.lte
    if lower is None and upper is None:
        _refuse("a range needs a bound: gt, gte, lt or lte", source)
    return syntax.Range(
        query.field,
        None if lower is None else value_text(lower),
        None if upper is None else value_text(upper),
        query.gt is None,
        query.lt is None,
        NO_POSITION,
    )


def _distance(distance: int | str | None, source: str) -> int | None:
    if distance is None:
        return None
    if type(distance) is not int or not 0 <= distance <= DISTANCE_MAX:
        message = f"a word may be fuzzy by 0 to {DISTANCE_MAX} letters, not {_short(distance)}"
        _refuse(message, source, DISTANCE_MAX)
    return distance


def value_text(value: s.Value) -> str:
    """A value as a query string has it. Raises InvalidArgument for what is none."""
    if not isinstance(value, str | int | float):
        raise InvalidArgument(f"a {type(value).__name__} is no value; dates are text", ErrorDetails(field="value"))
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def _refuse(what: str, source: str, limit: int | None = None) -> NoReturn:
    raise InvalidArgument(what, ErrorDetails(field=source, limit=limit))
