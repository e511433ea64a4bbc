"""What a search may say about its hits beside the query: their order, their fields, their fragments, how far to count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kvshard.client.checks import invalid
from kvshard.sorting import SCORE, SortKey, parse_sort, sort_text, sorts_of
from kvshard.v1 import search_pb2


@dataclass(frozen=True, slots=True)
class SortBy:
    """A sort key. field: a field other than a text, "_score" (best first) or "_key", which must be the last.

    missing_first: documents without a value come first instead of last.
    """

    field: str
    descending: bool = False
    missing_first: bool = False


Sort: TypeAlias = str | Sequence[str | SortBy]
"""Sort keys: "-year,tag:missing_first", or a list of such keys and of SortBy."""


def sort_given(sort: Sort) -> str:
    """The sort, written out. Raises InvalidArgument."""
    if isinstance(sort, str):
        return sort
    keys = [key for each in sort for key in ([_key_of(each)] if isinstance(each, SortBy) else parse_sort(each))]
    return sort_text(sorts_of(keys))


def _key_of(given: SortBy) -> SortKey:
    return SortKey(given.field, given.descending or given.field == SCORE, given.missing_first)


def counted_up_to(track_total: bool | int) -> int | None:
    """How far matches are to be counted; None: all of them."""
    if track_total is True:
        return None
    if track_total is not False and track_total < 0:
        raise invalid(f"track_total is True, False or a number of matches, not {track_total}", "track_total")
    return int(track_total)


def highlighting(fragments: int, fragment_chars: int) -> search_pb2.HighlightOptions:
    """How texts are highlighted. Raises InvalidArgument."""
    for argument, given in (("fragments", fragments), ("fragment_chars", fragment_chars)):
        if not 1 <= given < 1 << 32:
            raise invalid(f"{argument} must be at least 1, not {given}", argument)
    return search_pb2.HighlightOptions(fragments=fragments, fragment_chars=fragment_chars)
