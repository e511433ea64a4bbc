"""First attempts that are sent at once: answered, late, failed, taken back; nothing is left behind, whatever comes when."""

import asyncio
from random import Random
from typing import Any

import pytest
import uvloop
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
    ResourceExhausted,
    StaleEpoch,
    Unavailable,
)
from kvshard.model import ShardRead, ShardReadReply
from kvshard.rpc.leaf_client import Answer, Heard, ReadRequest, TakeBack
from kvshard.scatter.leg import How
from kvshard.scatter.leg_result import LegResult
from kvshard.scatter.scatter import Scatter
from kvshard.tail.hedging import FixedDelay, Off, Refusal
from kvshard.telemetry import RouterMetrics

CLOCK = SystemClock()
GOOD = Answer(ShardReadReply([b"v"], [1], documents=3, seqno=9), queue_us=2, service_us=3, in_flight=4)
AT_ONCE = How(hedge=FixedDelay(0.0))
SOON = How(hedge=FixedDelay(0.02))
NEVER = How(hedge=Off())


class Sent:
    """A read that was started. at: when. state: "open", "told" or "taken back"."""

    def __init__(self, leaf: str, request: ReadRequest, heard: Heard) -> None:
        self.leaf = leaf
        self.request = request
        self.state = "open"
        self.at = CLOCK.monotonic()
        self._heard = heard

    def __repr__(self) -> str:
        return f"{self.leaf}: shard {self.request.shard} {self.state}"

    def tell(self, outcome: Answer[Any] | KvShardError = GOOD) -> None:
        """As the lane does when the leaf has answered; of what was taken back it says nothing."""
        if self.state == "open":
            self.state = "told"
            self._heard(outcome)

    def take_back(self) -> None:
        """As the lane's session withdraws: of no effect on what is told."""
        if self.state == "open":
            self.state = "taken back"


class Wire(FakeLeafClient):
    """A leaf client of which the test tells the first attempts of each shard what became of them; the others are scripted.

    is_open: a read can be started. later_open: a further attempt can; else it must be asked, as by the executor.
    later_told: the test tells the further ones, too.
    """

    def __init__(self) -> None:
        super().__init__(starts=True)
        self.sent: list[Sent] = []
        self.is_open = self.later_open = True
        self.later_told = False

    def start(
        self, leaf: str, request: ReadRequest, deadline: float, heard: Heard, is_hedge: bool = False, is_last: bool = True
    ) -> TakeBack | None:
        if not self.is_open:
            return None
        if not self.later_told and any(each.request.shard == request.shard for each in self.sent):
            return super().start(leaf, request, deadline, heard, is_hedge) if self.later_open else None
        self.sent.append(Sent(leaf, request, heard))
        return self.sent[-1].take_back

    def of(self, shard: int) -> Sent:
        return next(each for each in self.sent if each.request.shard == shard)


class Setting:
    """Four shards, each on all of three leaves."""

    def __init__(self, seed: int = 1, later_open: bool = True) -> None:
        self.maps = FakeMapSource(cluster_map(shards=4, leaves=3, replicas=3))
        self.wire = Wire()
        self.wire.later_open = later_open
        self.registry = CollectorRegistry()
        metrics = RouterMetrics(self.registry)
        self.scatter = Scatter(self.maps, CLOCK, metrics, self.wire.ping, Random(seed))

    def gather(
        self, how: How = NEVER, shards: int = 4, timeout: float = 5.0
    ) -> "asyncio.Task[list[LegResult[ShardReadReply]]]":
        requests = [ShardRead(shard, 1, 1, [b"k"]) for shard in range(shards)]
        deadline = CLOCK.monotonic() + timeout
        call = self.scatter.gather("BatchGet", self.wire.read, requests, deadline, how, self.wire.start)
        return asyncio.create_task(call)

    @property
    def waiting(self) -> int:
        """Attempts that the defences hold for under way."""
        return sum(leaf.waiting for leaf in self.scatter.defences.health.leaves())

    @property
    def open_legs(self) -> int:
        """Late legs that are on the defences' books."""
        return sum(self.scatter.defences.late.values())

    def legs(self, outcome: str) -> float | None:
        return self.registry.get_sample_value("kvshard_router_legs_total", {"method": "BatchGet", "outcome": outcome})

    def others(self, shard: int) -> list[str]:
        """The leaves that the first attempt of this shard did not go to."""
        return [f"leaf-{n}" for n in (1, 2, 3) if f"leaf-{n}" != self.wire.of(shard).leaf]


async def passes(count: int = 3) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def cancelled(call: "asyncio.Task[Any]") -> None:
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call


async def test_answers_need_no_tasks() -> None:
    setting = Setting()
    call = setting.gather()
    await passes()
    assert len(setting.wire.sent) == 4
    assert asyncio.all_tasks() == {asyncio.current_task(), call}
    for sent in reversed(setting.wire.sent):
        sent.tell()
    legs = await call
    assert [leg.shard for leg in legs] == [0, 1, 2, 3]
    assert [leg.leaf for leg in legs] == [setting.wire.of(shard).leaf for shard in range(4)]
    assert [(leg.answer, leg.error, leg.attempts, leg.tries) for leg in legs] == [(GOOD, None, 1, ())] * 4
    assert all(leg.replicas_tried == (leg.leaf,) for leg in legs)
    assert setting.wire.calls == []
    assert (setting.waiting, setting.legs("ok")) == (0, 4)
    assert setting.scatter.heard.committed.of(3) == 9


async def test_any_leg_may_be_the_first_to_be_sent() -> None:
    firsts = set()
    for seed in range(20):
        setting = Setting(seed)
        call = setting.gather()
        await passes()
        shards = [sent.request.shard for sent in setting.wire.sent]
        assert shards == [(shards[0] + step) % 4 for step in range(4)]
        firsts.add(shards[0])
        await cancelled(call)
    assert firsts == {0, 1, 2, 3}


either_way = pytest.mark.parametrize("later_open", [True, False], ids=["started", "asked"])
"""The further attempts of a leg can be sent at once, or the executor makes them."""


@either_way
async def test_a_late_attempt_is_hedged_and_may_still_win(later_open: bool) -> None:
    setting = Setting(later_open=later_open)
    hang = Hang()
    for leaf in ("leaf-1", "leaf-2", "leaf-3"):
        setting.wire.on(leaf, ShardRead, hang)
    call = setting.gather(AT_ONCE, shards=1)
    while len(setting.wire.calls) < 2:
        await asyncio.sleep(0)
    assert {(call.is_hedge, call.leaf) for call in setting.wire.calls} == {(True, leaf) for leaf in setting.others(0)}
    setting.wire.sent[0].tell()
    (leg,) = await call
    assert (leg.answer, leg.leaf, leg.attempts) == (GOOD, setting.wire.sent[0].leaf, len(leg.tries))
    assert leg.tries[0].outcome == "won"
    assert hang.cancelled == leg.attempts - 1
    counters = setting.scatter.defences.counters
    assert counters.hedges_sent == counters.hedges_wasted == leg.attempts - 1
    assert (setting.waiting, setting.open_legs) == (0, 0)


@either_way
async def test_a_hedge_that_wins_takes_the_first_attempt_back(later_open: bool) -> None:
    setting = Setting(later_open=later_open)
    call = setting.gather(SOON, shards=1)
    await passes(1)
    for leaf in setting.others(0):
        setting.wire.on(leaf, ShardRead, GOOD)
    (leg,) = await call
    assert leg.leaf in setting.others(0)
    assert setting.wire.sent[0].state == "taken back"
    assert [each.outcome for each in leg.tries] == ["cancelled", "won"]
    assert setting.scatter.defences.counters.hedges_won == 1
    assert (setting.waiting, setting.open_legs) == (0, 0)


async def test_a_late_leg_and_its_hedges_need_no_task() -> None:
    setting = Setting()
    setting.wire.later_told = True
    call = setting.gather(AT_ONCE, shards=1)
    while len(setting.wire.sent) < 3:
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task(), call}
    first, second, third = setting.wire.sent
    third.tell(Unavailable("the lane broke"))
    second.tell()
    assert (first.state, second.state, third.state) == ("taken back", "told", "told")
    (leg,) = await call
    assert [each.outcome for each in leg.tries] == ["cancelled", "won", "unavailable"]
    counters = setting.scatter.defences.counters
    assert (counters.hedges_won, counters.hedges_wasted, setting.legs("ok")) == (1, 1, 1)
    assert (setting.waiting, setting.open_legs) == (0, 0)


def test_no_hedge_is_sent_before_its_delay() -> None:
    """uvloop, whose timers keep whole milliseconds."""

    async def hedge_after(delay_s: float) -> float:
        setting = Setting()
        setting.wire.later_told = True
        began = CLOCK.monotonic()  # Not when the wire got it: a process that was preempted in between had begun to wait.
        call = setting.gather(How(hedge=FixedDelay(delay_s)), shards=1)
        while len(setting.wire.sent) < 2:
            await asyncio.sleep(0)
        hedge = setting.wire.sent[1]
        hedge.tell()
        await call
        return hedge.at - began

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for delay_us in range(1_050, 3_000, 100):
            assert runner.run(hedge_after(delay_us * 1e-6)) >= (delay_us - 250) * 1e-6


async def test_a_refused_hedge_is_asked_for_again_without_a_task() -> None:
    setting = Setting()
    defences = setting.scatter.defences
    call = setting.gather(SOON, shards=1)
    await passes(1)
    defences.health.late_until = CLOCK.monotonic() + 0.05
    while not defences.counters.refused[Refusal.LATE_ROUTER]:
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task(), call}
    assert len(setting.wire.sent) == 1
    for leaf in setting.others(0):
        setting.wire.on(leaf, ShardRead, GOOD)
    (leg,) = await call
    assert leg.refused == (Refusal.LATE_ROUTER,)
    assert [each.outcome for each in leg.tries] == ["cancelled", "won"]


@either_way
@pytest.mark.parametrize("error", [Unavailable("the lane broke"), NotReady("no lease"), Internal("defect")], ids=repr)
async def test_a_first_attempt_that_fails_is_followed_by_another_replica(error: KvShardError, later_open: bool) -> None:
    setting = Setting(later_open=later_open)
    call = setting.gather(shards=1)
    await passes(1)
    for leaf in setting.others(0):
        setting.wire.on(leaf, ShardRead, GOOD)
    setting.wire.sent[0].tell(error)
    (leg,) = await call
    assert (leg.answer, leg.error) == (GOOD, None)
    assert leg.replicas_tried == (setting.wire.sent[0].leaf, leg.leaf)
    assert [each.outcome for each in leg.tries] == [error.reason.lower(), "won"]
    assert setting.waiting == 0
    assert setting.legs("ok") == 1


async def test_a_stale_epoch_is_answered_by_the_next_map() -> None:
    setting = Setting()
    setting.maps.upcoming = cluster_map(shards=4, leaves=3, replicas=3, version=2, epoch=7)
    call = setting.gather(shards=1)
    await passes(1)
    for number in (1, 2, 3):
        setting.wire.on(f"leaf-{number}", ShardRead, GOOD)
    setting.wire.sent[0].tell(StaleEpoch("epoch is 7"))
    (leg,) = await call
    assert leg.answer == GOOD
    assert [call.request.epoch for call in setting.wire.calls] == [7]


async def test_an_error_that_is_the_answer_ends_the_leg() -> None:
    setting = Setting()
    call = setting.gather(shards=1)
    await passes(1)
    setting.wire.sent[0].tell(InvalidArgument("no such thing"))
    (leg,) = await call
    assert isinstance(leg.error, InvalidArgument)
    assert setting.wire.calls == []
    assert setting.legs("invalid_argument") == 1


async def test_the_request_goes_by_the_epoch_of_the_map() -> None:
    setting = Setting()
    setting.maps.install(cluster_map(shards=4, leaves=3, replicas=3, version=2, epoch=5))
    call = setting.gather(shards=1)
    await passes(1)
    assert setting.wire.sent[0].request.epoch == 5
    await cancelled(call)


async def test_what_cannot_be_sent_at_once_is_asked() -> None:
    setting = Setting()
    setting.wire.is_open = False
    for number in (1, 2, 3):
        setting.wire.on(f"leaf-{number}", ShardRead, GOOD)
    legs = await setting.gather()
    assert [leg.answer for leg in legs] == [GOOD] * 4
    assert len(setting.wire.calls) == 4
    assert (setting.waiting, setting.legs("ok")) == (0, 4)


async def test_an_answer_that_never_comes_ends_with_the_deadline() -> None:
    setting = Setting()
    call = setting.gather(timeout=0.02, shards=2)
    await passes(1)
    setting.wire.of(1).tell()
    began = CLOCK.monotonic()
    legs = await call
    assert CLOCK.monotonic() - began < 1.0
    assert isinstance(legs[0].error, DeadlineExceeded)
    assert legs[1].answer == GOOD
    assert setting.wire.of(0).state == "taken back"
    assert setting.waiting == 0


async def test_a_deadline_that_has_passed_sends_nothing() -> None:
    setting = Setting()
    legs = await setting.gather(timeout=-1.0)
    assert {type(leg.error) for leg in legs} == {DeadlineExceeded}
    assert setting.wire.sent == []


async def test_a_caller_that_goes_leaves_nothing_behind() -> None:
    setting = Setting()
    call = setting.gather()
    await passes()
    await cancelled(call)
    assert {sent.state for sent in setting.wire.sent} == {"taken back"}
    assert setting.waiting == 0
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_caller_that_goes_while_a_leg_is_handed_over_leaves_nothing_behind() -> None:
    """The executor's task has been made, and has not begun."""
    setting = Setting(later_open=False)
    call = setting.gather()
    await passes()
    call.cancel()
    setting.wire.of(0).tell(Unavailable("the lane broke"))
    with pytest.raises(asyncio.CancelledError):
        await call
    assert {setting.wire.of(shard).state for shard in (1, 2, 3)} == {"taken back"}
    assert (setting.waiting, setting.open_legs) == (0, 0)
    assert setting.wire.calls == []


async def test_an_answer_that_crosses_its_being_taken_back_is_counted_once() -> None:
    """The executor has given the attempt up; the answer comes before the lane was told."""
    setting = Setting(later_open=False)
    call = setting.gather(AT_ONCE, shards=1)
    await passes(1)
    for leaf in setting.others(0):
        setting.wire.on(leaf, ShardRead, GOOD)
    while not setting.wire.calls or setting.wire.calls[-1].fate == "waiting":
        await asyncio.sleep(0)
    setting.wire.sent[0].tell()
    (leg,) = await call
    assert leg.answer == GOOD
    assert (setting.waiting, setting.open_legs) == (0, 0)


async def test_a_leaf_that_sheds_is_left_alone_for_a_while() -> None:
    setting = Setting()
    call = setting.gather(shards=1)
    await passes(1)
    for number in (1, 2, 3):
        setting.wire.on(f"leaf-{number}", ShardRead, GOOD)
    setting.wire.sent[0].tell(ResourceExhausted("busy"))
    await call
    assert setting.scatter.defences.health.sheds == 1


class StallingClock:
    """The real clock, until it jumps an hour ahead at a given look."""

    def __init__(self, at_look: int) -> None:
        self._left = at_look

    def monotonic(self) -> float:
        self._left -= 1
        return CLOCK.monotonic() + (3_600.0 if self._left < 0 else 0.0)

    def wall_ms(self) -> int:
        return CLOCK.wall_ms()


@pytest.mark.parametrize("at_look", range(1, 12))
async def test_a_router_that_stalls_beyond_the_deadline_while_it_sends(at_look: int) -> None:
    setting = Setting()
    clock = StallingClock(at_look)
    setting.scatter = Scatter(setting.maps, clock, RouterMetrics(CollectorRegistry()), setting.wire.ping, Random(1))
    for number in (1, 2, 3):
        setting.wire.on(f"leaf-{number}", ShardRead, Hang())
    legs = await asyncio.wait_for(setting.gather(AT_ONCE), 5.0)
    assert {type(leg.error) for leg in legs} == {DeadlineExceeded}
    assert "open" not in {sent.state for sent in setting.wire.sent}
    assert setting.waiting == 0
    await setting.scatter.close()


async def test_a_defect_in_sending_is_an_internal_error() -> None:
    setting = Setting()

    def broken(*_: Any) -> None:
        raise ZeroDivisionError("defect")

    def fails(request: ShardRead) -> Any:
        raise ZeroDivisionError("defect")

    setting.wire.start = broken  # type: ignore[method-assign]
    for number in (1, 2, 3):
        setting.wire.on(f"leaf-{number}", ShardRead, fails)
    (leg,) = await setting.gather(shards=1)
    assert isinstance(leg.error, Internal)
    assert setting.waiting == 0


async def test_without_a_map_each_leg_says_so() -> None:
    setting = Setting()
    setting.maps._current = None
    legs = await setting.gather(shards=2)
    assert {type(leg.error) for leg in legs} == {Unavailable}
    assert setting.wire.sent == []


ERRORS = (
    Unavailable("the lane broke"),
    NotReady("no lease"),
    StaleEpoch("old"),
    ResourceExhausted("busy"),
    InvalidArgument("wrong"),
)
STEPS = st.one_of(st.just(GOOD), st.sampled_from(ERRORS), st.none())
"""What a leaf does: answer, fail, or nothing for ever."""


async def _whatever_comes(
    firsts: list[Any], later: list[Any], order: list[int], at: int, is_hedged: bool, cuts_off: bool, later_open: bool
) -> None:
    setting = Setting(later_open=later_open)
    setting.wire.on("leaf-1", Ping, Hang())
    for number in (1, 2, 3):
        setting.wire.on(f"leaf-{number}", ShardRead, *(Hang() if step is None else step for step in later))
    call = setting.gather(AT_ONCE if is_hedged else NEVER, shards=3, timeout=0.05)
    await passes(1)
    for turn, shard in enumerate(order):
        if turn == at and cuts_off:
            break
        await passes(turn % 3)
        sent = next((each for each in setting.wire.sent if each.request.shard == shard), None)
        if sent is not None and firsts[shard] is not None:
            sent.tell(firsts[shard])
    if cuts_off:
        call.cancel()
        await asyncio.wait((call,))
        assert call.cancelled() or not call.exception()
    else:
        legs = await call
        assert [leg.shard for leg in legs] == [0, 1, 2]
        assert all((leg.answer is None) != (leg.error is None) for leg in legs)
        answered = {leg.shard: leg for leg in legs if leg.answer is not None}
        assert all(leg.answer == GOOD for leg in answered.values())
    assert "open" not in {sent.state for sent in setting.wire.sent}
    assert (setting.waiting, setting.open_legs) == (0, 0)
    counters = setting.scatter.defences.counters
    assert counters.hedges_sent == counters.hedges_won + counters.hedges_wasted
    await setting.scatter.close()
    await passes()
    assert asyncio.all_tasks() == {asyncio.current_task()}


@settings(max_examples=100, deadline=None)
@given(
    firsts=st.lists(STEPS, min_size=3, max_size=3),
    later=st.lists(STEPS, min_size=1, max_size=3),
    order=st.permutations([0, 1, 2]),
    at=st.integers(0, 2),
    is_hedged=st.booleans(),
    cuts_off=st.booleans(),
    later_open=st.booleans(),
)
def test_nothing_is_left_whatever_comes_when(
    firsts: list[Any], later: list[Any], order: list[int], at: int, is_hedged: bool, cuts_off: bool, later_open: bool
) -> None:
    asyncio.run(_whatever_comes(firsts, later, order, at, is_hedged, cuts_off, later_open))


async def test_legs_that_were_answered_count_also_when_the_read_is_given_up() -> None:
    setting = Setting()
    call = setting.gather()
    await passes()
    setting.wire.of(0).tell()
    setting.wire.of(2).tell()
    await cancelled(call)
    assert setting.legs("ok") == 2
    assert setting.registry.get_sample_value("kvshard_router_leg_seconds_count", {"method": "BatchGet"}) == 2
    assert setting.waiting == 0
