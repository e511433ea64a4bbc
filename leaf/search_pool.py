"""Runs searches on threads: legs of one search that arrive together share a thread, a hand-over and a way back.

A scattered search sends a leaf one leg for each of its shards, all in one message. Handing each to a thread of its own and back
costs more than the search of a small index, and makes an answer message for each. Legs of the same group that are submitted
within one pass of the event loop are therefore run one after the other on one thread, and what is ready is delivered together.

Long searches must not keep the short ones waiting. Nobody can tell beforehand which will be long, and one that has begun cannot
be stopped inside tantivy. So a job that has kept a processor busy for LONG_AFTER_S is asked to begin anew on a thread for long
ones, which gives way to the short ones (`leaf/precedence.py`), and goes there as soon as it looks up. If it does not, since it
is in a long call of tantivy, or if that thread has another search already, its own thread is taken out of service: it gets a
lower priority, another thread takes its place, and it ends with its job. The legs that wait behind a long job, and legs of the
same search that come later, go to the thread of the long ones, leg by leg in turns with those of other long ones.
"""

import asyncio
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Final, Generic, TypeAlias, TypeVar

import tantivy

from kvshard.clock import Clock
from leaf.precedence import LowPriority, Precedence, RunApart
from leaf.search_threads import BusySeconds, SearchThread, busy_seconds

T = TypeVar("T")

RUN_MAX_JOBS: Final = 8
"""Jobs of one thread's turn; a leaf with more shards than this spreads a search over its threads."""

DELIVER_AFTER_S: Final = 0.002
"""A finished job waits about this long for those behind it, plus one of them: a slow shard must not hide the others."""

LONG_AFTER_S: Final = 0.05
"""A job that ran for longer and keeps a processor busy is a long one. Some fifty times a usual leg."""

LOOK_EVERY_S: Final = 0.025
"""Between two looks for such jobs. It takes two to find one, so short searches stand beside it for a tenth of a second."""

OUT_MAX: Final = 8
"""Threads out of service at a time, each with a long job. Should more searches turn out long at once, the short ones do wait:
each thread takes memory and its part of the processors."""

LONG_GROUPS_MAX: Final = 256
"""Searches remembered as long. One that is forgotten is found out again, at the price of LONG_AFTER_S."""

OnEnd: TypeAlias = Callable[[float, bool], object]
"""Told of a job that has run, before its waiter is: (seconds on the thread, whether somebody still waits for it)."""


@dataclass(slots=True, eq=False)
class _Job(Generic[T]):
    """is_apart: it is known to be long."""

    group: Hashable
    run: Callable[[], T]
    future: "asyncio.Future[T]"
    on_end: OnEnd | None
    is_apart: bool = False


@dataclass(slots=True)
class _Outcome(Generic[T]):
    """What became of a job. ran_s: on its thread; None when it was not run."""

    job: _Job[T]
    result: T | None = None
    error: BaseException | None = None
    ran_s: float | None = None


class SearchPool(Generic[T]):
    """A bounded number of threads. All methods belong to the event loop; who submits bounds how much waits.

    Invariant: `threads` threads are in service, unless OUT_MAX are out of it.
    """

    def __init__(self, threads: int, clock: Clock, busy: BusySeconds = busy_seconds) -> None:
        """busy: the processor time of a thread."""
        self._threads = threads
        self._clock = clock
        self._busy = busy
        self._turns: SimpleQueue[deque[_Job[T]] | None] = SimpleQueue()
        self._long_turns: SimpleQueue[deque[_Job[T]] | None] = SimpleQueue()
        self._serving: list[SearchThread[_Job[T]]] = []
        self._out: list[SearchThread[_Job[T]]] = []
        self._long: SearchThread[_Job[T]] | None = None
        self._low: LowPriority | None = None
        self._apart = 0
        self._precedence = Precedence()
        self._here = threading.local()
        self._long_groups: OrderedDict[Hashable, None] = OrderedDict()
        self._running = 0
        self._look_timer: asyncio.TimerHandle | None = None
        self._gathered: dict[Hashable, list[_Job[T]]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_closed = False

    def __repr__(self) -> str:
        gathered = sum(map(len, self._gathered.values()))
        return (
            f"SearchPool({gathered} jobs gathered, {len(self._out)} threads out, {len(self._long_groups)} long searches known)"
        )

    def submit(self, group: Hashable, run: Callable[[], T], on_end: OnEnd | None = None) -> "asyncio.Future[T]":
        """Run a job. group: the search it is a leg of. The future may be cancelled: then a job that has not begun never does;
        one that has runs until it looks itself whether it is still wanted."""
        loop = asyncio.get_running_loop()
        if not self._gathered:
            loop.call_soon(self._start, loop)
        job: _Job[T] = _Job(group, run, loop.create_future(), on_end)
        self._gathered.setdefault(group, []).append(job)
        return job.future

    def close(self) -> None:
        """Wait for the jobs under way and end the threads. Blocks: call it off the event loop, which submits nothing more."""
        self._is_closed = True
        for _ in self._serving:
            self._turns.put(None)
        self._long_turns.put(None)
        for thread in (*self._serving, *self._out, *([self._long] if self._long else [])):
            thread.join()
        if self._low is not None:
            self._low.close()

    def between(self, patient_until: float) -> None:
        """As `Track.between`: of a job of this pool, on its thread."""
        self._thread_here().between(patient_until)

    def searcher(self, searcher: tantivy.Searcher) -> tantivy.Searcher:
        """As `Track.searcher`."""
        is_apart = self._thread_here().is_apart
        return self._low.searcher(searcher) if is_apart and self._low is not None else searcher

    def _thread_here(self) -> "SearchThread[_Job[T]]":
        thread: SearchThread[_Job[T]] = self._here.thread
        return thread

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        gathered, self._gathered = self._gathered, {}
        if self._is_closed:
            _settle([_Outcome(job, error=_closed()) for jobs in gathered.values() for job in jobs])
            return
        self._loop = loop
        self._running += sum(map(len, gathered.values()))
        while len(self._serving) < self._threads and len(self._out) < OUT_MAX:
            self._serve()
        for group, jobs in gathered.items():
            if group in self._long_groups:
                self._run_apart(jobs)
                continue
            self._precedence.begin(len(jobs))
            for first in range(0, len(jobs), RUN_MAX_JOBS):
                self._turns.put(deque(jobs[first : first + RUN_MAX_JOBS]))
        if self._look_timer is None:
            self._look_timer = loop.call_later(LOOK_EVERY_S, self._look_again)

    def _serve(self) -> None:
        self._serving.append(SearchThread(self._turns, self._run, self._precedence, self._clock))

    def _run_apart(self, jobs: Iterable[_Job[T]]) -> None:
        """On the thread of the long ones, each job a turn of its own: several long searches get on together."""
        if self._long is None:
            self._low = LowPriority("search-low")
            self._long = SearchThread(self._long_turns, self._run, self._precedence, self._clock, "search-long", is_apart=True)
        for job in jobs:
            job.is_apart = True
            self._apart += 1
            self._long_turns.put(deque((job,)))

    def _look_again(self) -> None:
        assert self._loop is not None
        self._look_timer = None
        if self._running:
            self.look()
            self._look_timer = self._loop.call_later(LOOK_EVERY_S, self._look_again)

    def look(self) -> None:
        """Ask long jobs to go apart, and take threads whose job cannot out of service. A timer calls it while jobs run."""
        if self._is_closed:
            return
        self._out = [thread for thread in self._out if thread.is_alive]
        now = self._clock.monotonic()
        for thread in list(self._serving):
            job = thread.long_job(now, LONG_AFTER_S, self._busy)
            if job is None:
                continue
            if not job.is_apart:
                if not self._apart or job.group in self._long_groups:
                    thread.ask_apart(job, now)
                self._note_apart(job, thread.take_rest())
            if not thread.is_asked(job, now - LONG_AFTER_S) and len(self._out) < OUT_MAX:
                self._serving.remove(thread)
                self._out.append(thread)
                self._serve()
                thread.take_out()

    def _note_apart(self, job: "_Job[T]", behind: "list[_Job[T]]") -> None:
        """A job under way is long. behind: what stood behind it in its turn."""
        self._note_long(job.group)
        job.is_apart = True
        self._apart += 1
        self._precedence.end(1 + len(behind))
        self._run_apart(behind)

    def _note_long(self, group: Hashable) -> None:
        self._long_groups[group] = None
        self._long_groups.move_to_end(group)
        if len(self._long_groups) > LONG_GROUPS_MAX:
            self._long_groups.popitem(last=False)

    def _run(self, thread: "SearchThread[_Job[T]]", jobs: deque[_Job[T]]) -> None:
        """On a thread."""
        assert self._loop is not None
        self._here.thread = thread
        ready: list[_Outcome[T]] = []
        delivered_at = self._clock.monotonic()
        while True:
            try:
                job = jobs.popleft()
            except IndexError:
                break
            if job.future.cancelled():
                ready.append(_Outcome(job))
                continue
            began = self._clock.monotonic()
            thread.begin(job, began)
            outcome = _outcome_of(job)
            thread.end()
            now = self._clock.monotonic()
            outcome.ran_s = now - began
            ready.append(outcome)
            if now - delivered_at > DELIVER_AFTER_S and jobs:
                self._loop.call_soon_threadsafe(self._deliver, ready)
                ready, delivered_at = [], now
        if ready:
            self._loop.call_soon_threadsafe(self._deliver, ready)

    def _deliver(self, outcomes: "list[_Outcome[T]]") -> None:
        ended: list[_Outcome[T]] = []
        for outcome in outcomes:
            job = outcome.job
            if job.is_apart:
                self._apart -= 1
            else:
                self._precedence.end(1)
            if isinstance(outcome.error, RunApart) and not job.future.done():
                if not self._is_closed:
                    self._run_apart([job])
                    continue
                outcome.error = _closed()
            self._running -= 1
            ended.append(outcome)
            if outcome.ran_s is not None:
                if outcome.error is None and outcome.ran_s < LONG_AFTER_S and job.group in self._long_groups:
                    del self._long_groups[job.group]  # It is not long any more.
                if job.on_end is not None:
                    job.on_end(outcome.ran_s, not job.future.done())
        _settle(ended)


def _closed() -> RuntimeError:
    return RuntimeError("the searches of this leaf have ended")


def _outcome_of(job: _Job[T]) -> _Outcome[T]:
    try:
        return _Outcome(job, job.run(), None)
    except BaseException as error:  # the waiter gets it, whatever it is: nobody looks at the thread's own result
        return _Outcome(job, error=error)


def _settle(outcomes: "list[_Outcome[T]]") -> None:
    for outcome in outcomes:
        future = outcome.job.future
        if future.done():
            continue
        if outcome.error is not None:
            future.set_exception(outcome.error)
        else:
            future.set_result(outcome.result)  # type: ignore[arg-type]  # without an error there is a result
