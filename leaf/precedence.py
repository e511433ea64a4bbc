"""Short searches go first: what a long one does for them between two pieces of its work.

The scheduler of the system cannot do it. Whoever holds Python's lock holds up every thread of the process; if it has a low
priority, then for as long as other processes keep the processors busy. So long searches run Python at the usual priority, in
pieces, and wait between two of them while short ones are under way. What tantivy does needs no lock, and cannot be cut into
pieces: its calls run at a lower priority, on another thread.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, Final, Protocol, TypeVar, cast

import tantivy

R = TypeVar("R")

PAUSE_MAX_S: Final = 0.02
"""How long a long search waits at a time, several times what a short one takes. Then it works on, whoever waits."""

WORK_LEAST_S: Final = 0.005
"""So long it works on then: a fifth of its time at least, however many short ones there are."""

LONG_NICENESS: Final = 10
"""Of a long call beyond the process's own niceness: beside a busy processor it gets about a tenth of it. More would be
unfair to who asked."""


class RunApart(Exception):
    """Ends a job that is to begin anew on the thread of the long ones. Nobody but the pool sees it."""


class Track(Protocol):
    """The thread that a job runs on, as the job sees it."""

    def between(self, patient_until: float) -> None:
        """Called between two pieces of work. May wait, if others are to go first; not any more from that instant on. May raise
        RunApart, which the job lets pass."""
        ...

    def searcher(self, searcher: tantivy.Searcher) -> tantivy.Searcher:
        """The same searcher, for its methods alone: tantivy's own functions take none but the one given."""
        ...


class FreeTrack:
    """A thread on which nobody has to go first."""

    def between(self, patient_until: float) -> None:
        """Never waits."""

    def searcher(self, searcher: tantivy.Searcher) -> tantivy.Searcher:
        """The one given."""
        return searcher


FREE_TRACK: Final = FreeTrack()


class Precedence:
    """How many short jobs are under way. `begin` and `end` belong to the event loop."""

    def __init__(self) -> None:
        self._short = 0
        self._none = threading.Event()
        self._none.set()

    def __repr__(self) -> str:
        return f"Precedence({self._short} short jobs)"

    @property
    def is_wanted(self) -> bool:
        """Whether there are any."""
        return self._short > 0

    def begin(self, jobs: int) -> None:
        """So many have come."""
        if not self._short:
            self._none.clear()
        self._short += jobs

    def end(self, jobs: int) -> None:
        """So many have ended, or turned out long."""
        self._short -= jobs
        if not self._short:
            self._none.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until there are none; False: there still are. On any thread."""
        return self._none.wait(timeout_s)


class LowPriority:
    """Runs calls at a lower priority, one after the other, each for a thread that waits for it."""

    def __init__(self, name: str) -> None:
        self._executor = ThreadPoolExecutor(1, name, initializer=lambda: lower_priority(threading.get_native_id()))

    def run(self, call: Callable[[], R]) -> R:
        """What the call returns, or raises."""
        return self._executor.submit(call).result()

    def searcher(self, searcher: tantivy.Searcher) -> tantivy.Searcher:
        """The same searcher; what may take it long runs here."""
        return cast(tantivy.Searcher, _LowSearcher(searcher, self.run))

    def close(self) -> None:
        """Wait for its end."""
        self._executor.shutdown()


class _LowSearcher:
    """Has all that a searcher has."""

    def __init__(self, searcher: tantivy.Searcher, run: Callable[[Callable[[], Any]], Any]) -> None:
        self._searcher = searcher
        self._run = run

    def __getattr__(self, name: str) -> object:
        found = getattr(self._searcher, name)
        return partial(self._call, found) if name in _LONG_CALLS else found

    def _call(self, method: Callable[..., object], *arguments: object, **named: object) -> object:
        return self._run(partial(method, *arguments, **named))


def plain(searcher: tantivy.Searcher) -> tantivy.Searcher:
    """The one that a track was given: for tantivy's own functions, which take no other."""
    return searcher._searcher if isinstance(searcher, _LowSearcher) else searcher


_LONG_CALLS: Final = frozenset({"search", "aggregate", "terms_with_prefix"})
"""All else takes microseconds."""


def lower_priority(native_id: int) -> None:
    """Let threads of the usual priority go before this one. There is no way back without privileges."""
    with suppress(OSError):  # Only Linux knows the niceness of a thread.
        niceness = os.getpriority(os.PRIO_PROCESS, native_id)
        os.setpriority(os.PRIO_PROCESS, native_id, min(niceness + LONG_NICENESS, 19))
