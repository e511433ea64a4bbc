"""The cluster that is measured, with its data, and how much is measured on it."""

import gc
import os
import pathlib
import platform
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from benchmarks.fleet import Fleet
from kvshard import Client
from loadtests.cpu import CpuMeter
from loadtests.scenarios import Experiment
from loadtests.workloads import Corpus, load_documents, load_keys

LEAVES = 4
SHARDS = 8
REPLICAS = 3
WARM_UP_S = 1.0
"""Of each block, sent but not counted: what the router learned under the cell before is not what this cell measures."""

WHOLE_TIMEOUT_S = 30.0
SETTLE_S = 0.2
"""Between the end of a block and the next, for what is still on its way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. block_s: of a block without its warm-up. rounds: each has two blocks of every cell."""

    block_s: float
    rounds: int
    seed: int = 1

    def seconds(self, experiments: Sequence[Experiment]) -> float:
        """How long that takes, about."""
        per_block = self.block_s + SETTLE_S + 0.3
        blocks = sum(per_block + max(WARM_UP_S, cell.condition.after_s) for each in experiments for cell in each.cells)
        return 2 * self.rounds * blocks + 25.0 + 15.0 * len(experiments)


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
        "python": platform.python_version(),
    }
