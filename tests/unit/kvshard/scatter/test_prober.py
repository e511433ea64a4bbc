"""Leaves that have fallen silent are pinged until they answer, and nobody is forgotten."""

import asyncio
from random import Random
from typing import Any

import pytest
from fakes.clock import ManualClock

from kvshard.errors import DeadlineExceeded, Unavailable
from kvshard.scatter import prober as module
from kvshard.scatter.prober import PING_TIMEOUT_S, Prober
from kvshard.tail.latency import LatencyPool
from kvshard.tail.leaf_health import LeafState
from kvshard.tail.replica_health import UNREACHABLE_S, ReplicaHealth

NOW = 1_000.0


class Setting:
    """Leaf "a" is silent. answers: what its pings get, one after the other; the last one repeats."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.pings: list[tuple[str, float]] = []
        self.clock = ManualClock(NOW)
        self.health = ReplicaHealth(Random(1))
        self.prober = Prober(self.ping, self.health, self.clock)

    def fall_silent(self) -> None:
        attempt = self.health.began("a", LatencyPool("Get"), 0.01, self.clock.monotonic(), True)
        self.clock.advance(0.02)
        assert self.health.cancelled(attempt, self.clock.monotonic())
        self.prober.watch("a")

    async def ping(self, leaf: str, deadline: float) -> None:
        self.pings.append((leaf, deadline - self.clock.monotonic()))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, asyncio.Event):
            await answer.wait()
        elif isinstance(answer, Exception):
            raise answer

    def state(self) -> LeafState:
        return self.health.leaf("a", self.clock.monotonic()).state(self.clock.monotonic())


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PING_PAUSE_S", 0.0)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_the_moment_it_answers_it_counts_again() -> None:
    wakes = asyncio.Event()
    setting = Setting(wakes)
    setting.fall_silent()
    await settle()
    assert setting.pings == [("a", pytest.approx(PING_TIMEOUT_S))]
    assert setting.state() is LeafState.STALLED
    wakes.set()
    await settle()
    assert setting.state() is LeafState.PROBATION
    assert not setting.prober.is_watching("a")


async def test_a_ping_that_fails_is_sent_again() -> None:
    setting = Setting(Unavailable("refused"), DeadlineExceeded("late"), None)
    setting.fall_silent()
    await settle()
    assert len(setting.pings) == 3
    assert setting.state() is LeafState.PROBATION


async def test_a_leaf_is_pinged_by_one_task_only() -> None:
    setting = Setting(asyncio.Event())
    setting.fall_silent()
    setting.prober.watch("a")
    await settle()
    assert len(setting.pings) == 1
    await setting.prober.close()


async def test_a_leaf_that_falls_silent_again_at_once_is_pinged_again() -> None:
    """The task that found it awake has ended, but the loop has not said so yet."""
    setting = Setting(None)
    pinged = setting.health.pinged

    def pinged_and_silent_again(leaf: str, now: float) -> None:
        pinged(leaf, now)
        asyncio.get_running_loop().call_soon(setting.fall_silent)

    setting.health.pinged = pinged_and_silent_again  # type: ignore[method-assign]
    setting.fall_silent()
    await asyncio.sleep(0)
    setting.health.pinged = pinged  # type: ignore[method-assign]
    assert setting.state() is LeafState.PROBATION
    await settle()
    assert len(setting.pings) == 2
    assert setting.state() is LeafState.PROBATION
    assert repr(setting.prober) == "Prober([])"


async def test_after_a_minute_without_an_answer_the_next_request_may_find_out() -> None:
    setting = Setting(Unavailable("refused"))
    setting.health.unreachable("a", NOW)
    setting.fall_silent()
    await settle()
    setting.clock.advance(UNREACHABLE_S)
    await settle()
    assert setting.state() is LeafState.OK
    assert not setting.health.has_unreachable
    assert not setting.prober.is_watching("a")


async def test_a_defect_does_not_leave_a_leaf_silent_for_good() -> None:
    setting = Setting(ZeroDivisionError("defect"))
    setting.fall_silent()
    await settle()
    assert setting.state() is LeafState.OK
    assert not setting.prober.is_watching("a")


async def test_closing_ends_every_task_and_begins_no_other() -> None:
    before = asyncio.all_tasks()
    setting = Setting(asyncio.Event())
    setting.fall_silent()
    await settle()
    await setting.prober.close()
    setting.prober.watch("b")
    assert asyncio.all_tasks() == before
    assert len(setting.pings) == 1
