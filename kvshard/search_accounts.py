"""What a leaf tells about a search: how its hits' scores came about, and where its time went. Part of what `model` carries.

Pure: imports only the standard library.
"""

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class ScoreExplanation:
    """How a value came about: the description says what it is, and what it is made of."""

    value: float
    description: str
    details: "list[ScoreExplanation]" = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ProfiledTerm:
    """A term of a query, as the index has it. documents: that have it, deleted ones included that are not merged away yet."""

    field: str
    term: str
    documents: int


@dataclass(frozen=True, slots=True)
class LegPhase:
    """How long a part of a leg's work took."""

    name: str
    took_us: int


@dataclass(frozen=True, slots=True)
class LegProfile:
    """What one leg looked for and where its time went. documents: of the index. matches, hits: found, and delivered."""

    terms: list[ProfiledTerm]
    phases: list[LegPhase]
    indexed_through: int
    segments: int
    documents: int
    matches: int
    hits: int


class ProfiledLeg(NamedTuple):
    """What one leg tells, and which it is. collection: where several are searched."""

    shard: int
    leaf: str
    profile: LegProfile
    collection: str = ""
