"""The executor performs what the machine says, and leaves nothing running."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fakes.hedge_gate import OpenGate
from fakes.leaf_client import FakeLeafClient, Hang

from kvshard.clock import SystemClock
from kvshard.errors import DeadlineExceeded, KvShardError, NotReady, StaleEpoch, Unavailable
from kvshard.model import ShardRead, ShardReadReply
from kvshard.rpc.leaf_client import Answer
from kvshard.tail import attempts
from kvshard.tail.executor import LegOutcome, LegRequest, run_leg
from kvshard.tail.leg_events import (
    AttemptKind,
    Candidate,
    Config,
)

A, B, C = Candidate("a", 1), Candidate("b", 1), Candidate("c", 1)
CLOCK = SystemClock()
REPLY = ShardReadReply([b"v"], [1])
ALONE = Config()
HEDGED = Config(max_attempts=3)
FAILING_OVER = Config(max_attempts=3)


def leg(leaves: FakeLeafClient, candidates: tuple[Candidate, ...], config: Config, timeout_s: float = 5.0, **more: Any) -> Any:
    async def send(candidate: Candidate, deadline: float, kind: AttemptKind) -> Answer[ShardReadReply]:
        return await leaves.read(candidate.leaf, ShardRead(7, candidate.epoch, 1, [b"k"]), deadline)

    async def no_refresh() -> tuple[Candidate, ...]:
        raise AssertionError("nobody asked for a refresh")

    refresh: Callable[[], Awaitable[tuple[Candidate, ...]]] = more.get("refresh", no_refresh)
    look: Callable[[], tuple[Candidate, ...]] | None = more.get("look")
    gate = more.get("gate", OpenGate(0.0) if config is HEDGED else None)
    request = LegRequest(7, candidates, CLOCK.monotonic() + timeout_s, config, gate=gate)
    return run_leg(request, send, refresh, CLOCK, look)


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
    assert outcome.answer == Answer(REPLY, 11, 22)
    assert outcome.replicas_tried == ("a", "b")


@pytest.mark.parametrize("config", [ALONE, HEDGED, FAILING_OVER], ids=["alone", "hedged", "tasks"])
async def test_the_answer(config: Config) -> None:
    leaves = FakeLeafClient().on("a", ShardRead, Answer(REPLY, 3, 4))
    outcome = await leg(leaves, (A,), config)
    assert (outcome.reply, outcome.error, outcome.winner, outcome.attempts) == (REPLY, None, "a", 1)
    assert (outcome.answer, outcome.shard) == (Answer(REPLY, 3, 4), 7)
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


async def test_a_late_first_answer_still_wins() -> None:
    """The first attempt is in the caller's task, the hedge in another: whichever answers first ends both."""
    first, hedge = Hang(REPLY), Hang()
    leaves = FakeLeafClient().on("a", ShardRead, first).on("b", ShardRead, hedge)
    task = asyncio.create_task(leg(leaves, (A, B), HEDGED))
    await hedge.reached.wait()
    first.release()
    outcome = await task
    assert (outcome.winner, outcome.attempts, outcome.replicas_tried) == ("a", 2, ("a", "b"))
    assert fates(leaves) == ["a answered", "b cancelled"]


async def test_a_first_attempt_that_fails_late_leaves_it_to_the_hedge() -> None:
    async def fail_late(request: Any) -> Any:
        await first.wait()
        return Unavailable("gone")

    first, hedge = asyncio.Event(), Hang(REPLY)
    leaves = FakeLeafClient().on("a", ShardRead, fail_late).on("b", ShardRead, hedge)
    task = asyncio.create_task(leg(leaves, (A, B), HEDGED))
    await hedge.reached.wait()
    first.set()
    await asyncio.sleep(0)
    hedge.release()
    assert (await task).winner == "b"
    assert fates(leaves) == ["a raised", "b answered"]


async def test_being_overtaken_is_not_being_cancelled() -> None:
    leaves = FakeLeafClient().on("a", ShardRead, Hang()).on("b", ShardRead, REPLY)
    await leg(leaves, (A, B), HEDGED)
    owner = asyncio.current_task()
    assert owner is not None
    assert owner.cancelling() == 0
    await asyncio.sleep(0)  # A cancellation left behind would be raised here.


async def test_a_deadline_of_the_caller_cancels_a_hedged_leg_once() -> None:
    """The hedge takes some passes to end, and the caller's timeout must still see its own cancellation in what it gets back."""
    hang, ended = Hang(), asyncio.Event()

    async def slow_to_stop(request: Any) -> Any:
        try:
            return await hang(request)
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            ended.set()

    leaves = FakeLeafClient().on("a", ShardRead, Hang()).on("b", ShardRead, slow_to_stop)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as timeout:
            asyncio.get_running_loop().call_later(0.02, timeout.reschedule, 0.0)
            await leg(leaves, (A, B), HEDGED)
    owner = asyncio.current_task()
    assert owner is not None
    assert owner.cancelling() == 0
    assert ended.is_set()
    assert fates(leaves) == ["a cancelled", "b cancelled"]


async def test_a_defect_in_a_hedge_ends_the_leg_and_the_first_attempt() -> None:
    def broken(request: Any) -> Any:
        raise ZeroDivisionError

    leaves = FakeLeafClient().on("a", ShardRead, Hang()).on("b", ShardRead, broken)
    with pytest.raises(ZeroDivisionError):
        await leg(leaves, (A, B), HEDGED)
    assert leaves.calls[0].fate == "cancelled"


async def test_a_write_that_hangs_follows_its_primary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "LOOK_INTERVAL_S", 0.001)
    looks = iter([(A,), (A,), (B,)])
    leaves = FakeLeafClient().on("a", ShardRead, Hang()).on("b", ShardRead, REPLY)
    config = Config(is_idempotent=False, may_repeat=True)
    outcome = await leg(leaves, (A,), config, look=lambda: next(looks))
    assert (outcome.winner, outcome.attempts, outcome.replicas_tried) == ("b", 2, ("a", "b"))
    assert fates(leaves) == ["a cancelled", "b answered"]


@pytest.mark.parametrize("seed", range(5))
async def test_any_interleaving_ends_clean(seed: int) -> None:
    """Answers, failures, hedges and cancellations in random order: nothing runs on, and no cancellation is left over."""
    rng, before = random.Random(seed), asyncio.all_tasks()

    async def replica(request: Any) -> Any:
        for _ in range(rng.randrange(8)):
            await asyncio.sleep(0)
        return rng.choice([REPLY, REPLY, Unavailable("gone"), NotReady("soon"), StaleEpoch("old")])

    async def refresh() -> tuple[Candidate, ...]:
        await asyncio.sleep(0)
        return tuple(rng.sample((A, B, C), 3))

    async def owner() -> str:
        config = Config(3, may_repeat=True, max_refreshes=100, first_pause_s=1e-5)
        gate = OpenGate(rng.choice([0.0, 0.0, 1.0]))
        outcome = await leg(FakeLeafClient().on("*", ShardRead, replica), (A, B, C), config, refresh=refresh, gate=gate)
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        await asyncio.sleep(0)
        return "answered" if outcome.reply is not None else "failed"

    for _ in range(200):
        task = asyncio.create_task(owner())
        is_to_be_cancelled = rng.random() < 0.3
        for _ in range(rng.randrange(12) if is_to_be_cancelled else 0):
            await asyncio.sleep(0)
        was_done = task.done()
        if is_to_be_cancelled:
            task.cancel()
        (result,) = await asyncio.gather(task, return_exceptions=True)
        wanted = asyncio.CancelledError if is_to_be_cancelled and not was_done else str
        assert isinstance(result, wanted), result
        assert result != "failed"
        assert asyncio.all_tasks() == before
