"""The attempt machine: which replica is asked when, for one leg, and when the leg has ended.

Pure: no clock, no I/O. Events go in, actions come out; `executor.py` performs them.

Rules
- The first good answer wins; every other outstanding attempt is cancelled in the same step.
- An error that any replica would give alike (a bad request, a failed condition) ends the leg as an answer does.
- A refusal (StaleEpoch, NotReady) means that nothing was done. The attempt is handed back: it does not count against
  `max_attempts`. NotReady is a matter of that replica, so a spare one is asked first; otherwise, and always after StaleEpoch,
  the map is refreshed once no attempt is outstanding, and the leg starts anew with the candidates of the new map.
- Any other error is that replica's own: an idempotent leg fails over to a spare candidate while attempts are left.
- While an idempotent leg waits, the timer asks the gate (`hedger.py`) for a further attempt at a spare candidate: a hedge. If
  the gate refuses, it asks again. A leg that is not idempotent has at most one attempt outstanding, and no gate.
- A leg that still waits for one replica while the others have refused is not left to that one: it looks at the map and asks
  those that refused again, after a pause, and not before it would hedge. They did nothing, so that is no extra load. Else a
  paused primary would hold its readers until their deadline, though the shard has long got over it.
- A replica that sheds load (ResourceExhausted) is failed over only if the gate allows that, since elsewhere it is load too.
- A leg that may be repeated treats Unavailable as it treats NotReady: once nobody is left to ask, it pauses, takes the newest
  map and begins anew, until the deadline. If it is not idempotent, it also looks at the map while it waits: an attempt at a
  leaf that is no longer the one to ask is given up, and the new one is asked. Such a leg needs a request id, by which the shard
  knows a repetition.
- A candidate is asked at most once between two refreshes; two candidates on one leaf count as the same.
- The last error is told truthfully: once an attempt of a leg that is not idempotent may have taken effect, the error says
  maybe_applied, unless the shard itself evaluated the request and refused it (it looks for an earlier copy first).

    phase       outstanding   waits for
    NEW         0             start
    TRYING      >= 1          an attempt, or the timer: to hedge, to look at the map, or to ask again who has refused
    PAUSING     0             the pause timer
    REFRESHING  0             the new map
    ENDED       0             nothing; every further event is ignored
"""

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
    ResourceExhausted,
    ShardMoved,
    StaleEpoch,
    Unavailable,
    VersionConflict,
    in_doubt,
)
from kvshard.tail.hedger import Hedger
from kvshard.tail.hedging import Refusal
from kvshard.tail.leg_events import (
    Action,
    AttemptFailed,
    AttemptKind,
    AttemptRecord,
    AttemptSucceeded,
    Cancel,
    Candidate,
    Config,
    DeadlinePassed,
    Event,
    Finish,
    HedgeGate,
    HedgeGranted,
    LookAtMap,
    Lost,
    MapRefreshed,
    MapSeen,
    Outcome,
    RefreshFailed,
    RefreshMap,
    Send,
    SetTimer,
    TimerFired,
    Won,
)

MAX_REPEATS = 2_000
"""Refreshes of a leg that may be repeated. With pauses of at least half the longest they fill more than the 60 s that a call
may last: the deadline ends such a leg, and this bound only one whose deadline is a defect."""

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


class Phase(Enum):
    """Where a leg stands; see the table in the module's docstring."""

    NEW = "new"
    TRYING = "trying"
    PAUSING = "pausing"
    REFRESHING = "refreshing"
    ENDED = "ended"


class AttemptMachine:
    """One leg.

    rng: spreads the pauses of legs that failed together; None: they last their full length. gate: None: nothing is hedged.
    hedger: who has asked the gate for this leg before. tries: the attempts in the order of asking.

    Invariants (`check_invariants`): attempts are outstanding exactly in phase TRYING; outstanding + spent attempts <=
    max_attempts, where spent ones failed other than by refusal (since the last refresh, if the leg may be repeated); no leaf
    has two outstanding attempts, nor is it spare meanwhile; a leg that is not idempotent has at most one outstanding;
    refreshes <= max_refreshes; an outcome exists exactly in phase ENDED.
    """

    def __init__(
        self,
        config: Config,
        candidates: tuple[Candidate, ...],
        deadline: float,
        rng: Random | None = None,
        gate: HedgeGate | None = None,
        hedger: Hedger | None = None,
    ) -> None:
        assert config.max_attempts >= 1, "a leg needs an attempt"
        assert gate is None or config.is_idempotent, "a write is never hedged"
        self.config = config
        self.deadline = deadline
        self.phase = Phase.NEW
        self.outcome: Outcome | None = None
        self.outstanding: dict[int, Candidate] = {}
        self.tries: list[AttemptRecord] = []
        self.refreshes = 0
        self.spent = 0
        self.timer_at: float | None = None
        self.maybe_applied = False
        self._rng = rng
        self._gate = gate
        self._hedger = hedger or (None if gate is None else Hedger(gate))
        self._began = 0.0
        self._candidates = candidates
        self._untried: list[Candidate] = []
        self._last_error: KvShardError | None = None
        self._has_stale_map = False
        self._may_pass = False
        self._has_refused = False

    @property
    def refused(self) -> set[Refusal]:
        """Why hedges were not sent."""
        return set() if self._hedger is None else self._hedger.refused

    def start(self, now: float) -> list[Action]:
        """Begin. Call once, before any step."""
        assert self.phase is Phase.NEW, "a leg starts once"
        self._began = now
        return self._begin_round(now) if now < self.deadline else self._on_deadline(now)

    def step(self, event: Event, now: float) -> list[Action]:
        """What to do after an event. An event that comes too late (of a cancelled attempt, after the end) does nothing."""
        assert self.phase is not Phase.NEW, "a leg starts before it steps"
        if self.phase is Phase.ENDED:
            return []
        match event:
            case AttemptSucceeded(attempt):
                return self._on_success(attempt, now)
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
            case HedgeGranted(candidate):
                return self._on_granted(candidate, now)
            case DeadlinePassed():
                return self._on_deadline(now)

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

    def _on_success(self, attempt: int, now: float) -> list[Action]:
        candidate = self.outstanding.pop(attempt, None)
        if candidate is None:
            return []
        self._note(attempt, "won", now)
        return self._end(Won(attempt, candidate), now)

    def _on_failure(self, attempt: int, error: KvShardError, now: float) -> list[Action]:
        asked = self.outstanding.pop(attempt, None)
        if asked is None:
            return []
        self._note(attempt, error.reason.lower(), now)
        self._last_error = error
        self.maybe_applied |= error.details.maybe_applied and not self.config.is_idempotent
        if isinstance(error, _ANSWERS):
            return self._end(Lost(error), now)
        is_refusal = isinstance(error, (StaleEpoch, NotReady))
        if isinstance(error, StaleEpoch):
            self._has_stale_map = True
        if is_refusal or (self.config.may_repeat and isinstance(error, Unavailable)):
            self._may_pass = True
        else:
            self.spent += 1
        if (self.config.is_idempotent or is_refusal) and self._may_send(now) and self._may_fail_over(error, now):
            return self._send(now, self._untried[0], self._kind_after(asked))
        if self.outstanding:
            return self._look_later(now) if self._may_pass and not self._may_send(now) else []
        may_go_on = is_refusal or (self.config.may_repeat and self._may_pass)
        return self._refresh_or_end(now) if may_go_on else self._end(Lost(error), now)

    def _on_map(self, candidates: tuple[Candidate, ...], now: float) -> list[Action]:
        if self.phase is not Phase.REFRESHING:
            return []
        self._candidates = candidates
        return self._begin_round(now)

    def _on_map_seen(self, candidates: tuple[Candidate, ...], now: float) -> list[Action]:
        """Give up an attempt at a leaf that is not to be asked any more: it may hang for good."""
        if self.phase is not Phase.TRYING or not (self.config.is_idempotent or self.config.may_repeat):
            return []
        if self.config.is_idempotent:
            return self._ask_again(candidates, now)
        ((attempt, asked),) = self.outstanding.items()
        if not candidates or candidates[0].leaf == asked.leaf:
            return [self._set_timer(now + LOOK_INTERVAL_S)]
        del self.outstanding[attempt]
        self._note(attempt, "cancelled", now)
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
        due, self.timer_at = self.timer_at, None
        if self.phase is Phase.PAUSING:
            return self._refresh()
        if self.phase is not Phase.TRYING:
            return []
        if not self.config.is_idempotent:
            return [LookAtMap()] if self.config.may_repeat else []
        if self._has_refused:
            return [LookAtMap()]
        return self._hedge(now - due, now) if self._may_send(now) else []

    def _on_granted(self, candidate: Candidate, now: float) -> list[Action]:
        is_spare = self._may_send(now) and candidate in self._untried
        return self._send(now, candidate, AttemptKind.HEDGE) if is_spare and self.phase is Phase.TRYING else []

    def _on_deadline(self, now: float) -> list[Action]:
        if not self.outstanding and self._last_error is not None:
            return self._end(Lost(self._last_error), now)  # every attempt was refused: that says more than the deadline does
        asked = ", ".join(candidate.leaf for candidate in self.outstanding.values())
        text = f"no answer from {asked} within the deadline" if asked else "the deadline passed"
        # A write that is out there may be done yet, whatever becomes of its cancellation.
        details = ErrorDetails(maybe_applied=bool(self.outstanding) and not self.config.is_idempotent)
        for attempt in self.outstanding:
            self._note(attempt, DeadlineExceeded.reason.lower(), now)
        return self._end(Lost(DeadlineExceeded(text, details)), now)

    # -- transitions

    def _begin_round(self, now: float) -> list[Action]:
        """Ask the first of the present candidates; they are all unasked."""
        self._has_stale_map = self._has_refused = self._may_pass = False
        if self.config.may_repeat:
            self.spent = 0
        self._untried = list(self._candidates)
        if self._may_send(now):
            kind = self._kind_after(None if not self.tries else self.tries[-1].leaf)
            return self._send(now, self._untried[0], kind)
        self._last_error = self._last_error or Unavailable("the map names no replica of this shard")
        return self._refresh_or_end(now)

    def _look_later(self, now: float) -> list[Action]:
        """An attempt is outstanding and nobody else is left to ask: whoever has refused may be asked again after a while.

        Never sooner than a hedge would be sent: the one that is left may be as healthy as ever.
        """
        self._has_refused = True
        if self.refreshes >= self.config.max_refreshes:
            return []
        delay = None if self._gate is None else self._gate.wait_s(now, self.deadline)
        return self._set_timer_within(now, max(self._pause(), LOOK_INTERVAL_S if delay is None else delay))

    def _ask_again(self, candidates: tuple[Candidate, ...], now: float) -> list[Action]:
        """One of the newest candidates on whose leaf no attempt is outstanding; who has refused before may have got ready."""
        if not self._has_refused:
            return []
        waiting = {candidate.leaf for candidate in self.outstanding.values()}
        self._has_stale_map = self._has_refused = self._may_pass = False
        self._candidates = candidates
        self._untried = [candidate for candidate in candidates if candidate.leaf not in waiting]
        self.refreshes += 1
        if self.config.may_repeat:
            self.spent = 0
        if self._may_send(now):
            return self._send(now, self._untried[0], AttemptKind.RETRY if self._was_asked() else AttemptKind.FAILOVER)
        return self._look_later(now)

    def _was_asked(self) -> bool:
        return any(each.leaf == self._untried[0].leaf for each in self.tries)

    def _may_send(self, now: float) -> bool:
        is_within = now < self.deadline and len(self.outstanding) + self.spent < self.config.max_attempts
        return is_within and not self._has_stale_map and bool(self._untried)

    def _may_fail_over(self, error: KvShardError, now: float) -> bool:
        return not isinstance(error, ResourceExhausted) or self._gate is None or self._gate.may_fail_over(now)

    def _kind_after(self, asked: Candidate | str | None) -> AttemptKind:
        """What the next attempt is, after one at that leaf (None: the first one) has failed."""
        if asked is None:
            return AttemptKind.FIRST
        leaf = asked if isinstance(asked, str) else asked.leaf
        return AttemptKind.RETRY if self._untried[0].leaf == leaf else AttemptKind.FAILOVER

    def _hedge(self, late_by_s: float, now: float) -> list[Action]:
        """Ask a spare candidate too, if the gate agrees."""
        assert self._hedger is not None, "only a leg with a gate has a timer"
        found = self._hedger.ask(self._untried, list(self.outstanding.values()), late_by_s, now, self.deadline)
        if isinstance(found, Candidate):
            return self._send(now, found, AttemptKind.HEDGE)
        return [] if found is None else [self._set_timer(found)]

    def _send(self, now: float, candidate: Candidate, kind: AttemptKind) -> list[Action]:
        self._untried = [other for other in self._untried if other.leaf != candidate.leaf]
        self.tries.append(AttemptRecord(candidate.leaf, kind, now - self._began))
        attempt = len(self.tries)
        self.outstanding[attempt] = candidate
        self.phase = Phase.TRYING
        self.timer_at = None
        actions: list[Action] = [Send(attempt, candidate, kind)]
        if not self.config.is_idempotent:
            return [*actions, self._set_timer(now + LOOK_INTERVAL_S)] if self.config.may_repeat else actions
        wait = self._gate.wait_s(now, self.deadline) if self._gate is not None and self._may_send(now) else None
        if wait is None and self._may_pass and not self._may_send(now):
            return actions + self._look_later(now)
        return actions if wait is None else actions + self._set_timer_within(now, wait)

    def _set_timer_within(self, now: float, wait: float) -> list[Action]:
        """A timer that the deadline leaves room for."""
        return [self._set_timer(now + wait)] if now + wait < self.deadline else []

    def _note(self, attempt: int, outcome: str, now: float) -> None:
        record = self.tries[attempt - 1]
        record.outcome, record.ended_s = outcome, now - self._began

    def _refresh_or_end(self, now: float) -> list[Action]:
        """Nothing is outstanding and the present candidates are used up: get new ones, unless that is pointless."""
        pause = self._pause() if self.refreshes else 0.0
        if self.refreshes >= self.config.max_refreshes or now + pause >= self.deadline:
            assert self._last_error is not None, "a refresh has a cause"
            return self._end(Lost(self._last_error), now)
        if not pause:
            return self._refresh()
        self.phase = Phase.PAUSING
        return [self._set_timer(now + pause)]

    def _pause(self) -> float:
        """Doubling from the first to the longest; chance takes off up to half."""
        pause = min(LONGEST_PAUSE_S, self.config.first_pause_s * 2.0 ** min(max(0, self.refreshes - 1), 30))
        return pause if self._rng is None else pause * (1 - self._rng.random() / 2)

    def _refresh(self) -> list[Action]:
        self.phase = Phase.REFRESHING
        self.timer_at = None
        self.refreshes += 1
        return [RefreshMap()]

    def _set_timer(self, at: float) -> SetTimer:
        self.timer_at = at
        return SetTimer(at)

    def _end(self, outcome: Outcome, now: float) -> list[Action]:
        for attempt in self.outstanding:
            if not self.tries[attempt - 1].outcome:
                self._note(attempt, "cancelled", now)
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
            f"AttemptMachine({self.phase.value}, outstanding={outstanding}, tries={len(self.tries)}, spent={self.spent}, "
            f"refreshes={self.refreshes}, timer_at={self.timer_at}, outcome={self.outcome})"
        )
