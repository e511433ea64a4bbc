"""What one search looked for and where its time went, for whoever asked; a search that was not asked for it notes nothing.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Callable, Iterable
from typing import Final

from kvshard.search_accounts import LegPhase, ProfiledTerm
from leaf.bm25 import Part, ScoredTerms

TERMS_MAX: Final = 256
"""Terms told of: a query that someone reads has fewer, and each costs a look into the index's dictionary."""


class Phases:
    """Measures the phases of a search: `end` gives the time since the last end to the phase of that name."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._since = now()
        self._took_s: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"Phases({self._took_s})"

    def end(self, name: str) -> None:
        """The time since the last end, or the beginning, belongs to this phase."""
        now = self._now()
        self._took_s[name] = self._took_s.get(name, 0.0) + now - self._since
        self._since = now

    def go_on(self) -> None:
        """The time since the last end belongs to none: the search has waited."""
        self._since = self._now()

    @property
    def took(self) -> list[LegPhase]:
        """In the order in which they first ended."""
        return [LegPhase(name, round(seconds * 1e6)) for name, seconds in self._took_s.items()]


class _Untimed(Phases):
    """Measures nothing."""

    def __init__(self) -> None:
        super().__init__(lambda: 0.0)

    def end(self, name: str) -> None:
        pass


UNTIMED: Final = _Untimed()
"""Of a search that was not asked for a profile."""


def profiled_terms(
    parts: Iterable[Part], count_of: Callable[[str, str], int], shown: Callable[[str, str], str]
) -> list[ProfiledTerm]:
    """The terms of a query's parts, each once, in their order; at most TERMS_MAX. count_of: (field, term) -> documents."""
    terms = dict.fromkeys((part.field, term) for part in parts if isinstance(part, ScoredTerms) for term in part.terms)
    return [ProfiledTerm(field, shown(field, term), count_of(field, term)) for field, term in list(terms)[:TERMS_MAX]]
