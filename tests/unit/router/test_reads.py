"""Around a read: what becomes of its account."""

import asyncio

import pytest
from fakes.clock import ManualClock
from prometheus_client import CollectorRegistry

from kvshard.errors import InvalidArgument, Unavailable
from kvshard.scatter.ledger import LegTime
from kvshard.telemetry import RouterMetrics
from router.calls import Calls
from router.reads import Reads, code_of
from router.slowlog import KEPT_PER_SLICE, LEGS_MAX, UNASKED_MIN_S


class Leg:
    def __init__(self, shard: int) -> None:
        self.shard = shard
        self.total_us = 1000
        self.rows = 0

    def as_time(self) -> LegTime:
        self.rows += 1
        return LegTime(self.shard, "leaf-1", 1, 1000, 0, 900, 1.0)


class Context:
    def invocation_metadata(self):
        return ()

    async def abort(self, code, details, trailing_metadata):
        raise AssertionError(details)


class Setting:
    def __init__(self) -> None:
        self.clock = ManualClock()
        metrics = RouterMetrics(CollectorRegistry())
        self.reads = Reads(Calls(self.clock, metrics), self.clock, metrics)
        self.details = 0

    def detail(self) -> str:
        self.details += 1
        return "what was asked"

    async def read(self, took_s: float, legs: list[Leg], method: str = "Search", error: BaseException | None = None) -> None:
        async with self.reads.read(method, Context(), 0, "", self.detail) as times:
            if legs:
                times.add(legs, self.clock.monotonic())
            self.clock.advance(took_s)
            if error is not None:
                raise error

    def slow(self):
        return self.reads.slow.slowest(100, self.clock.monotonic())


@pytest.fixture
def setting() -> Setting:
    return Setting()


async def test_a_fast_read_makes_neither_rows_nor_words(setting: Setting) -> None:
    for _ in range(KEPT_PER_SLICE):
        await setting.read(0.002, [Leg(0)])
    legs = [Leg(shard) for shard in range(8)]
    setting.details = 0
    await setting.read(0.001, legs)
    assert (setting.details, [leg.rows for leg in legs]) == (0, [0] * 8)
    await setting.read(0.003, legs)
    assert (setting.details, [leg.rows for leg in legs]) == (1, [1] * 8)
    slowest = setting.slow()[0]
    assert (slowest.collection, slowest.detail, slowest.timing.total_us) == ("default", "what was asked", 3000)
    assert slowest.at_ms == setting.clock.wall_ms()


async def test_a_slow_read_keeps_a_bounded_number_of_legs(setting: Setting) -> None:
    await setting.read(0.5, [Leg(shard) for shard in range(LEGS_MAX + 10)])
    (read,) = setting.slow()
    assert (len(read.timing.legs), read.timing.legs_omitted) == (LEGS_MAX, 10)


async def test_wrong_requests_do_not_fill_the_log(setting: Setting) -> None:
    with pytest.raises(AssertionError):
        await setting.read(UNASKED_MIN_S / 2, [], error=InvalidArgument("wrong"))
    assert setting.slow() == []
    assert setting.reads.amplification.gathered(setting.clock.monotonic()) == []


async def test_a_read_that_is_given_up_before_a_leg_answered_is_seen_if_it_took_long(setting: Setting) -> None:
    with pytest.raises(asyncio.CancelledError):
        await setting.read(0.2, [], error=asyncio.CancelledError())
    (read,) = setting.slow()
    assert (read.code, read.timing.legs, read.timing.straggler_shard) == ("CANCELLED", (), None)


async def test_scan_is_measured_by_its_first_part_and_without_its_reader(setting: Setting) -> None:
    clock = setting.clock
    async with setting.reads.scan(Context(), 0, "docs", setting.detail) as times:
        times.add([Leg(0), Leg(1)], clock.monotonic())
        clock.advance(0.25)
        times.answered_at = clock.monotonic()
        clock.advance(8.0)
        times.paused_s += 8.0
    (read,) = setting.slow()
    assert (read.method, read.timing.total_us) == ("Scan", 250_000)
    (tail,) = setting.reads.amplification.gathered(clock.monotonic())
    assert (tail.method, tail.fan_out, tail.reads) == ("Scan", "2-4", 1)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (None, "OK"),
        (Unavailable("x"), "UNAVAILABLE"),
        (ValueError("x"), "INTERNAL"),
        (asyncio.CancelledError(), "CANCELLED"),
    ],
)
def test_codes(error: BaseException | None, code: str) -> None:
    assert code_of(error) == code
