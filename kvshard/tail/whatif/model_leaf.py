"""A leaf on the virtual clock: how long what is asked of it takes, in what order it is done, and when it stands still.

Pure: imports only the standard library and other pure files.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from heapq import heappop, heappush
from math import ceil, inf
from random import Random

from kvshard.tail.whatif.scenario import Delay, Fault, Pause, RecordedPauses, Setting, Slow

HEDGE_QUEUE_SHARE = 0.5
"""Of the queue: from there on a leaf sheds hedges, as its admission does."""


class Events:
    """What is to happen, by time; what comes at the same time happens in the order in which it was announced."""

    def __init__(self) -> None:
        self.now = 0.0
        self._heap: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._number = 0

    def __repr__(self) -> str:
        return f"Events(now={self.now:.6f}, {len(self._heap)} to come)"

    def at(self, when: float, happen: Callable[..., None], *arguments: object) -> None:
        """Announce."""
        self._number += 1
        heappush(self._heap, (when, self._number, happen, arguments))

    def run(self, is_over: Callable[[], bool]) -> None:
        """Let everything happen, until it is over or nothing is left."""
        heap = self._heap
        while heap and not is_over():
            self.now, _, happen, arguments = heappop(heap)
            happen(*arguments)


class PauseSchedule:
    """When a leaf stands still: [start, end) after [start, end), made as far as it is looked at."""

    def __init__(self, pauses: Iterator[tuple[float, float]]) -> None:
        """pauses: ascending, one after the other, without end: the last one may begin never."""
        self._pauses = pauses
        self._coming: deque[tuple[float, float]] = deque()

    def until(self, now: float) -> float | None:
        """When the pause of this moment ends; None: there is none. The clock never goes back between two calls."""
        coming = self._coming
        while True:
            while coming and coming[0][1] <= now:
                coming.popleft()
            if coming:
                break
            coming.append(next(self._pauses))
        start, end = coming[0]
        return end if start <= now else None

    def stretched(self, start: float, length: float) -> float:
        """When something has ended that begins at `start` and takes `length` of unpaused time."""
        end, place = start + length, 0
        while True:
            if place == len(self._coming):
                self._coming.append(next(self._pauses))
            pause_start, pause_end = self._coming[place]
            if pause_start >= end:
                return end
            end += max(0.0, pause_end - max(pause_start, start))
            place += 1


def pauses_by_chance(pause: Pause, rng: Random, zero: float) -> Iterator[tuple[float, float]]:
    """Those of a share and a length. zero: where the clock stands when the first request counts."""
    ends_at = zero + pause.until_s
    end = zero + pause.from_s if pause.from_s > 0 else 0.0
    # A duty cycle begins anywhere in its cycle, so that leaves do not stop together.
    gap_s = rng.random() * pause.gap_s
    while True:
        start = end + (gap_s if pause.is_regular else rng.expovariate(1 / pause.gap_s))
        if start >= ends_at:
            break
        end, gap_s = start + pause.length_s, pause.gap_s
        yield start, end
    while True:
        yield inf, inf


def pauses_as_they_were(record: RecordedPauses, zero: float) -> Iterator[tuple[float, float]]:
    """Those that were recorded, again and again: the first turn begins with the first request that counts, or so many whole
    turns earlier that the clock has begun."""
    turn = zero - ceil(zero / record.period_s) * record.period_s
    while record.spans:
        for start, end in record.spans:
            if turn + end > 0:
                yield turn + start, turn + end
        turn += record.period_s
    while True:
        yield inf, inf


class Job:
    """One attempt at a leaf. latency: what it takes there if nothing is wrong. done: called when it has ended."""

    __slots__ = ("arrived", "done", "is_begun", "is_cancelled", "is_done", "latency", "wait_s")

    def __init__(self, latency: float, arrived: float, done: "Callable[[Job], None]") -> None:
        self.latency = latency
        self.arrived = arrived
        self.done = done
        self.is_begun = False
        self.is_cancelled = False
        self.is_done = False
        self.wait_s = 0.0


class ModelLeaf:
    """One leaf. A cancelled job that has not begun never does; one that has begun runs on, and nobody hears of it.

    index: its number among the leaves, from 0. in_flight: jobs that are waiting or running, as the leaf reports them. begun:
    jobs that it began. wasted: those of them that were cancelled.
    """

    def __init__(
        self, events: Events, faults: Sequence[Fault], setting: Setting, zero: float, rng: Random, index: int = 0
    ) -> None:
        """zero: where the clock stands when the first request counts; rng: its own, so that faults hit alike in every arm."""
        self.index = index
        self.in_flight = 0
        self.begun = 0
        self.wasted = 0
        self._events = events
        self._rng = rng
        self._zero = zero
        self._busy_s = setting.busy_s
        self._service_s = setting.service_s
        self._queue_max = inf if setting.queue_max is None else setting.queue_max
        self._free_at = 0.0
        stopping = [each for each in faults if isinstance(each, Pause) and each.share > 0]
        # What stops the process stops what it does; other pauses stop its lanes: work goes on, and no answer leaves.
        self._stops = [PauseSchedule(pauses_by_chance(each, rng, zero)) for each in stopping if each.is_regular]
        self._holds = [PauseSchedule(pauses_by_chance(each, rng, zero)) for each in stopping if not each.is_regular]
        recorded = (each for each in faults if isinstance(each, RecordedPauses))
        self._holds += [PauseSchedule(pauses_as_they_were(each, zero)) for each in recorded]
        self._pauses = self._stops + self._holds
        self._slowness = [each for each in faults if isinstance(each, (Slow, Delay))]
        self._waiting: deque[Job] = deque()
        self._wakes_at: float | None = None

    def __repr__(self) -> str:
        return f"ModelLeaf(in_flight={self.in_flight}, waiting={len(self._waiting)}, begun={self.begun})"

    def retry_after_s(self, is_hedge: bool) -> float | None:
        """Whether the leaf sheds a request now: seconds after which to ask again; None: it takes it. Hedges are shed first."""
        waiting = len(self._waiting)
        bound = self._queue_max * HEDGE_QUEUE_SHARE if is_hedge else self._queue_max
        return None if waiting < bound else max(waiting * self._busy_s, 0.001)

    def submit(self, job: Job) -> None:
        """A request has come."""
        self.in_flight += 1
        if self._waiting or (self._pauses and self._paused_until()) or self._free_at > self._events.now:
            self._waiting.append(job)
            self._sleep()
        else:
            self._begin(job)

    def cancel(self, job: Job) -> None:
        """Nobody waits for it any more."""
        if job.is_cancelled or job.is_done:
            return
        job.is_cancelled = True
        self.in_flight -= 1
        self.wasted += job.is_begun

    def ping(self, done: Callable[[], None]) -> None:
        """A ping has come: it is answered at once, or when the leaf goes on."""
        self._events.at(max(self._paused_until(), self._events.now), done)

    def _paused_until(self) -> float:
        """When the leaf goes on; 0: it is not paused."""
        now = self._events.now
        return max((schedule.until(now) or 0.0 for schedule in self._pauses), default=0.0)

    def _sleep(self) -> None:
        if self._wakes_at is None:
            self._wakes_at = max(self._paused_until(), self._free_at)
            self._events.at(self._wakes_at, self._wake)

    def _wake(self) -> None:
        self._wakes_at = None
        while self._waiting:
            if self._free_at > self._events.now or self._paused_until():
                self._sleep()
                return
            self._begin(self._waiting.popleft())

    def _begin(self, job: Job) -> None:
        now = self._events.now
        job.wait_s = now - job.arrived
        takes = job.latency if not self._slowness else self._slowed(job.latency)
        ends = now + takes
        for schedule in self._stops:
            schedule.until(now)
            ends = schedule.stretched(now, ends - now)
        # What was cancelled before its turn costs nothing; that it would have ended is still worth knowing.
        if not job.is_cancelled:
            job.is_begun = True
            self.begun += 1
            self._free_at = now + self._busy_s
        self._events.at(ends, self._end, job)

    def _slowed(self, latency: float) -> float:
        since = max(0.0, self._events.now - self._zero)
        multiplied = latency if self._service_s is None else self._service_s
        for fault in self._slowness:
            if fault.from_s <= since < fault.until_s and (fault.share >= 1 or self._rng.random() < fault.share):
                latency += (fault.factor - 1) * multiplied if isinstance(fault, Slow) else fault.delay_s
        return latency

    def _end(self, job: Job) -> None:
        if self._holds and (until := self._paused_until()):
            self._events.at(until, self._end, job)
            return
        job.is_done = True
        if not job.is_cancelled:
            self.in_flight -= 1
        job.done(job)


def faults_of(leaf: int, faults: Sequence[Fault]) -> list[Fault]:
    """Those that concern this leaf."""
    return [fault for fault in faults if not fault.leaves or leaf in fault.leaves]
