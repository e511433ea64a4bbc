"""What a leaf takes for a million keys, on the disk and in memory: `python -m benchmarks.leaf_footprint`.

One leaf holds all of them, in 8 shards. Values are random bytes, which nothing compresses: with texts the disk does better. Raw
bytes are those of keys and values. Exits 1 when a bound is not kept.
"""

import argparse
import asyncio
import pathlib
import random
import sys
import tempfile
import time
import urllib.request
from collections.abc import Awaitable, Callable

import uvloop

from benchmarks.figures import Figure, show
from benchmarks.fleet import Fleet
from benchmarks.processes import free_port
from kvshard import Client
from leaf.rocks_engine import RocksEngine

KEYS = 1_000_000
VALUE_BYTES = 100
BATCH_KEYS = 1_000
BATCHES_IN_FLIGHT = 4
LEAF = "leaf-1"

QUIET_S = 5.0
"""After the load: the engine ends the compactions that it has begun."""

MIB = 1024 * 1024


def key_of(number: int) -> str:
    """Keys of 14 bytes, in an order that has nothing to do with that of their numbers' insertion."""
    return f"user{number * 7_919 % 10_000_000_000:010d}"


async def _in_batches(keys: int, call: Callable[[range], Awaitable[None]]) -> float:
    """Call with all numbers below `keys`, batch by batch; returns keys a second."""
    batches = iter([range(first, min(first + BATCH_KEYS, keys)) for first in range(0, keys, BATCH_KEYS)])

    async def worker() -> None:
        for batch in batches:
            await call(batch)

    began = time.perf_counter()
    await asyncio.gather(*(worker() for _ in range(BATCHES_IN_FLIGHT)))
    return keys / (time.perf_counter() - began)


def _memory_mib(pid: int, name: str) -> float:
    """VmRSS (resident now) or VmHWM (at most so far) of a process."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} tells no {name}")


def _metric(port: int, name: str) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as page:
        for line in page.read().decode().splitlines():
            if line.startswith(f"{name} "):
                return float(line.split()[1])
    raise RuntimeError(f"no metric {name}")


def _disk_bytes(folder: pathlib.Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def _compacted_bytes(folder: pathlib.Path) -> int:
    """The engine's files once all that was removed or overwritten is out of them."""
    engine = RocksEngine(folder)
    try:
        engine.compact()
        return engine.size_bytes()
    finally:
        engine.close()


async def footprint(folder: pathlib.Path, keys: int = KEYS) -> list[Figure]:
    """Load, read every key, look, stop the leaf, compact its files and look again."""
    port = free_port()
    rng = random.Random(17)
    arguments = ("--metrics-port", str(port))
    async with Fleet(folder, leaves=1, replicas=1, leaf_arguments=arguments) as fleet, Client(fleet.address, timeout=60) as kv:
        pid = fleet.leaves[LEAF].pid
        idle = _memory_mib(pid, "VmRSS")

        async def put(batch: range) -> None:
            (await kv.put_many({key_of(number): rng.randbytes(VALUE_BYTES) for number in batch})).raise_for_failures()

        async def get(batch: range) -> None:
            found = sum(item is not None for item in await kv.get_many([key_of(number) for number in batch]))
            if found != len(batch):
                raise RuntimeError(f"{len(batch) - found} keys of {batch} are missing")

        write_rate = await _in_batches(keys, put)
        loaded = _memory_mib(pid, "VmRSS")
        read_rate = await _in_batches(keys, get)
        again_rate = await _in_batches(keys, get)
        await asyncio.sleep(QUIET_S)
        resident, most = _memory_mib(pid, "VmRSS"), _memory_mib(pid, "VmHWM")
        cached = _metric(port, "kvshard_leaf_cache_bytes"), _metric(port, "kvshard_leaf_cache_limit_bytes")
        running = _disk_bytes(fleet.data_dir(LEAF))
    raw = sum(len(key_of(number)) for number in range(keys)) + keys * VALUE_BYTES
    compacted = _compacted_bytes(fleet.data_dir(LEAF) / "data")
    filled = f"the cache counts {cached[0] / MIB:.0f} of {cached[1] / MIB:.0f} MiB"
    sizes = f"keys of {len(key_of(0))} bytes, random values of {VALUE_BYTES}"
    return [
        Figure("leaf, idle, resident", idle, "MiB", 1),
        Figure(
            "leaf with the keys, resident", resident, "MiB", keys, 400, note=f"after reading all of them; {filled}; goal 250"
        ),
        Figure("the same after the load", loaded, "MiB", keys),
        Figure("the same at most", most, "MiB", keys),
        Figure("disk / raw, compacted", compacted / raw, "x", keys, 2.5, note=f"{sizes}; goal 1.5"),
        Figure("disk / raw, as the leaf left it", running / raw, "x", keys, note="with what waits for compaction, and the log"),
        Figure("disk, compacted", compacted / keys, "bytes/key", keys),
        Figure("durable put_many, loading", write_rate, "keys/s", keys, note=f"{BATCHES_IN_FLIGHT} x {BATCH_KEYS} in flight"),
        Figure("get_many of all keys", read_rate, "keys/s", keys, note="each once: hardly any is in the cache"),
        Figure("get_many of all keys, again", again_rate, "keys/s", keys, note="the same order: the cache has dropped them"),
    ]


def main() -> int:
    """Measure on a leaf of its own; print and write the figures."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.leaf_footprint", description=__doc__)
    parser.add_argument("--keys", type=int, default=KEYS, metavar="N", help="keys to load (default: %(default)d)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="kvshard-bench-") as folder:
        figures = uvloop.run(footprint(pathlib.Path(folder), options.keys))
    return 0 if show(figures, pathlib.Path("bench-results/leaf-footprint.json")) else 1


if __name__ == "__main__":
    sys.exit(main())
