"""What scans cost: the memory of the router under long, slow and many scans, their rate, and what a short one takes.

`python -m benchmarks.scan_memory --keys 1000000` or fewer; exits 1 when a bound is not kept.
"""

import argparse
import asyncio
import os
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Callable

import uvloop

from benchmarks.figures import Figure, percentile, show
from benchmarks.fleet import Fleet
from kvshard import Client

KEYS = 1_000_000
VALUE_BYTES = 100
LOAD_BATCH = 1_000
LOADS_IN_FLIGHT = 4

LARGE_VALUES = 256
LARGE_VALUE_BYTES = 1024 * 1024
"""As much as a leaf's largest values, many times over what a router may hold."""

SLOW_READERS = 32
SLOW_READ_KEYS = 1_000
"""Each takes so many keys and then sleeps."""

SLEEP_S = 3.0

SHORT_SCAN_KEYS = 100
SHORT_SCANS = 2_000
SHORT_SCANS_IN_FLIGHT = 16

ROUTER_MAX_MB = 200.0
GROWTH_MAX_MB = 16.0
"""What may come in while a reader sleeps: a page in gRPC's windows, the next chunks of every shard."""


def key_of(number: int) -> str:
    """Keys in scan order, hashed over the shards."""
    return f"scan:{number:09d}"


def resident_mb(pid: int) -> float:
    """Memory of a process that is in RAM now."""
    pages = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


class PeakMemory:
    """The most memory that a process has in RAM within a `with`. mb: known at its end."""

    def __init__(self, pid: int) -> None:
        self._folder = pathlib.Path(f"/proc/{pid}")
        self.mb = 0.0

    def __enter__(self) -> "PeakMemory":
        (self._folder / "clear_refs").write_text("5")  # Forgets the peak so far; see proc(5).
        return self

    def __exit__(self, *_: object) -> None:
        lines = (self._folder / "status").read_text().splitlines()
        (peak,) = [line.split()[1] for line in lines if line.startswith("VmHWM:")]
        self.mb = int(peak) * 1024 / 1e6


async def load(kv: Client[str], keys: int) -> None:
    """Write the keys that are scanned."""
    firsts = iter(range(0, keys, LOAD_BATCH))

    async def worker() -> None:
        for first in firsts:
            numbers = range(first, min(keys, first + LOAD_BATCH))
            results = await kv.put_many({key_of(number): os.urandom(VALUE_BYTES) for number in numbers})
            results.raise_for_failures()

    await asyncio.gather(*(worker() for _ in range(LOADS_IN_FLIGHT)))


async def long_scan(kv: Client[str], fleet: Fleet, keys: int) -> list[Figure]:
    """All keys through the router, every one of them looked at."""
    with PeakMemory(fleet.router.pid) as router:
        began, expected = time.perf_counter(), 0
        async for item in kv.scan(prefix="scan:"):
            if item.key != key_of(expected) or len(item.value) != VALUE_BYTES:
                raise RuntimeError(f"{item.key} came instead of {key_of(expected)}")
            expected += 1
        seconds = time.perf_counter() - began
    if expected != keys:
        raise RuntimeError(f"{expected} of {keys} keys came")
    return [
        Figure(f"scan of {keys:,} keys, through the router", keys / seconds, "keys/s", keys),
        Figure("router, resident at most during that scan", router.mb, "MB", 1, ROUTER_MAX_MB, note="goal 120"),
    ]


async def sleeping_reader(kv: Client[str], fleet: Fleet) -> list[Figure]:
    """A reader that stops in the middle: nobody may go on fetching for it."""
    processes = {"router": fleet.router.pid, **{name: leaf.pid for name, leaf in fleet.leaves.items()}}
    async with kv.scan(prefix="scan:") as scan:
        await scan.take(SLOW_READ_KEYS)
        await asyncio.sleep(0.1)
        before = {name: resident_mb(pid) for name, pid in processes.items()}
        await asyncio.sleep(SLEEP_S)
        grown = {name: resident_mb(pid) - before[name] for name, pid in processes.items()}
    note = f"while a reader sleeps {SLEEP_S:g} s in the middle of a scan; the largest of {', '.join(processes)}"
    return [Figure("memory gained", max(grown.values()), "MB", len(grown), GROWTH_MAX_MB, note=note)]


async def many_slow_readers(kv: Client[str], fleet: Fleet) -> list[Figure]:
    """Many scans at once that are left unread."""
    scans = [kv.scan(prefix="scan:") for _ in range(SLOW_READERS)]
    try:
        with PeakMemory(fleet.router.pid) as router:
            await asyncio.gather(*(scan.take(SLOW_READ_KEYS) for scan in scans))
            await asyncio.sleep(SLEEP_S)
    finally:
        for scan in scans:
            await scan.aclose()
    note = f"{SLOW_READERS} scans at once, each left unread after {SLOW_READ_KEYS:,} keys"
    return [Figure("router, resident at most under slow readers", router.mb, "MB", SLOW_READERS, ROUTER_MAX_MB, note=note)]


async def large_values(kv: Client[str], fleet: Fleet) -> list[Figure]:
    """Values that fill a page each."""
    value = os.urandom(LARGE_VALUE_BYTES)
    for number in range(LARGE_VALUES):
        await kv.put(f"large:{number:06d}", value)
    with PeakMemory(fleet.router.pid) as router:
        began, seen = time.perf_counter(), 0
        async for item in kv.scan(prefix="large:"):
            seen += len(item.value)
        seconds = time.perf_counter() - began
    if seen != LARGE_VALUES * LARGE_VALUE_BYTES:
        raise RuntimeError(f"{seen} bytes came")
    note = f"{LARGE_VALUES} values of {LARGE_VALUE_BYTES:,} bytes"
    return [
        Figure("scan of large values", seen / 1e6 / seconds, "MB/s", LARGE_VALUES, note=note),
        Figure("router, resident at most during that scan", router.mb, "MB", 1, ROUTER_MAX_MB, note=note),
    ]


async def short_scans(kv: Client[str], keys: int) -> list[Figure]:
    """Scans with a limit from a random key on, as YCSB's workload E has them: alone, then several at once."""
    rng = random.Random(1)

    async def scan() -> float:
        first = rng.randrange(keys - SHORT_SCAN_KEYS)
        began = time.perf_counter()
        items = [item async for item in kv.scan(start=key_of(first), limit=SHORT_SCAN_KEYS)]
        if len(items) != SHORT_SCAN_KEYS or items[0].key != key_of(first):
            raise RuntimeError(f"{len(items)} keys came from {key_of(first)} on")
        return time.perf_counter() - began

    async def worker(scans: int) -> None:
        for _ in range(scans):
            await scan()

    await worker(SHORT_SCANS // 20)
    alone = [await scan() for _ in range(SHORT_SCANS // 4)]
    began = time.perf_counter()
    await asyncio.gather(*(worker(SHORT_SCANS // SHORT_SCANS_IN_FLIGHT) for _ in range(SHORT_SCANS_IN_FLIGHT)))
    rate = SHORT_SCANS / (time.perf_counter() - began)
    note = f"{SHORT_SCAN_KEYS} keys of {VALUE_BYTES} bytes each"
    return [
        Figure("short scan alone, p50", percentile(alone, 0.5) * 1e3, "ms", len(alone), note=note),
        Figure("short scans", rate, "scans/s", SHORT_SCANS, note=f"{note}, {SHORT_SCANS_IN_FLIGHT} at once"),
    ]


async def run(keys: int, folder: pathlib.Path, say: Callable[[str], object] = print) -> list[Figure]:
    """All figures, on a cluster of two leaves without replicas."""
    figures: list[Figure] = []
    async with Fleet(folder, leaves=2, replicas=1) as fleet, Client(fleet.address, timeout=60.0) as kv:
        began = time.perf_counter()
        await load(kv, keys)
        say(f"loaded {keys:,} keys in {time.perf_counter() - began:.1f} s")
        figures += await long_scan(kv, fleet, keys)
        figures += await sleeping_reader(kv, fleet)
        figures += await many_slow_readers(kv, fleet)
        figures += await short_scans(kv, keys)
        figures += await large_values(kv, fleet)
    return figures


def main() -> int:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scan_memory", description=__doc__)
    parser.add_argument("--keys", type=int, default=KEYS, help=f"keys to scan, at least 10,000; default {KEYS:,}")
    options = parser.parse_args()
    if options.keys < 10_000:
        parser.error(f"--keys must be at least 10,000, not {options.keys}")
    with tempfile.TemporaryDirectory(prefix="kvshard-scan-") as folder:
        figures = uvloop.run(run(options.keys, pathlib.Path(folder)))
    return 0 if show(figures, pathlib.Path("bench-results/scan_memory.json")) else 1


if __name__ == "__main__":
    sys.exit(main())
