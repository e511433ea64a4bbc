"""Matches words with a regular expression: one step a character, of a bounded size, whatever the expression is.

Glushkov's automaton has a position for each character that the expression spells, and a set of them is where a word has got to,
as the bits of a number. All ways into a position are by its own character; so the next set is where the present one leads to,
and of that the positions which have the character.

Pure: imports only the standard library and other pure files.
"""

from functools import reduce
from operator import or_
from typing import Final, NamedTuple

from kvshard.query.regex import Chars, Choice, Regex, Repeat, Sequence

_STATES_KEPT: Final = 10_000
"""Sets of positions, with where they lead to: about a megabyte. Words begin alike, and get to few."""

_CHARS_KEPT: Final = 4_096
"""Characters, with the positions that have them. No language but Chinese has more, and what is left out is found anew."""


class _Part(NamedTuple):
    """A piece of the automaton. is_empty: it matches the empty word too. first, last: positions where a word may begin, end."""

    is_empty: bool
    first: int
    last: int


class Automaton:
    """Of one expression, for one thread."""

    def __init__(self, regex: Regex) -> None:
        self._chars: list[Chars] = []
        self._follow: list[int] = []
        whole = self._built(regex)
        self._is_empty, self._first, self._last = whole
        self._leads: dict[int, int] = {}
        self._having: dict[str, int] = {}

    def matches(self, word: str) -> bool:
        """Whether the whole word does."""
        state, leads, having = 0, self._first, self._having
        for char in word:
            known = having.get(char)
            state = leads & (self._positions(char) if known is None else known)
            if not state:
                return False
            reached = self._leads.get(state)
            leads = self._led_to(state) if reached is None else reached
        return bool(state & self._last) if word else self._is_empty

    def _positions(self, char: str) -> int:
        found = sum(1 << place for place, chars in enumerate(self._chars) if chars.has(char))
        if len(self._having) >= _CHARS_KEPT:
            self._having.clear()
        self._having[char] = found
        return found

    def _led_to(self, state: int) -> int:
        found = reduce(or_, (self._follow[place] for place in _bits(state)))
        if len(self._leads) >= _STATES_KEPT:
            self._leads.clear()
        self._leads[state] = found
        return found

    def _built(self, regex: Regex) -> _Part:
        match regex:
            case Chars():
                self._chars.append(regex)
                self._follow.append(0)
                bit = 1 << (len(self._chars) - 1)
                return _Part(False, bit, bit)
            case Sequence():
                return reduce(self._joined, map(self._built, regex.items), _Part(True, 0, 0))
            case Choice():
                parts = [self._built(each) for each in regex.branches]
                firsts, lasts = (reduce(or_, each) for each in ([part.first for part in parts], [part.last for part in parts]))
                return _Part(any(part.is_empty for part in parts), firsts, lasts)
            case Repeat():
                return self._repeated(regex)

    def _repeated(self, regex: Repeat) -> _Part:
        copies = max(1, regex.least) if regex.most is None else regex.most
        whole = last = _Part(True, 0, 0)
        for number in range(copies):
            last = self._built(regex.item)
            whole = self._joined(whole, last if number < regex.least else last._replace(is_empty=True))
        if regex.most is None:
            self._link(last.last, last.first)
        return whole

    def _joined(self, one: _Part, two: _Part) -> _Part:
        self._link(one.last, two.first)
        first = one.first | two.first if one.is_empty else one.first
        last = two.last | one.last if two.is_empty else two.last
        return _Part(one.is_empty and two.is_empty, first, last)

    def _link(self, ends: int, begins: int) -> None:
        for place in _bits(ends):
            self._follow[place] |= begins


def _bits(number: int) -> list[int]:
    """The places of its bits."""
    found: list[int] = []
    while number:
        lowest = number & -number
        found.append(lowest.bit_length() - 1)
        number ^= lowest
    return found
