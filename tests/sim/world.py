"""Virtual time: one queue of events, one seeded generator. Nothing in a simulation reads a clock of the machine it runs on."""

import hashlib
import heapq
import random
from collections import deque
from collections.abc import Callable

TRACE_KEPT = 3_000
"""Steps remembered for the report of a failure; formatting waits until there is one."""


class Violation(AssertionError):
    """An invariant does not hold. The message names it."""


class World:
    """Time in virtual seconds, chance, and the trace of what happened.

    is_hashing: fold the text of every traced step into `digest`, so that two runs can be compared (slow).
    """

    def __init__(self, seed: int, is_hashing: bool = False) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = 0.0
        self.steps = 0
        self.trace: deque[tuple[object, ...]] = deque(maxlen=TRACE_KEPT)
        self._hash = hashlib.sha256() if is_hashing else None
        self._queue: list[tuple[float, int, Callable[..., None], tuple[object, ...]]] = []
        self._count = 0

    def at(self, delay: float, call: Callable[..., None], *args: object) -> None:
        """Call after so many virtual seconds. Calls of one instant run in the order in which they were asked for."""
        self._count += 1
        heapq.heappush(self._queue, (self.now + delay, self._count, call, args))

    def run(self, until: float, is_done: Callable[[], bool] | None = None) -> None:
        """Run the events up to an instant, or until `is_done` after one of them."""
        queue = self._queue
        while queue and queue[0][0] <= until:
            self.now, _, call, args = heapq.heappop(queue)
            call(*args)
            if is_done is not None and is_done():
                return
        self.now = until

    def note(self, *what: object) -> None:
        """Remember a step."""
        self.steps += 1
        self.trace.append((self.now, *what))
        if self._hash is not None:
            self._hash.update(repr((self.now, *what)).encode())

    @property
    def digest(self) -> str:
        """Of the whole trace; only of a hashing world."""
        assert self._hash is not None
        return self._hash.hexdigest()

    def tail(self, count: int, about: Callable[[tuple[object, ...]], bool] = lambda _: True) -> str:
        """The last traced steps as text."""
        lines = [step for step in self.trace if about(step)][-count:]
        return "\n".join(f"{step[0]:9.4f}  " + "  ".join(str(part) for part in step[1:]) for step in lines)
