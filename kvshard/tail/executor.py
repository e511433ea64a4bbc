"""Performs one leg: interprets the actions of the attempt machine over an async `send`.

Decides nothing. Every attempt it starts has ended when it returns, also when it is itself cancelled: losers are cancelled and
awaited.

Nearly every leg ends with its first answer, so that case is made cheap: the first attempt runs in the caller's own task, and
the machine comes to life only when that attempt fails, or is late. In the latter case a task takes over (`_Leg._take_over`),
which sees the first attempt as a future, and interrupts it by cancelling the caller's await. A caller that can send without
awaiting makes the attempts itself, and brings the leg here only when something must be awaited (`BegunLeg`).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from math import inf
from random import Random
from typing import Any, Generic, NamedTuple, TypeVar

from kvshard.clock import Clock
from kvshard.errors import KvShardError
from kvshard.rpc.leaf_client import Answer
from kvshard.tail.attempts import LOOK_INTERVAL_S, AttemptMachine
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
    LookAtMap,
    Lost,
    MapRefreshed,
    MapSeen,
    RefreshFailed,
    RefreshMap,
    Send,
    SetTimer,
    TimerFired,
    Won,
)

ReplyT = TypeVar("ReplyT")

SendFunction = Callable[[Candidate, float, AttemptKind], Awaitable[Answer[ReplyT]]]
"""Asks a candidate, by an absolute deadline. Raises KvShardError."""

RefreshFunction = Callable[[], Awaitable[tuple[Candidate, ...]]]
"""Reads the map anew; returns the shard's candidates in the order of asking. Raises KvShardError."""

LookFunction = Callable[[], tuple[Candidate, ...]]
"""The shard's candidates by the map that is known. Does not raise."""


OVERRUN_S = 0.002
"""How long past the deadline a send may take to say so itself: it alone knows whether a write went out. Only one that does not
keep to its deadline is cut off here."""

FIRST = 1
"""The number of a leg's first attempt."""

_USUAL = Config()
_REFRESH = 0


class LegRequest(NamedTuple):
    """One leg. candidates: replicas in the order of asking. deadline: when the leg must have ended. rng: spreads pauses.

    gate: decides on its hedges; None: there are none.
    """

    shard: int
    candidates: tuple[Candidate, ...]
    deadline: float
    config: Config = _USUAL
    rng: Random | None = None
    gate: HedgeGate | None = None


class BegunLeg(NamedTuple, Generic[ReplyT]):
    """A leg that was begun elsewhere, and comes here as it stands because something of it must be awaited.

    actions: what its machine wants and nobody has done yet. began: when its first attempt was sent. answers: by the number of
    the attempt. attempts: those under way; each gets what became of it, after its answer is in `answers`; cancelling it takes
    the attempt back.
    """

    machine: AttemptMachine
    actions: list[Action]
    began: float
    answers: dict[int, Answer[ReplyT]]
    attempts: "dict[int, asyncio.Future[Event]]"


class LegOutcome(NamedTuple, Generic[ReplyT]):
    """How a leg ended: with an answer or with an error, never both. (A named tuple is made in a quarter of the time.)

    attempts: requests sent. replicas_tried: leaves in the order of asking, each once. winner: leaf whose answer was used.
    total_us: from the start to the outcome, seen here. tries: the attempts one by one; empty when the first one was answered
    and nothing else happened. refused: why hedges were not sent.
    """

    shard: int
    answer: Answer[ReplyT] | None
    error: KvShardError | None
    attempts: int
    replicas_tried: tuple[str, ...]
    winner: str | None
    total_us: int
    tries: tuple[AttemptRecord, ...] = ()
    refused: tuple[Refusal, ...] = ()

    @property
    def reply(self) -> ReplyT | None:
        """What the winner said."""
        return None if self.answer is None else self.answer.reply


def leg_outcome(
    shard: int, machine: AttemptMachine, answers: Mapping[int, Answer[ReplyT]], seconds: float
) -> LegOutcome[ReplyT]:
    """That of a leg whose machine has ended. answers: by the number of the attempt. seconds: how long it took."""
    tries, result, total_us = tuple(machine.tries), machine.outcome, int(seconds * 1e6)
    refused = tuple(machine.refused)
    tried = tuple(dict.fromkeys(each.leaf for each in tries))
    if isinstance(result, Won):
        answer, winner = answers[result.attempt], result.candidate.leaf
        return LegOutcome(shard, answer, None, len(tries), tried, winner, total_us, tries, refused)
    assert isinstance(result, Lost), "a leg that has run has ended"
    return LegOutcome(shard, None, result.error, len(tries), tried, None, total_us, tries, refused)


async def run_leg(
    request: LegRequest,
    send: SendFunction[ReplyT],
    refresh: RefreshFunction,
    clock: Clock,
    look: LookFunction | None = None,
    begun: BegunLeg[ReplyT] | None = None,
) -> LegOutcome[ReplyT]:
    """Run one leg to its end. Raises nothing but what cancels it, and defects (exceptions that are no KvShardError).

    look: None where the map never changes without a refresh. begun: where the leg stands, if it was begun elsewhere.
    """
    leg = _Leg(request, send, refresh, clock, look, begun)
    await leg.run()
    return leg.outcome()


class _Leg(Generic[ReplyT]):
    """A leg under way. machine: None while the first attempt is all there is."""

    def __init__(
        self,
        request: LegRequest,
        send: SendFunction[ReplyT],
        refresh: RefreshFunction,
        clock: Clock,
        look: LookFunction | None,
        begun: BegunLeg[ReplyT] | None,
    ) -> None:
        self._request = request
        self._send = send
        self._refresh = refresh
        self._look = look
        self._clock = clock
        self._begun = begun
        self._began = clock.monotonic() if begun is None else begun.began
        self._cut_off = request.deadline + OVERRUN_S
        self._machine: AttemptMachine | None = None if begun is None else begun.machine
        self._answers: dict[int, Answer[ReplyT]] = {} if begun is None else begun.answers
        self._timer_at = inf
        self._first: asyncio.Future[Event] | None = None
        self._rest: asyncio.Task[None] | None = None
        self._owner: asyncio.Task[object] | None = None
        self._is_interrupted = False

    def outcome(self) -> LegOutcome[ReplyT]:
        """How it ended."""
        shard, seconds = self._request.shard, self._clock.monotonic() - self._began
        if self._machine is None:
            leaf = self._request.candidates[0].leaf
            return LegOutcome(shard, self._answers[FIRST], None, 1, (leaf,), leaf, int(seconds * 1e6))
        return leg_outcome(shard, self._machine, self._answers, seconds)

    async def run(self) -> None:
        """Run to the end. Nothing that it started is still running when it returns or raises."""
        request = self._request
        if self._begun is not None:
            self._timer_at = inf if self._begun.machine.timer_at is None else self._begun.machine.timer_at
            await self._go_on(self._begun.actions, self._begun.attempts)
            return
        if not request.candidates or self._began >= request.deadline:
            await self._go_on(self._start_machine(), {})
            return
        event = await self._run_first(request.candidates[0], request.deadline)
        if self._rest is not None:
            try:
                await self._rest
            finally:
                await _end([self._rest])
        elif event is not None:
            machine_actions = self._start_machine()[1:]
            await self._go_on([*machine_actions, *self._step(event)], {})

    async def _run_first(self, candidate: Candidate, deadline: float) -> Event | None:
        """Make the first attempt; a late one is taken over meanwhile.

        None when nothing is left to do: it was answered in time, or given up in favour of another one.
        """
        wait = self._first_wait()
        until = self._cut_off if wait is None else min(self._cut_off, self._began + wait)
        timer = asyncio.get_running_loop().call_later(until - self._began, self._take_over)
        owner = self._owner = asyncio.current_task()
        assert owner is not None, "a leg runs in a task"
        cancelling = owner.cancelling()
        event: Event | None = None
        try:
            self._answers[FIRST] = await self._send(candidate, deadline, AttemptKind.FIRST)
        except KvShardError as error:
            event = AttemptFailed(FIRST, error)
        except asyncio.CancelledError:
            if not self._is_interrupted or owner.uncancel() > cancelling:
                await self._end_rest()
                raise
        except BaseException:
            await self._end_rest()
            raise
        finally:
            timer.cancel()
            self._owner = None
        if self._first is not None and not self._first.done():
            self._first.set_result(event or AttemptSucceeded(FIRST))
        return event

    def _first_wait(self) -> float | None:
        """How long the first attempt is waited for before anything else may happen; None: as long as the deadline lets it."""
        request = self._request
        if not request.config.is_idempotent:
            return LOOK_INTERVAL_S if request.config.may_repeat else None
        if request.gate is None or request.config.max_attempts == 1:
            return None
        return request.gate.wait_s(self._began, request.deadline)

    async def _end_rest(self) -> None:
        """End what runs beside the first attempt, which has ended itself: its await must not be interrupted any more."""
        self._owner = None
        await _end([self._rest])

    def _take_over(self) -> None:
        """The first attempt is late: from now on a task runs the leg, to which that attempt is a future."""
        self._first = asyncio.get_running_loop().create_future()
        self._first.add_done_callback(self._interrupt)
        self._rest = asyncio.create_task(self._go_on(self._start_machine()[1:], {FIRST: self._first}))

    def _interrupt(self, first: "asyncio.Future[Event]") -> None:
        """The first attempt was given up: end the await in which it still is."""
        if first.cancelled() and self._owner is not None:
            self._is_interrupted = True
            self._owner.cancel()

    def _start_machine(self) -> list[Action]:
        """The machine, set to where the leg stands: its first action is the attempt that was made first."""
        request = self._request
        self._machine = AttemptMachine(request.config, request.candidates, request.deadline, request.rng, request.gate)
        return self._machine.start(self._began)

    def _step(self, event: Event) -> list[Action]:
        assert self._machine is not None, "a leg that goes on has a machine"
        return self._machine.step(event, self._clock.monotonic())

    async def _attempt(self, attempt: int, candidate: Candidate, kind: AttemptKind) -> Event:
        try:
            self._answers[attempt] = await self._send(candidate, self._request.deadline, kind)
        except KvShardError as error:
            return AttemptFailed(attempt, error)
        return AttemptSucceeded(attempt)

    async def _read_map(self) -> Event:
        try:
            return MapRefreshed(await self._refresh())
        except KvShardError as error:
            return RefreshFailed(error)

    async def _go_on(self, actions: list[Action], tasks: "dict[int, asyncio.Future[Event]]") -> None:
        """Perform actions and report what comes of them, until the leg has ended.

        Tasks are kept by attempt number; the refresh has number 0.
        """
        assert self._machine is not None, "a leg that goes on has a machine"
        losers: list[asyncio.Future[Event]] = []
        try:
            while True:
                for action in actions:
                    self._start(action, tasks, losers)
                if self._machine.outcome is not None:
                    return
                looked = any(isinstance(action, LookAtMap) for action in actions)
                events = [self._seen()] if looked else await self._next_events(tasks)
                actions = []
                for event in events:
                    actions += self._step(event)
        finally:
            await _end([*tasks.values(), *losers])

    def _start(self, action: Action, tasks: "dict[int, asyncio.Future[Event]]", losers: "list[asyncio.Future[Event]]") -> None:
        match action:
            case Send(attempt, candidate, kind):
                tasks[attempt] = asyncio.create_task(self._attempt(attempt, candidate, kind))
            case RefreshMap():
                tasks[_REFRESH] = asyncio.create_task(self._read_map())
            case SetTimer(at):
                self._timer_at = at
            case Cancel(attempt):
                # What a loser says after all is not heard; it is awaited when the leg ends.
                if attempt in tasks:
                    losers.append(tasks.pop(attempt))
                    losers[-1].cancel()
            case LookAtMap() | Finish():
                pass  # `_go_on` sees to them

    def _seen(self) -> MapSeen:
        return MapSeen(self._request.candidates if self._look is None else self._look())

    async def _next_events(self, tasks: "dict[int, asyncio.Future[Event]]") -> list[Event]:
        """What happened next; empty when the wait ended a little before its instant."""
        until = min(self._cut_off, self._timer_at)
        wait = max(0.0, until - self._clock.monotonic())
        if tasks:
            await asyncio.wait(tasks.values(), timeout=wait, return_when=asyncio.FIRST_COMPLETED)
        else:
            await asyncio.sleep(wait)
        done = [attempt for attempt, task in sorted(tasks.items()) if task.done()]
        if done:
            return [tasks.pop(attempt).result() for attempt in done]
        now = self._clock.monotonic()
        if now >= self._cut_off:
            return [DeadlinePassed()]
        if now >= self._timer_at:
            self._timer_at = inf
            return [TimerFired()]
        return []


async def _end(tasks: Sequence[asyncio.Future[Any] | None]) -> None:
    """Cancel what still runs and wait until all of it has ended."""
    started = [task for task in tasks if task is not None]
    for task in started:
        task.cancel()
    await asyncio.gather(*started, return_exceptions=True)
