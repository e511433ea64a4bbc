"""Reads of one key without a task: which are such, what they are told, and that nothing of one is left, whatever comes when."""

import asyncio
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from fakes.leaf_client import FakeLeafClient, Hang, Ping
from fakes.map_source import FakeMapSource, cluster_map
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.errors import (
    DeadlineExceeded,
    Internal,
    InvalidArgument,
    KvShardError,
    NotReady,
    ShardMoved,
    StaleEpoch,
    Unavailable,
    record_of,
)
from kvshard.lane_messages import KeysRead, KeysReadReply
from kvshard.limits import KEY_MAX_BYTES
from kvshard.model import ShardRead, ShardReadReply
from kvshard.scatter.ledger import ReadTimes
from kvshard.scatter.lone_reads import LoneReads
from kvshard.scatter.scatter import Scatter
from kvshard.telemetry import RouterMetrics
from kvshard.v1 import types_pb2

CLOCK = SystemClock()
GOOD = ShardReadReply([b"v"], [7], [99])
LEAVES = ("leaf-1", "leaf-2", "leaf-3")


def encoded(**options: Any) -> bytes:
    return types_pb2.ReadOptions(**options).SerializeToString()


class Setting:
    """Four shards, each on all of three leaves."""

    def __init__(self) -> None:
        self.maps = FakeMapSource(cluster_map(shards=4, leaves=3, replicas=3))
        self.leaves = FakeLeafClient()
        self.registry = CollectorRegistry()
        self.scatter = Scatter(self.maps, CLOCK, RouterMetrics(self.registry), self.leaves.ping, Random(1))
        self.reads = LoneReads(self.maps, self.leaves, self.scatter)
        self.times = ReadTimes(CLOCK.monotonic())
        self.told: list[KeysReadReply | KvShardError | None] = []

    def find(self, *keys: bytes, collection: str = "", options: bytes = b"", alone: bool = True) -> bool:
        return self.reads.find(KeysRead(collection, list(keys), options, alone)) is not None

    def begin(self, timeout: float = 5.0, **options: Any) -> Callable[[], object]:
        found = self.reads.find(KeysRead("", [b"k"], encoded(**options), True))
        assert found is not None
        return self.reads.begin(found, CLOCK.monotonic() + timeout, self.times, self.told.append)

    async def outcome(self, *steps: Any, timeout: float = 5.0, **options: Any) -> KeysReadReply | KvShardError | None:
        for leaf in LEAVES:
            self.leaves.on(leaf, ShardRead, *steps)
        self.begin(timeout, **options)
        assert self.told == [], "nobody is told before it has begun"
        async with asyncio.timeout(10):
            while not self.told:
                await asyncio.sleep(0)
        return self.told[-1]

    @property
    def left(self) -> tuple[int, int]:
        """Attempts and late legs on the books of the defences."""
        return sum(leaf.waiting for leaf in self.scatter.defences.health.leaves()), sum(self.scatter.defences.late.values())


@pytest.fixture
async def setting() -> Setting:
    return Setting()


async def test_which_frames_are_such_reads(setting: Setting) -> None:
    assert setting.find(b"k")
    assert setting.find(b"k" * KEY_MAX_BYTES, options=encoded(hedge="off", replica_choice="primary"))
    assert not setting.find(b"k", alone=False), "its answer has a coverage"
    assert not setting.find(b"k", b"l")
    assert not setting.find()
    assert not setting.find(b"")
    assert not setting.find(b"k" * (KEY_MAX_BYTES + 1))
    assert not setting.find(b"k", collection="nope")
    assert not setting.find(b"k", options=encoded(consistency=types_pb2.CONSISTENCY_STALE))
    assert not setting.find(b"k", options=encoded(explain_timing=True))
    assert not setting.find(b"k", options=b"\xff"), "what is wrong with it, the other way tells"
    setting.maps._current = None
    assert not setting.find(b"k")


async def test_the_answer_is_told(setting: Setting) -> None:
    assert await setting.outcome(GOOD) == KeysReadReply([b"v"], [7], [99])
    assert setting.times.fan_out == 1
    assert setting.left == (0, 0)
    value = setting.registry.get_sample_value
    assert value("kvshard_router_legs_total", {"method": "Get", "outcome": "ok"}) == 1


async def test_one_that_has_ended_is_not_counted_twice(setting: Setting) -> None:
    for leaf in LEAVES:
        setting.leaves.on(leaf, ShardRead, GOOD)
    take_back = setting.begin()
    while not setting.told:
        await asyncio.sleep(0)
    take_back()
    value = setting.registry.get_sample_value
    assert value("kvshard_router_legs_total", {"method": "Get", "outcome": "ok"}) == 1
    assert len(setting.told) == 1


async def test_an_absent_key_is_an_answer(setting: Setting) -> None:
    assert await setting.outcome(ShardReadReply([None], [0])) == KeysReadReply([None], [0])


@pytest.mark.parametrize("error", [InvalidArgument("wrong"), Internal("a defect")])
async def test_an_error_of_the_leg_is_told(setting: Setting, error: KvShardError) -> None:
    outcome = await setting.outcome(error)
    assert type(outcome) is type(error)


async def test_an_error_of_the_key_is_told(setting: Setting) -> None:
    outcome = await setting.outcome(ShardReadReply([None], [0], errors={0: record_of(InvalidArgument("this key"))}))
    assert isinstance(outcome, InvalidArgument)
    assert outcome.message == "this key"


async def test_a_key_that_has_moved_is_read_in_the_other_way(setting: Setting) -> None:
    assert await setting.outcome(ShardReadReply([None], [0], errors={0: record_of(ShardMoved("elsewhere"))})) is None


async def test_an_answer_of_a_wrong_form_is_an_internal_error(setting: Setting) -> None:
    assert isinstance(await setting.outcome(ShardReadReply([], [])), Internal)


async def test_a_leg_that_cannot_be_started_is_asked(setting: Setting) -> None:
    setting.leaves.starts = False
    assert await setting.outcome(GOOD) == KeysReadReply([b"v"], [7], [99])


async def test_failover_and_hedge_are_as_ever(setting: Setting) -> None:
    for leaf in LEAVES:
        setting.leaves.on(leaf, ShardRead, Unavailable("down"))
    setting.leaves.on("leaf-2", ShardRead, GOOD)
    setting.begin()
    async with asyncio.timeout(10):
        while not setting.told:
            await asyncio.sleep(0)
    assert setting.told == [KeysReadReply([b"v"], [7], [99])]

    hang = Hang(GOOD)
    first = len(setting.leaves.calls)
    for leaf in LEAVES:
        setting.leaves.on(leaf, ShardRead, hang)
    setting.begin(hedge="1ms")
    async with asyncio.timeout(10):
        while len(setting.leaves.calls) < first + 2:
            await asyncio.sleep(0.001)
    assert setting.leaves.calls[-1].is_hedge
    hang.release()
    async with asyncio.timeout(10):
        while len(setting.told) < 2:
            await asyncio.sleep(0)
    assert setting.told[1] == KeysReadReply([b"v"], [7], [99])
    assert setting.left == (0, 0)


async def test_a_leaf_that_does_not_answer_ends_at_the_deadline(setting: Setting) -> None:
    assert isinstance(await setting.outcome(Hang(), timeout=0.02), DeadlineExceeded)
    assert setting.left == (0, 0)


STEPS = st.sampled_from([GOOD, Unavailable("down"), NotReady("no lease"), StaleEpoch("old"), InvalidArgument("wrong"), None])
"""What a leaf does; None: nothing for ever."""


async def _whatever_comes(steps: list[Any], hedge: str, passes: int, is_taken_back: bool, starts: bool) -> None:
    setting = Setting()
    setting.leaves.starts = starts
    setting.leaves.on("leaf-1", Ping, Hang())
    for leaf in LEAVES:
        setting.leaves.on(leaf, ShardRead, *(Hang() if step is None else step for step in steps))
    take_back = setting.begin(0.03, hedge=hedge)
    for _ in range(passes):
        await asyncio.sleep(0)
    was_told = len(setting.told)
    if is_taken_back:
        take_back()
    else:
        async with asyncio.timeout(10):
            while not setting.told:
                await asyncio.sleep(0.001)
        take_back()  # Of no effect: it has ended.
    for _ in range(20):
        await asyncio.sleep(0)
    assert len(setting.told) == (was_told if is_taken_back else 1)
    assert setting.left == (0, 0)
    await setting.scatter.close()
    for _ in range(3):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


@settings(max_examples=60, deadline=None)
@given(
    steps=st.lists(STEPS, min_size=1, max_size=4),
    hedge=st.sampled_from(["off", "0ms", "1ms"]),
    passes=st.integers(0, 12),
    is_taken_back=st.booleans(),
    starts=st.booleans(),
)
def test_nothing_is_left_whatever_comes_when(
    steps: list[Any], hedge: str, passes: int, is_taken_back: bool, starts: bool
) -> None:
    asyncio.run(_whatever_comes(steps, hedge, passes, is_taken_back, starts))
