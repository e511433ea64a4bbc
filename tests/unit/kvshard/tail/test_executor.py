"""The executor performs what the machine says, and leaves nothing running."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fakes.leaf_client import FakeLeafClient, Hang

from kvshard.clock import SystemClock
from kvshard.errors import DeadlineExceeded, KvShardError, NotReady, StaleEpoch, Unavailable
from kvshard.model import ShardRead, ShardReadReply
from kvshard.rpc.leaf_client import Answer
from kvshard.tail.attempts import Candidate, Config
from kvshard.tail.executor import LegOutcome, LegRequest, run_leg

A, B, C = Candidate("a", 1), Candidate("b", 1), Candidate("c", 1)
CLOCK = SystemClock()
REPLY = ShardReadReply([b"v"], [1])
ALONE = Config()
HEDGED = Config(max_attempts=3, hedge_after_s=0.0)
FAILING_OVER = Config(max_attempts=3)


def leg(leaves: FakeLeafClient, candidates: tuple[Candidate, ...], config: Config, timeout_s: float = 5.0, **more: Any) -> Any:
    async def send(candidate: Candidate, deadline: float) -> Answer[ShardReadReply]:
        return await leaves.read(candidate.leaf, ShardRead(7, candidate.epoch, 1, [b"k"]), deadline)

    async def no_refresh() -> tuple[Candidate, ...]:
        raise AssertionError("nobody asked for a refresh")

    refresh: Callable[[], Awaitable[tuple[Candidate, ...]]] = more.get("refresh", no_refresh)
    return run_leg(LegRequest(7, candidates, CLOCK.monotonic() + timeout_s, config), send, refresh, CLOCK)


def fates(leaves: FakeLeafClient) -> list[str]:
    return [f"{call.leaf} {call.fate}" for call in leaves.calls]


async def cancelled_while_waiting(task: "asyncio.Task[Any]") -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("config", [ALONE, FAILING_OVER], ids=["alone", "tasks"])
async def test_cancelling_the_leg_cancels_and_awaits_the_send(config: Config) -> None:
    hang, ended = Hang(), asyncio.Event()

    async def slow_to_stop(request: Any) -> Any:
        try:
            return await hang(request)
        finally:
            await asyncio.sleep(0)
            ended.set()

    leaves = FakeLeafClient().on("a", ShardRead, slow_to_stop)
    task = asyncio.create_task(leg(leaves, (A,), config))
    await hang.reached.wait()
    await cancelled_while_waiting(task)
    assert ended.is_set()
    assert fates(leaves) == ["a cancelled"]


async def test_cancelling_the_leg_cancels_every_attempt() -> None:
    hangs = [Hang(), Hang()]
    leaves = FakeLeafClient().on("a", ShardRead, hangs[0]).on("b", ShardRead, hangs[1])
    task = asyncio.create_task(leg(leaves, (A, B), HEDGED))
    await hangs[1].reached.wait()
    await cancelled_while_waiting(task)
    assert fates(leaves) == ["a cancelled", "b cancelled"]


@pytest.mark.parametrize("config", [ALONE, FAILING_OVER], ids=["alone", "tasks"])
async def test_cancelling_the_leg_cancels_the_refresh(config: Config) -> None:
    hang = Hang()
    leaves = FakeLeafClient().on("a", ShardRead, StaleEpoch("old"))
    task = asyncio.create_task(leg(leaves, (A,), config, refresh=lambda: hang(None)))
    await hang.reached.wait()
    await cancelled_while_waiting(task)
    assert hang.cancelled == 1


@pytest.mark.parametrize("config", [ALONE, FAILING_OVER], ids=["alone", "tasks"])
async def test_a_defect_in_a_send_is_not_an_answer(config: Config) -> None:
    def broken(request: Any) -> Any:
        raise ZeroDivisionError

    hang = Hang()
    leaves = FakeLeafClient().on("a", ShardRead, broken).on("b", ShardRead, hang)
    with pytest.raises(ZeroDivisionError):
        await leg(leaves, (A,), config)


async def test_the_loser_is_cancelled_and_awaited() -> None:
    slow = Hang()
    leaves = FakeLeafClient().on("a", ShardRead, slow).on("b", ShardRead, Answer(REPLY, 11, 22))
    outcome: LegOutcome[ShardReadReply] = await leg(leaves, (A, B), HEDGED)
    assert fates(leaves) == ["a cancelled", "b answered"]
    assert (outcome.reply, outcome.winner, outcome.attempts) == (REPLY, "b", 2)
    assert (outcome.queue_us, outcome.service_us) == (11, 22)
    assert outcome.replicas_tried == ("a", "b")


@pytest.mark.parametrize("config", [ALONE, HEDGED, FAILING_OVER], ids=["alone", "hedged", "tasks"])
async def test_the_answer(config: Config) -> None:
    leaves = FakeLeafClient().on("a", ShardRead, Answer(REPLY, 3, 4))
    outcome = await leg(leaves, (A,), config)
    assert (outcome.reply, outcome.error, outcome.winner, outcome.attempts) == (REPLY, None, "a", 1)
    assert (outcome.queue_us, outcome.service_us, outcome.shard) == (3, 4, 7)
    assert outcome.total_us >= 0


@pytest.mark.parametrize("config", [ALONE, HEDGED, FAILING_OVER], ids=["alone", "hedged", "tasks"])
async def test_the_error_is_data(config: Config) -> None:
    error = Unavailable("gone")
    leaves = FakeLeafClient().on("a", ShardRead, error)
    outcome = await leg(leaves, (A,), config)
    assert (outcome.reply, outcome.error, outcome.winner, outcome.replicas_tried) == (None, error, None, ("a",))


@pytest.mark.parametrize("config", [ALONE, FAILING_OVER], ids=["alone", "tasks"])
@pytest.mark.parametrize("refusal", [StaleEpoch("old"), NotReady("soon")], ids=repr)
async def test_a_refusal_is_answered_by_the_next_map(config: Config, refusal: KvShardError) -> None:
    epochs = iter([1, 2])
    leaves = FakeLeafClient().on("a", ShardRead, refusal, refusal, REPLY)

    async def refresh() -> tuple[Candidate, ...]:
        return (Candidate("a", next(epochs) + 1),)

    outcome = await leg(leaves, (A,), config, refresh=refresh)
    assert outcome.reply == REPLY
    assert [call.request.epoch for call in leaves.calls] == [1, 2, 3]
    assert outcome.replicas_tried == ("a",)
    assert outcome.attempts == 3


@pytest.mark.parametrize("config", [ALONE, FAILING_OVER], ids=["alone", "tasks"])
async def test_a_refresh_that_fails_is_an_error_of_the_leg(config: Config) -> None:
    async def refresh() -> tuple[Candidate, ...]:
        raise Unavailable("no coordinator")

    config = Config(config.max_attempts, max_refreshes=2, first_pause_s=0.001)
    outcome = await leg(FakeLeafClient().on("a", ShardRead, StaleEpoch("old")), (A,), config, refresh=refresh)
    assert repr(outcome.error) == "Unavailable('no coordinator')"


@pytest.mark.parametrize("config", [ALONE, FAILING_OVER], ids=["alone", "tasks"])
async def test_a_send_that_ignores_its_deadline_is_cut_off(config: Config) -> None:
    leaves = FakeLeafClient().on("a", ShardRead, Hang())
    outcome = await leg(leaves, (A,), config, timeout_s=0.01)
    assert isinstance(outcome.error, DeadlineExceeded)
    assert fates(leaves) == ["a cancelled"]


@pytest.mark.parametrize("config", [ALONE, FAILING_OVER], ids=["alone", "tasks"])
async def test_a_deadline_that_has_passed_sends_nothing(config: Config) -> None:
    leaves = FakeLeafClient()
    outcome = await leg(leaves, (A,), config, timeout_s=-1.0)
    assert isinstance(outcome.error, DeadlineExceeded)
    assert leaves.calls == []


async def test_failover() -> None:
    leaves = FakeLeafClient().on("b", ShardRead, Unavailable("gone too")).on("c", ShardRead, REPLY)
    outcome = await leg(leaves, (A, B, C), FAILING_OVER)
    assert (outcome.winner, outcome.attempts, outcome.replicas_tried) == ("c", 3, ("a", "b", "c"))


async def test_nothing_is_left_running() -> None:
    before = asyncio.all_tasks()
    leaves = FakeLeafClient().on("a", ShardRead, Hang()).on("b", ShardRead, REPLY)
    await leg(leaves, (A, B), HEDGED)
    assert asyncio.all_tasks() == before
