"""Performs one leg: interprets the actions of the attempt machine over an async `send`.

Decides nothing. Every attempt it starts has ended when it returns, also when it is itself cancelled: losers are cancelled and
awaited. A leg of a single attempt runs in the caller's own task, one with hedges gives each attempt a task.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from math import inf
from typing import Generic, TypeVar

from kvshard.clock import Clock
from kvshard.errors import KvShardError
from kvshard.rpc.leaf_client import Answer
from kvshard.tail.attempts import (
    Action,
    AttemptFailed,
    AttemptMachine,
    AttemptSucceeded,
    Cancel,
    Candidate,
    Config,
    DeadlinePassed,
    Event,
    Finish,
    Lost,
    MapRefreshed,
    RefreshFailed,
    RefreshMap,
    Send,
    SetTimer,
    TimerFired,
    Won,
)

ReplyT = TypeVar("ReplyT")

SendFunction = Callable[[Candidate, float], Awaitable[Answer[ReplyT]]]
"""Asks a candidate, by an absolute deadline. Raises KvShardError."""

RefreshFunction = Callable[[], Awaitable[tuple[Candidate, ...]]]
"""Reads the map anew; returns the shard's candidates in the order of asking. Raises KvShardError."""


OVERRUN_S = 0.002
"""How long past the deadline a send may take to say so itself: it alone knows whether a write went out. Only one that does not
keep to its deadline is cut off here."""

_REFRESH = 0


@dataclass(frozen=True, slots=True)
class LegRequest:
    """One leg. candidates: replicas in the order of asking. deadline: when the leg must have ended."""

    shard: int
    candidates: tuple[Candidate, ...]
    deadline: float
    config: Config = field(default_factory=Config)


@dataclass(frozen=True, slots=True)
class LegOutcome(Generic[ReplyT]):
    """How a leg ended: with a reply or with an error, never both.

    attempts: requests sent. replicas_tried: leaves in the order of asking, each once. winner: leaf whose answer was used.
    total_us: from the start to the outcome, seen here; queue_us, service_us: as the winner measured them.
    """

    shard: int
    reply: ReplyT | None = None
    error: KvShardError | None = None
    attempts: int = 0
    replicas_tried: tuple[str, ...] = ()
    winner: str | None = None
    total_us: int = 0
    queue_us: int = 0
    service_us: int = 0


async def run_leg(
    request: LegRequest, send: SendFunction[ReplyT], refresh: RefreshFunction, clock: Clock
) -> LegOutcome[ReplyT]:
    """Run one leg to its end. Raises nothing but what cancels it, and defects (exceptions that are no KvShardError)."""
    started = clock.monotonic()
    leg = _Leg(request, send, refresh, clock)
    await (leg.run_alone() if request.config.max_attempts == 1 else leg.run_with_tasks())
    return leg.outcome(int((clock.monotonic() - started) * 1e6))


class _Leg(Generic[ReplyT]):
    def __init__(self, request: LegRequest, send: SendFunction[ReplyT], refresh: RefreshFunction, clock: Clock) -> None:
        self.machine = AttemptMachine(request.config, request.candidates, request.deadline)
        self.answers: dict[int, Answer[ReplyT]] = {}
        self._request = request
        self._send = send
        self._refresh = refresh
        self._clock = clock
        self._timer_at = inf
        self._cut_off = request.deadline + OVERRUN_S

    def outcome(self, total_us: int) -> LegOutcome[ReplyT]:
        contacts = self.machine.contacts
        tried = tuple(dict.fromkeys(candidate.leaf for candidate in contacts))
        result = self.machine.outcome
        if isinstance(result, Won):
            answer = self.answers[result.attempt]
            return LegOutcome(
                shard=self._request.shard,
                reply=answer.reply,
                attempts=len(contacts),
                replicas_tried=tried,
                winner=result.candidate.leaf,
                total_us=total_us,
                queue_us=answer.queue_us,
                service_us=answer.service_us,
            )
        assert isinstance(result, Lost), "a leg that has run has ended"
        shard = self._request.shard
        return LegOutcome(shard, error=result.error, attempts=len(contacts), replicas_tried=tried, total_us=total_us)

    # -- one attempt at a time, in the caller's task

    async def run_alone(self) -> None:
        """The machine of a single attempt never wants two things at once, so its last action is awaited in place."""
        actions = self.machine.start(self._clock.monotonic())
        deadline = asyncio.timeout(max(0.0, self._cut_off - self._clock.monotonic()))
        try:
            async with deadline:
                while not isinstance(actions[-1], Finish):
                    event = await self._perform(actions[-1])
                    # A timer that woke a little early changes nothing: it is then set again.
                    actions = self.machine.step(event, self._clock.monotonic()) or actions
        except TimeoutError:
            if not deadline.expired():
                raise
            self.machine.step(DeadlinePassed(), self._clock.monotonic())

    async def _perform(self, action: Action) -> Event:
        match action:
            case Send(attempt, candidate):
                return await self._attempt(attempt, candidate)
            case RefreshMap():
                return await self._read_map()
            case SetTimer(at):
                await asyncio.sleep(max(0.0, at - self._clock.monotonic()))
                return TimerFired()
            case _:
                raise AssertionError(f"a leg of one attempt cannot wait for {action}")

    async def _attempt(self, attempt: int, candidate: Candidate) -> Event:
        try:
            self.answers[attempt] = await self._send(candidate, self._request.deadline)
        except KvShardError as error:
            return AttemptFailed(attempt, error)
        return AttemptSucceeded(attempt)

    async def _read_map(self) -> Event:
        try:
            return MapRefreshed(await self._refresh())
        except KvShardError as error:
            return RefreshFailed(error)

    # -- several at a time, each in its task

    async def run_with_tasks(self) -> None:
        """Tasks are kept by attempt number; the refresh has number 0."""
        tasks: dict[int, asyncio.Task[Event]] = {}
        try:
            actions = self.machine.start(self._clock.monotonic())
            while True:
                for action in actions:
                    self._start(action, tasks)
                if self.machine.outcome is not None:
                    return
                actions = []
                for event in await self._next_events(tasks):
                    actions += self.machine.step(event, self._clock.monotonic())
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)

    def _start(self, action: Action, tasks: dict[int, asyncio.Task[Event]]) -> None:
        match action:
            case Send(attempt, candidate):
                tasks[attempt] = asyncio.create_task(self._attempt(attempt, candidate))
            case RefreshMap():
                tasks[_REFRESH] = asyncio.create_task(self._read_map())
            case SetTimer(at):
                self._timer_at = at
            case Cancel(attempt):
                tasks[attempt].cancel()
            case Finish():
                pass  # the loop sees the machine's outcome

    async def _next_events(self, tasks: dict[int, asyncio.Task[Event]]) -> list[Event]:
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
