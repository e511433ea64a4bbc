"""Parses query strings.

    query    = operands joined by OR, || or nothing (the same thing)
    operand  = clause joined by AND or &&          binds tighter than OR
    clause   = [+ - NOT !] value [^boost]
    value    = * | word | word~[0|1|2] | w?ld*rd | /regex/ | "phrase"[~slop] | ( query ) | field:value | field:( query )
             | field:range | field:* | _exists_:field
    range    = [a TO b] | {a TO b} | mixed | >a >=a <a <=a         a bound of * is open

`+` means must match, `-` must not, for the whole group the clause stands in. NOT and ! are the same as `-`, except after or
before an explicit OR: `a OR NOT b` is what it says, a or everything without b. A backslash makes the next character literal.
Operators are upper case; `and` is a word. A `~` inside a word is a character like any other.

Every error says at which character it is, counted from 1 for people; details.position counts from 0.

Pure: imports only the standard library and other pure files.
"""

import re
from dataclasses import dataclass

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.limits import QUERY_MAX_CHARS
from kvshard.query.bounds import QUERY_MAX_CLAUSES, QUERY_MAX_NESTING
from kvshard.query.regex import RegexError, parse_regex
from kvshard.query.scanner import ENDS_WORD, Scanner, Token
from kvshard.query.syntax import (
    Boost,
    Clause,
    Exists,
    Fuzzy,
    Group,
    MatchAll,
    Node,
    Occur,
    Phrase,
    Prefix,
    Range,
    Regex,
    Wildcard,
    Word,
)

_FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_EXISTS = "_exists_"
_OR_OPERATORS = ("OR", "||")
_AND_OPERATORS = ("AND", "&&")


def parse_query(text: str, source: str = "query", is_and: bool = False) -> Node:
    """The query's tree; text without any clause matches everything.

    source: the request field that the text came in, for details.field. is_and: words that stand beside each other must all
    match, as if AND stood between them. Raises MalformedQuery, or InvalidArgument for a text over a limit.
    """
    if len(text) > QUERY_MAX_CHARS:
        details = ErrorDetails(field=source, limit=QUERY_MAX_CHARS, position=QUERY_MAX_CHARS)
        raise InvalidArgument(f"a query may have at most {QUERY_MAX_CHARS} characters, not {len(text)}", details)
    return _Parser(text, source, is_and).parse()


@dataclass(slots=True)
class _Operand:
    """A clause as read, before its neighbours decide what its modifier means."""

    occur: Occur
    node: Node
    is_logical_not: bool = False


class _Parser(Scanner):
    """The grammar. is_and: neighbours without an operator between them must both match."""

    def __init__(self, text: str, source: str, is_and: bool) -> None:
        super().__init__(text, source)
        self._is_and = is_and
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
            if operator is None and not (self._is_and and self._is_at_neighbour()):
                break
            if self._at_operand_end():
                self._fail(f"{operator} needs something after it", start)
            operands.append(self._parse_clause(field))
        if len(operands) == 1:
            return operands[0]
        required = [Clause(Occur.MUST_NOT if each.occur is Occur.MUST_NOT else Occur.MUST, each.node) for each in operands]
        return _Operand(Occur.SHOULD, Group(tuple(required)))

    def _is_at_neighbour(self) -> bool:
        """Whether another clause follows without an operator."""
        start = self._at
        is_over = self._at_operand_end() or self._take_operator(_OR_OPERATORS) is not None
        self._at = start
        return not is_over

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
            return Phrase(field, self._take_quoted(), self._take_slop(), start)
        if char in ")]}[{^:":
            self._fail(f"unexpected {char}", start)
        pattern = self._take_regex()
        if pattern is not None:
            return self._regex_node(field, pattern, start)
        token = self._take_word(stops_at_colon=True)
        if self._peek() == ":":
            return self._parse_field_value(token)
        return self._word_node(field, token)

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

    def _parse_field_value(self, name: Token) -> Node:
        colon = self._at
        self._at += 1
        if name.pattern is not None or name.is_escaped or _FIELD.match(name.text) is None:
            self._fail(f"{_short(name.text)} is no field name (a literal colon is written \\:)", name.start)
        if self._at_operand_end() or self._peek().isspace():
            self._fail(f"a value must follow directly after {name.text}:", colon)
        start = self._at
        char = self._peek()
        if char == "(":
            return self._parse_parentheses(name.text)
        if char == '"':
            return Phrase(name.text, self._take_quoted(), self._take_slop(), start)
        if char in "[{":
            return self._parse_brackets(name.text)
        if char in "<>":
            return self._parse_comparison(name.text)
        if char in "]}^":
            self._fail(f"unexpected {char}", start)
        if name.text == _EXISTS:
            return self._exists()
        pattern = self._take_regex()
        if pattern is not None:
            return self._regex_node(name.text, pattern, start)
        return self._word_node(name.text, self._take_word(stops_at_colon=False))

    def _regex_node(self, field: str | None, pattern: str, start: int) -> Node:
        try:
            parse_regex(pattern)
        except RegexError as error:
            self._fail(str(error), start + 1 + error.at)
        return Regex(field, pattern, start)

    def _word_node(self, field: str | None, token: Token) -> Node:
        if token.pattern is None:
            if token.fuzzy is None:
                return Word(field, token.text, token.start)
            return Fuzzy(field, token.text, self._distance_of(token), token.start)
        if token.fuzzy is not None:
            self._fail("a word is either fuzzy or has wildcards", token.start)
        if token.is_star:
            return MatchAll() if field is None else Exists(field, token.start)
        if token.is_prefix:
            return Prefix(field, token.text, token.start)
        return Wildcard(field, token.pattern, token.start)

    def _exists(self) -> Node:
        """Behind `_exists_:`."""
        token = self._take_word(stops_at_colon=False)
        if token.pattern is not None or token.fuzzy is not None or _FIELD.match(token.text) is None:
            self._fail(f"{_short(token.text)} is no field name", token.start)
        return Exists(token.text, token.start)

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
        if self._peek() in ENDS_WORD:
            self._fail("a range needs two bounds (* for an open one)", self._at)
        token = self._take_word(stops_at_colon=False, is_plain=True)
        if token.pattern is not None and not token.is_star:
            self._fail("a * stands alone in a range", token.start)
        return None if token.is_star else token.text

    def _parse_comparison(self, field: str) -> Node:
        start = self._at
        is_lower = self._take() == ">"
        includes = self._peek() == "="
        if includes:
            self._at += 1
        if self._at_operand_end() or self._peek().isspace() or (self._peek() != '"' and self._peek() in ENDS_WORD):
            self._fail(f"a value must follow directly after {self._text[start : self._at]}", start)
        if self._peek() == '"':
            value = self._take_quoted()
        else:
            token = self._take_word(stops_at_colon=False, is_plain=True)
            if token.pattern is not None:
                self._fail("a * has no place in a comparison", token.start)
            value = token.text
        if is_lower:
            return Range(field, value, None, includes, True, start)
        return Range(field, None, value, True, includes, start)

    def _parse_boosts(self, node: Node) -> Node:
        return Boost(node, self._take_boost()) if self._peek() == "^" else node


def _complement(operand: _Operand) -> _Operand:
    """NOT x as something that may match: every document but x."""
    return _Operand(Occur.SHOULD, Group((Clause(Occur.MUST_NOT, operand.node),)))


def _group_of(operands: list[_Operand]) -> Node:
    if len(operands) == 1 and operands[0].occur is not Occur.MUST_NOT:
        return operands[0].node
    return Group(tuple(Clause(each.occur, each.node) for each in operands))


def _short(text: str) -> str:
    return repr(text) if len(text) <= 40 else f"{text[:40]!r}..."
