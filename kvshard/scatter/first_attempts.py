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
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, Generic, NamedTuple, TypeAlias

from kvshard.clustermap import ShardConfig
from kvshard.errors import KvShardError
from kvshard.model import changed
from kvshard.rpc.leaf_client import Answer, Start, TakeBack
from kvshard.scatter.leg import Ask, How, Prepared, ReplyT, RequestT, Shared
from kvshard.scatter.leg_result import LegResult
from kvshard.tail.cost_class import leg_kind
from kvshard.tail.defences import LegHedges, LegTiming, RequestHedges
from kvshard.tail.executor import FIRST, OVERRUN_S
from kvshard.tail.leaf_health import Attempt
from kvshard.tail.leg_events import AttemptFailed, AttemptKind, AttemptSucceeded, Candidate, Event
from kvshard.tail.replica_plan import ReplicaPlan

TIMER_SLACK_S = 0.001
"""What is due so soon is done now: uvloop's timers keep whole milliseconds, and a further one would only follow."""

LATE_LEG_GRACE_S = 0.01
"""A leg ends by itself at its deadline; only one whose leaf client fails to keep it is cancelled this much later."""


class Sending(NamedTuple):
    """How the legs of one read are sent. may_hedge: they may have more than one attempt at once. began: when the read did."""

    method: str
    ask: Ask[Any, Any]
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
        "_owner", "answer", "attempt", "began", "candidate", "due", "future", "is_handed_over", "place", "plan", "request",
        "take_back", "timing",
    )  # fmt: skip

    future: "asyncio.Future[Event]"
    attempt: Attempt | None
    take_back: TakeBack

    def __init__(
        self,
        owner: "FirstAttempts[RequestT, ReplyT]",
        place: int,
        request: RequestT,
        plan: ReplicaPlan,
        candidate: Candidate,
        timing: LegTiming,
        now: float,
    ) -> None:
        self._owner = owner
        self.place = place
        self.request = request
        self.plan = plan
        self.candidate = candidate
        self.timing = timing
        self.began = now
        self.due = inf
        self.answer: Answer[ReplyT] | None = None
        self.is_handed_over = False

    def __repr__(self) -> str:
        state = "handed over" if self.is_handed_over else "waiting" if self.answer is None else "answered"
        return f"FirstAttempt({self.candidate.leaf}, shard {self.request.shard}, {state})"

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
    [Sending, RequestT, Prepared | None, FirstAttempt[RequestT, ReplyT] | None], Coroutine[Any, Any, LegResult[ReplyT]]
]
"""Runs one leg to its end, behind its first attempt if that was sent. Raises only what cancels it."""


class FirstAttempts(Generic[RequestT, ReplyT]):
    """Those of one read. observe: gets the method and how long each leg took that was answered at once, in microseconds, when
    all has ended; the others are observed by `run_leg`.

    Invariant: a leg is in `_waiting` (sent, and nothing heard), or has a task, or has a result.
    """

    __slots__ = (
        "_all_ended", "_answered_us", "_due", "_handed_over", "_loop", "_now", "_observe", "_open", "_results", "_run_leg",
        "_shared", "_tasks", "_timer", "_waiting", "sending",
    )  # fmt: skip

    def __init__(
        self,
        shared: Shared,
        sending: Sending,
        run_leg: RunLeg[RequestT, ReplyT],
        observe: Callable[[str, Sequence[int]], None],
    ) -> None:
        self.sending = sending
        self._answered_us: list[int] = []
        self._observe = observe
        self._shared = shared
        self._now = shared.clock.monotonic
        self._run_leg = run_leg
        self._loop = asyncio.get_running_loop()
        self._all_ended: asyncio.Future[None] = self._loop.create_future()
        self._open = 0
        self._due = sending.deadline + LATE_LEG_GRACE_S
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
        self._begin(requests, first)
        if self._open:
            self._timer = self._loop.call_later(max(0.0, self._due - self._now()), self._on_timer)
        try:
            await self._all_ended
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._answered_us:
                self._observe(self.sending.method, self._answered_us)
            if self._open:
                await self._give_up_all()
        return self._results

    def _begin(self, requests: Sequence[RequestT], first: int) -> None:
        """Send all first attempts; a leg of which that cannot be done now gets a task."""
        sending, maps = self.sending, self._shared.maps
        is_in_time = maps.has_map and sending.began < sending.deadline
        shards: Mapping[int, ShardConfig] = maps.current.shards if is_in_time else {}
        for place in (*range(first, len(requests)), *range(first)):
            request, prepared = requests[place], None
            config = shards.get(request.shard)
            try:
                if config is not None:
                    prepared = self._send(place, request, config)
                    if prepared is None:
                        continue
            except Exception:
                prepared = None  # The executor's way runs into the same, and tells it as the result of the leg.
            self._start_task(place, request, prepared, None)

    def _send(self, place: int, request: RequestT, config: ShardConfig) -> Prepared | None:
        """Send it; or what was looked up for it, when it cannot be sent without awaiting."""
        _, _, start, how, hedges, may_hedge, began, deadline = self.sending
        shared = self._shared
        defences, plan = shared.defences, shared.plans.of(config, how, False)
        timing = hedges.timing(leg_kind(request), began)
        candidate = defences.first(plan, how.replica_choice, began, hedges, timing.pool)
        now = self._now()
        first: FirstAttempt[RequestT, ReplyT] = FirstAttempt(self, place, request, plan, candidate, timing, now)
        as_sent: Any = request if request.epoch == candidate.epoch else changed(request, epoch=candidate.epoch)
        take_back = start(candidate.leaf, as_sent, deadline, partial(self._heard, first))
        if take_back is None:
            return self._prepared(first, now)
        first.take_back = take_back
        first.attempt = defences.began(candidate.leaf, timing, now, AttemptKind.FIRST)
        wait = timing.wait_s(now, deadline) if may_hedge and plan.has_spares else None
        # At the deadline the lane itself tells that there is no answer; only one that fails to is cut off.
        first.due = due = deadline + OVERRUN_S if wait is None else now + wait
        if due < self._due:
            self._due = due
        self._waiting[place] = first
        return None

    def _prepared(self, first: FirstAttempt[RequestT, ReplyT], now: float) -> Prepared:
        """The leg for the executor: with whom it asks when the first one does not answer, and a gate for its hedges."""
        sending, plan = self.sending, first.plan
        candidates = plan.behind(first.candidate, sending.how.replica_choice, self._shared.defences.health, now)
        return Prepared(LegHedges(sending.hedges, first.timing), candidates, plan.has_failover)

    def _heard(self, first: FirstAttempt[RequestT, ReplyT], outcome: Answer[ReplyT] | KvShardError) -> None:
        """What became of a first attempt."""
        now, shared, attempt = self._now(), self._shared, first.attempt
        assert attempt is not None, "what was taken back is not heard of"
        first.attempt = None
        leaf, shard = first.candidate.leaf, first.request.shard
        if isinstance(outcome, KvShardError):
            if shared.defences.failed(attempt, outcome, now):
                shared.prober.watch(leaf)
            self._go_on(first, AttemptFailed(FIRST, outcome), now)
            return
        first.answer = outcome
        shared.defences.answered(attempt, now, outcome.in_flight, (outcome.queue_us + outcome.service_us) * 1e-6)
        shared.learn(shard, outcome)
        if first.is_handed_over:
            self._go_on(first, AttemptSucceeded(FIRST), now)
            return
        del self._waiting[first.place]
        total_us = round((now - first.began) * 1e6)
        self._answered_us.append(total_us)
        self._settle(first.place, LegResult(shard, outcome, None, leaf, (leaf,), 1, total_us, now))

    def give_up(self, first: FirstAttempt[RequestT, ReplyT]) -> None:
        """Take a first attempt back."""
        attempt, first.attempt = first.attempt, None
        first.take_back()
        if attempt is not None and self._shared.defences.cancelled(attempt, self._now()):
            self._shared.prober.watch(first.candidate.leaf)

    def _go_on(self, first: FirstAttempt[RequestT, ReplyT], event: Event | None, now: float) -> None:
        """The executor goes on with the leg, if it does not yet. event: what has become of the first attempt."""
        if not first.is_handed_over:
            del self._waiting[first.place]
            first.hand_over(event)
            self._handed_over.append(first)
            self._start_task(first.place, first.request, self._prepared(first, now), first)
        elif event is not None and not first.future.done():
            first.future.set_result(event)

    def _start_task(
        self, place: int, request: RequestT, prepared: Prepared | None, first: FirstAttempt[RequestT, ReplyT] | None
    ) -> None:
        self._tasks.append(asyncio.create_task(self._run_to_end(place, request, prepared, first)))

    async def _run_to_end(
        self, place: int, request: RequestT, prepared: Prepared | None, first: FirstAttempt[RequestT, ReplyT] | None
    ) -> None:
        self._settle(place, await self._run_leg(self.sending, request, prepared, first))

    def _settle(self, place: int, result: LegResult[ReplyT]) -> None:
        self._results[place] = result
        self._open -= 1
        if not self._open and not self._all_ended.done():
            self._all_ended.set_result(None)

    def _on_timer(self) -> None:
        """Some attempt is late, or all is to end; the next one that will be late sets the timer anew."""
        now = self._now()
        for first in [first for first in self._waiting.values() if first.due <= now + TIMER_SLACK_S]:
            self._go_on(first, None, now)
        end = self.sending.deadline + LATE_LEG_GRACE_S
        if now + TIMER_SLACK_S < end:
            due = min([first.due for first in self._waiting.values()], default=end)
            self._timer = self._loop.call_later(max(0.0, due - now), self._on_timer)
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
