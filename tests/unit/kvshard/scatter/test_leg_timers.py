"""Timers of reads: exact when they are due soon, gone when they are cancelled, none lost by another's defect."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import uvloop

from kvshard.scatter.leg_timers import SOON_S, LegTimers


@pytest.fixture
async def timers() -> AsyncIterator[LegTimers]:
    made = LegTimers()
    yield made
    made.close()


class Calls:
    """Who was called when. all: ended once so many were."""

    def __init__(self, expected: int) -> None:
        self.made: list[tuple[str, float]] = []
        self.all = asyncio.Event()
        self._expected = expected

    def to(self, name: str) -> Callable[[], None]:
        def call() -> None:
            self.made.append((name, time.monotonic()))
            if len(self.made) == self._expected:
                self.all.set()

        return call

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.made]


async def test_each_comes_when_it_is_due_whatever_the_order_they_were_set_in(timers: LegTimers) -> None:
    calls = Calls(4)
    due: dict[str, tuple[float, float]] = {}
    for name, seconds in {"c": 0.0072, "a": 0.0013, "d": SOON_S + 0.001, "b": 0.0042}.items():
        earliest = time.monotonic() + seconds
        timers.after(seconds, calls.to(name))
        due[name] = earliest, time.monotonic() + seconds  # The process may stand still in between.
    await calls.all.wait()
    assert sorted(calls.names) == ["a", "b", "c", "d"]
    soon = [name for name in calls.names if name != "d"]  # What is due later waits in the loop, for whole milliseconds.
    for place, later in enumerate(soon):
        assert all(due[earlier][0] <= due[later][1] for earlier in soon[:place])
    for name, at in calls.made:
        assert at >= due[name][0] or name == "d", "the kernel's timer is never early"


def test_on_uvloop_too_which_keeps_whole_milliseconds() -> None:
    async def waited(seconds: float) -> float:
        timers, calls, began = LegTimers(), Calls(1), time.monotonic()
        timers.after(seconds, calls.to("a"))
        await calls.all.wait()
        timers.close()
        return calls.made[0][1] - began

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for seconds in (0.0, 0.0004, 0.0013, 0.0027):
            assert runner.run(waited(seconds)) >= seconds


async def test_what_is_cancelled_is_not_called_and_not_kept(timers: LegTimers) -> None:
    calls = Calls(1)
    early, far = timers.after(0.001, calls.to("early")), timers.after(SOON_S * 2, calls.to("far"))
    timers.after(0.003, calls.to("kept"))
    early.cancel()
    far.cancel()
    await calls.all.wait()
    early.cancel()
    await asyncio.sleep(0)
    assert calls.names == ["kept"]
    assert repr(timers) == "LegTimers(0 soon)"


async def test_a_call_may_set_the_next_timer_and_cancel_another(timers: LegTimers) -> None:
    calls = Calls(2)

    def first() -> None:
        calls.to("first")()
        other.cancel()
        timers.after(0.0, calls.to("second"))

    timers.after(0.0, first)
    other = timers.after(0.0005, calls.to("other"))
    time.sleep(0.002)  # noqa: ASYNC251  # All are due in one look.
    await calls.all.wait()
    assert calls.names == ["first", "second"]


async def test_a_defect_behind_one_is_told_and_the_others_are_called(timers: LegTimers) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    calls = Calls(1)

    def broken() -> None:
        raise RuntimeError("a defect")

    timers.after(0.0005, broken)
    timers.after(0.001, calls.to("kept"))
    time.sleep(0.002)  # noqa: ASYNC251  # Both are due in one look.
    await calls.all.wait()
    assert [str(context["exception"]) for context in told] == ["a defect"]


async def test_closed_timers_call_nobody(timers: LegTimers) -> None:
    calls = Calls(1)
    timers.after(0.0, calls.to("never"))
    timers.close()
    others = LegTimers()
    others.after(0.001, calls.to("later"))
    await calls.all.wait()
    others.close()
    assert calls.names == ["later"]
