"""Three replicas against one: what the copies cost a durable write, and whether reads spread over them come as fast."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.figures import Figure, percentile
from benchmarks.fleet import Fleet
from kvshard import Client

REPLICAS = (1, 3)
BLOCKS = 8
"""Pairs of blocks, in the order ABBA: the machine's noise comes in stretches of seconds."""

BATCH_KEYS = 1_000
VALUE_BYTES = 100
BATCHES_PER_BLOCK = 24
IN_FLIGHT = 4


async def _timed(batches: int, in_flight: int, call: Callable[[int], Awaitable[None]]) -> tuple[list[float], float]:
    """Seconds of each batch, and batches a second."""
    taken: list[float] = []
    numbers = iter(range(batches))

    async def worker() -> None:
        for number in numbers:
            began = time.perf_counter()
            await call(number)
            taken.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(in_flight)))
    return taken, batches / (time.perf_counter() - began)


class _Arm:
    """One cluster, and what was measured on it."""

    def __init__(self, client: Client[str]) -> None:
        self.alone: list[float] = []
        self.together: list[float] = []
        self.write_rates: list[float] = []
        self.read_rates: list[float] = []
        self._client = client
        self._value = os.urandom(VALUE_BYTES)

    def _keys(self, batch: int) -> list[str]:
        return [f"bench:{batch}:{number}" for number in range(BATCH_KEYS)]

    async def _put(self, batch: int) -> None:
        (await self._client.put_many(dict.fromkeys(self._keys(batch), self._value))).raise_for_failures()

    async def _get(self, batch: int) -> None:
        items = await self._client.get_many(self._keys(batch))
        items.raise_for_failures()
        assert None not in items

    async def block(self, *, is_warm_up: bool) -> None:
        """One block of each kind of call."""
        alone, _ = await _timed(BATCHES_PER_BLOCK, 1, self._put)
        together, write_rate = await _timed(BATCHES_PER_BLOCK, IN_FLIGHT, self._put)
        _, read_rate = await _timed(2 * BATCHES_PER_BLOCK, IN_FLIGHT, lambda number: self._get(number % BATCHES_PER_BLOCK))
        if not is_warm_up:
            self.alone += alone
            self.together += together
            self.write_rates.append(write_rate * BATCH_KEYS)
            self.read_rates.append(read_rate * BATCH_KEYS)


async def compare(folder: Path) -> list[Figure]:
    """Two clusters of three leaves side by side, measured in turns."""
    arms: dict[int, _Arm] = {}
    async with AsyncExitStack() as stack:
        for replicas in REPLICAS:
            home = folder / f"replicas-{replicas}"
            home.mkdir()
            fleet = await stack.enter_async_context(Fleet(home, replicas=replicas))
            arms[replicas] = _Arm(await stack.enter_async_context(Client(fleet.address, timeout=60.0)))
        for number in range(BLOCKS + 1):
            for replicas in REPLICAS if number % 2 else reversed(REPLICAS):
                await arms[replicas].block(is_warm_up=number == 0)
    one, three = (arms[replicas] for replicas in REPLICAS)
    batches, blocks = len(three.alone), len(three.read_rates)
    ratio = percentile(three.alone, 0.5) / percentile(one.alone, 0.5)
    ratio_together = percentile(three.together, 0.5) / percentile(one.together, 0.5)
    reads = percentile(three.read_rates, 0.5) / percentile(one.read_rates, 0.5)
    note = f"batches of {BATCH_KEYS} keys of {VALUE_BYTES} bytes; n counts batches of an arm"
    in_flight = f"{IN_FLIGHT} batches in flight; the copies' work shares this machine's cores"
    return [
        Figure("durable batch with 1 replica, p50", percentile(one.alone, 0.5) * 1e3, "ms", batches, note=note),
        Figure("durable batch with 3 replicas, p50", percentile(three.alone, 0.5) * 1e3, "ms", batches, note=note),
        Figure("3 replicas / 1, durable batch p50", ratio, "x", batches, 2.5, note="one at a time; goal 1.8"),
        Figure("3 replicas / 1, durable batch p50, busy", ratio_together, "x", batches, note=in_flight),
        Figure("put_many with 3 replicas", percentile(three.write_rates, 0.5), "keys/s", blocks, note="n counts blocks"),
        Figure("strong get_many with 1 replica", percentile(one.read_rates, 0.5), "keys/s", blocks, note="n counts blocks"),
        Figure("strong get_many over 3 replicas", percentile(three.read_rates, 0.5), "keys/s", blocks, note="n counts blocks"),
        Figure("strong reads, 3 replicas / 1", reads, "x", blocks, 0.95, is_upper_bound=False, note=in_flight),
    ]
