"""Runs searches on threads: legs of one search that arrive together share a thread, a hand-over and a way back.

A scattered search sends a leaf one leg for each of its shards, all in one message. Handing each to a thread of its own and back
costs more than the search of a small index, and makes an answer message for each. Legs of the same group that are submitted
within one pass of the event loop are therefore run one after the other on one thread, and what is ready is delivered together.
"""

import asyncio
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, Generic, TypeAlias, TypeVar

from kvshard.clock import Clock

T = TypeVar("T")

RUN_MAX_JOBS: Final = 8
"""Jobs of one thread's turn; a leaf with more shards than this spreads a search over its threads."""

DELIVER_AFTER_S: Final = 0.002
"""A finished job waits about this long for those behind it, plus one of them: a slow shard must not hide the others."""

OnEnd: TypeAlias = Callable[[float, bool], object]
"""Told of a job that has run, before its waiter is: (seconds on the thread, whether somebody still waits for it)."""


@dataclass(slots=True)
class _Job(Generic[T]):
    run: Callable[[], T]
    future: "asyncio.Future[T]"
    on_end: OnEnd | None


@dataclass(slots=True)
class _Outcome(Generic[T]):
    job: _Job[T]
    result: T | None
    error: BaseException | None
    ran_s: float = 0.0


class SearchPool(Generic[T]):
    """A bounded number of threads. `submit` and `close` belong to the event loop; who submits bounds how much waits."""

    def __init__(self, threads: int, clock: Clock) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="search")
        self._clock = clock
        self._gathered: dict[Hashable, list[_Job[T]]] = {}

    def __repr__(self) -> str:
        return f"SearchPool({sum(map(len, self._gathered.values()))} jobs gathered)"

    def submit(self, group: Hashable, run: Callable[[], T], on_end: OnEnd | None = None) -> "asyncio.Future[T]":
        """Run a job. group: the search it is a leg of. The future may be cancelled: then a job that has not begun never does;
        one that has runs until it looks itself whether it is still wanted."""
        loop = asyncio.get_running_loop()
        if not self._gathered:
            loop.call_soon(self._start, loop)
        job = _Job(run, loop.create_future(), on_end)
        self._gathered.setdefault(group, []).append(job)
        return job.future

    def close(self) -> None:
        """Wait for the jobs under way and end the threads. Blocks: call it off the event loop."""
        self._pool.shutdown()

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        gathered, self._gathered = self._gathered, {}
        for jobs in gathered.values():
            for first in range(0, len(jobs), RUN_MAX_JOBS):
                try:
                    self._pool.submit(self._run, loop, jobs[first : first + RUN_MAX_JOBS])
                except RuntimeError as error:  # the pool was closed meanwhile
                    _deliver([_Outcome(job, None, error) for job in jobs[first : first + RUN_MAX_JOBS]])

    def _run(self, loop: asyncio.AbstractEventLoop, jobs: list[_Job[T]]) -> None:
        """On a thread."""
        ready: list[_Outcome[T]] = []
        delivered_at = self._clock.monotonic()
        for job in jobs:
            if job.future.cancelled():
                continue
            began = self._clock.monotonic()
            outcome = _outcome_of(job)
            now = self._clock.monotonic()
            outcome.ran_s = now - began
            ready.append(outcome)
            if now - delivered_at > DELIVER_AFTER_S and job is not jobs[-1]:
                loop.call_soon_threadsafe(_deliver, ready)
                ready, delivered_at = [], now
        loop.call_soon_threadsafe(_deliver, ready)


def _outcome_of(job: _Job[T]) -> _Outcome[T]:
    try:
        return _Outcome(job, job.run(), None)
    except BaseException as error:  # the waiter gets it, whatever it is: nobody looks at the thread's own result
        return _Outcome(job, None, error)


def _deliver(outcomes: "list[_Outcome[T]]") -> None:
    for outcome in outcomes:
        future, on_end = outcome.job.future, outcome.job.on_end
        if on_end is not None:
            on_end(outcome.ran_s, not future.done())
        if future.done():
            continue
        if outcome.error is not None:
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome.result)  # type: ignore[arg-type]  # without an error there is a result
