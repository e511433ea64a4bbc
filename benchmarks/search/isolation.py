"""What one long search does to short ones beside it."""

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from benchmarks.figures import Figure, percentile
from benchmarks.loops import one_by_one
from benchmarks.search.loaded import TIMEOUT_S
from kvshard.client.collection import Collection
from kvshard.errors import KvShardError

BOUND: Final = 2.0
LONG_S: Final = 10.0
TRY_PATTERNS: Final = 2
PATTERNS_MAX: Final = 60
"""A query may have 64."""

QUIET_S: Final = 4.0
"""Of short searches alone, before and after those beside a long one."""

BESIDE_MAX_S: Final = 14.0
TURNS: Final = 2
RATIO: Final = "short searches beside a long one, p99 / alone"

CROWD: Final = 8
"""Short searches at a time that a long one is among."""

CROWDED_PART: Final = 0.2
"""How long that one is, of the other: it takes several times as long there, and must still end before its deadline."""


@dataclass(slots=True)
class Beside:
    """Seconds of short searches. long: seconds of the long ones. refused: why a long one was not carried out. crowded: seconds
    of a shorter long one, alone and among many short ones, of which there were so many meanwhile."""

    alone: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    long: list[float] = field(default_factory=list)
    refused: str = ""
    crowded: tuple[float, float, int] | None = None

    def figures(self) -> list[Figure]:
        """The ratio of the two p99, and what it is made of; whether a long one among many short ones ends in time."""
        if not self.beside:
            return [Figure(RATIO, None, "x", 0, BOUND, note=f"no long search: {self.refused}")]
        quiet, busy = percentile(self.alone, 0.99) * 1e3, percentile(self.beside, 0.99) * 1e3
        middle = [percentile(each, 0.5) * 1e3 for each in (self.alone, self.beside)]
        note = f"{busy:.1f} / {quiet:.1f} ms, p50 {middle[1]:.1f} / {middle[0]:.1f} ms; n beside it, {len(self.alone):,} alone"
        slow = max(self.long, default=None)
        return [
            Figure("the long search beside which short ones ran", slow, "s", len(self.long), note=self.refused),
            Figure(RATIO, busy / quiet, "x", len(self.beside), BOUND, note=note),
            *self._crowded_figures(),
        ]

    def _crowded_figures(self) -> list[Figure]:
        if self.crowded is None:
            return []
        alone, crowded, short = self.crowded
        note = f"{alone:.1f} s alone, deadline {TIMEOUT_S:.0f} s; {short:,} short ones meanwhile"
        return [Figure(f"a long search among {CROWD} short ones at a time", crowded, "s", 1, TIMEOUT_S, note=note)]


def long_query(patterns: int) -> str:
    """Wildcards at either end: every word of every shard is compared with each of them."""
    pairs = itertools.product("aeiou", "bcdfglmnprst")
    return " ".join(f"*{vowel}*{consonant}*" for vowel, consonant in itertools.islice(pairs, patterns))


async def long_search(texts: Collection[str], patterns: int) -> float:
    """Ask it; returns the seconds that took."""
    began = time.perf_counter()
    await texts.search(long_query(patterns), limit=1, keys_only=True)
    return time.perf_counter() - began


async def among_many(texts: Collection[str], queries: Sequence[str], patterns: int) -> tuple[float, float, int]:
    """As `Beside.crowded`."""
    alone = await long_search(texts, patterns)
    next_query, short = itertools.cycle(queries), 0
    async with asyncio.TaskGroup() as group:
        slow = group.create_task(long_search(texts, patterns))

        async def caller() -> None:
            nonlocal short
            while not slow.done():
                await texts.search(next(next_query))
                short += 1

        for _ in range(CROWD):
            group.create_task(caller())
    return alone, slow.result(), short


async def isolation(texts: Collection[str], queries: Sequence[str], long_s: float = LONG_S, turns: int = TURNS) -> Beside:
    """Short searches, one at a time, alone and beside a search that takes about `long_s`."""
    found, next_query = Beside(), itertools.cycle(queries)
    taken = await long_search(texts, TRY_PATTERNS)
    patterns = max(TRY_PATTERNS, min(PATTERNS_MAX, round(TRY_PATTERNS * long_s / taken)))

    async def short() -> int:
        await texts.search(next(next_query))
        return 1

    async def lone(seconds: float) -> list[float]:
        return list((await one_by_one(seconds, "short", short)).latencies["short"])

    async def beside() -> None:
        async with asyncio.TaskGroup() as group:
            slow = group.create_task(long_search(texts, patterns))
            began = time.perf_counter()
            while not slow.done() and time.perf_counter() - began < BESIDE_MAX_S:
                found.beside += await lone(0.1)
        found.long.append(slow.result())

    await lone(min(1.0, QUIET_S))
    for _ in range(turns):
        found.alone += await lone(QUIET_S * long_s / LONG_S)
        try:
            await beside()
        except* KvShardError as failures:
            found.refused = str(failures.exceptions[0])
        found.alone += await lone(QUIET_S * long_s / LONG_S)
    if not found.refused:
        found.crowded = await among_many(texts, queries, max(TRY_PATTERNS, round(patterns * CROWDED_PART)))
    return found
