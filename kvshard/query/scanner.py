"""Reads a query string character by character: words, quoted text, operators, numbers behind ^ and ~.

Every error says at which character it is, counted from 1 for people; details.position counts from 0.

Pure: imports only the standard library and other pure files.
"""

import math
import re
from dataclasses import dataclass
from typing import Final, NoReturn

from kvshard.errors import ErrorDetails, MalformedQuery
from kvshard.query.bounds import BOOST_MAX, DISTANCE_MAX, SLOP_MAX, WILDCARD_MAX_CHARS
from kvshard.query.glob import ANY_TEXT, pattern_of

ENDS_WORD: Final = frozenset('"()[]{}^')

_NUMBER = re.compile(r"\d+(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
_FUZZY = re.compile(r'~(\d+(?:\.\d+)?)?(?=$|[\s"()\[\]{}^])', re.ASCII)
_REGEX = re.compile(r"/((?:[^/\\\s]|\\.)+)/(?=$|[\s)^])", re.DOTALL)
_SLOP = re.compile(r"~(\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Token:
    """A word. text: literal. is_escaped: any of it was. pattern: with its wildcards, if any. fuzzy: what follows its ~."""

    text: str
    start: int
    is_escaped: bool = False
    pattern: str | None = None
    fuzzy: str | None = None

    @property
    def is_star(self) -> bool:
        """Whether it is a `*` and no more."""
        return self.pattern == ANY_TEXT

    @property
    def is_prefix(self) -> bool:
        """Whether a star at its end is its only wildcard; `text` is what stands before it."""
        return self.pattern is not None and self.pattern == pattern_of([(char, False) for char in self.text] + [("*", True)])


class Scanner:
    """One pass over the text; `_at` is the next character to read. source: names the text in errors."""

    def __init__(self, text: str, source: str) -> None:
        self._text = text
        self._source = source
        self._at = 0

    def _take_word(self, stops_at_colon: bool, is_plain: bool = False) -> Token:
        """is_plain: neither `?` nor `~` means anything, as in a bound."""
        start = self._at
        parts: list[tuple[str, bool]] = []
        is_escaped = False
        fuzzy: str | None = None
        while not self._is_at_end():
            char = self._peek()
            if char.isspace() or char in ENDS_WORD or (char == ":" and stops_at_colon):
                break
            if char == "~" and parts and not is_plain:
                match = _FUZZY.match(self._text, self._at)
                if match is not None:
                    self._at, fuzzy = match.end(), match.group(1) or ""
                    break
            self._at += 1
            if char == "\\":
                if self._is_at_end():
                    self._fail("a backslash needs a character after it", self._at - 1)
                parts.append((self._take(), False))
                is_escaped = True
            else:
                parts.append((char, char == "*" or (char == "?" and not is_plain)))
        text = "".join(char for char, is_wild in parts if not is_wild)
        if not any(is_wild for _, is_wild in parts):
            return Token(text, start, is_escaped, None, fuzzy)
        if len(parts) > WILDCARD_MAX_CHARS:
            self._fail(f"a word with wildcards may have at most {WILDCARD_MAX_CHARS} characters", start)
        return Token(text, start, is_escaped, pattern_of(parts), fuzzy)

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

    def _take_regex(self) -> str | None:
        """What stands between slashes; None where none begins here, as in `/usr/lib`: one ends at a slash that ends a word."""
        match = _REGEX.match(self._text, self._at)
        if match is None:
            return None
        self._at = match.end()
        return match.group(1)

    def _take_slop(self) -> int:
        """What follows a phrase: `~2`, or nothing."""
        if self._peek() != "~":
            return 0
        match = _SLOP.match(self._text, self._at)
        digits = match.group(1) if match else None
        if match is None or digits is None or len(digits) > 9 or int(digits) > SLOP_MAX:
            self._fail(f'the slop of a phrase is a number from 0 to {SLOP_MAX}, as in "a b"~2', self._at)
        self._must_end_at(match.end(), "a slop", ")^")
        return int(digits)

    def _take_boost(self) -> float:
        """What follows the ^ that stands here."""
        start = self._at
        match = _NUMBER.match(self._text, start + 1)
        factor = float(match.group()) if match else math.nan
        if match is None or not 0 < factor <= BOOST_MAX:
            self._fail(f"a boost is a number above 0 and up to {BOOST_MAX:g}, as in ^2", start)
        self._must_end_at(match.end(), "a boost", ")")
        return factor

    def _distance_of(self, token: Token) -> int | None:
        if not token.fuzzy:
            return None
        if token.fuzzy not in map(str, range(DISTANCE_MAX + 1)):
            self._fail(f"a word may be fuzzy by 0 to {DISTANCE_MAX} letters, as in word~1", self._at - len(token.fuzzy) - 1)
        return int(token.fuzzy)

    def _must_end_at(self, end: int, what: str, ends: str) -> None:
        self._at = end
        if not self._is_at_end() and not self._peek().isspace() and self._peek() not in ends:
            self._fail(f"{what} must be followed by a space", self._at)

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
