"""Legs that arrive together share a thread; each still has its own outcome, and none hides behind a slow one for long."""

import asyncio
import threading

import pytest
from fakes.clock import ManualClock

from leaf.precedence import PAUSE_MAX_S
from leaf.search_pool import DELIVER_AFTER_S, LONG_AFTER_S, LONG_GROUPS_MAX, OUT_MAX, RUN_MAX_JOBS, SearchPool


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def pool(clock):
    pool = SearchPool(2, clock, busy=lambda native_id: clock.monotonic())
    yield pool
    pool.close()


def find_long(pool, clock):
    """Three looks: the first finds that a job runs long, the second that it was busy since, the third that it looks not up."""
    for _ in range(3):
        clock.advance(2 * LONG_AFTER_S)
        pool.look()


class LongJob:
    """A job that runs until it is let go."""

    def __init__(self, clock):
        self._clock = clock
        self.began, self.gate = threading.Event(), threading.Event()
        self.thread = None

    def __call__(self):
        self.thread = threading.current_thread()
        self.began.set()
        assert self.gate.wait(30.0)
        return "long"

    async def run(self, pool, group="long"):
        """Submit it, and let the pool find out that it is long."""
        future = pool.submit(group, self)
        assert await asyncio.to_thread(self.began.wait, 30.0)
        find_long(pool, self._clock)
        return future

    async def end(self, future):
        self.gate.set()
        assert await future == "long"


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


async def test_short_searches_run_beside_more_long_ones_than_there_are_threads(pool, clock):
    jobs = [LongJob(clock) for _ in range(5)]
    futures = [await job.run(pool, f"long {at}") for at, job in enumerate(jobs)]
    assert await pool.submit("short", lambda: "short") == "short"
    for job, future in zip(jobs, futures, strict=True):
        await job.end(future)


async def test_legs_behind_a_long_one_run_apart_from_the_short_ones(pool, clock):
    first, second = LongJob(clock), LongJob(clock)
    futures = [pool.submit("long", first), pool.submit("long", second)]  # in one pass: one turn
    assert await asyncio.to_thread(first.began.wait, 30.0)
    find_long(pool, clock)
    assert await asyncio.to_thread(second.began.wait, 30.0)
    assert second.thread is not first.thread
    later = pool.submit("long", lambda: threading.current_thread())
    assert await pool.submit("short", lambda: "short") == "short"
    assert not later.done(), "known to be long, so it waits behind the other leg"
    await first.end(futures[0])
    await second.end(futures[1])
    assert await later is second.thread


async def test_a_search_that_is_not_long_any_more_runs_among_the_short_ones(pool, clock):
    job = LongJob(clock)
    await job.end(await job.run(pool, "q"))
    apart = await pool.submit("q", threading.current_thread)
    assert apart.name == "search-long"
    assert (await pool.submit("q", threading.current_thread)).name == "search"


class PiecesJob:
    """A job of two pieces, which looks up between them; each time it is begun it waits to be let go."""

    def __init__(self, pool, between):
        self._pool, self._between = pool, between
        self.began, self.gate = threading.Semaphore(0), threading.Semaphore(0)
        self.threads: list[str] = []

    def __call__(self):
        self.threads.append(threading.current_thread().name)
        self.began.release()
        assert self.gate.acquire(timeout=30.0)
        self._pool.between(self._between)
        return "pieces"


async def test_a_long_job_that_looks_up_begins_anew_on_the_thread_of_the_long_ones(pool, clock):
    job = PiecesJob(pool, between=0.0)
    ran: list[float] = []
    future = pool.submit("long", job, lambda seconds, is_wanted: ran.append(seconds))
    behind = pool.submit("long", threading.current_thread)
    assert await asyncio.to_thread(job.began.acquire, timeout=30.0)
    for _ in range(2):
        clock.advance(2 * LONG_AFTER_S)
        pool.look()
    assert (await behind).name == "search-long"
    job.gate.release(2)
    assert await future == "pieces"
    assert job.threads == ["search", "search-long"]
    assert len(ran) == 1


async def test_a_job_found_long_beside_another_goes_on_where_it_is(pool, clock):
    first = LongJob(clock)
    apart = pool.submit("first", first)
    job = PiecesJob(pool, between=0.0)
    future = pool.submit("second", job)
    for began in (first.began.wait, job.began.acquire):
        assert await asyncio.to_thread(began, timeout=30.0)
    find_long(pool, clock)  # The first of them was asked to go apart, and both were taken out of service.
    job.gate.release()
    assert await future == "pieces"
    assert job.threads == ["search"]
    await first.end(apart)


async def test_another_turn_of_a_long_search_goes_apart_too(pool, clock):
    jobs = [PiecesJob(pool, between=0.0) for _ in range(2)]
    futures = []
    for job in jobs:  # Not in one pass, so on two threads.
        futures.append(pool.submit("long", job))
        assert await asyncio.to_thread(job.began.acquire, timeout=30.0)
    for _ in range(2):
        clock.advance(2 * LONG_AFTER_S)
        pool.look()
    for job in jobs:
        job.gate.release(2)
    assert await asyncio.gather(*futures) == ["pieces", "pieces"]
    assert [job.threads for job in jobs] == [["search", "search-long"]] * 2


async def test_a_cancelled_job_that_was_asked_to_go_apart_is_not_begun_anew(pool, clock):
    job = PiecesJob(pool, between=0.0)
    future = pool.submit("long", job)
    assert await asyncio.to_thread(job.began.acquire, timeout=30.0)
    for _ in range(2):
        clock.advance(2 * LONG_AFTER_S)
        pool.look()
    future.cancel()
    job.gate.release(2)
    assert await pool.submit("short", lambda: "short") == "short"
    await asyncio.to_thread(pool.close)
    assert job.threads == ["search"]


async def test_a_long_job_waits_for_short_ones_and_for_no_others(pool, clock):
    pool._note_long("long")
    short, job = LongJob(clock), PiecesJob(pool, between=clock.monotonic() + 1.0)
    beside = pool.submit("short", short)
    assert await asyncio.to_thread(short.began.wait, 30.0)
    future = pool.submit("long", job)
    assert await asyncio.to_thread(job.began.acquire, timeout=30.0)
    waits: list[float] = []
    pool._precedence.wait = lambda timeout_s: waits.append(timeout_s) or False
    job.gate.release()
    assert await future == "pieces"
    assert waits == [PAUSE_MAX_S]
    await short.end(beside)
    again = pool.submit("long", job)
    job.gate.release()
    assert await again == "pieces"
    assert len(waits) == 1, "nobody else was under way"


async def test_the_calls_of_a_long_job_run_at_a_lower_priority(pool):
    class Searcher:
        num_docs = 3

        def search(self, query, limit, count=True):
            return query, limit, count, threading.current_thread().name

    def job():
        searcher = pool.searcher(Searcher())
        return searcher.num_docs, *searcher.search("query", 10, count=False)

    assert await pool.submit("q", job) == (3, "query", 10, False, "search")
    pool._note_long("q")
    *rest, name = await pool.submit("q", job)
    assert (rest, name.startswith("search-low")) == ([3, "query", 10, False], True)


async def test_a_long_wait_alone_makes_no_search_long(clock):
    pool = SearchPool(1, clock, busy=lambda native_id: 0.0)
    job = LongJob(clock)
    future = await job.run(pool)
    short = pool.submit("short", lambda: "short")
    await asyncio.sleep(0)
    assert not short.done(), "the one thread is still in service"
    await job.end(future)
    assert await short == "short"
    await asyncio.to_thread(pool.close)


async def test_a_bounded_number_of_threads_is_out_at_a_time(pool, clock):
    jobs = [LongJob(clock) for _ in range(OUT_MAX + 2)]
    futures = [await job.run(pool, f"long {at}") for at, job in enumerate(jobs)]
    short = pool.submit("short", lambda: "short")
    await jobs[0].end(futures[0])
    while jobs[0].thread.is_alive():
        await asyncio.sleep(0)
    assert not short.done(), "every thread has a long search"
    find_long(pool, clock)
    assert await short == "short"
    for job, future in list(zip(jobs, futures, strict=True))[1:]:
        await job.end(future)


async def test_a_bounded_number_of_long_searches_is_remembered(pool, clock):
    for number in range(LONG_GROUPS_MAX + 3):
        pool._note_long(number)
    assert repr(pool).endswith(f"{LONG_GROUPS_MAX} long searches known)")
