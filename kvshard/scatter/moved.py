"""What a request does when it meets a split: whatever has moved is asked for again, by a newer map, until the deadline.

Between the split in the shard's log and the map that shows it no router can know where to ask: those are some milliseconds, or
a failover. Nothing was done of what is refused so, hence reads and writes are sent again alike.
"""

import asyncio
import contextlib
from random import Random
from typing import Final

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, ShardConfig
from kvshard.errors import ErrorRecord, ShardMoved, Unavailable
from kvshard.scatter.leg import MAP_READ_TIMEOUT_S
from kvshard.scatter.routes import MapSource

FIRST_PAUSE_S: Final = 0.002
LONGEST_PAUSE_S: Final = 0.05
"""Between two looks at the map, doubled from the first to the longest: an end that takes a coordinator's answer is met at once,
one that waits for a failover costs twenty reads a second."""

TRY_S: Final = 0.005
"""What another try takes, with room to spare. One that the deadline cuts off would hide that the keys have moved."""


def is_moved(record: ErrorRecord | None) -> bool:
    """Whether a key failed because a split has moved it."""
    return record is not None and record.reason == ShardMoved.reason


def heirs(cluster_map: ClusterMap, before: ShardConfig) -> list[ShardConfig]:
    """The shards that share what a shard was; itself alone while the map does not show a split of it."""
    return [each for each in cluster_map.shards.values() if before.first_slot <= each.first_slot <= before.last_slot]


class Rounds:
    """The looks of one request for a newer map."""

    def __init__(self, maps: MapSource, clock: Clock, deadline: float, rng: Random) -> None:
        self._maps = maps
        self._clock = clock
        self._deadline = deadline
        self._rng = rng
        self._pause = 0.0

    def __repr__(self) -> str:
        return f"Rounds(pause={self._pause})"

    async def next(self) -> ClusterMap | None:
        """The map to try by next, after a pause; None: no time is left for another try."""
        if not self._has_time(self._pause):
            return None
        if self._pause:
            await asyncio.sleep(self._pause * (1 - self._rng.random() / 2))
        self._pause = min(LONGEST_PAUSE_S, 2 * self._pause or FIRST_PAUSE_S)
        with contextlib.suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(MAP_READ_TIMEOUT_S):
                await self._maps.refresh()
        # The pause may have taken longer than it was to, and the coordinator its time.
        return self._maps.current if self._has_time(0.0) else None

    def _has_time(self, pause: float) -> bool:
        return self._clock.monotonic() + pause + TRY_S < self._deadline
