"""All orders of events, for up to three candidates and three attempts: the rules hold after every step, and every leg ends."""

import itertools
from collections.abc import Iterator
from copy import deepcopy

import pytest
from fakes.hedge_gate import OpenGate

from kvshard.errors import InvalidArgument, NotReady, StaleEpoch, Unavailable
from kvshard.tail.attempts import AttemptMachine
from kvshard.tail.hedging import Refusal
from kvshard.tail.leg_events import (
    Action,
    AttemptFailed,
    AttemptSucceeded,
    Cancel,
    Candidate,
    Config,
    DeadlinePassed,
    Event,
    Finish,
    LookAtMap,
    MapRefreshed,
    MapSeen,
    RefreshFailed,
    RefreshMap,
    Send,
    SetTimer,
    TimerFired,
    Won,
)

CANDIDATES = (Candidate("a", 1), Candidate("b", 1), Candidate("c", 1))
DEADLINE = 1_000.0
ERRORS = (Unavailable("gone"), StaleEpoch("old"), NotReady("soon"), InvalidArgument("bad"))


class World:
    """What a correct executor would know: which attempts are out, whether a refresh or a timer is pending."""

    def __init__(self, config: Config, candidates: int, delay: float | None = None) -> None:
        gate = OpenGate(delay, Refusal.BUDGET) if config.is_idempotent else None
        self.leg = AttemptMachine(config, CANDIDATES[:candidates], DEADLINE, gate=gate)
        self.now = 0.0
        self.out: dict[int, Candidate] = {}
        self.timer_at: float | None = None
        self.is_refreshing = False
        self.is_looking = False
        self.finished: Finish | None = None
        self.sent = 0
        self.refused = 0
        self._perform(self.leg.start(self.now))

    def possible(self) -> Iterator[Event]:
        """A look at the map is answered before anything else can happen."""
        if self.is_looking:
            yield MapSeen((Candidate("b", 2),))
            yield MapSeen((Candidate("a", 2),))
            return
        for attempt in self.out:
            yield AttemptSucceeded(attempt)
            for error in ERRORS:
                yield AttemptFailed(attempt, error)
        if self.is_refreshing:
            yield MapRefreshed((Candidate("b", 2), Candidate("a", 2)))
            yield MapRefreshed(())
            yield RefreshFailed(Unavailable("no coordinator"))
        if self.timer_at is not None:
            yield TimerFired()
        yield DeadlinePassed()

    def happen(self, event: Event) -> None:
        self.now += 0.001
        match event:
            case AttemptSucceeded(attempt):
                del self.out[attempt]
            case AttemptFailed(attempt, error):
                del self.out[attempt]
                may_pass = (StaleEpoch, NotReady, Unavailable) if self.leg.config.may_repeat else (StaleEpoch, NotReady)
                self.refused += isinstance(error, may_pass)
            case MapSeen():
                self.is_looking = False
            case MapRefreshed() | RefreshFailed():
                self.is_refreshing = False
            case TimerFired():
                assert self.timer_at is not None
                self.now = max(self.now, self.timer_at)
                self.timer_at = None
            case DeadlinePassed():
                self.now = DEADLINE
        self._perform(self.leg.step(event, self.now))

    def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            assert self.finished is None, "an action after the end"
            match action:
                case Send(attempt, candidate):
                    self.sent += 1
                    assert attempt == self.sent, "attempts are numbered in order"
                    assert candidate.leaf not in {other.leaf for other in self.out.values()}, "a leaf asked twice at once"
                    self.out[attempt] = candidate
                case Cancel(attempt):
                    del self.out[attempt]
                    self.refused += 1
                case LookAtMap():
                    self.is_looking = True
                case RefreshMap():
                    assert not self.out, "refreshed while an attempt is out"
                    assert not self.is_refreshing
                    self.is_refreshing = True
                case SetTimer(at):
                    assert at >= self.now
                    self.timer_at = at
                case Finish():
                    self.finished = action
        self._check()

    def _check(self) -> None:
        self.leg.check_invariants()
        assert self.out == self.leg.outstanding
        config = self.leg.config
        assert self.sent - self.refused <= config.max_attempts
        assert config.is_idempotent or len(self.out) <= 1
        if self.finished is not None:
            assert not self.out, "a loser was left running"
            assert self.finished.outcome == self.leg.outcome
        else:
            assert self.out or self.is_refreshing or self.timer_at is not None, "a leg that waits for nothing"


def explore(world: World, depth: int) -> Iterator[World]:
    if world.finished is not None or depth == 0:
        yield world
        return
    for event in list(world.possible()):
        following = deepcopy(world)
        following.happen(event)
        if isinstance(event, AttemptSucceeded):
            assert following.finished is not None, "the first good answer did not win"
            assert isinstance(following.finished.outcome, Won)
        yield from explore(following, depth - 1)


CONFIGS = [
    *((Config(max_attempts=attempts, max_refreshes=2), delay) for attempts in (1, 2, 3) for delay in (None, 0.05)),
    *((Config(max_attempts=attempts, is_idempotent=False, max_refreshes=2), None) for attempts in (1, 2, 3)),
    (Config(max_attempts=3, may_repeat=True, max_refreshes=2), 0.05),
    (Config(max_attempts=1, is_idempotent=False, may_repeat=True, max_refreshes=2), None),
]
NAMES = [
    f"{config.max_attempts}-{'idem' if config.is_idempotent else 'write'}-{delay}{'-repeat' * config.may_repeat}"
    for config, delay in CONFIGS
]


@pytest.mark.parametrize(("config", "delay"), CONFIGS, ids=NAMES)
@pytest.mark.parametrize("candidates", [0, 1, 2, 3])
def test_every_order_of_events(config: Config, delay: float | None, candidates: int) -> None:
    worlds = list(explore(World(config, candidates, delay), depth=6))
    assert any(world.finished is not None for world in worlds)


@pytest.mark.parametrize(("config", "delay"), CONFIGS, ids=NAMES)
def test_every_leg_ends_without_a_deadline(config: Config, delay: float | None) -> None:
    """Whatever the leaves say, a leg that hears only refusals and failures ends by its own bounds."""
    for errors in itertools.product(ERRORS[:3], repeat=3):
        world, steps = World(config, 3, delay), 0
        while world.finished is None:
            steps += 1
            assert steps < 100, world.leg
            events = [event for event in world.possible() if not isinstance(event, DeadlinePassed | AttemptSucceeded)]
            wanted = errors[steps % 3]
            chosen = next((e for e in events if isinstance(e, AttemptFailed) and e.error is wanted), events[0])
            world.happen(chosen)


def test_the_same_events_give_the_same_actions() -> None:
    def dialogue() -> list[str]:
        world, lines = World(Config(max_attempts=3), 3, 0.05), []
        for _ in range(6):
            if world.finished is not None:
                break
            event = list(world.possible())[-2]
            world.happen(event)
            lines.append(f"{event} -> {world.leg}")
        return lines

    assert dialogue() == dialogue()
