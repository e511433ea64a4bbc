"""The cluster that is measured, with its data, and how much is measured on it."""

import asyncio
import gc
import os
import pathlib
import platform
import urllib.request
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.fleet import Fleet
from benchmarks.processes import free_port
from kvshard import Client
from loadtests.cpu import CpuMeter
from loadtests.workloads import Corpus, load_documents, load_keys

LEAVES = 4
SHARDS = 8
REPLICAS = 3
WHOLE_TIMEOUT_S = 30.0
METRICS_TIMEOUT_S = 5.0
NICE = ("nice", "-n", "5")
WASTED = "kvshard_leaf_wasted_seconds_total"


class MeasuredFleet(Fleet):
    """A cluster whose leaves take faults and tell their metrics."""

    def __init__(self, folder: pathlib.Path, *, leaves: int) -> None:
        self._metrics_ports = {f"leaf-{number}": free_port() for number in range(1, leaves + 1)}
        super().__init__(folder, leaves=leaves, shards=SHARDS, replicas=REPLICAS, leaf_arguments=("--allow-faults",))

    def listen_arguments(self, name: str) -> tuple[str, ...]:
        """Where a leaf listens, for requests and for who reads its metrics."""
        return (*super().listen_arguments(name), "--metrics-port", str(self._metrics_ports[name]))

    def prefix(self, name: str) -> tuple[str, ...]:
        """Behind the load client, which is on this machine too: what it waits for the processor would count as the cluster's
        latency, and under overload it could not even send what it is to send."""
        return NICE

    async def wasted_s(self) -> float:
        """Seconds of work that the leaves did in vain since they started."""
        return await asyncio.to_thread(lambda: sum(map(_wasted_s, self._metrics_ports.values())))


def _wasted_s(port: int) -> float:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=METRICS_TIMEOUT_S) as response:
        families = text_string_to_metric_families(response.read().decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == WASTED)


@dataclass(frozen=True, slots=True)
class Bench:
    """A cluster that serves, with its data."""

    fleet: MeasuredFleet
    client: Client[str]
    corpus: Corpus
    meter: CpuMeter


def put_garbage_away() -> None:
    """Before load: a collection over the whole corpus, or over all that was measured, would look like a straggler."""
    gc.collect()
    gc.freeze()


@asynccontextmanager
async def bench(folder: pathlib.Path, *, leaves: int = LEAVES, has_documents: bool = True) -> AsyncIterator[Bench]:
    """Start a cluster in a folder and load what the workloads read."""
    fleet = MeasuredFleet(folder, leaves=leaves)
    async with fleet, Client(fleet.address, timeout=60.0) as client:
        await fleet.wait_whole(WHOLE_TIMEOUT_S)
        corpus = await load_keys(client)
        if has_documents:
            corpus = await load_documents(client, corpus)
        put_garbage_away()
        leaf_pids = [leaf.pid for leaf in fleet.leaves.values()]
        yield Bench(fleet, client, corpus, CpuMeter(leaf_pids, [fleet.router.pid]))


Log = Callable[[str], None]
"""Tells whoever waits how far it is."""


def setting(leaves: int) -> dict[str, str]:
    """What the run runs on."""
    return {
        "cluster": f"{SHARDS} shards x {REPLICAS} replicas on {leaves} leaf processes, one router, all on this machine",
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, {platform.system()} {platform.release()}",
        "python": f"Python {platform.python_version()}",
    }
