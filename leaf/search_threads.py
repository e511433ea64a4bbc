"""The threads that searches run on, and how long the job of each has kept a processor busy."""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Generic, TypeAlias, TypeVar

from kvshard.clock import Clock
from leaf.precedence import PAUSE_MAX_S, WORK_LEAST_S, Precedence, RunApart, lower_priority

J = TypeVar("J")

BusySeconds: TypeAlias = Callable[[int], float | None]
"""Processor seconds of a thread of this process since its start, by its number in the system; None where nobody tells."""


def busy_seconds(native_id: int) -> float | None:
    """As Linux tells it. The clock of another thread has a number there; `time.pthread_getcpuclockid`, which makes it,
    crashes when the thread has just ended."""
    try:
        return time.clock_gettime((~native_id << 3) | _THREAD_CPU_CLOCK)
    except (OSError, OverflowError):
        return None


_THREAD_CPU_CLOCK = 6
"""The lower three bits of such a number: 4 for a thread, not a process, and 2 for all its time on a processor."""


class SearchThread(Generic[J]):
    """A thread that takes turns from a queue and runs their jobs one by one, until it gets None or is taken out of service.

    `begin`, `end` and `between` belong to the thread; all else to the event loop.
    """

    def __init__(
        self,
        turns: "SimpleQueue[deque[J] | None]",
        run: Callable[["SearchThread[J]", deque[J]], None],
        precedence: Precedence,
        clock: Clock,
        name: str = "search",
        is_apart: bool = False,
    ) -> None:
        """run: runs a turn on this thread, a job after the other as long as it has some. is_apart: it has the long ones."""
        self.is_out = False
        self.is_apart = is_apart
        self._turns = turns
        self._precedence = precedence
        self._clock = clock
        self._works_until = 0.0
        self._asked: tuple[J, float] | None = None
        self._run_turn = run
        self._turn: deque[J] = deque()
        self._job: J | None = None
        self._began_at = 0.0
        self._looked_at: tuple[J, float] | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def __repr__(self) -> str:
        return f"SearchThread({self._thread.name}{', out of service' if self.is_out else ''}, {self._job!r})"

    def begin(self, job: J, now: float) -> None:
        """A job begins."""
        self._began_at = now
        self._job = job

    def end(self) -> None:
        """It has ended."""
        self._job = None

    def between(self, patient_until: float) -> None:
        """As `Track.between`."""
        if self._asked is not None and self._asked[0] is self._job and not self.is_out:
            raise RunApart
        if not (self.is_apart or self.is_out) or not self._precedence.is_wanted:
            return
        now = self._clock.monotonic()
        if self._works_until <= now < patient_until and not self._precedence.wait(PAUSE_MAX_S):
            self._works_until = self._clock.monotonic() + WORK_LEAST_S

    def ask_apart(self, job: J, now: float) -> None:
        """Have this job, the one under way, end by RunApart when it looks next."""
        self._asked = (job, now)

    def is_asked(self, job: J, since: float) -> bool:
        """Whether it was asked to, at that instant or later."""
        return self._asked is not None and self._asked[0] is job and self._asked[1] > since

    @property
    def is_alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._thread.is_alive()

    def long_job(self, now: float, after_s: float, busy: BusySeconds) -> J | None:
        """The job under way if it runs for so long and has kept a processor busy for half of that since it was first found so.
        Where nobody tells how busy it was: if it runs for so long.

        Only jobs that run for so long are looked at closer: to ask the time of a thread costs more than to begin a job.
        """
        job, native_id = self._job, self._thread.native_id
        if job is None or native_id is None or now - self._began_at < after_s:
            self._looked_at = None
            return None
        busy_s = busy(native_id)
        if busy_s is None:
            return job
        if self._looked_at is None or self._looked_at[0] is not job:
            self._looked_at = (job, busy_s)
            return None
        return job if busy_s - self._looked_at[1] >= after_s / 2 else None

    def take_out(self) -> None:
        """Let it end with the job under way, at a lower priority."""
        self.is_out = True
        if self._thread.native_id is not None:
            lower_priority(self._thread.native_id)

    def take_rest(self) -> list[J]:
        """The jobs of its turn that have not begun; it will not run them."""
        left: list[J] = []
        with suppress(IndexError):
            while True:
                left.append(self._turn.popleft())
        return left

    def join(self) -> None:
        """Wait for its end."""
        self._thread.join()

    def _run(self) -> None:
        while not self.is_out:
            turn = self._turns.get()
            if turn is None:
                return
            self._turn = turn
            self._run_turn(self, turn)
