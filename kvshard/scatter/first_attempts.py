"""The first attempts of a read's legs: sent all at once, answered most often, and looked after when they are not.

Nearly every leg ends with its first answer. So the first attempts of one read have neither tasks nor timers of their own: the
lane tells each of them what became of it, one timer watches over all, and the caller sleeps until the last leg has ended. A leg
whose first attempt is late or fails gets an attempt machine (`late_leg`), and a task only

    when it must wait for something    a newer map, or room on a lane: the executor takes it over as it stands
    when nothing of it could be sent   there is no lane yet, or no room on it: the executor makes it

Owns these tasks and the attempts: none is left when `run` returns or raises. Who waits in his own way calls `begin`, and `end`
when he is told that it is over, or sooner to give up.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from math import inf
from typing import Any, Generic, NamedTuple

from kvshard.clustermap import ShardConfig
from kvshard.errors import KvShardError
from kvshard.rpc.leaf_client import Answer, Start
from kvshard.scatter.late_leg import LateLeg
from kvshard.scatter.leg import Ask, How, Prepared, ReplyT, RequestT, Shared, addressed
from kvshard.scatter.leg_result import LegResult, leg_result
from kvshard.scatter.leg_timers import Timer
from kvshard.scatter.sent_attempts import FirstAttempt
from kvshard.tail.attempts import AttemptMachine
from kvshard.tail.cost_class import leg_kind
from kvshard.tail.defences import LegHedges, LegTiming, RequestHedges
from kvshard.tail.executor import FIRST, OVERRUN_S, BegunLeg
from kvshard.tail.hedger import Hedger
from kvshard.tail.hedging import Refusal
from kvshard.tail.leg_events import Action, AttemptKind, Candidate

TIMER_SLACK_S = 0.0002
"""What is due so soon is done now. No more of it: the shortest delay of a hedge is a millisecond, and a hedge that is sent half
of one too soon crosses many answers (2 to 3 % of all legs were hedged so, instead of 0.1)."""

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


class LegRunner(NamedTuple):
    """What `Scatter` does for the legs of its reads.

    run: a leg to its end in a task, which raises only what cancels it; as it was begun, if it was. machine: the attempt machine
    of a leg; given who has asked for its hedges already. observe: counts a leg that has ended. observe_answered: gets the
    method and how long each leg took that was answered at once, in microseconds, when all has ended.
    """

    run: Callable[[Sending, Any, Prepared | None, BegunLeg[Any] | None], Coroutine[Any, Any, LegResult[Any]]]
    machine: Callable[[Sending, Any, Prepared, Hedger | None], AttemptMachine]
    observe: Callable[[str, LegResult[Any]], None]
    observe_answered: Callable[[str, Sequence[int]], None]


class FirstAttempts(Generic[RequestT, ReplyT]):
    """Those of one read.

    Invariant: a leg is in `_waiting` (sent, and nothing heard), or in `_late` (it has a machine), or has a task, or has a
    result.
    """

    __slots__ = (
        "_answered_us", "_due", "_late", "_now", "_on_ended", "_open", "_runner", "_shared", "_tasks", "_timed", "_timer",
        "_wait", "_waiting", "results", "sending",
    )  # fmt: skip

    def __init__(self, shared: Shared, sending: Sending, runner: LegRunner) -> None:
        self.sending = sending
        self._answered_us: list[int] = []
        self._shared = shared
        self._now = shared.clock.monotonic
        self._runner = runner
        self.results: list[LegResult[ReplyT] | None] = []
        self._on_ended: Callable[[], object] | None = None
        self._open = 0
        self._due = sending.deadline + LATE_LEG_GRACE_S
        self._waiting: dict[int, FirstAttempt[RequestT]] = {}
        self._late: dict[int, LateLeg[RequestT, ReplyT]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._timer: Timer | None = None
        self._timed: LegTiming | None = None
        self._wait: float | None = None

    def __repr__(self) -> str:
        waiting, late, tasks = len(self._waiting), len(self._late), len(self._tasks)
        return f"FirstAttempts(open={self._open}, waiting={waiting}, late={late}, tasks={tasks})"

    async def run(self, requests: Sequence[RequestT], first: int = 0) -> list[LegResult[ReplyT] | None]:
        """The legs of these requests, in their order. first: the place of the one that is sent first.

        None: a leg that did not end at its deadline. Raises nothing but what a cancelled task raises.
        """
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.begin(requests, first, lambda: None if ended.done() else ended.set_result(None))
        try:
            await ended
        finally:
            tasks = self.end()
            if tasks:
                await asyncio.gather(*tasks, return_exceptions=True)
        return self.results

    def begin(self, requests: Sequence[RequestT], first: int, on_ended: Callable[[], object]) -> None:
        """Send the legs of these requests. on_ended: told once, not before this returns, when the last one has ended, or should
        have. `results`, in their order, are those of `run`."""
        self._open = len(requests)
        self.results = [None] * len(requests)
        self._on_ended = on_ended
        self._send_all(requests, first)
        self._set_timer(self._due, self._now())

    def end(self) -> Sequence[asyncio.Task[None]]:
        """It is over: a leg that has not ended is given up. Returns the tasks that still come to their end. Again: nothing."""
        self._on_ended = None
        if self._timer is not None:
            self._timer.cancel()
        if self._answered_us:
            answered_us, self._answered_us = self._answered_us, []
            self._runner.observe_answered(self.sending.method, answered_us)
        if not self._open:
            return ()
        self._open = 0
        self._give_up_all()
        return self._tasks

    def _send_all(self, requests: Sequence[RequestT], first: int) -> None:
        """Send all first attempts; a leg of which that cannot be done now gets a task."""
        sending, maps = self.sending, self._shared.maps
        is_in_time = maps.has_map and sending.began < sending.deadline
        shards: Mapping[int, ShardConfig] = maps.current.shards if is_in_time else {}
        places = (*range(first, len(requests)), *range(first))
        for place in places:
            request, prepared = requests[place], None
            config = shards.get(request.shard)
            try:
                if config is not None:
                    prepared = self._send(place, request, config, place == places[-1])
                    if prepared is None:
                        continue
            except Exception:
                prepared = None  # The executor's way runs into the same, and tells it as the result of the leg.
            self._start_task(place, request, prepared, None)

    def _send(self, place: int, request: RequestT, config: ShardConfig, is_last: bool) -> Prepared | None:
        """Send it; or what was looked up for it, when it cannot be sent without awaiting."""
        _, _, start, how, hedges, may_hedge, began, deadline = self.sending
        shared = self._shared
        defences, plan = shared.defences, shared.plans.of(config, how, False)
        timing = hedges.timing(leg_kind(request), began)
        candidate = defences.first(plan, how.replica_choice, began, hedges, timing.pool)
        now = self._now()
        first: FirstAttempt[RequestT] = FirstAttempt(place, request, plan, candidate, timing, now)
        if now >= deadline:
            return self._prepared(first, now)  # The process stood still since the read began: there is nothing left to ask.
        as_sent: Any = addressed(request, candidate)
        take_back = start(candidate.leaf, as_sent, deadline, partial(self._heard, first), False, is_last)
        if take_back is None:
            return self._prepared(first, now)
        first.take_back = take_back
        first.attempt = defences.began(candidate.leaf, timing, now, AttemptKind.FIRST)
        if timing is not self._timed:
            self._timed, self._wait = timing, timing.wait_s(now, deadline) if may_hedge else None
        wait = self._wait if plan.has_spares else None
        # At the deadline the lane itself tells that there is no answer; only one that fails to is cut off.
        first.due = due = deadline + OVERRUN_S if wait is None else now + wait
        if due < self._due:
            self._due = due
        self._waiting[place] = first
        return None

    def _prepared(self, first: FirstAttempt[RequestT], now: float) -> Prepared:
        """The leg's gate, and whom it asks when the first one does not answer."""
        sending, plan = self.sending, first.plan
        candidates = plan.behind(first.candidate, sending.how.replica_choice, self._shared.defences.health, now)
        return Prepared(first.gate or LegHedges(sending.hedges, first.timing), candidates, plan.has_failover)

    def _heard(self, first: FirstAttempt[RequestT], outcome: Answer[ReplyT] | KvShardError) -> None:
        """What became of a first attempt."""
        now, shard = self._now(), first.request.shard
        first.told(outcome, shard, self._shared, now)
        if self._waiting.pop(first.place, None) is None:
            self._late[first.place].told(FIRST, outcome, now)
        elif isinstance(outcome, KvShardError):
            self._begin_late(first, now).told(FIRST, outcome, now)
        else:
            total_us = round((now - first.began) * 1e6)
            self._answered_us.append(total_us)
            leaf = first.candidate.leaf
            refused = first.ended() if first.postponed or first.gate is not None else ()
            self._settle(first.place, LegResult(shard, outcome, None, leaf, (leaf,), 1, total_us, now, (), refused))

    def _begin_late(self, first: FirstAttempt[RequestT], now: float) -> LateLeg[RequestT, ReplyT]:
        """The leg gets a machine: there is more to it than its first attempt."""
        prepared = self._prepared(first, now)
        machine = self._runner.machine(self.sending, first.request, prepared, first.hedger)
        if first.postponed:
            machine.refused.add(Refusal.LATE_ROUTER)
        late: LateLeg[RequestT, ReplyT]
        late = LateLeg(first, machine, prepared, self._shared, self.sending.start, self._moved)
        self._late[first.place] = late
        return late

    def _moved(self, leg: LateLeg[RequestT, ReplyT], left: list[Action]) -> None:
        """A late leg has done something. left: what it cannot do itself."""
        first, now = leg.first, self._now()
        if left:
            self._start_task(first.place, first.request, leg.prepared, leg.hand_over(left))
        elif leg.machine.outcome is not None:
            result: LegResult[ReplyT] = leg_result(leg.outcome(now), now)
            if leg.prepared.gate is not None:
                leg.prepared.gate.ended(result.tries)
            self._runner.observe(self.sending.method, result)
            self._settle(first.place, result)
        else:
            self._set_timer(leg.due, now)

    def _start_task(self, place: int, request: RequestT, prepared: Prepared | None, begun: BegunLeg[ReplyT] | None) -> None:
        self._tasks.append(asyncio.create_task(self._run_to_end(place, request, prepared, begun)))

    async def _run_to_end(
        self, place: int, request: RequestT, prepared: Prepared | None, begun: BegunLeg[ReplyT] | None
    ) -> None:
        self._settle(place, await self._runner.run(self.sending, request, prepared, begun))

    def _settle(self, place: int, result: LegResult[ReplyT]) -> None:
        self._late.pop(place, None)
        self.results[place] = result
        self._open -= 1
        if not self._open:
            self._tell_ended()

    def _tell_ended(self) -> None:
        on_ended, self._on_ended = self._on_ended, None
        if on_ended is not None:
            on_ended()

    def _set_timer(self, due: float, now: float) -> None:
        """Let the timer come at that instant, unless it comes before."""
        if self._timer is not None:
            if self._due <= due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = self._shared.timers.after(due - now, self._on_timer)

    def _on_timer(self) -> None:
        """Some leg is late, or all is to end; the next one that will be late sets the timer anew."""
        now = self._now()
        self._timer, self._due = None, inf
        due = [first for first in self._waiting.values() if first.due <= now + TIMER_SLACK_S]
        if due and not self._is_postponed(due, now):
            for first in due:
                self._on_late(first, now)
        for leg in [leg for leg in self._late.values() if leg.due <= now + TIMER_SLACK_S]:
            leg.late(now)
        end = self.sending.deadline + LATE_LEG_GRACE_S
        if now + TIMER_SLACK_S >= end:
            self._tell_ended()
        elif self._open:
            next_due = min([first.due for first in self._waiting.values()], default=end)
            self._set_timer(min([next_due, *(leg.due for leg in self._late.values())]), now)

    def _is_postponed(self, due: Sequence[FirstAttempt[RequestT]], now: float) -> bool:
        """Whether these late legs wait until the router has caught up."""
        sending = self.sending
        if due[0].due >= sending.deadline:
            return False  # The read is at its end.
        wait = sending.hedges.postponed_s(len(due), now - due[0].due, due[0].timing, due[0].postponed, now)
        if wait is None:
            return False
        until = now + wait if now + wait < sending.deadline else sending.deadline + OVERRUN_S
        for first in due:
            first.postponed += 1
            first.due = until
        return True

    def _on_late(self, first: FirstAttempt[RequestT], now: float) -> None:
        """A leg is late, or at its end. It gets a machine if there is work to do; while the gate refuses, it needs none."""
        deadline = self.sending.deadline
        found: Candidate | float | None = first.due
        if first.due < deadline:
            found = first.ask(self.sending.hedges, now, deadline)
            if not isinstance(found, Candidate):
                first.due = deadline + OVERRUN_S if found is None else found
                return
        del self._waiting[first.place]
        leg = self._begin_late(first, now)
        if isinstance(found, Candidate):
            leg.granted(found, now)
        else:
            leg.late(now)

    def _give_up_all(self) -> None:
        """The caller has gone, or the grace is over."""
        now = self._now()
        for first in self._waiting.values():
            first.give_up(self._shared, now)
            if first.gate is not None:
                first.gate.given_up()
        self._waiting.clear()
        for task in self._tasks:
            task.cancel()
        for leg in self._late.values():
            leg.give_up(now)  # Also one whose task has not begun, and never will.
