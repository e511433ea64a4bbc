"""The attempt machine: which replica is asked when, for one leg, and when the leg has ended.

Pure: no clock, no I/O. Events go in, actions come out; `executor.py` performs them.

Rules
- The first good answer wins; every other outstanding attempt is cancelled in the same step.
- An error that any replica would give alike (a bad request, a failed condition) ends the leg as an answer does.
- A refusal (StaleEpoch, NotReady) means that nothing was done. The attempt is handed back: it does not count against
  `max_attempts`. NotReady is a matter of that replica, so a spare one is asked first; otherwise, and always after StaleEpoch,
  the map is refreshed once no attempt is outstanding, and the leg starts anew with the candidates of the new map.
- Any other error is that replica's own: an idempotent leg fails over to a spare candidate while attempts are left.
- While an idempotent leg waits, the timer may start a further attempt at a spare candidate (a hedge). A leg that is not
  idempotent has at most one attempt outstanding.
- A leg that may be repeated treats Unavailable as it treats NotReady: once nobody is left to ask, it pauses, takes the newest
  map and begins anew, until the deadline. If it is not idempotent, it also looks at the map while it waits: an attempt at a
  leaf that is no longer the one to ask is given up, and the new one is asked. Such a leg needs a request id, by which the shard
  knows a repetition.
- A candidate is asked at most once between two refreshes; two candidates on one leaf count as the same.
- The last error is told truthfully: once an attempt of a leg that is not idempotent may have taken effect, the error says
  maybe_applied, unless the shard itself evaluated the request and refused it (it looks for an earlier copy first).

    phase       outstanding   waits for
    NEW         0             start
    TRYING      >= 1          an attempt, or the timer: to hedge, or to look at the map
    PAUSING     0             the pause timer
    REFRESHING  0             the new map
    ENDED       0             nothing; every further event is ignored
"""

from dataclasses import dataclass
from enum import Enum
from random import Random

from kvshard.errors import (
    CollectionExists,
    CollectionNotFound,
    Compacted,
    DeadlineExceeded,
    ErrorDetails,
    Expired,
    FailedPrecondition,
    InvalidArgument,
    KvShardError,
    NotReady,
    ShardMoved,
    StaleEpoch,
    Unavailable,
    VersionConflict,
    in_doubt,
)

MAX_REFRESHES = 12
"""With the pauses below about 0.6 s of asking: enough for a map change to spread. A longer outage is the caller's to retry."""

MAX_REPEATS = 2_000
"""Refreshes of a leg that may be repeated. With pauses of at least half the longest they fill more than the 60 s that a call
may last: the deadline ends such a leg, and this bound only one whose deadline is a defect."""

FIRST_PAUSE_S = 0.005
"""Pause before the second refresh, doubled for each further one; the first refresh follows at once. A watch brings a new map in
about this time."""

LONGEST_PAUSE_S = 0.1
"""A failover takes about two seconds: this adds a twentieth to it, and a leaf that is gone is dialled ten times a second."""

LOOK_INTERVAL_S = 0.25
"""How often a write that waits looks whether its leaf is still the primary: no message, and a small part of a failover."""

_ANSWERS = (
    InvalidArgument,
    CollectionNotFound,
    CollectionExists,
    FailedPrecondition,
    VersionConflict,
    Expired,
    Compacted,
    ShardMoved,
)
"""Errors that are the answer: asking another replica would only repeat them. What has moved is asked of another shard."""


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
    hedge_after_s: after how long without an answer a spare candidate is asked too; None: never.
    """

    max_attempts: int = 1
    is_idempotent: bool = True
    may_repeat: bool = False
    hedge_after_s: float | None = None
    max_refreshes: int = MAX_REFRESHES
    first_pause_s: float = FIRST_PAUSE_S

    @property
    def first_timer_s(self) -> float | None:
        """How long a leg waits for its first attempt before anything else may happen; None: as long as its deadline lets it."""
        if not self.is_idempotent:
            return LOOK_INTERVAL_S if self.may_repeat else None
        return self.hedge_after_s if self.max_attempts > 1 else None


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
class DeadlinePassed:
    """The leg's deadline has come."""


Event = AttemptSucceeded | AttemptFailed | MapRefreshed | MapSeen | RefreshFailed | TimerFired | DeadlinePassed


@dataclass(frozen=True, slots=True)
class Send:
    """Ask the candidate; the attempt's number comes back in its event. Numbers count from 1 over the whole leg."""

    attempt: int
    candidate: Candidate


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


class Phase(Enum):
    """Where a leg stands; see the table in the module's docstring."""

    NEW = "new"
    TRYING = "trying"
    PAUSING = "pausing"
    REFRESHING = "refreshing"
    ENDED = "ended"


class AttemptMachine:
    """One leg.

    rng: spreads the pauses of legs that failed together; None: they last their full length.

    Invariants (`check_invariants`): attempts are outstanding exactly in phase TRYING; outstanding + spent attempts <=
    max_attempts, where spent ones failed other than by refusal (since the last refresh, if the leg may be repeated); no leaf
    has two outstanding attempts, nor is it spare meanwhile; a leg that is not idempotent has at most one outstanding;
    refreshes <= max_refreshes; an outcome exists exactly in phase ENDED.
    """

    def __init__(self, config: Config, candidates: tuple[Candidate, ...], deadline: float, rng: Random | None = None) -> None:
        assert config.max_attempts >= 1, "a leg needs an attempt"
        self.config = config
        self.deadline = deadline
        self.phase = Phase.NEW
        self.outcome: Outcome | None = None
        self.outstanding: dict[int, Candidate] = {}
        self.contacts: list[Candidate] = []
        self.refreshes = 0
        self.spent = 0
        self.timer_at: float | None = None
        self.maybe_applied = False
        self._rng = rng
        self._candidates = candidates
        self._untried: list[Candidate] = []
        self._last_error: KvShardError | None = None
        self._has_stale_map = False
        self._may_pass = False

    def start(self, now: float) -> list[Action]:
        """Begin. Call once, before any step."""
        assert self.phase is Phase.NEW, "a leg starts once"
        return self._begin_round(now) if now < self.deadline else self._on_deadline()

    def step(self, event: Event, now: float) -> list[Action]:
        """What to do after an event. An event that comes too late (of a cancelled attempt, after the end) does nothing."""
        assert self.phase is not Phase.NEW, "a leg starts before it steps"
        if self.phase is Phase.ENDED:
            return []
        match event:
            case AttemptSucceeded(attempt):
                return self._on_success(attempt)
            case AttemptFailed(attempt, error):
                return self._on_failure(attempt, error, now)
            case MapRefreshed(candidates):
                return self._on_map(candidates, now)
            case MapSeen(candidates):
                return self._on_map_seen(candidates, now)
            case RefreshFailed(error):
                return self._on_refresh_failed(error, now)
            case TimerFired():
                return self._on_timer(now)
            case DeadlinePassed():
                return self._on_deadline()

    def check_invariants(self) -> None:
        """Raises AssertionError when the machine is in a state that its rules exclude."""
        config, outstanding = self.config, self.outstanding
        assert bool(outstanding) == (self.phase is Phase.TRYING), self
        assert len(outstanding) + self.spent <= config.max_attempts, self
        leaves = [candidate.leaf for candidate in outstanding.values()]
        assert len(set(leaves)) == len(leaves), self
        assert not set(leaves) & {candidate.leaf for candidate in self._untried}, self
        assert config.is_idempotent or len(outstanding) <= 1, self
        assert self.refreshes <= config.max_refreshes, self
        assert (self.outcome is not None) == (self.phase is Phase.ENDED), self
        assert (self.phase is not Phase.PAUSING) or self.timer_at is not None, self

    # -- events

    def _on_success(self, attempt: int) -> list[Action]:
        candidate = self.outstanding.pop(attempt, None)
        return [] if candidate is None else self._end(Won(attempt, candidate))

    def _on_failure(self, attempt: int, error: KvShardError, now: float) -> list[Action]:
        if self.outstanding.pop(attempt, None) is None:
            return []
        self._last_error = error
        self.maybe_applied |= error.details.maybe_applied and not self.config.is_idempotent
        if isinstance(error, _ANSWERS):
            return self._end(Lost(error))
        is_refusal = isinstance(error, (StaleEpoch, NotReady))
        if isinstance(error, StaleEpoch):
            self._has_stale_map = True
        if is_refusal or (self.config.may_repeat and isinstance(error, Unavailable)):
            self._may_pass = True
        else:
            self.spent += 1
        if (self.config.is_idempotent or is_refusal) and self._may_send(now):
            return self._send(now)
        if self.outstanding:
            return []
        may_go_on = is_refusal or (self.config.may_repeat and self._may_pass)
        return self._refresh_or_end(now) if may_go_on else self._end(Lost(error))

    def _on_map(self, candidates: tuple[Candidate, ...], now: float) -> list[Action]:
        if self.phase is not Phase.REFRESHING:
            return []
        self._candidates = candidates
        return self._begin_round(now)

    def _on_map_seen(self, candidates: tuple[Candidate, ...], now: float) -> list[Action]:
        """Give up an attempt at a leaf that is not to be asked any more: it may hang for good."""
        if self.phase is not Phase.TRYING or self.config.is_idempotent or not self.config.may_repeat:
            return []
        ((attempt, asked),) = self.outstanding.items()
        if not candidates or candidates[0].leaf == asked.leaf:
            return [self._set_timer(now + LOOK_INTERVAL_S)]
        del self.outstanding[attempt]
        self.maybe_applied = True
        self._last_error = Unavailable(
            f"{asked.leaf} did not answer and is the primary no more", ErrorDetails(maybe_applied=True)
        )
        self._candidates = candidates
        return [Cancel(attempt), *self._begin_round(now)]

    def _on_refresh_failed(self, error: KvShardError, now: float) -> list[Action]:
        if self.phase is not Phase.REFRESHING:
            return []
        self._last_error = error
        return self._refresh_or_end(now)

    def _on_timer(self, now: float) -> list[Action]:
        if self.timer_at is None or now < self.timer_at:
            return []
        self.timer_at = None
        if self.phase is Phase.PAUSING:
            return self._refresh()
        if self.phase is not Phase.TRYING:
            return []
        if not self.config.is_idempotent:
            return [LookAtMap()] if self.config.may_repeat else []
        return self._send(now) if self._may_send(now) else []

    def _on_deadline(self) -> list[Action]:
        if not self.outstanding and self._last_error is not None:
            return self._end(Lost(self._last_error))  # every attempt was refused: that says more than the deadline does
        asked = ", ".join(candidate.leaf for candidate in self.outstanding.values())
        text = f"no answer from {asked} within the deadline" if asked else "the deadline passed"
        # A write that is out there may be done yet, whatever becomes of its cancellation.
        details = ErrorDetails(maybe_applied=bool(self.outstanding) and not self.config.is_idempotent)
        return self._end(Lost(DeadlineExceeded(text, details)))

    # -- transitions

    def _begin_round(self, now: float) -> list[Action]:
        """Ask the first of the present candidates; they are all unasked."""
        self._has_stale_map = False
        if self.config.may_repeat:
            self._may_pass = False
            self.spent = 0
        self._untried = list(self._candidates)
        if self._may_send(now):
            return self._send(now)
        self._last_error = self._last_error or Unavailable("the map names no replica of this shard")
        return self._refresh_or_end(now)

    def _may_send(self, now: float) -> bool:
        is_within = now < self.deadline and len(self.outstanding) + self.spent < self.config.max_attempts
        return is_within and not self._has_stale_map and bool(self._untried)

    def _send(self, now: float) -> list[Action]:
        candidate = self._untried[0]
        self._untried = [other for other in self._untried if other.leaf != candidate.leaf]
        self.contacts.append(candidate)
        attempt = len(self.contacts)
        self.outstanding[attempt] = candidate
        self.phase = Phase.TRYING
        self.timer_at = None
        actions: list[Action] = [Send(attempt, candidate)]
        wait = self.config.first_timer_s
        if wait is not None and (not self.config.is_idempotent or self._may_send(now)):
            actions.append(self._set_timer(now + wait))
        return actions

    def _refresh_or_end(self, now: float) -> list[Action]:
        """Nothing is outstanding and the present candidates are used up: get new ones, unless that is pointless."""
        pause = self._pause() if self.refreshes else 0.0
        if self.refreshes >= self.config.max_refreshes or now + pause >= self.deadline:
            assert self._last_error is not None, "a refresh has a cause"
            return self._end(Lost(self._last_error))
        if not pause:
            return self._refresh()
        self.phase = Phase.PAUSING
        return [self._set_timer(now + pause)]

    def _pause(self) -> float:
        """Doubling from the first to the longest; chance takes off up to half."""
        pause = min(LONGEST_PAUSE_S, self.config.first_pause_s * 2.0 ** min(self.refreshes - 1, 30))
        return pause if self._rng is None else pause * (1 - self._rng.random() / 2)

    def _refresh(self) -> list[Action]:
        self.phase = Phase.REFRESHING
        self.timer_at = None
        self.refreshes += 1
        return [RefreshMap()]

    def _set_timer(self, at: float) -> SetTimer:
        self.timer_at = at
        return SetTimer(at)

    def _end(self, outcome: Outcome) -> list[Action]:
        if isinstance(outcome, Lost) and self.maybe_applied:
            outcome = Lost(in_doubt(outcome.error))
        losers: list[Action] = [Cancel(attempt) for attempt in self.outstanding]
        self.outstanding.clear()
        self.timer_at = None
        self.phase = Phase.ENDED
        self.outcome = outcome
        return [*losers, Finish(outcome)]

    def __repr__(self) -> str:
        outstanding = {attempt: candidate.leaf for attempt, candidate in self.outstanding.items()}
        return (
            f"AttemptMachine({self.phase.value}, outstanding={outstanding}, contacts={len(self.contacts)}, spent={self.spent}, "
            f"refreshes={self.refreshes}, timer_at={self.timer_at}, outcome={self.outcome})"
        )
