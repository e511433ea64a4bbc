"""The threads that searches run on, and how long the job of each has kept a processor busy."""

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Final, Generic, TypeAlias, TypeVar

J = TypeVar("J")

LONG_NICENESS: Final = 10
"""Of a thread with a long job: beside a busy processor it gets about a tenth of it. More would be unfair to who asked, and to
everybody else while the thread holds Python's lock."""

BusySeconds: TypeAlias = Callable[[int], float | None]
"""Processor seconds of a thread of this process since its start, by its number in the system; None where nobody tells."""

_TASKS: Final = Path("/proc/self/task")
_TICK_S: Final = 1.0 / os.sysconf("SC_CLK_TCK")


def busy_seconds(native_id: int) -> float | None:
    """As Linux tells it, to a hundredth of a second. `time.pthread_getcpuclockid` crashes when the thread has just ended."""
    try:
        columns = (_TASKS / str(native_id) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(columns[11]) + int(columns[12])) * _TICK_S


class SearchThread(Generic[J]):
    """A thread that takes turns from a queue and runs their jobs one by one, until it gets None or is taken out of service.

    `begin` and `end` belong to the thread; all else to the event loop.
    """

    def __init__(
        self, turns: "SimpleQueue[deque[J] | None]", run: Callable[["SearchThread[J]", deque[J]], None], name: str
    ) -> None:
        """run: runs a turn on this thread, a job after the other as long as it has some."""
        self.is_out = False
        self._turns = turns
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

    def take_out(self) -> list[J]:
        """Let it end with the job under way, at a lower priority. Returns the jobs of its turn that have not begun."""
        self.is_out = True
        self.lower_priority()
        left: list[J] = []
        with suppress(IndexError):
            while True:
                left.append(self._turn.popleft())
        return left

    def lower_priority(self) -> None:
        """Let threads that are not so go first."""
        native_id = self._thread.native_id
        if native_id is not None:
            with suppress(OSError):  # Only Linux knows the niceness of a thread.
                os.setpriority(os.PRIO_PROCESS, native_id, LONG_NICENESS)

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
