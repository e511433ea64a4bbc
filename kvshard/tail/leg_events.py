"""What goes into the attempt machine of a leg and what comes out of it: candidates, configuration, events, actions, records.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from kvshard.errors import KvShardError
from kvshard.tail.hedging import Refusal

MAX_REFRESHES = 12
"""With the pauses below about 0.6 s of asking: enough for a map change to spread. A longer outage is the caller's to retry."""

FIRST_PAUSE_S = 0.005
"""Pause before the second refresh, doubled for each further one; the first refresh follows at once. A watch brings a new map in
about this time."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A replica that may be asked. epoch: the replica set it was taken from; it travels with the request."""

    leaf: str
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Config:
    """How a leg may be tried.

    max_attempts: attempts between two refreshes, refused ones apart. is_idempotent: asking twice at once does no harm; never
    true of a write. may_repeat: asking again after a lost attempt does no harm, and there is somebody to fail over to.
    """

    max_attempts: int = 1
    is_idempotent: bool = True
    may_repeat: bool = False
    max_refreshes: int = MAX_REFRESHES
    first_pause_s: float = FIRST_PAUSE_S


class HedgeGate(Protocol):
    """Who decides on the hedges of a leg; `kvshard.tail.defences` has the one that is used."""

    def wait_s(self, now: float, deadline: float) -> float | None:
        """How long to wait for an answer before `admit` is asked; None: for ever."""
        ...

    def admit(
        self, spares: Sequence[Candidate], waiting: Sequence[Candidate], late_by_s: float, now: float, deadline: float
    ) -> "Candidate | Refusal":
        """Whom of the spare candidates to ask now, which then counts as sent; or why nobody.

        waiting: who was asked and has not answered. late_by_s: by how much the timer was late.
        """
        ...

    def again_s(self, refusal: Refusal, now: float, deadline: float) -> float | None:
        """How long after this refusal of `admit` to ask it again; None: not at all."""
        ...

    def may_fail_over(self, now: float) -> bool:
        """Whether another replica may be asked because one has shed the request; it then counts as sent."""
        ...


class AttemptKind(Enum):
    """What an attempt is for: the leg's first one; another replica while one is asked; after a failure the same leaf, or
    another."""

    FIRST = "first"
    HEDGE = "hedge"
    RETRY = "retry"
    FAILOVER = "failover"


@dataclass(slots=True)
class AttemptRecord:
    """One attempt of a leg, for the ledger. began_s, ended_s: seconds from the start of the leg.

    outcome: "won", "cancelled", or the reason of its error in lower case; empty while it is under way.
    """

    leaf: str
    kind: AttemptKind
    began_s: float
    ended_s: float = 0.0
    outcome: str = ""


@dataclass(frozen=True, slots=True)
class AttemptSucceeded:
    """An attempt brought a good answer."""

    attempt: int


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """An attempt ended with an error."""

    attempt: int
    error: KvShardError


@dataclass(frozen=True, slots=True)
class MapRefreshed:
    """The map was read anew; candidates in the order in which they are to be asked."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class MapSeen:
    """Answer to LookAtMap: the candidates of the newest map that is known."""

    candidates: tuple[Candidate, ...]


@dataclass(frozen=True, slots=True)
class RefreshFailed:
    """The map could not be read."""

    error: KvShardError


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The instant of the last SetTimer has come."""


@dataclass(frozen=True, slots=True)
class HedgeGranted:
    """The gate was asked for the leg, and this is whom it lets the leg ask now."""

    candidate: Candidate


@dataclass(frozen=True, slots=True)
class DeadlinePassed:
    """The leg's deadline has come."""


Event = AttemptSucceeded | AttemptFailed | MapRefreshed | MapSeen | RefreshFailed | TimerFired | HedgeGranted | DeadlinePassed


@dataclass(frozen=True, slots=True)
class Send:
    """Ask the candidate; the attempt's number comes back in its event. Numbers count from 1 over the whole leg."""

    attempt: int
    candidate: Candidate
    kind: AttemptKind = AttemptKind.FIRST


@dataclass(frozen=True, slots=True)
class Cancel:
    """Give the attempt up; nothing is expected of it any more."""

    attempt: int


@dataclass(frozen=True, slots=True)
class RefreshMap:
    """Read the cluster map anew."""


@dataclass(frozen=True, slots=True)
class LookAtMap:
    """Send MapSeen at once, from the map that is known; nothing is read."""


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Fire TimerFired at that instant. Replaces the timer set before."""

    at: float


@dataclass(frozen=True, slots=True)
class Won:
    """The leg has the answer of this attempt."""

    attempt: int
    candidate: Candidate


@dataclass(frozen=True, slots=True)
class Lost:
    """The leg has no answer."""

    error: KvShardError


Outcome = Won | Lost


@dataclass(frozen=True, slots=True)
class Finish:
    """The leg has ended."""

    outcome: Outcome


Action = Send | Cancel | RefreshMap | LookAtMap | SetTimer | Finish
