import asyncio

import pytest

from kvshard.errors import Unavailable
from loadtests.arrivals import Arrival
from loadtests.openloop import OpenLoop
from loadtests.workloads import WrongAnswer


class World:
    """A clock that stands still until it is moved, and the timer that it fires."""

    def __init__(self):
        self.now = 0.0
        self.due = None
        self.is_closed = False
        self.open = {}

    def make_timer(self, fire):
        self.fire = fire
        return self

    def set(self, at):
        self.due = at

    def close(self):
        self.is_closed = True

    async def call(self, arrival):
        future = self.open[arrival.seed] = asyncio.get_running_loop().create_future()
        await future

    async def move_to(self, now):
        """Time passes; the timer fires once, as late as the move is long."""
        self.now = now
        if self.due is not None and self.due <= self.now:
            self.fire()
        await settle()

    async def answer(self, number, error=None):
        future = self.open.pop(number)
        future.set_exception(error) if error else future.set_result(None)
        await settle()


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def arrivals(*instants):
    return [Arrival(at, "8", number) for number, at in enumerate(instants)]


async def started(world, planned, **options):
    loop = OpenLoop(planned, world.call, deadline_s=1.0, clock=lambda: world.now, make_timer=world.make_timer, **options)
    running = asyncio.create_task(loop.run())
    await settle()
    return loop, running


async def test_a_slow_answer_delays_nobody_and_time_runs_from_the_planned_start():
    world = World()
    _, running = await started(world, arrivals(0.1, 0.2))
    await world.move_to(0.1)
    await world.move_to(0.2)
    assert sorted(world.open) == [0, 1]  # The first has no answer yet.
    await world.move_to(0.25)
    await world.answer(1)
    await world.move_to(0.6)
    await world.answer(0)
    tally = await running
    assert tally.latency().maximum == pytest.approx(0.5)
    assert tally.latency().total == pytest.approx(0.05 + 0.5)
    assert world.is_closed


async def test_a_late_generator_shows_its_lag_and_the_latency_holds_it():
    world = World()
    _, running = await started(world, arrivals(0.1, 0.12, 0.9))
    await world.move_to(0.4)  # The loop was blocked: two are due by now.
    assert sorted(world.open) == [0, 1]
    await world.answer(0)
    await world.answer(1)
    await world.move_to(0.9)
    await world.answer(2)
    tally = await running
    assert tally.lag.maximum == pytest.approx(0.3)
    assert tally.latency().maximum == pytest.approx(0.3)
    assert tally.ok == 3


async def test_what_fails_and_what_does_not_fit_counts_as_the_deadline():
    world = World()
    loop, running = await started(world, arrivals(0.1, 0.2, 0.3), in_flight_max=1)
    await world.move_to(0.1)
    await world.move_to(0.2)
    assert sorted(world.open) == [0]
    await world.answer(0, Unavailable("gone"))
    await world.move_to(0.3)
    await world.answer(2)
    tally = await running
    assert (tally.ok, tally.skipped, dict(tally.failed)) == (1, 1, {"UNAVAILABLE": 1})
    assert tally.latency().buckets()[-1][1] == 2
    assert tally.latency().maximum == 1.0
    assert loop.in_flight_peak == 1


async def test_warm_up_is_sent_and_not_counted():
    world = World()
    loop, running = await started(world, arrivals(0.1, 1.1), warm_up_s=1.0)
    await world.move_to(0.1)
    await world.answer(0)
    await world.move_to(1.1)
    await world.answer(1)
    tally = await running
    assert (loop.sent, tally.total, tally.lag.count) == (2, 1, 1)
    assert list(tally.slices["8"]) == [0]


async def test_time_beyond_the_deadline_counts_from_the_sending():
    world = World()
    _, running = await started(world, arrivals(0.1))
    await world.move_to(0.5)
    await world.move_to(1.6)
    await world.answer(0)
    tally = await running
    assert tally.overrun.maximum == pytest.approx(0.1)
    assert (tally.late, tally.goodput) == (1, 0)


async def test_a_wrong_answer_ends_the_run():
    world = World()
    _, running = await started(world, arrivals(0.1, 50.0))
    await world.move_to(0.1)
    await world.answer(0, WrongAnswer("not what was written"))
    with pytest.raises(WrongAnswer):
        await running
    assert world.is_closed


async def test_a_cancelled_run_leaves_no_request_behind():
    world = World()
    _, running = await started(world, arrivals(0.1, 50.0))
    await world.move_to(0.1)
    future = world.open[0]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert future.cancelled()
    assert world.is_closed
