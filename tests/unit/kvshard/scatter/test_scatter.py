"""Legs: cancellation first, then deadlines, refusals and refreshes."""

import asyncio
from collections import Counter
from dataclasses import replace
from random import Random
from typing import Any

import pytest
from fakes.leaf_client import ANY_LEAF, FakeLeafClient, Hang, Ping
from fakes.map_source import FakeMapSource, cluster_map
from prometheus_client import CollectorRegistry

from kvshard.clock import SystemClock
from kvshard.errors import DeadlineExceeded, ErrorDetails, Expired, Internal, NotReady, StaleEpoch, Unavailable
from kvshard.model import ShardRead, ShardReadReply, ShardWrite, ShardWriteReply
from kvshard.scatter.leg import How
from kvshard.scatter.scatter import Scatter
from kvshard.tail.hedging import FixedDelay, Off
from kvshard.telemetry import RouterMetrics

REPLY = ShardReadReply([b"v"], [1], documents=3)
CLOCK = SystemClock()


def read(shard: int, epoch: int = 1) -> ShardRead:
    return ShardRead(shard, epoch, 1, [b"k"])


class Setting:
    def __init__(self, starts: bool = False) -> None:
        self.maps = FakeMapSource(cluster_map(shards=4, leaves=4))
        self.leaves = FakeLeafClient(starts)
        self.registry = CollectorRegistry()
        self.scatter = Scatter(self.maps, CLOCK, RouterMetrics(self.registry), self.leaves.ping)

    async def gather(self, timeout: float = 5.0, shards=range(4)):
        requests = [read(shard) for shard in shards]
        deadline = CLOCK.monotonic() + timeout
        return await self.scatter.gather("BatchGet", self.leaves.read, requests, deadline, start=self.leaves.start)

    async def ask(self, request: ShardRead, timeout: float = 5.0, method: str = "Get"):
        deadline = CLOCK.monotonic() + timeout
        return await self.scatter.ask(method, self.leaves.read, request, deadline, start=self.leaves.start)

    def legs(self, outcome: str) -> float | None:
        return self.registry.get_sample_value("kvshard_router_legs_total", {"method": "BatchGet", "outcome": outcome})


@pytest.fixture(params=[False, True], ids=["asked", "started"])
def setting(request: pytest.FixtureRequest) -> Setting:
    return Setting(request.param)


async def test_cancelled_gather_cancels_and_awaits_every_leg(setting: Setting) -> None:
    hangs = [Hang() for _ in range(4)]
    for number, hang in enumerate(hangs, 1):
        setting.leaves.on(f"leaf-{number}", ShardRead, hang)
    call = asyncio.create_task(setting.gather())
    await asyncio.gather(*(hang.reached.wait() for hang in hangs))
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await asyncio.sleep(0)  # what was taken back at a leaf is not awaited
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
    leg = await setting.ask(read(3))
    assert leg.reply == REPLY
    assert leg.leaf == "leaf-2"
    assert setting.maps.refreshes == 1
    assert [(each.leaf, each.request.epoch) for each in setting.leaves.calls] == [("leaf-4", 1), ("leaf-2", 5)]


async def test_leaf_that_recovers_is_asked_until_it_is_ready(setting: Setting) -> None:
    setting.leaves.on("leaf-1", ShardRead, NotReady("recovering"), NotReady("recovering"), REPLY)
    leg = await setting.ask(read(0))
    assert leg.reply == REPLY
    assert len(setting.leaves.calls) == 3


async def test_leaf_that_never_gets_ready_ends_with_the_deadline(setting: Setting) -> None:
    setting.leaves.on("leaf-1", ShardRead, NotReady("recovering"))
    leg = await setting.ask(read(0), 0.05)
    assert leg.error is not None
    assert leg.error.reason in ("NOT_READY", "DEADLINE_EXCEEDED")


async def test_request_takes_the_epoch_of_the_current_map(setting: Setting) -> None:
    setting.leaves.on("leaf-1", ShardRead, REPLY)
    setting.maps.install(cluster_map(shards=4, leaves=4, version=2, epoch=9))
    await setting.ask(read(0, epoch=1), method="Scan")
    assert setting.leaves.calls[0].request.epoch == 9


async def test_shard_that_is_gone_from_the_map_is_a_failed_leg(setting: Setting) -> None:
    leg = await setting.ask(read(99), 0.05)
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
    leg = await setting.ask(read(0))
    assert isinstance(leg.error, Internal)
    assert "ZeroDivisionError" in leg.error.message


class Replicated:
    """Four shards on three leaves, each in sync on all of them; shard 0 has its primary on leaf-1."""

    def __init__(self, starts: bool = False) -> None:
        self.maps = FakeMapSource(cluster_map(shards=4, leaves=3, replicas=3))
        self.leaves = FakeLeafClient(starts)
        self.scatter = Scatter(self.maps, CLOCK, RouterMetrics(CollectorRegistry()), self.leaves.ping, Random(1))

    async def read(self, timeout: float = 5.0, **how: Any):
        deadline = CLOCK.monotonic() + timeout
        return await self.scatter.ask("Get", self.leaves.read, read(0), deadline, How(**how), self.leaves.start)

    async def write(self, timeout: float = 5.0, is_repetition: bool = False, client: str = "c", since: int = 5):
        request = ShardWrite(0, 1, 1, [b"k"], [b"v"], client=client, number=1, since=since)
        how = How(is_repetition=is_repetition)
        return await self.scatter.ask("Put", self.leaves.write, request, CLOCK.monotonic() + timeout, how)

    def asked(self) -> list[str]:
        return [call.leaf for call in self.leaves.calls]


@pytest.fixture(params=[False, True], ids=["asked", "started"])
def replicated(request: pytest.FixtureRequest) -> Replicated:
    return Replicated(request.param)


WRITTEN = ShardWriteReply([9], [False], seqno=9)
LOST = Unavailable("the lane broke", ErrorDetails(maybe_applied=True))


class TestReplicatedReads:
    async def test_they_are_spread(self, replicated: Replicated) -> None:
        replicated.leaves.on(ANY_LEAF, ShardRead, REPLY)
        for _ in range(60):
            assert (await replicated.read()).error is None
        counts = Counter(replicated.asked())
        assert len(counts) == 3
        assert min(counts.values()) > 8

    async def test_a_dead_leaf_is_no_error_and_is_asked_last_for_a_while(self, replicated: Replicated) -> None:
        replicated.leaves.on("leaf-2", ShardRead, REPLY).on("leaf-3", ShardRead, REPLY).on("leaf-1", Ping, LOST)
        results = [await replicated.read() for _ in range(60)]
        await replicated.scatter.close()
        assert all(result.error is None for result in results)
        asked = [call.leaf for call in replicated.leaves.calls_of(ShardRead)]
        assert asked.count("leaf-1") == 1
        tried = [result.replicas_tried for result in results if len(result.replicas_tried) > 1]
        assert [each[0] for each in tried] == ["leaf-1"]

    async def test_replicas_without_a_lease_are_asked_until_one_has_it(self, replicated: Replicated) -> None:
        replicated.leaves.on("leaf-2", ShardRead, *[NotReady("no lease")] * 4, REPLY)
        replicated.leaves.on("leaf-3", ShardRead, NotReady("no lease"))
        result = await replicated.read()
        assert result.leaf == "leaf-2"
        assert set(result.replicas_tried) == {"leaf-1", "leaf-2", "leaf-3"}

    async def test_a_hanging_leaf_costs_a_hedge_and_is_then_avoided(self, replicated: Replicated) -> None:
        hang = Hang()
        replicated.leaves.on("leaf-1", Ping, Hang())
        replicated.leaves.on("leaf-1", ShardRead, hang).on("leaf-2", ShardRead, REPLY).on("leaf-3", ShardRead, REPLY)
        results = [await replicated.read(hedge=FixedDelay(0.001)) for _ in range(30)]
        assert all(result.error is None for result in results)
        assert hang.cancelled == 1

    @pytest.mark.parametrize("hedge", [FixedDelay(0.001), Off()])
    async def test_a_hanging_primary_does_not_hold_readers_while_its_secondaries_take_over(
        self, replicated: Replicated, hedge: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("kvshard.tail.attempts.LOOK_INTERVAL_S", 0.02)
        hang = Hang()
        replicated.leaves.on("leaf-1", ShardRead, hang)
        replicated.leaves.on("leaf-2", ShardRead, *[NotReady("no lease")] * 4, REPLY)
        replicated.leaves.on("leaf-3", ShardRead, NotReady("no lease"))
        replicated.scatter.defences.health.unreachable("leaf-1", CLOCK.monotonic())  # so that it comes last
        result = await replicated.read(hedge=hedge)
        assert result.leaf == "leaf-2"
        assert hang.cancelled == 1

    async def test_hedges_of_a_call_that_was_given_up_are_under_way_no_more(self, replicated: Replicated) -> None:
        hangs = [Hang(), Hang(), Hang()]
        for number, hang in enumerate(hangs, 1):
            replicated.leaves.on(f"leaf-{number}", ShardRead, hang)
        requests = [read(shard) for shard in range(2)]
        how = How(hedge=FixedDelay(0.001))
        call = asyncio.create_task(
            replicated.scatter.gather(
                "BatchGet", replicated.leaves.read, requests, CLOCK.monotonic() + 5, how, replicated.leaves.start
            )
        )
        counters = replicated.scatter.defences.counters
        while not counters.hedges_sent:
            await asyncio.sleep(0.001)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert counters.hedges_sent == counters.hedges_won + counters.hedges_wasted > 0
        assert [leaf.waiting for leaf in replicated.scatter.defences.health.leaves()] == [0, 0, 0]

    async def test_no_hedge_if_none_is_wanted(self, replicated: Replicated) -> None:
        replicated.leaves.on(ANY_LEAF, ShardRead, Hang())
        result = await replicated.read(timeout=0.03, hedge=Off())
        assert isinstance(result.error, DeadlineExceeded)
        assert len(replicated.asked()) == 1

    async def test_the_end_names_every_replica_that_was_tried(self, replicated: Replicated) -> None:
        result = await replicated.read(timeout=0.05)
        assert isinstance(result.error, Unavailable)
        assert set(result.as_failed().replicas_tried) == {"leaf-1", "leaf-2", "leaf-3"}
        assert len(result.replicas_tried) == 3

    async def test_it_goes_on_while_the_coordinator_is_silent(self, replicated: Replicated, monkeypatch) -> None:
        async def refresh() -> None:
            raise Unavailable("no coordinator")

        monkeypatch.setattr(replicated.maps, "refresh", refresh)
        replicated.leaves.on("leaf-3", ShardRead, *[Unavailable("restarting")] * 3, REPLY)
        assert (await replicated.read()).leaf == "leaf-3"

    async def test_the_only_replica_left_of_several_may_come_back(self, replicated: Replicated) -> None:
        current = replicated.maps.current
        alone = replace(current.shards[0], in_sync=current.shards[0].in_sync[:1], desired=("leaf-1", "leaf-2"))
        replicated.maps.install(replace(current, version=2, shards={**current.shards, 0: alone}))
        replicated.leaves.on("leaf-1", ShardRead, Unavailable("restarting"), Unavailable("restarting"), REPLY)
        result = await replicated.read()
        assert (result.leaf, result.attempts, result.replicas_tried) == ("leaf-1", 3, ("leaf-1",))


class TestReplicatedWrites:
    async def test_a_lost_write_is_sent_again_to_the_new_primary(self, replicated: Replicated) -> None:
        newer = cluster_map(shards=4, leaves=3, replicas=3, version=2, epoch=2)
        replicated.maps.upcoming = replace(newer, shards={**newer.shards, 0: replace(newer.shards[0], primary="leaf-2")})
        replicated.leaves.on("leaf-1", ShardWrite, LOST).on("leaf-2", ShardWrite, StaleEpoch("not yet"), WRITTEN)
        result = await replicated.write()
        assert result.reply == WRITTEN
        assert replicated.asked() == ["leaf-1", "leaf-2", "leaf-2"]
        assert result.replicas_tried == ("leaf-1", "leaf-2")
        sent = [call.request for call in replicated.leaves.calls]
        assert {(each.client, each.number, each.since) for each in sent} == {("c", 1, 5)}
        assert [each.epoch for each in sent] == [1, 2, 2]
        assert replicated.scatter.heard.committed.of(0) == 9

    async def test_without_an_id_it_is_not(self, replicated: Replicated) -> None:
        replicated.leaves.on("leaf-1", ShardWrite, LOST, WRITTEN)
        result = await replicated.write(client="")
        assert result.error is not None
        assert result.error.details.maybe_applied
        assert replicated.asked() == ["leaf-1"]

    async def test_never_two_at_once_and_never_at_a_secondary(self, replicated: Replicated) -> None:
        replicated.leaves.on(ANY_LEAF, ShardWrite, Hang())
        result = await replicated.write(timeout=0.05)
        assert isinstance(result.error, DeadlineExceeded)
        assert result.error.details.maybe_applied
        assert replicated.asked() == ["leaf-1"]

    async def test_the_last_error_tells_that_an_earlier_sending_may_have_been_done(self, replicated: Replicated) -> None:
        replicated.leaves.on("leaf-1", ShardWrite, LOST, Unavailable("refused"))
        result = await replicated.write(timeout=0.03)
        assert result.error is not None
        assert result.error.details.maybe_applied

    async def test_what_was_never_done_is_no_doubt(self, replicated: Replicated) -> None:
        result = await replicated.write(timeout=0.03)
        assert result.error is not None
        assert not result.error.details.maybe_applied

    async def test_a_first_sending_that_is_expired_catches_up(self, replicated: Replicated) -> None:
        replicated.leaves.on("leaf-1", ShardWrite, Expired("?", ErrorDetails(committed=70)), WRITTEN)
        assert (await replicated.write()).reply == WRITTEN
        assert [call.request.since for call in replicated.leaves.calls] == [5, 70]

    async def test_a_repetition_that_is_expired_stays_so(self, replicated: Replicated) -> None:
        replicated.leaves.on("leaf-1", ShardWrite, Expired("?", ErrorDetails(committed=70)))
        result = await replicated.write(is_repetition=True)
        assert isinstance(result.error, Expired)
        assert result.error.details.maybe_applied
        assert len(replicated.asked()) == 1

    async def test_a_lost_sending_makes_the_next_one_a_repetition(self, replicated: Replicated) -> None:
        replicated.leaves.on("leaf-1", ShardWrite, LOST, Expired("?", ErrorDetails(committed=70)))
        result = await replicated.write()
        assert isinstance(result.error, Expired)
        assert result.error.details.maybe_applied
        assert len(replicated.asked()) == 2
