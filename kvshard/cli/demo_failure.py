"""The demo's leaf that dies: writes and reads go on while one leaf is killed, and every acknowledged write is there afterwards.

May live here: the load of that step and what it found. The printing is `demo_steps.py`.
"""

import asyncio
import os
import signal
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise

from kvshard.client.client import Client
from kvshard.client.results import Item
from kvshard.clock import Clock
from kvshard.errors import KvShardError
from kvshard.limits import BATCH_MAX_KEYS

WRITERS = 4
READERS = 2
BEFORE_S = 1.0
AFTER_S = 4.0
"""More than it takes until another replica leads (T of grace, then a barrier) or the killed leaf is back."""

CALL_TIMEOUT_S = 10.0


@dataclass
class Survival:
    """What happened. acknowledged: key -> value. at: when each write was acknowledged, in seconds, ascending.

    refused: failures that callers saw. lost: acknowledged writes that are not there.
    """

    leaf: str = ""
    acknowledged: dict[str, bytes] = field(default_factory=dict)
    at: list[float] = field(default_factory=list)
    reads: int = 0
    wrong_reads: int = 0
    refused: int = 0
    lost: int = 0

    @property
    def longest_gap_s(self) -> float:
        """The longest time in which no write at all was acknowledged."""
        return max((after - before for before, after in pairwise(self.at)), default=0.0)


class Killing:
    """One run of the step."""

    def __init__(self, kv: Client[str], pids: dict[str, int], clock: Clock) -> None:
        self._kv = kv
        self._pids = pids
        self._clock = clock
        self._is_over = asyncio.Event()
        self.found = Survival()

    async def run(self) -> Survival:
        """Kill the leaf that leads most shards under load, and look whether anything is missing. Takes some seconds."""
        cluster_map = await self._kv.map()
        primaries = Counter(shard.primary for shard in cluster_map.shards.values())
        self.found.leaf = max(sorted(primaries), key=lambda leaf: primaries[leaf])
        async with asyncio.TaskGroup() as group:
            for number in range(WRITERS):
                group.create_task(self._write(number))
            for _ in range(READERS):
                group.create_task(self._read())
            await asyncio.sleep(BEFORE_S)
            os.kill(self._pids[self.found.leaf], signal.SIGKILL)
            await asyncio.sleep(AFTER_S)
            self._is_over.set()
        self.found.lost = await self._count_lost()
        return self.found

    async def _count_lost(self) -> int:
        keys = list(self.found.acknowledged)
        lost = 0
        for first in range(0, len(keys), BATCH_MAX_KEYS):
            some = keys[first : first + BATCH_MAX_KEYS]
            items = await self._kv.get_many(some, timeout=CALL_TIMEOUT_S)
            values = (item.value if isinstance(item, Item) else None for item in items)
            lost += sum(value != self.found.acknowledged[key] for key, value in zip(some, values, strict=True))
        return lost

    async def _write(self, writer: int) -> None:
        number = 0
        while not self._is_over.is_set():
            key, value = f"demo:survives:{writer}:{number}", f"{writer}.{number}".encode()
            number += 1
            try:
                await self._kv.put(key, value, timeout=CALL_TIMEOUT_S)
            except KvShardError:
                self.found.refused += 1
            else:
                self.found.acknowledged[key] = value
                self.found.at.append(self._clock.monotonic())

    async def _read(self) -> None:
        """Read what was acknowledged last: the case in which a stale replica would show."""
        while not self._is_over.is_set():
            if not self.found.acknowledged:
                await asyncio.sleep(0.01)
                continue
            key = next(reversed(self.found.acknowledged))
            value = self.found.acknowledged[key]
            try:
                item = await self._kv.get(key, timeout=CALL_TIMEOUT_S)
            except KvShardError:
                self.found.refused += 1
            else:
                self.found.reads += 1
                self.found.wrong_reads += item is None or item.value != value
