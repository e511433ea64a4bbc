"""Pings leaves that have fallen silent, until they answer: no caller's request is spent on finding out.

Owns a task for each such leaf; `close` ends them.
"""

import asyncio
from collections.abc import Awaitable, Callable

from kvshard.clock import Clock
from kvshard.errors import KvShardError
from kvshard.tail.replica_health import LEAVES_MAX, UNREACHABLE_S, ReplicaHealth

PING_TIMEOUT_S = 1.0
"""A ping to a paused leaf is answered the moment it wakes; this is only how often one that got lost is sent again."""

PING_PAUSE_S = 0.1
"""Between two pings to a leaf that cannot be reached: ten dials a second at most, and it is found again as soon."""

Ping = Callable[[str, float], Awaitable[None]]
"""LeafClient.ping: (leaf, deadline)."""


class Prober:
    """Tells `health` when a leaf has answered."""

    def __init__(self, ping: Ping, health: ReplicaHealth, clock: Clock) -> None:
        self._ping = ping
        self._health = health
        self._clock = clock
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def __repr__(self) -> str:
        return f"Prober({sorted(self._tasks)})"

    def watch(self, leaf: str) -> None:
        """Ping the leaf until it answers. Does nothing when that is done already."""
        if leaf in self._tasks or len(self._tasks) >= LEAVES_MAX:
            return
        task = self._tasks[leaf] = asyncio.create_task(self._probe(leaf), name=f"probe-{leaf}")
        task.add_done_callback(lambda _: self._tasks.pop(leaf, None))

    async def close(self) -> None:
        """Stop all pinging."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _probe(self, leaf: str) -> None:
        began = now = self._clock.monotonic()
        while now - began < UNREACHABLE_S:
            try:
                await self._ping(leaf, now + PING_TIMEOUT_S)
            except KvShardError:
                await asyncio.sleep(PING_PAUSE_S)
                now = self._clock.monotonic()
            else:
                self._health.pinged(leaf, self._clock.monotonic())
                return
        self._health.forget_silence(leaf)
