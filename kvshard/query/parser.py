"""Parses query strings.

    query    = operands joined by OR, || or nothing (the same thing)
    operand  = clause joined by AND or &&          binds tighter than OR
    clause   = [+ - NOT !] value [^boost]
    value    = * | word | prefix* | "phrase" | ( query ) | field:value | field:( query ) | field:* | field:range
    range    = [a TO b] | {a TO b} | mixed | >a >=a <a <=a         a bound of * is open

`+` means must match, `-` must not, for the whole group the clause stands in. NOT and ! are the same as `-`, except after or
before an explicit OR: `a OR NOT b` is what it says, a or everything without b. A backslash makes the next character literal.
Operators are upper case; `and` is a word.

Every error says at which character it is, counted from 1 for people; details.position counts from 0.

Pure: imports only the standard library and other pure files.
"""

import math
import re
from dataclasses import dataclass
from typing import Final, NoReturn

from kvshard.errors import ErrorDetails, InvalidArgument, MalformedQuery
from kvshard.limits import QUERY_MAX_CHARS
from kvshard.query.syntax import (
    Boost,
    Clause,
    Exists,
    Group,
    MatchAll,
    Node,
    Occur,
    Phrase,
    Prefix,
    Range,
    Word,
)

QUERY_MAX_CLAUSES: Final = 1_024
"""Each clause opens a cursor in every segment of every shard; more of them is a job for a keyword field. (As in Lucene.)"""

QUERY_MAX_NESTING: Final = 32
"""The parser and the leaf's compiler recurse; nobody writes deeper parentheses by hand."""

BOOST_MAX: Final = 1_000.0
"""Beyond it the other clauses' share of a 32-bit score drowns in rounding."""

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_NUMBER = re.compile(r"\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_ENDS_WORD = frozenset('"()[]{}^')
_OR_OPERATORS = ("OR", "||")
_AND_OPERATORS = ("AND", "&&")


def parse_query(text: str, source: str = "query") -> Node:
    """The query's tree; text without any clause matches everything.

    source: the request field that the text came in, for details.field. Raises MalformedQuery, or InvalidArgument for a text
    over a limit.
    """
    if len(text) > QUERY_MAX_CHARS:
        details = ErrorDetails(field=source, limit=QUERY_MAX_CHARS, position=QUERY_MAX_CHARS)
        raise InvalidArgument(f"a query may have at most {QUERY_MAX_CHARS} characters, not {len(text)}", details)
    return _Parser(text, source).parse()


@dataclass(slots=True)
class _Operand:
    """A clause as read, before its neighbours decide what its modifier means."""

    occur: Occur
    node: Node
    is_logical_not: bool = False


@dataclass(frozen=True, slots=True)
class _Token:
    """A word: its literal text, where it starts, whether any of it was escaped, whether it ends in a bare `*`."""

    text: str
    start: int
    is_escaped: bool = False
    is_prefix: bool = False


class _Parser:
    """One pass over the text; `_at` is the next character to read."""

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source
        self._at = 0
        self._clauses = 0
        self._depth = 0

    def parse(self) -> Node:
        self._refuse_broken_unicode()
        self._skip_spaces()
        if self._is_at_end():
            return MatchAll()
        node = self._parse_group(None)
        if not self._is_at_end():  # the group above stops at a ) only
            self._fail("unbalanced closing parenthesis", self._at)
        return node

    def _parse_group(self, field: str | None) -> Node:
        operands = [self._parse_and_chain(field)]
        was_or = False
        while True:
            self._skip_spaces()
            if self._is_at_end() or self._peek() == ")":
                return _group_of(operands)
            start = self._at
            operator = self._take_operator(_OR_OPERATORS)
            if operator and self._at_operand_end():
                self._fail(f"{operator} needs something after it", start)
            if operator and operands[-1].is_logical_not:
                operands[-1] = _complement(operands[-1])
            was_or = operator is not None
            operand = self._parse_and_chain(field)
            operands.append(_complement(operand) if was_or and operand.is_logical_not else operand)

    def _parse_and_chain(self, field: str | None) -> _Operand:
        operands = [self._parse_clause(field)]
        while True:
            self._skip_spaces()
            start = self._at
            operator = self._take_operator(_AND_OPERATORS)
            if operator is None:
                break
            if self._at_operand_end():
                self._fail(f"{operator} needs something after it", start)
            operands.append(self._parse_clause(field))
        if len(operands) == 1:
            return operands[0]
        required = [Clause(Occur.MUST_NOT if each.occur is Occur.MUST_NOT else Occur.MUST, each.node) for each in operands]
        return _Operand(Occur.SHOULD, Group(tuple(required)))

    def _parse_clause(self, field: str | None) -> _Operand:
        self._skip_spaces()
        start = self._at
        for operator in ("AND", "OR", "&&", "||"):
            if self._take_operator((operator,)):
                self._fail(f"{operator} needs something before it", start)
        occur, is_logical = self._take_modifier()
        if occur is not Occur.SHOULD and self._at_operand_end():
            self._fail(f"{self._text[start : self._at].strip()} needs something after it", start)
        operand = self._at
        for operator in ("AND", "OR", "NOT", "&&", "||"):
            if self._take_operator((operator,)):
                self._fail(f"unexpected {operator}", operand)
        node = self._parse_boosts(self._parse_value(field))
        return _Operand(occur, node, is_logical)

    def _take_modifier(self) -> tuple[Occur, bool]:
        """The modifier, and whether it was written NOT or !."""
        char = self._peek()
        if char in "+-!":
            self._at += 1
            self._skip_spaces()
            return (Occur.MUST if char == "+" else Occur.MUST_NOT), char == "!"
        if self._take_operator(("NOT",)):
            return Occur.MUST_NOT, True
        return Occur.SHOULD, False

    def _parse_value(self, field: str | None) -> Node:
        start = self._at
        char = self._peek()
        if char == "(":
            return self._parse_parentheses(field)
        self._clauses += 1
        if self._clauses > QUERY_MAX_CLAUSES:
            details = ErrorDetails(field=self._source, limit=QUERY_MAX_CLAUSES, position=start)
            raise InvalidArgument(f"a query may have at most {QUERY_MAX_CLAUSES} clauses", details)
        if char == '"':
            return Phrase(field, self._take_quoted(), start)
        if char in ")]}[{^:":
            self._fail(f"unexpected {char}", start)
        token = self._take_word(stops_at_colon=True)
        if self._peek() == ":":
            return self._parse_field_value(token)
        return self._word_node(field, token, is_in_field=False)

    def _parse_parentheses(self, field: str | None) -> Node:
        start = self._at
        self._depth += 1
        if self._depth > QUERY_MAX_NESTING:
            details = ErrorDetails(field=self._source, limit=QUERY_MAX_NESTING, position=start)
            raise InvalidArgument(f"a query may be nested at most {QUERY_MAX_NESTING} deep", details)
        self._at += 1
        self._skip_spaces()
        if self._peek() == ")":
            self._fail("empty parentheses", start)
        if self._is_at_end():
            self._fail("unbalanced parenthesis", start)
        node = self._parse_group(field)
        if self._is_at_end():
            self._fail("unbalanced parenthesis", start)
        self._at += 1
        self._depth -= 1
        return node

    def _parse_field_value(self, name: _Token) -> Node:
        colon = self._at
        self._at += 1
        if name.is_prefix or name.is_escaped or _FIELD.match(name.text) is None:
            self._fail(f"{_short(name.text)} is no field name (a literal colon is written \\:)", name.start)
        if self._at_operand_end() or self._peek().isspace():
            self._fail(f"a value must follow directly after {name.text}:", colon)
        start = self._at
        char = self._peek()
        if char == "(":
            return self._parse_parentheses(name.text)
        if char == '"':
            return Phrase(name.text, self._take_quoted(), start)
        if char in "[{":
            return self._parse_brackets(name.text)
        if char in "<>":
            return self._parse_comparison(name.text)
        if char in "]}^":
            self._fail(f"unexpected {char}", start)
        return self._word_node(name.text, self._take_word(stops_at_colon=False), is_in_field=True)

    def _word_node(self, field: str | None, token: _Token, is_in_field: bool) -> Node:
        if not token.is_prefix:
            return Word(field, token.text, token.start)
        if token.text:
            return Prefix(field, token.text, token.start)
        if field is not None:
            return Exists(field, token.start)
        return MatchAll()

    def _parse_brackets(self, field: str) -> Node:
        start = self._at
        includes_lower = self._take() == "["
        lower = self._take_bound(start)
        self._skip_spaces()
        if not self._take_operator(("TO",)):
            self._fail("a range is written [from TO to]; TO is missing", start)
        upper = self._take_bound(start)
        self._skip_spaces()
        if self._peek() not in {"]", "}"}:
            self._fail("unbalanced range bracket", start)
        return Range(field, lower, upper, includes_lower, self._take() == "]", start)

    def _take_bound(self, opening: int) -> str | None:
        self._skip_spaces()
        if self._is_at_end():
            self._fail("unbalanced range bracket", opening)
        if self._peek() == '"':
            return self._take_quoted()
        if self._peek() in _ENDS_WORD:
            self._fail("a range needs two bounds (* for an open one)", self._at)
        token = self._take_word(stops_at_colon=False)
        if token.is_prefix and token.text:
            self._fail("a * stands alone in a range", token.start)
        return None if token.is_prefix else token.text

    def _parse_comparison(self, field: str) -> Node:
        start = self._at
        is_lower = self._take() == ">"
        includes = self._peek() == "="
        if includes:
            self._at += 1
        if self._at_operand_end() or self._peek().isspace() or (self._peek() != '"' and self._peek() in _ENDS_WORD):
            self._fail(f"a value must follow directly after {self._text[start : self._at]}", start)
        if self._peek() == '"':
            value = self._take_quoted()
        else:
            token = self._take_word(stops_at_colon=False)
            if token.is_prefix:
                self._fail("a * has no place in a comparison", token.start)
            value = token.text
        if is_lower:
            return Range(field, value, None, includes, True, start)
        return Range(field, None, value, True, includes, start)

    def _parse_boosts(self, node: Node) -> Node:
        if self._peek() != "^":
            return node
        start = self._at
        match = _NUMBER.match(self._text, start + 1)
        factor = float(match.group()) if match else math.nan
        if match is None or not 0 < factor <= BOOST_MAX:
            self._fail(f"a boost is a number above 0 and up to {BOOST_MAX:g}, as in ^2", start)
        self._at = match.end()
        if not self._is_at_end() and not self._peek().isspace() and self._peek() != ")":
            self._fail("a boost must be followed by a space", self._at)
        return Boost(node, factor)

    def _take_quoted(self) -> str:
        start = self._at
        self._at += 1
        chars: list[str] = []
        while self._peek() != '"':
            if self._is_at_end():
                self._fail("unbalanced quote", start)
            char = self._take()
            if char == "\\" and not self._is_at_end():
                char = self._take()
            chars.append(char)
        self._at += 1
        return "".join(chars)

    def _take_word(self, stops_at_colon: bool) -> _Token:
        start = self._at
        chars: list[str] = []
        is_escaped = False
        while not self._is_at_end():
            char = self._peek()
            if char.isspace() or char in _ENDS_WORD or (char == ":" and stops_at_colon):
                break
            self._at += 1
            if char == "\\":
                if self._is_at_end():
                    self._fail("a backslash needs a character after it", self._at - 1)
                char = self._take()
                is_escaped = True
            elif char == "*":
                if not (self._is_at_end() or self._peek().isspace() or self._peek() in _ENDS_WORD):
                    self._fail("a * may only stand at the end of a word", self._at - 1)
                return _Token("".join(chars), start, is_escaped, is_prefix=True)
            chars.append(char)
        return _Token("".join(chars), start, is_escaped)

    def _take_operator(self, names: tuple[str, ...]) -> str | None:
        """Pass over one of the operators if it stands here as a word of its own."""
        for name in names:
            end = self._at + len(name)
            if self._text.startswith(name, self._at) and (
                end >= len(self._text) or self._text[end].isspace() or self._text[end] in '()"'
            ):
                self._at = end
                self._skip_spaces()
                return name
        return None

    def _at_operand_end(self) -> bool:
        return self._is_at_end() or self._peek() == ")"

    def _is_at_end(self) -> bool:
        return self._at >= len(self._text)

    def _peek(self) -> str:
        """The next character; a NUL at the end, which no rule of the grammar knows."""
        return self._text[self._at] if self._at < len(self._text) else "\0"

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _skip_spaces(self) -> None:
        while not self._is_at_end() and self._text[self._at].isspace():
            self._at += 1

    def _refuse_broken_unicode(self) -> None:
        try:
            self._text.encode()
        except UnicodeEncodeError as error:
            self._fail("half a surrogate pair is not text", error.start)

    def _fail(self, what: str, position: int) -> NoReturn:
        details = ErrorDetails(field=self._source, position=min(position, max(len(self._text) - 1, 0)))
        raise MalformedQuery(f"{what} at character {(details.position or 0) + 1}", details)


def _complement(operand: _Operand) -> _Operand:
    """NOT x as something that may match: every document but x."""
    return _Operand(Occur.SHOULD, Group((Clause(Occur.MUST_NOT, operand.node),)))


def _group_of(operands: list[_Operand]) -> Node:
    if len(operands) == 1 and operands[0].occur is not Occur.MUST_NOT:
        return operands[0].node
    return Group(tuple(Clause(each.occur, each.node) for each in operands))


def _short(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}..."
