"""One real leaf for tests: in this process, or as a process of its own that may be killed."""

import asyncio
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence

from kvshard.clock import SystemClock
from kvshard.clustermap import Leaf
from kvshard.coordination import mapwriter
from kvshard.coordination.connect import connect
from kvshard.coordination.mapstore import MapStore
from kvshard.rpc.lane_client import LaneLeafClient

LEAF = "leaf-1"


def coordinator_url(folder: pathlib.Path) -> str:
    return f"sqlite://{folder / 'coordinator.db'}"


async def bootstrap(folder: pathlib.Path, shards: int = 4, leaves: Sequence[str] = (LEAF,)) -> None:
    """Make the map of a cluster of these leaves, each with a replica of every shard."""
    coordinator = connect(coordinator_url(folder), SystemClock())
    plan = mapwriter.BootstrapPlan(leaves=tuple(map(Leaf, leaves)), shards=shards, replicas=len(leaves))
    try:
        assert await mapwriter.bootstrap(coordinator, plan)
    finally:
        await coordinator.close()


class LeafCaller:
    """What a router has: the map and a lane to the leaf."""

    def __init__(self, maps: MapStore, client: LaneLeafClient, clock: SystemClock) -> None:
        self.maps = maps
        self.client = client
        self.clock = clock

    def epoch(self, shard: int) -> int:
        return self.maps.current.shards[shard].epoch

    def deadline(self, seconds: float = 10.0) -> float:
        return self.clock.monotonic() + seconds


@contextlib.asynccontextmanager
async def leaf_caller(folder: pathlib.Path) -> AsyncIterator[LeafCaller]:
    clock = SystemClock()
    coordinator = connect(coordinator_url(folder), clock)
    maps = MapStore(coordinator, clock)
    client = LaneLeafClient(lambda leaf: maps.current.leaf_address(leaf), clock)
    try:
        await maps.start()
        yield LeafCaller(maps, client, clock)
    finally:
        await client.close()
        await maps.close()
        await coordinator.close()


class LeafProcess:
    """`python -m leaf` in a folder that has been bootstrapped."""

    def __init__(self, folder: pathlib.Path, *extra: str) -> None:
        command = [sys.executable, "-m", "leaf", "--id", LEAF, "--data-dir", str(folder / LEAF)]
        command += ["--coordinator", coordinator_url(folder), *extra]
        self.errors = folder / "leaf.err"
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)

    def __repr__(self) -> str:
        return f"LeafProcess(exit={self.process.poll()}, stderr={self.errors.read_text()[-2000:]!r})"

    async def wait_ready(self) -> str:
        """Its address."""
        assert self.process.stdout is not None
        line = await asyncio.to_thread(self.process.stdout.readline)
        assert line.startswith("ready: "), f"{line!r} {self!r}"
        return line.split()[1]

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait(10.0)

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Stop it and give its exit code."""
        try:
            if self.process.poll() is None:
                self.process.send_signal(signal_number)
            return self.process.wait(10.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()
