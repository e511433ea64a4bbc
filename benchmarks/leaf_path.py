"""What a read or a write costs a leaf from its payload to its reply, without transport: `python -m benchmarks leaf-path`.

Three real leaves in this process, with a shard of three replicas: leases, cache and engine are as in a cluster. The handlers
are called by the thousand without a turn of the event loop in between, so what is measured is their own processor time. Exits 1
when a bound is not kept.
"""

import asyncio
import contextlib
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

import uvloop
from prometheus_client import CollectorRegistry

from benchmarks.figures import Figure, percentile, show
from kvshard.clock import SystemClock
from kvshard.clustermap import DEFAULT_COLLECTION, Leaf
from kvshard.coordination.connect import connect
from kvshard.coordination.mapstore import BootstrapPlan, MapStore, bootstrap
from kvshard.errors import NotReady
from kvshard.model import ShardRead, ShardReadReply, ShardWrite
from kvshard.rpc.codec import READ, WRITE, decode, encode
from kvshard.telemetry import LeafMetrics, configure_logging
from leaf.engine import Engine
from leaf.memory_engine import MemoryEngine
from leaf.requests import Requests
from leaf.rocks_engine import RocksEngine
from leaf.server import LeafOptions, LeafServer
from leaf.service import LeafService, StatusReport

NAMES = ("leaf-1", "leaf-2", "leaf-3")
SHARD = 0
KEYS = 20_000
VALUE_BYTES = 100
READ_KEYS = (1, 12, 125)
WRITE_KEYS = (1, 1_000)

BLOCKS = 10
"""Of each arm: the machine's noise comes in stretches of seconds, so the arms take turns."""

CALLS_PER_BLOCK = 400
WRITES_PER_BLOCK = {1: 200, 1_000: 20}

SMALL_CACHE_BYTES = 1024 * 1024
"""Holds an eighth of the keys: read in a circle, none is found again, and what takes in and drops keys is measured too."""

CACHE_BYTES = 64 * 1024 * 1024

BOUNDS_US = {1: 8.0, 12: 15.0}
"""Of a read of cached keys."""

DEADLINE_S = 60.0
POLL_S = 0.05

LEASES_S = 10.0
"""The leaves' failure timeout: no lease runs out while a block holds the event loop on a busy machine."""


@dataclass(frozen=True, slots=True)
class _Arm:
    """Calls of one handler. payloads: one a call, in a circle."""

    name: str
    handler: Callable[[bytes, float], bytes | None]
    payloads: Sequence[bytes]
    keys: int
    bound_us: float | None = None


class _Leaves:
    """Three leaves over one coordinator, and the handlers of the primary and of a secondary of the shard."""

    def __init__(self, servers: Sequence[LeafServer], folder: pathlib.Path) -> None:
        self.servers = servers
        self._folder = folder

    def server(self, *, is_primary: bool) -> LeafServer:
        """The first one with that role."""
        return next(each for each in self.servers if each.driver.replicas[SHARD].is_primary is is_primary)

    def service(self, server: LeafServer) -> LeafService:
        """The handlers over a leaf's replicas, with metrics of their own."""
        clock = SystemClock()
        report = StatusReport(server.driver, lambda: 0, clock, "")
        requests = Requests(server.driver, server.indexer)
        return LeafService(requests, report, clock, LeafMetrics(CollectorRegistry()))

    @property
    def epoch(self) -> int:
        """Of the shard's replica set."""
        return self.server(is_primary=True).driver.replicas[SHARD].epoch


@contextlib.asynccontextmanager
async def _leaves(folder: pathlib.Path, is_rocks: bool, cache_bytes: int) -> AsyncIterator[_Leaves]:
    url = f"sqlite://{folder}/coordinator.db"
    clock = SystemClock()
    for name in NAMES:
        await asyncio.to_thread((folder / name).mkdir, parents=True)
    async with contextlib.AsyncExitStack() as stack:
        coordinator = connect(url, clock)
        stack.push_async_callback(coordinator.close)
        await bootstrap(coordinator, BootstrapPlan(tuple(Leaf(name) for name in NAMES), shards=1, replicas=len(NAMES)))
        servers = []
        for name in NAMES:
            maps = MapStore(coordinator, clock)
            await maps.start()
            stack.push_async_callback(maps.close)
            engine: Engine = RocksEngine(folder / name / "data") if is_rocks else MemoryEngine()
            stack.callback(engine.close)
            options = LeafOptions(name, folder / name, url, "127.0.0.1:0", failure_timeout_s=LEASES_S, cache_bytes=cache_bytes)
            servers.append(LeafServer(options, engine, coordinator, maps, clock, LeafMetrics(CollectorRegistry())))
        await asyncio.gather(*(server.start() for server in servers))
        for server in servers:
            stack.push_async_callback(server.stop)
        yield _Leaves(servers, folder)


def _key(number: int) -> bytes:
    return b"user:%012d" % number


def _read_payloads(epoch: int, count: int, *, is_cached: bool) -> list[bytes]:
    """Reads of different keys: a few hundred that stay in the cache, or all there are, one after the other."""
    total = 250 if is_cached else KEYS
    numbers = range(0, total - count + 1, count)
    return [
        encode(ShardRead(SHARD, epoch, DEFAULT_COLLECTION.id, [_key(n) for n in range(first, first + count)], cuts=0))
        for first in numbers
    ]


def _write_payloads(epoch: int, count: int) -> list[bytes]:
    value = os.urandom(VALUE_BYTES)
    return [
        encode(ShardWrite(SHARD, epoch, DEFAULT_COLLECTION.id, [_key(n) for n in range(first, first + count)], [value] * count))
        for first in range(0, KEYS, 1_000)
    ]


async def _applied(server: LeafServer) -> int:
    """The entries that a strong read there sees; 0: it is not served."""
    try:
        return (await server.driver.wait_readable(SHARD, None, True, time.monotonic() + POLL_S)).seqno
    except NotReady:
        return 0


async def _fill(leaves: _Leaves) -> None:
    began = time.monotonic()
    handle = leaves.service(leaves.server(is_primary=True)).handlers[WRITE.number]
    for payload in _write_payloads(leaves.epoch, 1_000):
        await handle(payload, time.monotonic() + DEADLINE_S)
    written = leaves.server(is_primary=True).driver.replicas[SHARD].last
    for server in leaves.servers:  # The secondaries learn that the last ones are committed, and get their leases.
        while (found := await _applied(server)) < written:
            if time.monotonic() > began + DEADLINE_S:
                raise RuntimeError(f"{server!r} has applied {found} of {written} entries")
            await asyncio.sleep(POLL_S)


def _block(arm: _Arm, start: int) -> float:
    """Microseconds of processor time a call."""
    handler, payloads = arm.handler, arm.payloads
    calls = [payloads[(start + number) % len(payloads)] for number in range(CALLS_PER_BLOCK)]
    deadline = time.monotonic() + DEADLINE_S
    began = time.thread_time()
    for payload in calls:
        if handler(payload, deadline) is None:
            raise RuntimeError(f"{arm.name}: the read must wait")
    return (time.thread_time() - began) / CALLS_PER_BLOCK * 1e6


async def _reads(stack: contextlib.AsyncExitStack, folder: pathlib.Path) -> list[_Arm]:
    arms: list[_Arm] = []
    for engine in ("memory", "rocks"):
        for is_cached in (True, False):
            where = folder / f"{engine}-{is_cached}"
            size = CACHE_BYTES if is_cached else SMALL_CACHE_BYTES
            leaves = await stack.enter_async_context(_leaves(where, engine == "rocks", size))
            await _fill(leaves)
            for is_primary in (True, False):
                if engine == "rocks" and is_primary is False:
                    continue
                handler = leaves.service(leaves.server(is_primary=is_primary)).immediate[READ.number]
                for count in READ_KEYS:
                    role, cached = "primary" if is_primary else "secondary", "cached" if is_cached else "not cached"
                    payloads = _read_payloads(leaves.epoch, count, is_cached=is_cached)
                    bound = BOUNDS_US.get(count) if is_cached else None
                    arm = _Arm(f"read of {count}, {cached}, {role}, {engine}", handler, payloads, count, bound)
                    reply = decode(ShardReadReply, arm.handler(payloads[0], time.monotonic() + DEADLINE_S) or b"")
                    if [len(value or b"") for value in reply.values] != [VALUE_BYTES] * count:
                        raise RuntimeError(f"{arm.name}: the keys are not there")
                    arms.append(arm)
    return arms


async def _write_block(leaves: _Leaves, payloads: Sequence[bytes], calls: int) -> float:
    """Microseconds of processor time of the event loop's thread a call, of all three replicas together.

    Not of the threads that flush.
    """
    handle = leaves.service(leaves.server(is_primary=True)).handlers[WRITE.number]
    began = time.thread_time()
    for number in range(calls):
        await handle(payloads[number % len(payloads)], time.monotonic() + DEADLINE_S)
    return (time.thread_time() - began) / calls * 1e6


async def measure(folder: pathlib.Path) -> list[Figure]:
    """The figures."""
    async with contextlib.AsyncExitStack() as stack:
        arms = await _reads(stack, folder)
        taken: dict[str, list[float]] = {arm.name: [] for arm in arms}
        for block in range(BLOCKS + 1):
            for arm in arms if block % 2 else reversed(arms):
                us = _block(arm, block * CALLS_PER_BLOCK)
                if block:  # The first one warms up.
                    taken[arm.name].append(us)
                await asyncio.sleep(0.01)  # Beacons, acknowledgements.
        figures = [
            Figure(arm.name, percentile(taken[arm.name], 0.5), "us", BLOCKS * CALLS_PER_BLOCK, arm.bound_us) for arm in arms
        ]
        for engine in ("memory", "rocks"):
            leaves = await stack.enter_async_context(_leaves(folder / f"writes-{engine}", engine == "rocks", CACHE_BYTES))
            for count in WRITE_KEYS:
                payloads = _write_payloads(leaves.epoch, count)
                calls = WRITES_PER_BLOCK[count]
                blocks = [await _write_block(leaves, payloads, calls) for _ in range(BLOCKS + 1)][1:]
                name = f"write of {count}, three replicas together, {engine}"
                figures.append(Figure(name, percentile(blocks, 0.5), "us", BLOCKS * calls))
    return figures


def main() -> int:
    """Measure; print and write the figures. Exits 1 when a bound is not kept."""
    configure_logging("warning")
    with tempfile.TemporaryDirectory(prefix="kvshard-leaf-path-") as folder:
        figures = uvloop.run(measure(pathlib.Path(folder)))
    return 0 if show(figures, pathlib.Path("bench-results/leaf_path.json")) else 1


if __name__ == "__main__":
    sys.exit(main())
