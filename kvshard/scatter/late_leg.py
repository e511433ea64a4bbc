"""A leg whose first attempt is late and to be hedged, or has failed: an attempt machine decides, and no task is needed.

A stalled leaf makes every leg late that waits for it, at once, and a task with all its waiting costs the router as much as some
ten answers. So what the machine wants is done on the spot, in the lane's reader or in the timer: sending, taking back, ending.
What has to be awaited is not (a newer map, or a lane that is not open): with that the leg goes to the executor as it stands.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, Generic

from kvshard.errors import KvShardError
from kvshard.rpc.leaf_client import Answer, Start
from kvshard.scatter.leg import Prepared, ReplyT, RequestT, Shared, addressed
from kvshard.scatter.sent_attempts import FirstAttempt, SentAttempt
from kvshard.tail.attempts import AttemptMachine
from kvshard.tail.executor import FIRST, OVERRUN_S, BegunLeg, LegOutcome, leg_outcome
from kvshard.tail.leg_events import (
    Action,
    AttemptFailed,
    AttemptKind,
    AttemptSucceeded,
    Cancel,
    Candidate,
    DeadlinePassed,
    Event,
    Finish,
    HedgeGranted,
    Send,
    SetTimer,
    TimerFired,
)


class LateLeg(Generic[RequestT, ReplyT]):
    """One leg. start: sends a read. moved: is told whenever something was done, with what is left to do in the executor.

    due: when `late` is to be called. answers: of its attempts, by their number.

    Invariant: until it has ended or was handed over, an attempt is under way for each one that is outstanding at the machine.
    """

    __slots__ = ("_attempts", "_futures", "_moved", "_shared", "_start", "answers", "due", "first", "machine", "prepared")

    def __init__(
        self,
        first: FirstAttempt[RequestT],
        machine: AttemptMachine,
        prepared: Prepared,
        shared: Shared,
        start: Start,
        moved: "Callable[[LateLeg[RequestT, ReplyT], list[Action]], None]",
    ) -> None:
        """machine: has not started."""
        self.first = first
        self.machine = machine
        self.prepared = prepared
        self.answers: dict[int, Answer[ReplyT]] = {}
        self.due = first.due
        self._shared = shared
        self._start = start
        self._moved = moved
        self._attempts: dict[int, SentAttempt] = {FIRST: first}
        self._futures: dict[int, asyncio.Future[Event]] | None = None
        started = machine.start(first.began)
        assert isinstance(started[0], Send), "a leg begins by asking, and that was done"

    def __repr__(self) -> str:
        state = "" if self._futures is None else ", handed over"
        return f"LateLeg(shard {self.first.request.shard}, {self.machine}{state})"

    def granted(self, candidate: Candidate, now: float) -> None:
        """The gate was asked for the leg, and agreed that this one be asked."""
        self._step(HedgeGranted(candidate), now)

    def late(self, now: float) -> None:
        """`due` has come, or nearly so."""
        if self.due >= self.machine.deadline:
            self._step(DeadlinePassed(), now)
        else:
            self._step(TimerFired(), max(now, self.due))

    def told(self, number: int, outcome: Answer[ReplyT] | KvShardError, now: float) -> None:
        """What became of an attempt."""
        event: Event
        if isinstance(outcome, KvShardError):
            event = AttemptFailed(number, outcome)
        else:
            self.answers[number] = outcome
            event = AttemptSucceeded(number)
        if self._futures is None:
            del self._attempts[number]
            self._step(event, now)
        elif not self._futures[number].done():
            self._futures[number].set_result(event)

    def hand_over(self, actions: list[Action]) -> BegunLeg[ReplyT]:
        """The executor looks after it from now on. actions: what is left to do."""
        loop = asyncio.get_running_loop()
        self.due = inf
        self._futures = {number: loop.create_future() for number in self._attempts}
        for number, future in self._futures.items():
            future.add_done_callback(partial(self._on_done, self._attempts[number]))
        return BegunLeg(self.machine, actions, self.first.began, self.answers, dict(self._futures))

    def give_up(self, now: float) -> None:
        """The caller has gone: take back all of it."""
        for attempt in self._attempts.values():
            attempt.give_up(self._shared, now)
        if self.prepared.gate is not None:
            self.prepared.gate.given_up()

    def outcome(self, now: float) -> LegOutcome[ReplyT]:
        """How it ended."""
        return leg_outcome(self.first.request.shard, self.machine, self.answers, now - self.first.began)

    def _step(self, event: Event, now: float) -> None:
        """Do what the machine wants. What cannot be done here, and all that follows it, is left."""
        actions = self.machine.step(event, now)
        left: list[Action] = []
        for place, action in enumerate(actions):
            if not self._do(action, now):
                left = actions[place:]
                break
        timer_at = self.machine.timer_at
        self.due = self.machine.deadline + OVERRUN_S if timer_at is None else timer_at
        self._moved(self, left)

    def _do(self, action: Action, now: float) -> bool:
        match action:
            case Send(number, candidate, kind):
                return self._send(number, SentAttempt(candidate), kind, now)
            case Cancel(number):
                self._attempts.pop(number).give_up(self._shared, now)
                return True
            case SetTimer() | Finish():
                return True  # `_step` and `_moved` see to them
            case _:
                return False

    def _send(self, number: int, attempt: SentAttempt, kind: AttemptKind, now: float) -> bool:
        """Whether it could be sent without awaiting."""
        first, candidate = self.first, attempt.candidate
        as_sent: Any = addressed(first.request, candidate)
        heard = partial(self._heard, number, attempt)
        try:
            take_back = self._start(candidate.leaf, as_sent, self.machine.deadline, heard, kind is AttemptKind.HEDGE)
        except Exception:
            return False  # The executor's way runs into the same, and tells it as the result of the leg.
        if take_back is None:
            return False
        attempt.take_back = take_back
        attempt.attempt = self._shared.defences.began(candidate.leaf, first.timing, now, kind)
        self._attempts[number] = attempt
        return True

    def _heard(self, number: int, attempt: SentAttempt, outcome: Answer[ReplyT] | KvShardError) -> None:
        now = self._shared.clock.monotonic()
        attempt.told(outcome, self.first.request.shard, self._shared, now)
        self.told(number, outcome, now)

    def _on_done(self, attempt: SentAttempt, future: "asyncio.Future[Event]") -> None:
        if future.cancelled():
            attempt.give_up(self._shared, self._shared.clock.monotonic())
