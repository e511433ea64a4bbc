"""Legs that arrive together share a thread; each still has its own outcome, and none hides behind a slow one for long."""

import asyncio
import threading

import pytest
from fakes.clock import ManualClock

from leaf.search_pool import DELIVER_AFTER_S, RUN_MAX_JOBS, SearchPool


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def pool(clock):
    pool = SearchPool(2, clock)
    yield pool
    pool.close()


async def test_legs_of_one_pass_run_in_order_on_one_thread(pool):
    ran: list[tuple[int, int]] = []

    def job(number: int) -> int:
        ran.append((number, threading.get_ident()))
        return number

    futures = [pool.submit("q", lambda number=number: job(number)) for number in range(RUN_MAX_JOBS)]
    assert await asyncio.gather(*futures) == list(range(RUN_MAX_JOBS))
    assert [number for number, _ in ran] == list(range(RUN_MAX_JOBS))
    assert len({thread for _, thread in ran}) == 1


async def test_other_searches_do_not_wait_for_a_slow_one(pool):
    gate = threading.Event()
    slow = pool.submit("slow", lambda: gate.wait(30.0))
    quick = pool.submit("quick", lambda: "done")
    assert await quick == "done"
    assert not slow.done()
    gate.set()
    assert await slow


async def test_a_large_leaf_spreads_one_search_over_its_threads(pool):
    meeting = threading.Barrier(2, timeout=30.0)

    def job(number: int) -> int:
        if number in (0, RUN_MAX_JOBS):  # the first job of each turn: both threads must be in it at once
            meeting.wait()
        return number

    futures = [pool.submit("q", lambda number=number: job(number)) for number in range(RUN_MAX_JOBS + 1)]
    assert await asyncio.gather(*futures) == list(range(RUN_MAX_JOBS + 1))


async def test_what_is_ready_is_delivered_while_a_later_leg_is_slow(pool, clock):
    gate = threading.Event()

    def first() -> str:
        clock.advance(2 * DELIVER_AFTER_S)
        return "ready"

    ready, slow = pool.submit("q", first), pool.submit("q", lambda: gate.wait(30.0))
    assert await ready == "ready"
    assert not slow.done()
    gate.set()
    assert await slow


async def test_errors_stay_with_their_leg(pool):
    def fail() -> None:
        raise ValueError("broken leg")

    good, bad, last = pool.submit("q", lambda: 1), pool.submit("q", fail), pool.submit("q", lambda: 3)
    outcomes = await asyncio.gather(good, bad, last, return_exceptions=True)
    assert (outcomes[0], repr(outcomes[1]), outcomes[2]) == (1, "ValueError('broken leg')", 3)


async def test_a_cancelled_leg_that_waits_never_runs(pool):
    ran: list[str] = []
    kept, gone = pool.submit("q", lambda: ran.append("kept")), pool.submit("q", lambda: ran.append("gone"))
    gone.cancel()
    await kept
    assert ran == ["kept"]


async def test_jobs_after_the_close_fail(clock):
    pool = SearchPool(1, clock)
    pool.close()
    with pytest.raises(RuntimeError):
        await pool.submit("q", lambda: 1)
