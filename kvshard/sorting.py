"""In which order hits come: the sort keys of a search, how they are written, and the order that they define.

A sort is a list of keys with commas between them: `-year,title_kw:missing_first`. A key is the name of a field other than a
text, `_score` or `_key`. A "-" in front (or `:desc` behind) makes it descend; `_score` is best first with or without it.
Documents without a value come last in either direction, with `:missing_first` first. An empty sort is `_score`. Whatever the
keys leave equal is in the order of the documents' keys, ascending, so that no two documents stand at one place: the same on
every replica, in every shard, and before and after a split. That is why a page can go on behind a position, whoever answers.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, total_ordering
from typing import Final, NoReturn, TypeAlias

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.model import SortValue
from kvshard.schema import TEXT, VECTOR, Schema, base_type
from kvshard.unknown_fields import unknown_field

SCORE: Final = "_score"
"""Sort key: the score."""

KEY: Final = "_key"
"""Sort key: the document's key."""

SORT_KEYS_MAX: Final = 8
"""Each further key is one more search per page and shard where documents are equal by those before it."""

_TEXT_MAX_CHARS: Final = 1_024
"""Of a sort that is written out: eight of the longest names with all their options."""

_DIRECTIONS: Final = {"asc": False, "desc": True}
_MISSING: Final = {"missing_first": True, "missing_last": False}

PlaceOf: TypeAlias = Callable[[Sequence[SortValue], float, bytes], tuple[object, ...]]
"""Of what decides where a hit stands: its values of the fields among the sort keys, its score, its key."""


@dataclass(frozen=True, slots=True)
class SortKey:
    """One sort key. name: a field, SCORE or KEY. is_missing_first: of documents without a value; last otherwise."""

    name: str
    is_descending: bool = False
    is_missing_first: bool = False

    @property
    def is_field(self) -> bool:
        """Whether it is a field's value."""
        return self.name not in {SCORE, KEY}


Sorts: TypeAlias = tuple[SortKey, ...]

BY_SCORE: Final[Sorts] = (SortKey(SCORE, is_descending=True),)
"""The order of a search that does not say any."""


@lru_cache(256)
def parse_sort(text: str) -> Sorts:
    """The keys of a sort that is written out. Raises InvalidArgument."""
    if not text.strip():
        return BY_SCORE
    if len(text) > _TEXT_MAX_CHARS:
        _refuse(f"a sort has at most {_TEXT_MAX_CHARS} characters, not {len(text)}", _TEXT_MAX_CHARS)
    return sorts_of([_parse_key(part.strip()) for part in text.split(",")])


def sorts_of(keys: Sequence[SortKey]) -> Sorts:
    """The keys of a sort, checked against each other. Raises InvalidArgument."""
    if len(keys) > SORT_KEYS_MAX:
        _refuse(f"a search is sorted by at most {SORT_KEYS_MAX} keys, not {len(keys)}", SORT_KEYS_MAX)
    names = [key.name for key in keys]
    for at, key in enumerate(keys):
        if not key.name or any(char in key.name for char in ",: "):
            _refuse(f"{key.name[:64]!r} is no sort key; write field, -field or field:missing_first, with commas between them")
        if key.name in names[:at]:
            _refuse(f"{key.name[:64]} stands twice in the sort")
        if key.name == KEY and at + 1 < len(keys):
            _refuse(f"{KEY} must be the last sort key: no two documents share one")
        if key.name == SCORE and not key.is_descending:
            _refuse(f"{SCORE} sorts best first only")
        if not key.is_field and key.is_missing_first:
            _refuse(f"no document lacks a {key.name}; missing_first is for fields")
    return tuple(keys) or BY_SCORE


def _parse_key(text: str) -> SortKey:
    name, *options = text.removeprefix("-").split(":")
    is_descending = text.startswith("-") or name == SCORE
    is_missing_first = False
    seen: set[str] = set()
    for option in options:
        kind = "direction" if option in _DIRECTIONS else "missing"
        if kind in seen or (kind == "direction" and text.startswith("-")):
            _refuse(f"the sort key {text[:80]!r} says twice how it is to be sorted")
        seen.add(kind)
        if option in _DIRECTIONS:
            is_descending = _DIRECTIONS[option]
        elif option in _MISSING:
            is_missing_first = _MISSING[option]
        else:
            _refuse(f"unknown sort option {option[:64]!r}; known are {', '.join([*_DIRECTIONS, *_MISSING])}")
    return SortKey(name.strip(), is_descending, is_missing_first)


def sort_text(sorts: Sorts) -> str:
    """A sort written out; equal ones have one text. Empty for BY_SCORE."""
    if sorts == BY_SCORE:
        return ""
    return ",".join(
        ("-" if key.is_descending and key.name != SCORE else "") + key.name + (":missing_first" if key.is_missing_first else "")
        for key in sorts
    )


def check_sort(sorts: Sorts, schema: Schema) -> None:
    """Raise InvalidArgument unless each field exists and can be sorted by."""
    for key in sorts:
        if not key.is_field:
            continue
        field_type = schema.get(key.name)
        if field_type is None:
            _refuse(unknown_field(key.name, schema, "to sort by", besides=(SCORE, KEY)))
        if (base := base_type(field_type)) in (TEXT, VECTOR):
            instead = "a keyword field that holds it as well" if base == TEXT else "another field, or ask for its nearest"
            _refuse(f"{key.name} is a {base} field, and a {base} has no order; sort by {instead}")


def field_keys(sorts: Sorts) -> Sorts:
    """Those of the keys that are fields: which a hit's sort values belong to, in order."""
    return tuple(key for key in sorts if key.is_field)


def is_by_score(sorts: Sorts) -> bool:
    """Whether scores decide before anything else."""
    return sorts[0].name == SCORE


@total_ordering
@dataclass(frozen=True, slots=True, eq=True)
class _Reversed:
    """Text that sorts the other way round."""

    value: str | bytes

    def __lt__(self, other: "_Reversed") -> bool:
        return other.value < self.value  # type: ignore[operator]  # text meets text, keys meet keys


def place_of(sorts: Sorts) -> PlaceOf:
    """The function that tells where a hit stands: smaller places come first, and no two documents have the same.

    Numbers come before text, which only a schema in change can bring together.
    """
    if sorts == BY_SCORE:
        return lambda _, score, key: (-score, key)

    def place(values: Sequence[SortValue], score: float, key: bytes) -> tuple[object, ...]:
        parts: list[object] = []
        given = iter(values)
        for each in sorts:
            if each.name == SCORE:
                parts.append(-score)
            elif each.name == KEY:
                parts.append(_Reversed(key) if each.is_descending else key)
            else:
                parts += _field_place(each, next(given))
        return (*parts, key)

    return place


def _field_place(key: SortKey, value: SortValue) -> tuple[object, ...]:
    if value is None:
        return (0 if key.is_missing_first else 2, 0, 0)
    if isinstance(value, str):
        return (1, 0, _Reversed(value)) if key.is_descending else (1, 1, value)
    return (1, 1, -value) if key.is_descending else (1, 0, value)


def _refuse(message: str, limit: int | None = None) -> NoReturn:
    raise InvalidArgument(message, ErrorDetails(field="sort", limit=limit))
