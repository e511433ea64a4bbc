"""From the answer of a write until a search finds it."""

import asyncio
import time

from benchmarks.figures import Figure, percentile
from kvshard.client.collection import Collection

BOUND_MS, GOAL_MS = 800.0, 600.0
WRITES = 300
EVERY_S = 0.05
"""Between two writes: no multiple of it is the interval of refreshes, so that writes meet every part of one."""

POLL_S = 0.008
"""Between two looks; it adds at most this much, and a search's time, to what is measured."""

KIND = "marker"


async def write_to_visible(texts: Collection[str], writes: int = WRITES, every_s: float = EVERY_S) -> list[float]:
    """Seconds from the acknowledgement of each write until a search found it. Raises TimeoutError if one is never found."""
    written: dict[str, float] = {}
    seconds: dict[str, float] = {}

    async def look() -> None:
        while len(seconds) < writes:
            found: set[str] = set()
            for first in range(0, writes, 1_000):  # A search's most hits.
                query = f"+kind:{KIND} +words:[{first} TO {first + 999}]"
                page = await texts.search(query, limit=1_000, keys_only=True)
                found.update(hit.key for hit in page.hits)
            now = time.perf_counter()
            for key in found & written.keys() - seconds.keys():
                seconds[key] = now - written[key]
            await asyncio.sleep(POLL_S)

    async with asyncio.timeout(writes * every_s + 60.0), asyncio.TaskGroup() as group:
        group.create_task(look())
        for number in range(writes):
            key = f"{KIND}:{number}"
            await texts.put(key, {"name": KIND, "doc": f"{KIND} {number}", "kind": KIND, "source": KIND, "words": number})
            written[key] = time.perf_counter()
            await asyncio.sleep(every_s)
    for key in written:
        await texts.delete(key)
    return list(seconds.values())


async def freshness(texts: Collection[str]) -> list[Figure]:
    """The figure, at the leaves' refresh interval of 500 ms."""
    seconds = await write_to_visible(texts)
    p50, p99 = (percentile(seconds, part) * 1e3 for part in (0.5, 0.99))
    note = f"p50 {p50:,.0f} ms; refresh interval 500 ms; found by looking every {POLL_S * 1e3:.0f} ms"
    return [Figure("write to visible, p99", p99, "ms", len(seconds), BOUND_MS, note=note, goal=GOAL_MS)]
