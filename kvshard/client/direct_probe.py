"""Pings the leaves of the map that cannot be reached from here, when `direct_reach` says so, and tells what came of it.

Owns a task that looks, and one for each ping under way; `close` ends them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from random import Random

import structlog

from kvshard.client.direct_reach import Reach, Setbacks
from kvshard.clock import Clock
from kvshard.errors import KvShardError
from kvshard.tail.replica_health import ReplicaHealth

LOOK_INTERVAL_S = 1.0
"""Between two looks at which leaves are out of reach: a fraction of the time after which one counts as lost."""

PING_TIMEOUT_S = 1.5
"""A dial is given up after a second (`kvshard.rpc.lane`); one that succeeded leaves time for the answer."""

Ping = Callable[[str, float], Awaitable[None]]
"""LeafClient.ping: (leaf, deadline)."""

log = structlog.get_logger(__name__)


class ReachProbe:
    """Keeps `reach` and `setbacks` up to date, and `health` informed: a leaf that does not answer is nobody's first choice.

    on_reached: called when a leaf has answered that had not before.
    """

    def __init__(
        self,
        reach: Reach,
        setbacks: Setbacks,
        health: ReplicaHealth,
        ping: Ping,
        clock: Clock,
        rng: Random,
        on_reached: Callable[[], None],
    ) -> None:
        self._reach = reach
        self._setbacks = setbacks
        self._health = health
        self._ping = ping
        self._clock = clock
        self._rng = rng
        self._on_reached = on_reached
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._news = asyncio.Event()

    def __repr__(self) -> str:
        return f"ReachProbe({self._reach!r}, under_way={len(self._tasks)})"

    def start(self) -> None:
        """Look from now on."""
        if self._looking is None:
            self._looking = asyncio.create_task(self._run(), name="direct-reach")

    def wake(self) -> None:
        """Look now: there is another map."""
        self._news.set()

    async def close(self) -> None:
        """Stop, for good."""
        tasks = [*self._tasks, *(() if self._looking is None else (self._looking,))]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            self._news.clear()
            now = self._clock.monotonic()
            self._setbacks.forgive(now)
            self._reach.look([leaf for leaf in self._reach.leaves if self._health.is_unreachable(leaf, now)], now)
            for leaf, address in self._reach.due(now):
                task = asyncio.create_task(self._probe(leaf, address), name=f"direct-ping-{leaf}")
                self._tasks.add(task)
                task.add_done_callback(self._ended)
            try:
                async with asyncio.timeout(max(0.0, min(LOOK_INTERVAL_S, self._reach.next_at - now))):
                    await self._news.wait()
            except TimeoutError:
                continue

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        self._news.set()  # There may be room for another ping.

    async def _probe(self, leaf: str, address: str) -> None:
        try:
            await self._ping(leaf, self._clock.monotonic() + PING_TIMEOUT_S)
        except KvShardError as error:
            self._note_silence(leaf, address, error.message)
        except Exception as defect:
            log.exception("a leaf could not be pinged", leaf=leaf, exc_info=defect)
            self._note_silence(leaf, address, repr(defect))
        else:
            if self._reach.answered(leaf, address):
                self._health.pinged(leaf, self._clock.monotonic())
                self._on_reached()
                log.debug("leaf reached directly", leaf=leaf, address=address)

    def _note_silence(self, leaf: str, address: str, why: str) -> None:
        now = self._clock.monotonic()
        if self._reach.silent(leaf, address, now, self._rng.random()):
            self._health.unreachable(leaf, now)
            log.debug("leaf out of reach", leaf=leaf, address=address, error=why)
