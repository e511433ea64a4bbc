"""The open-loop generator: requests start when the schedule says, whatever the answers do.

A latency runs from the planned start, so a request that had to wait for its turn shows that wait (no coordinated omission). How
late the generator itself was is recorded apart (`Tally.lag`): a load client that is the bottleneck shows there.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

from kvshard.errors import KvShardError
from kvshard.precise_timer import PreciseTimer
from loadtests.arrivals import Arrival
from loadtests.tally import Tally

IN_FLIGHT_MAX = 1_000
"""Requests under way at once. At the rates that one client can send, that many mean seconds of standstill: what comes on top is
counted as skipped, and as failed at the deadline."""

GRACE_S = 1.0
"""How long after its deadline a call may still come back before it is given up: a call that ignores its deadline is a defect
that the overrun shows, not a reason to hang."""


class Timer(Protocol):
    """What `PreciseTimer` does."""

    def set(self, at: float) -> None:
        """Call back then."""

    def close(self) -> None:
        """No further call."""


Call = Callable[[Arrival], Awaitable[None]]
"""Makes one request, within the run's deadline. Raises KvShardError when it fails."""


class OpenLoop:
    """One run of a schedule against `call`. warm_up_s: arrivals before are sent but not counted.

    deadline_s: the timeout that `call` gives to each request.
    """

    def __init__(
        self,
        arrivals: Sequence[Arrival],
        call: Call,
        *,
        deadline_s: float,
        warm_up_s: float = 0.0,
        in_flight_max: int = IN_FLIGHT_MAX,
        clock: Callable[[], float] = time.monotonic,
        make_timer: Callable[[Callable[[], None]], Timer] = PreciseTimer,
    ) -> None:
        self.tally = Tally(deadline_s)
        self.started_at = 0.0
        self.in_flight_peak = 0
        self.sent = 0
        self._arrivals = arrivals
        self._call = call
        self._warm_up_s = warm_up_s
        self._in_flight_max = in_flight_max
        self._clock = clock
        self._make_timer = make_timer
        self._defect: BaseException | None = None
        self._next = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._are_sent = asyncio.Event()
        self._warm_up = Tally(deadline_s)

    async def run(self) -> Tally:
        """Send everything, wait for the last answer, and return what was seen."""
        self.started_at = self._clock()
        self._timer = self._make_timer(self._on_due)
        try:
            self._set_timer()
            await self._are_sent.wait()
            if self._tasks:
                await asyncio.wait(self._tasks, timeout=self.tally.deadline_s + GRACE_S)
        finally:
            self._timer.close()
            await self._give_up()
        if self._defect is not None:
            raise self._defect
        return self.tally

    def _set_timer(self) -> None:
        if self._next < len(self._arrivals):
            self._timer.set(self.started_at + self._arrivals[self._next].at)
        else:
            self._are_sent.set()

    def _on_due(self) -> None:
        """Start all that is due: several may be, when the loop was busy."""
        now = self._clock() - self.started_at
        arrivals = self._arrivals
        while self._next < len(arrivals) and arrivals[self._next].at <= now:
            arrival = arrivals[self._next]
            self._next += 1
            tally = self.tally if arrival.at >= self._warm_up_s else self._warm_up
            if len(self._tasks) >= self._in_flight_max:
                tally.record_skipped(arrival.kind, arrival.at - self._warm_up_s)
                continue
            tally.record_sent(now - arrival.at)
            self.sent += 1
            task = asyncio.get_running_loop().create_task(self._one(arrival, tally))
            self._tasks.add(task)
            task.add_done_callback(self._on_done)
        self.in_flight_peak = max(self.in_flight_peak, len(self._tasks))
        self._set_timer()

    async def _one(self, arrival: Arrival, tally: Tally) -> None:
        planned = arrival.at - self._warm_up_s
        sent = self._clock()
        try:
            await self._call(arrival)
        except KvShardError as error:
            tally.record_failed(arrival.kind, planned, error.reason)
        except asyncio.CancelledError:
            tally.record_failed(arrival.kind, planned, "gave_up")
            raise
        else:
            tally.record_ok(arrival.kind, planned, self._clock() - self.started_at - arrival.at)
        tally.record_overrun(max(0.0, self._clock() - sent - tally.deadline_s))

    def _on_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._defect = self._defect or error  # A wrong answer, say: the run is worth nothing.
            self._are_sent.set()

    async def _give_up(self) -> None:
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
