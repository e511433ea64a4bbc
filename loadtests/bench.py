"""The cluster that is measured, with its data, and how much is measured on it."""

import gc
import os
import pathlib
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from benchmarks.fleet import Fleet
from kvshard import Client
from loadtests.cpu import CpuMeter
from loadtests.workloads import Corpus, load_documents, load_keys

LEAVES = 4
SHARDS = 8
REPLICAS = 3
WHOLE_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Bench:
    """A cluster that serves, with its data."""

    fleet: Fleet
    client: Client[str]
    corpus: Corpus
    meter: CpuMeter


@asynccontextmanager
async def bench(folder: pathlib.Path, *, leaves: int = LEAVES, has_documents: bool = True) -> AsyncIterator[Bench]:
    """Start a cluster in a folder and load what the workloads read."""
    fleet = Fleet(folder, leaves=leaves, shards=SHARDS, replicas=REPLICAS, leaf_arguments=("--allow-faults",))
    async with fleet, Client(fleet.address, timeout=60.0) as client:
        await fleet.wait_whole(WHOLE_TIMEOUT_S)
        corpus = await load_keys(client)
        if has_documents:
            corpus = await load_documents(client, corpus)
        gc.collect()
        gc.freeze()  # A collection over the whole corpus would pause the load client, and look like a straggler.
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
