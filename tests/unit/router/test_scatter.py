"""Legs: cancellation first, then deadlines, refusals and refreshes."""

import asyncio

import pytest
from fakes.leaf_client import FakeLeafClient, Hang
from fakes.map_source import FakeMapSource, cluster_map
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.errors import DeadlineExceeded, Internal, NotReady, StaleEpoch, Unavailable
from kvshard.model import ShardRead, ShardReadReply, ShardWrite, ShardWriteReply
from kvshard.telemetry import RouterMetrics
from router.scatter import Scatter

REPLY = ShardReadReply([b"v"], [1], documents=3)
CLOCK = SystemClock()


def read(shard: int, epoch: int = 1) -> ShardRead:
    return ShardRead(shard, epoch, 1, [b"k"])


class Setting:
    def __init__(self) -> None:
        self.maps = FakeMapSource(cluster_map(shards=4, leaves=4))
        self.leaves = FakeLeafClient()
        self.registry = CollectorRegistry()
        self.scatter = Scatter(self.maps, CLOCK, RouterMetrics(self.registry))

    async def gather(self, timeout: float = 5.0, shards=range(4)):
        requests = [read(shard) for shard in shards]
        return await self.scatter.gather("BatchGet", self.leaves.read, requests, CLOCK.monotonic() + timeout)

    def legs(self, outcome: str) -> float | None:
        return self.registry.get_sample_value("kvshard_router_legs_total", {"method": "BatchGet", "outcome": outcome})


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_cancelled_gather_cancels_and_awaits_every_leg(setting: Setting) -> None:
    hangs = [Hang() for _ in range(4)]
    for number, hang in enumerate(hangs, 1):
        setting.leaves.on(f"leaf-{number}", ShardRead, hang)
    call = asyncio.create_task(setting.gather())
    await asyncio.gather(*(hang.reached.wait() for hang in hangs))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert [hang.cancelled for hang in hangs] == [1, 1, 1, 1]
    assert {each.fate for each in setting.leaves.calls} == {"cancelled"}


async def test_hung_leg_is_a_failed_leg_and_the_others_answer(setting: Setting) -> None:
    hang = Hang()
    for number in (1, 2, 4):
        setting.leaves.on(f"leaf-{number}", ShardRead, REPLY)
    setting.leaves.on("leaf-3", ShardRead, hang)
    legs = await setting.gather(timeout=0.05)
    assert [leg.error is None for leg in legs] == [True, True, False, True]
    assert isinstance(legs[2].error, DeadlineExceeded)
    assert legs[2].as_failed().replicas_tried == ("leaf-3",)
    assert hang.cancelled == 1
    assert (setting.legs("ok"), setting.legs("deadline_exceeded")) == (3, 1)


async def test_late_write_may_have_been_applied(setting: Setting) -> None:
    setting.leaves.on("leaf-1", ShardWrite, Hang())
    request = ShardWrite(0, 1, 1, [b"k"], [b"v"])
    legs = await setting.scatter.gather("BatchWrite", setting.leaves.write, [request], CLOCK.monotonic() + 0.02)
    assert legs[0].error is not None
    assert legs[0].error.details.maybe_applied


async def test_dead_leaf_is_data(setting: Setting) -> None:
    for number in (1, 2, 3):
        setting.leaves.on(f"leaf-{number}", ShardRead, REPLY)
    legs = await setting.gather()
    assert [leg.shard for leg in legs] == [0, 1, 2, 3]
    failed = legs[3].as_failed()
    assert (failed.shard, failed.error.reason, failed.replicas_tried) == (3, "UNAVAILABLE", ("leaf-4",))
    assert [leg.as_time().leaf for leg in legs] == ["leaf-1", "leaf-2", "leaf-3", ""]


async def test_nothing_to_gather(setting: Setting) -> None:
    assert await setting.gather(shards=()) == []


async def test_stale_epoch_refreshes_the_map_and_asks_again(setting: Setting) -> None:
    setting.maps.upcoming = cluster_map(shards=4, leaves=2, version=2, epoch=5)
    setting.leaves.on("leaf-4", ShardRead, StaleEpoch("epoch is 5")).on("leaf-2", ShardRead, REPLY)
    leg = await setting.scatter.ask("Get", setting.leaves.read, read(3), CLOCK.monotonic() + 5)
    assert leg.reply == REPLY
    assert leg.leaf == "leaf-2"
    assert setting.maps.refreshes == 1
    assert [(each.leaf, each.request.epoch) for each in setting.leaves.calls] == [("leaf-4", 1), ("leaf-2", 5)]


async def test_leaf_that_recovers_is_asked_until_it_is_ready(setting: Setting) -> None:
    setting.leaves.on("leaf-1", ShardRead, NotReady("recovering"), NotReady("recovering"), REPLY)
    leg = await setting.scatter.ask("Get", setting.leaves.read, read(0), CLOCK.monotonic() + 5)
    assert leg.reply == REPLY
    assert len(setting.leaves.calls) == 3


async def test_leaf_that_never_gets_ready_ends_with_the_deadline(setting: Setting) -> None:
    setting.leaves.on("leaf-1", ShardRead, NotReady("recovering"))
    leg = await setting.scatter.ask("Get", setting.leaves.read, read(0), CLOCK.monotonic() + 0.05)
    assert leg.error is not None
    assert leg.error.reason in ("NOT_READY", "DEADLINE_EXCEEDED")


async def test_request_takes_the_epoch_of_the_current_map(setting: Setting) -> None:
    setting.leaves.on("leaf-1", ShardRead, REPLY)
    setting.maps.install(cluster_map(shards=4, leaves=4, version=2, epoch=9))
    await setting.scatter.ask("Scan", setting.leaves.read, read(0, epoch=1), CLOCK.monotonic() + 5)
    assert setting.leaves.calls[0].request.epoch == 9


async def test_shard_that_is_gone_from_the_map_is_a_failed_leg(setting: Setting) -> None:
    leg = await setting.scatter.ask("Get", setting.leaves.read, read(99), CLOCK.monotonic() + 0.05)
    assert isinstance(leg.error, Unavailable)


async def test_write_is_not_sent_again_after_an_unclear_failure(setting: Setting) -> None:
    setting.leaves.on("leaf-1", ShardWrite, Unavailable("connection broke"), ShardWriteReply([1], [False]))
    leg = await setting.scatter.ask("Put", setting.leaves.write, ShardWrite(0, 1, 1, [b"k"], [b"v"]), CLOCK.monotonic() + 5)
    assert isinstance(leg.error, Unavailable)
    assert len(setting.leaves.calls) == 1


async def test_defect_becomes_an_internal_error(setting: Setting) -> None:
    def broken(request: ShardRead) -> ShardReadReply:
        raise ZeroDivisionError("defect")

    setting.leaves.on("leaf-1", ShardRead, broken)
    leg = await setting.scatter.ask("Get", setting.leaves.read, read(0), CLOCK.monotonic() + 5)
    assert isinstance(leg.error, Internal)
    assert "ZeroDivisionError" in leg.error.message
