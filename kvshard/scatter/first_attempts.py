"""The first attempts of a read's legs: sent all at once, answered most often, and handed over when they are not.

Nearly every leg ends with its first answer. So the first attempts of one read have neither tasks nor timers of their own: the
lane tells each of them what became of it, one timer watches over all, and the caller sleeps until the last leg has ended. A leg
gets a task only

    when its first attempt fails       the executor goes on behind it (`kvshard.tail.executor`)
    when that is late                  the executor takes it over as it stands, and hedges
    when it cannot be sent at once     there is no lane yet, or no room on it: the executor makes it

Owns these tasks and the attempts: none is left when `run` returns or raises.
"""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Generic, NamedTuple, TypeAlias, cast

from kvshard.errors import KvShardError
from kvshard.rpc.leaf_client import Answer, ReadRequest, Start, TakeBack
from kvshard.scatter.ledger import micros
from kvshard.scatter.leg import How, Prepared, ReplyT, RequestT, Shared, prepare
from kvshard.scatter.leg_result import LegResult
from kvshard.scatter.routes import known_map
from kvshard.tail.defences import RequestHedges
from kvshard.tail.executor import FIRST, OVERRUN_S
from kvshard.tail.leg_events import AttemptFailed, AttemptKind, AttemptSucceeded, Event
from kvshard.tail.replica_health import Attempt

TIMER_SLACK_S = 0.001
"""What is due so soon is done now: uvloop's timers keep whole milliseconds, and a further one would only follow."""

LATE_LEG_GRACE_S = 0.01
"""A leg ends by itself at its deadline; only one whose leaf client fails to keep it is cancelled this much later."""


class Sending(NamedTuple):
    """How the legs of one read are sent. may_hedge: they may have more than one attempt at once. began: when the read did."""

    start: Start
    how: How
    hedges: RequestHedges
    may_hedge: bool
    began: float
    deadline: float


class FirstAttempt(Generic[RequestT, ReplyT]):
    """That of one leg; once the leg is handed over a `SentAttempt` of the executor, and `future` is there.

    began, due: when it was sent, and when it is late. answer: once it has one. take_back: takes it back at the leaf.
    """

    __slots__ = (
        "_owner", "answer", "attempt", "began", "due", "future", "is_handed_over", "leaf", "place", "prepared", "request",
        "take_back",
    )  # fmt: skip

    future: "asyncio.Future[Event]"
    attempt: Attempt | None
    take_back: TakeBack

    def __init__(
        self, owner: "FirstAttempts[RequestT, ReplyT]", place: int, request: RequestT, prepared: Prepared, now: float
    ) -> None:
        self._owner = owner
        self.place = place
        self.request = request
        self.prepared = prepared
        self.leaf = prepared.candidates[0].leaf
        self.began = now
        self.due = inf
        self.answer: Answer[ReplyT] | None = None
        self.is_handed_over = False

    def __repr__(self) -> str:
        state = "handed over" if self.is_handed_over else "waiting" if self.answer is None else "answered"
        return f"FirstAttempt({self.leaf}, shard {self.request.shard}, {state})"

    def heard(self, outcome: Answer[ReplyT] | KvShardError) -> None:
        """The leaf has answered, or cannot."""
        self._owner.heard(self, outcome)

    def hand_over(self, event: Event | None) -> None:
        """Someone else looks after it now. event: what has become of it already."""
        self.is_handed_over = True
        self.future = asyncio.get_running_loop().create_future()
        # Before anybody else can wait for it: whoever cancels it and waits finds the attempt taken back.
        self.future.add_done_callback(self._on_done)
        if event is not None:
            self.future.set_result(event)

    def _on_done(self, future: "asyncio.Future[Event]") -> None:
        if future.cancelled() and self.attempt is not None:
            self._owner.give_up(self)


RunLeg: TypeAlias = Callable[
    [RequestT, Prepared | None, FirstAttempt[RequestT, ReplyT] | None], Coroutine[Any, Any, LegResult[ReplyT]]
]
"""Runs one leg to its end, behind its first attempt if that was sent. Raises only what cancels it."""


class FirstAttempts(Generic[RequestT, ReplyT]):
    """Those of one read. ended: told of each leg that was answered at once.

    Invariant: a leg is in `_waiting` (sent, and nothing heard), or has a task, or has a result.
    """

    def __init__(
        self,
        shared: Shared,
        sending: Sending,
        run_leg: RunLeg[RequestT, ReplyT],
        ended: Callable[[LegResult[ReplyT]], None],
    ) -> None:
        self.sending = sending
        self._shared = shared
        self._clock = shared.clock
        self._run_leg = run_leg
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._all_ended: asyncio.Future[None] = self._loop.create_future()
        self._open = 0
        self._results: list[LegResult[ReplyT] | None] = []
        self._waiting: dict[int, FirstAttempt[RequestT, ReplyT]] = {}
        self._handed_over: list[FirstAttempt[RequestT, ReplyT]] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"FirstAttempts(open={self._open}, waiting={len(self._waiting)}, tasks={len(self._tasks)})"

    async def run(self, requests: Sequence[RequestT], first: int = 0) -> list[LegResult[ReplyT] | None]:
        """The legs of these requests, in their order. first: the place of the one that is sent first.

        None: a leg that did not end at its deadline. Raises nothing but what a cancelled task raises.
        """
        count = self._open = len(requests)
        self._results = [None] * count
        for step in range(first, first + count):
            self._begin(step % count, requests[step % count])
        self._set_timer(self._clock.monotonic())
        try:
            await self._all_ended
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._open:
                await self._give_up_all()
        return self._results

    def _begin(self, place: int, request: RequestT) -> None:
        sending, prepared, first = self.sending, None, None
        try:
            config = known_map(self._shared.maps).shards.get(request.shard)
            prepared = prepare(self._shared, config, request, sending.how, sending.hedges, sending.began)
            if prepared.candidates and sending.began < sending.deadline:
                first = self._send(place, request, prepared)
        except Exception:
            first = None  # The executor's way runs into the same, and tells it as the result of the leg.
        if first is None:
            self._start_task(place, request, prepared, None)
        else:
            self._waiting[place] = first

    def _send(self, place: int, request: RequestT, prepared: Prepared) -> FirstAttempt[RequestT, ReplyT] | None:
        """None: it cannot be sent without awaiting."""
        sending, gate, candidate = self.sending, prepared.gate, prepared.candidates[0]
        assert gate is not None, "a read has a gate"
        now = self._clock.monotonic()
        first: FirstAttempt[RequestT, ReplyT] = FirstAttempt(self, place, request, prepared, now)
        as_sent = request if request.epoch == candidate.epoch else replace(request, epoch=candidate.epoch)
        take_back = sending.start(candidate.leaf, cast(ReadRequest, as_sent), sending.deadline, first.heard)
        if take_back is None:
            return None
        first.take_back = take_back
        first.attempt = self._shared.defences.began(candidate.leaf, gate, now, AttemptKind.FIRST)
        wait = gate.wait_s(now, sending.deadline) if sending.may_hedge and len(prepared.candidates) > 1 else None
        # At the deadline the lane itself tells that there is no answer; only one that fails to is cut off.
        first.due = sending.deadline + OVERRUN_S if wait is None else now + wait
        return first

    def heard(self, first: FirstAttempt[RequestT, ReplyT], outcome: Answer[ReplyT] | KvShardError) -> None:
        """What became of a first attempt."""
        now, defences, attempt = self._clock.monotonic(), self._shared.defences, first.attempt
        assert attempt is not None, "what was taken back is not heard of"
        first.attempt = None
        if isinstance(outcome, KvShardError):
            if defences.failed(attempt, outcome, now):
                self._shared.prober.watch(first.leaf)
            self._go_on(first, AttemptFailed(FIRST, outcome))
            return
        first.answer = outcome
        defences.answered(attempt, now, outcome.in_flight, (outcome.queue_us + outcome.service_us) * 1e-6)
        shard = first.request.shard
        self._shared.learn(shard, outcome)
        if first.is_handed_over:
            self._go_on(first, AttemptSucceeded(FIRST))
            return
        del self._waiting[first.place]
        leaf = first.leaf
        result = LegResult(shard, outcome, None, leaf, (leaf,), 1, micros(now - first.began), now)
        self._ended(result)
        self._settle(first.place, result)

    def give_up(self, first: FirstAttempt[RequestT, ReplyT]) -> None:
        """Take a first attempt back."""
        attempt, first.attempt = first.attempt, None
        first.take_back()
        if attempt is not None and self._shared.defences.cancelled(attempt, self._clock.monotonic()):
            self._shared.prober.watch(first.leaf)

    def _go_on(self, first: FirstAttempt[RequestT, ReplyT], event: Event | None) -> None:
        """The executor goes on with the leg, if it does not yet. event: what has become of the first attempt."""
        if not first.is_handed_over:
            del self._waiting[first.place]
            first.hand_over(event)
            self._handed_over.append(first)
            self._start_task(first.place, first.request, first.prepared, first)
        elif event is not None and not first.future.done():
            first.future.set_result(event)

    def _start_task(
        self, place: int, request: RequestT, prepared: Prepared | None, first: FirstAttempt[RequestT, ReplyT] | None
    ) -> None:
        self._tasks.append(asyncio.create_task(self._run_to_end(place, request, prepared, first)))

    async def _run_to_end(
        self, place: int, request: RequestT, prepared: Prepared | None, first: FirstAttempt[RequestT, ReplyT] | None
    ) -> None:
        self._settle(place, await self._run_leg(request, prepared, first))

    def _settle(self, place: int, result: LegResult[ReplyT]) -> None:
        self._results[place] = result
        self._open -= 1
        if not self._open and not self._all_ended.done():
            self._all_ended.set_result(None)

    def _set_timer(self, now: float) -> None:
        """For the next attempt that will be late; or for the end of all."""
        if self._open:
            end = self.sending.deadline + LATE_LEG_GRACE_S
            due = min([first.due for first in self._waiting.values()], default=end)
            self._timer = self._loop.call_later(max(0.0, due - now), self._on_timer)

    def _on_timer(self) -> None:
        now = self._clock.monotonic()
        for first in [first for first in self._waiting.values() if first.due <= now + TIMER_SLACK_S]:
            self._go_on(first, None)
        if now + TIMER_SLACK_S < self.sending.deadline + LATE_LEG_GRACE_S:
            self._set_timer(now)
        elif not self._all_ended.done():
            self._all_ended.set_result(None)

    async def _give_up_all(self) -> None:
        """The caller has gone, or the grace is over."""
        for first in self._waiting.values():
            self.give_up(first)
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        for first in self._handed_over:
            first.future.cancel()  # Also of a task that has not begun, and never will.
        await asyncio.gather(*self._tasks, return_exceptions=True)
