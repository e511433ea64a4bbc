"""Virtual time: what happens when. The router's events wait while its loop is busy; what the world does to it does not."""

import heapq
from collections.abc import Callable
from enum import IntEnum
from random import Random

from sim.tail.leaves import ModelLeaf


class Turn(IntEnum):
    """Who comes first at one instant. Timers before answers: after a stall that is the harder order for the router."""

    WORLD = 0
    TIMER = 1
    ANSWER = 2


class World:
    """The clock, the leaves and the router's loop."""

    def __init__(self, seed: int, leaves: int) -> None:
        self.now = 1_000.0
        self.rng = Random(seed)
        self.leaves = {f"leaf-{number}": ModelLeaf(f"leaf-{number}", self.rng) for number in range(leaves)}
        self.busy_until = 0.0
        self._queue: list[tuple[float, int, int, Callable[[], None]]] = []
        self._count = 0

    def at(self, instant: float, turn: Turn, happen: Callable[[], None]) -> None:
        """Let it happen then, or as soon as the router's loop is free."""
        self._count += 1
        heapq.heappush(self._queue, (max(instant, self.now), turn, self._count, happen))

    def run(self, until: float, after_each: Callable[[], None]) -> None:
        """Let all happen up to then."""
        while self._queue and self._queue[0][0] <= until:
            instant, turn, count, happen = heapq.heappop(self._queue)
            self.now = max(self.now, instant)
            if turn is not Turn.WORLD and self.now < self.busy_until:
                heapq.heappush(self._queue, (self.busy_until, turn, count, happen))
                continue
            happen()
            after_each()
        self.now = max(self.now, until)
