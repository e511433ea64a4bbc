"""Pings leaves that have fallen silent, until they answer: no caller's request is spent on finding out.

Owns a task for each such leaf; `close` ends them.
"""

import asyncio
from collections.abc import Awaitable, Callable

import structlog

from kvshard.clock import Clock
from kvshard.errors import KvShardError
from kvshard.tail.replica_health import LEAVES_MAX, UNREACHABLE_S, ReplicaHealth

PING_TIMEOUT_S = 1.0
"""A ping to a paused leaf is answered the moment it wakes; this is only how often one that got lost is sent again."""

PING_PAUSE_S = 0.1
"""Between two pings to a leaf that cannot be reached: ten dials a second at most, and it is found again as soon."""

log = structlog.get_logger(__name__)

Ping = Callable[[str, float], Awaitable[None]]
"""LeafClient.ping: (leaf, deadline)."""


class Prober:
    """Tells `health` when a leaf has answered."""

    def __init__(self, ping: Ping, health: ReplicaHealth, clock: Clock) -> None:
        self._ping = ping
        self._health = health
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._is_closed = False

    def __repr__(self) -> str:
        return f"Prober({sorted(self._tasks)})"

    def watch(self, leaf: str) -> None:
        """Ping the leaf until it answers. Does nothing when that is done already."""
        if self._is_closed or self.is_watching(leaf) or len(self._tasks) >= LEAVES_MAX:
            return
        self._tasks[leaf] = asyncio.create_task(self._probe(leaf), name=f"probe-{leaf}")
        self._tasks[leaf].add_done_callback(lambda task: self._forget(leaf, task))

    def is_watching(self, leaf: str) -> bool:
        """Whether the leaf is pinged now."""
        task = self._tasks.get(leaf)
        return task is not None and not task.done()

    def _forget(self, leaf: str, task: "asyncio.Task[None]") -> None:
        if self._tasks.get(leaf) is task:  # Another one may have begun before this was called.
            del self._tasks[leaf]

    async def close(self) -> None:
        """Stop all pinging, for good."""
        self._is_closed = True
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self, leaf: str) -> None:
        began = now = self._clock.monotonic()
        try:
            while now - began < UNREACHABLE_S:
                if await self._has_answered(leaf, now):
                    self._health.pinged(leaf, self._clock.monotonic())
                    return
                await asyncio.sleep(PING_PAUSE_S)
                now = self._clock.monotonic()
        except Exception as defect:
            log.exception("a leaf could not be pinged", leaf=leaf, exc_info=defect)
        # Whatever happened: nobody pings it any more, so nobody would hear that it is back.
        self._health.forget_silence(leaf)

    async def _has_answered(self, leaf: str, now: float) -> bool:
        try:
            await self._ping(leaf, now + PING_TIMEOUT_S)
        except KvShardError:
            return False
        return True
