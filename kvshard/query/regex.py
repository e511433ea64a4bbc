"""Regular expressions of the query language: `/colou?rs?/`. A whole word, or keyword, has to match.

    expression = branch | branch | ...
    branch     = items, each with * + ? {2} {2,} or {2,5} behind it, or nothing
    item       = character | . | [a-z] | [^a-z] | \\d \\w \\s \\D \\W \\S | \\ and the character that is meant | ( expression )

There are no anchors, as whole words are compared, and nothing that looks back or ahead. So an expression is a finite automaton,
one position for each character that it spells (Glushkov): a word is matched by one step a character, whatever the expression
is. What it spells with its repetitions written out is bounded, and nothing else needs to be.

Pure: imports only the standard library.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NoReturn, TypeAlias

REGEX_MAX_CHARS: Final = 256
"""As of a word with wildcards."""

REGEX_MAX_POSITIONS: Final = 256
"""Characters that an expression spells, with repetitions written out: `(ab){20}` has 40. A step costs up to some 3 us by it."""

_NESTING_MAX: Final = 32
"""The parser recurses; nobody writes deeper parentheses by hand."""

_REPEAT_DIGITS: Final = 3
"""Of a number of repetitions: more of them spell too much anyway."""

_CLASSES: Final = frozenset("dwsDWS")
_ENDS_ITEM: Final = frozenset("|)")

Fold: TypeAlias = Callable[[str], str]
"""What the words that are compared have in place of a character: lower case, or without its accent."""


class RegexError(ValueError):
    """An expression that is none, or too large. at: the character at fault, from 0, which the message does not say."""

    def __init__(self, message: str, at: int) -> None:
        super().__init__(message)
        self.at = at


@dataclass(frozen=True, slots=True)
class Chars:
    """One character: of these ranges, both ends included, or these classes; or one that is not, if is_negated."""

    ranges: tuple[tuple[str, str], ...]
    classes: str = ""
    is_negated: bool = False

    @property
    def literal(self) -> str:
        """The character, if it can be one only; else empty."""
        is_one = len(self.ranges) == 1 and self.ranges[0][0] == self.ranges[0][1]
        return self.ranges[0][0] if is_one and not self.classes and not self.is_negated else ""

    def has(self, char: str) -> bool:
        """Whether it may be this one."""
        is_found = any(first <= char <= last for first, last in self.ranges)
        return (is_found or any(_is_of(each, char) for each in self.classes)) != self.is_negated


@dataclass(frozen=True, slots=True)
class Sequence:
    """One after the other."""

    items: "tuple[Regex, ...]"


@dataclass(frozen=True, slots=True)
class Choice:
    """One of these."""

    branches: "tuple[Regex, ...]"


@dataclass(frozen=True, slots=True)
class Repeat:
    """So many times. most: None: or more."""

    item: "Regex"
    least: int
    most: int | None


Regex: TypeAlias = Chars | Sequence | Choice | Repeat


def parse_regex(text: str, fold: Fold = lambda char: char) -> Regex:
    """The expression that is written. Raises RegexError."""
    if not text:
        raise RegexError("an empty regular expression", 0)
    if len(text) > REGEX_MAX_CHARS:
        raise RegexError(f"a regular expression has at most {REGEX_MAX_CHARS} characters, not {len(text)}", REGEX_MAX_CHARS)
    found = _Parser(text, fold).parse()
    if (size := size_of(found)) > REGEX_MAX_POSITIONS:
        shown = f"{size:,}" if size < 10**9 else "more than a billion"
        message = f"a regular expression spells at most {REGEX_MAX_POSITIONS} characters with its repetitions, not {shown}"
        raise RegexError(message, 0)
    return found


def written(text: str) -> str:
    """An expression as it stands between slashes."""
    found, is_escaped = "", False
    for char in text:
        is_in_the_way = not is_escaped and (char == "/" or char.isspace())
        found += "\\" + char if is_in_the_way else char
        is_escaped = char == "\\" and not is_escaped
    return found


def size_of(regex: Regex) -> int:
    """How many characters it spells, with repetitions written out."""
    match regex:
        case Chars():
            return 1
        case Sequence():
            return sum(map(size_of, regex.items))
        case Choice():
            return sum(map(size_of, regex.branches))
        case Repeat():
            return size_of(regex.item) * (max(1, regex.least) if regex.most is None else regex.most)


def prefix_of(regex: Regex) -> str:
    """What every word begins with that matches."""
    return _prefix(regex)[0]


def _prefix(regex: Regex) -> tuple[str, bool]:
    """And whether that is all that it matches."""
    match regex:
        case Chars():
            return regex.literal, bool(regex.literal)
        case Sequence():
            found = ""
            for item in regex.items:
                begun, is_whole = _prefix(item)
                found += begun
                if not is_whole:
                    return found, False
            return found, True
        case Repeat() if regex.least:
            begun, is_whole = _prefix(regex.item)
            return (begun * regex.least, regex.most == regex.least) if is_whole else (begun, False)
        case _:
            return "", False


class _Parser:
    """Of one expression; `_at` is the next character to read."""

    def __init__(self, text: str, fold: Fold) -> None:
        self._text = text
        self._fold = fold
        self._at = 0
        self._depth = 0

    def parse(self) -> Regex:
        found = self._choice()
        if self._at < len(self._text):
            self._fail("unbalanced parenthesis", self._at)
        return found

    def _choice(self) -> Regex:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._at += 1
            branches.append(self._sequence())
        return branches[0] if len(branches) == 1 else Choice(tuple(branches))

    def _sequence(self) -> Regex:
        items: list[Regex] = []
        while self._at < len(self._text) and self._peek() not in _ENDS_ITEM:
            items.append(self._repeated(self._item()))
        return items[0] if len(items) == 1 else Sequence(tuple(items))

    def _item(self) -> Regex:
        start = self._at
        char = self._take()
        match char:
            case "(":
                return self._group(start)
            case "[":
                return self._set(start)
            case ".":
                return Chars((), is_negated=True)
            case "\\":
                return self._escaped(start)
            case "*" | "+" | "?" | "{":
                self._fail(f"{char} has nothing before it to repeat", start)
            case "^" | "$":
                self._fail(f"{char} has no place here, whole words are compared (a literal one is written \\{char})", start)
            case "]" | "}":
                self._fail(f"unexpected {char} (a literal one is written \\{char})", start)
        return Chars(self._range(char, char))

    def _group(self, start: int) -> Regex:
        self._depth += 1
        if self._depth > _NESTING_MAX:
            self._fail(f"a regular expression may be nested at most {_NESTING_MAX} deep", start)
        if self._peek() == "?":
            self._fail("groups have no options, and nothing looks ahead or back", self._at)
        found = self._choice()
        if self._peek() != ")":
            self._fail("unbalanced parenthesis", start)
        self._at += 1
        self._depth -= 1
        return found

    def _escaped(self, start: int) -> Chars:
        char = self._escape(start)
        return Chars((), char) if char in _CLASSES else Chars(self._range(char, char))

    def _escape(self, start: int) -> str:
        """The class, or the character that is meant, behind a backslash."""
        if self._at >= len(self._text):
            self._fail("a backslash needs a character after it", start)
        char = self._take()
        if char.isascii() and char.isalnum() and char not in _CLASSES:
            self._fail(f"\\{char} means nothing here; there are \\d, \\w, \\s, \\D, \\W and \\S", start)
        return char

    def _set(self, start: int) -> Chars:
        is_negated = self._peek() == "^"
        self._at += is_negated
        ranges: list[tuple[str, str]] = []
        classes = ""
        while self._peek() != "]" or not (ranges or classes):
            first = self._member(start)
            if first is None:
                classes += self._text[self._at - 1]
                continue
            ranges += self._range(first, self._range_end(first, start))
        self._at += 1
        return Chars(tuple(ranges), classes, is_negated)

    def _range_end(self, first: str, start: int) -> str:
        """The last character of the range that begins with this one: itself where none does."""
        place = self._at
        if self._peek() != "-" or self._text[place + 1 : place + 2] in {"]", ""}:
            return first
        self._at += 1
        last = self._member(start)
        if last is None or last < first:
            self._fail("a range has two characters, the lower one first", place)
        return last

    def _member(self, start: int) -> str | None:
        """A character of a set; None: it was a class."""
        if self._at >= len(self._text):
            self._fail("unbalanced bracket", start)
        place = self._at
        char = self._take()
        if char != "\\":
            return char
        char = self._escape(place)
        return None if char in _CLASSES else char

    def _range(self, first: str, last: str) -> tuple[tuple[str, str], ...]:
        """From one character to another, and as they are folded."""
        folded = self._fold(first), self._fold(last)
        is_other = folded != (first, last) and len(folded[0]) == len(folded[1]) == 1 and folded[0] <= folded[1]
        if not is_other:
            return ((first, last),)
        return (folded,) if first == last else ((first, last), folded)

    def _repeated(self, item: Regex) -> Regex:
        start = self._at
        match self._peek():
            case "*":
                bounds: tuple[int, int | None] = (0, None)
            case "+":
                bounds = (1, None)
            case "?":
                bounds = (0, 1)
            case "{":
                bounds = self._bounds(start)
            case _:
                return item
        self._at += 1
        if self._peek() in {"*", "+", "?", "{"}:
            self._fail(f"unexpected {self._peek()} behind a repetition", self._at)
        return Repeat(item, *bounds)

    def _bounds(self, start: int) -> tuple[int, int | None]:
        """What stands in braces; the closing one is left."""
        end = self._text.find("}", start)
        first, comma, last = self._text[start + 1 : end].partition(",")
        digits = [each for each in (first, last) if each]
        are_numbers = all(each.isascii() and each.isdigit() and len(each) <= _REPEAT_DIGITS for each in digits)
        if end < 0 or not first or not are_numbers or (last and int(last) < int(first)):
            self._fail("a repetition is written {2}, {2,} or {2,5}", start)
        self._at = end
        return int(first), int(last) if last else None if comma else int(first)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _fail(self, message: str, at: int) -> NoReturn:
        raise RegexError(message, at)


def _is_of(name: str, char: str) -> bool:
    match name.lower():
        case "d":
            found = char.isdecimal()
        case "s":
            found = char.isspace()
        case _:
            found = char.isalnum() or char == "_"
    return found != name.isupper()
