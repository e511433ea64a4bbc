"""Pings of a direct client: who is pinged when, and who learns of it."""

import asyncio
from collections.abc import AsyncIterator
from random import Random

import pytest
from fakes.clock import ManualClock

from kvshard.client.direct_probe import ReachProbe
from kvshard.client.direct_reach import FIRST_PING_PAUSE_S, LOST_S, Reach, Setbacks
from kvshard.errors import Unavailable
from kvshard.tail.replica_health import ReplicaHealth


class Setting:
    """Two leaves; those in `gone` do not answer, those in `broken` answer with a defect."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.reach = Reach()
        self.setbacks = Setbacks()
        self.health = ReplicaHealth(Random(1))
        self.gone: set[str] = set()
        self.broken: set[str] = set()
        self.pings: list[str] = []
        self.news = 0
        self.probe = ReachProbe(self.reach, self.setbacks, self.health, self._ping, self.clock, Random(1), self._note_news)
        self.reach.install({"a": "h:1", "b": "h:2"}, self.clock.monotonic())

    def _note_news(self) -> None:
        self.news += 1

    async def _ping(self, leaf: str, deadline: float) -> None:
        assert deadline > self.clock.monotonic()
        self.pings.append(leaf)
        if leaf in self.broken:
            raise ZeroDivisionError("a defect")
        if leaf in self.gone:
            raise Unavailable("connection refused")

    async def look(self, seconds: float = 0.0) -> None:
        """Let time pass, and let it do what is due."""
        self.clock.advance(seconds)
        self.probe.wake()
        for _ in range(10):
            await asyncio.sleep(0)

    def is_avoided(self, leaf: str) -> bool:
        return self.health.is_unreachable(leaf, self.clock.monotonic())


@pytest.fixture
async def setting() -> AsyncIterator[Setting]:
    setting = Setting()
    yield setting
    await setting.probe.close()


async def test_who_answers_is_reached_and_who_does_not_is_avoided(setting: Setting) -> None:
    setting.gone.add("b")
    setting.probe.start()
    await setting.look()
    assert (setting.reach.has("a"), setting.reach.has("b")) == (True, False)
    assert (setting.is_avoided("a"), setting.is_avoided("b")) == (False, True)
    assert (setting.pings, setting.news) == (["a", "b"], 1)
    await setting.look()
    assert setting.pings == ["a", "b"]  # Not yet again.
    setting.gone.clear()
    await setting.look(FIRST_PING_PAUSE_S)
    assert (setting.pings, setting.news) == (["a", "b", "b"], 2)
    assert setting.reach.is_whole
    assert not setting.is_avoided("b")


async def test_a_leaf_that_is_out_of_reach_for_long_is_pinged_again(setting: Setting) -> None:
    setting.probe.start()
    await setting.look()
    setting.health.unreachable("a", setting.clock.monotonic())
    setting.gone.add("a")
    await setting.look()
    await setting.look(LOST_S - 0.5)
    assert setting.reach.has("a")
    await setting.look(1.0)
    assert not setting.reach.has("a")
    assert setting.pings[2:] == ["a"]
    setting.gone.clear()
    await setting.look(FIRST_PING_PAUSE_S)
    assert setting.reach.is_whole
    assert not setting.is_avoided("a")


async def test_a_defect_counts_as_silence(setting: Setting) -> None:
    setting.broken.add("a")
    setting.probe.start()
    await setting.look()
    assert (setting.reach.has("a"), setting.is_avoided("a")) == (False, True)
    setting.broken.clear()
    await setting.look(FIRST_PING_PAUSE_S)
    assert setting.reach.is_whole


async def test_setbacks_are_forgiven_by_and_by(setting: Setting) -> None:
    setting.setbacks.note([1], setting.clock.monotonic())
    setting.probe.start()
    await setting.look()
    assert not setting.setbacks.is_empty
    await setting.look(60.0)
    assert setting.setbacks.is_empty


async def test_a_close_leaves_no_ping_under_way(setting: Setting) -> None:
    hanging = asyncio.Event()

    async def ping(leaf: str, deadline: float) -> None:
        hanging.set()
        await asyncio.Event().wait()

    probe = ReachProbe(setting.reach, setting.setbacks, setting.health, ping, setting.clock, Random(1), lambda: None)
    probe.start()
    await hanging.wait()
    await probe.close()
    assert [task for task in asyncio.all_tasks() if task.get_name().startswith("direct-")] == []
