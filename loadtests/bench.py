"""The cluster that is measured, with its data, and how much is measured on it."""

import gc
import os
import pathlib
import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil

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
OVERHEAD_S = 0.3
"""Of a block, for making the schedule, injecting faults and adding up; for the estimate of how long a run takes."""

SETTLE_S = 0.2
"""Between the end of a block and the next, for what is still on its way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. rounds: each has two blocks of every cell; None: as many as an experiment's samples take."""

    rounds: int | None = None
    seed: int = 1

    def rounds_of(self, experiment: Experiment, rate: float) -> int:
        """Rounds of an experiment at so many requests a second."""
        if self.rounds is not None:
            return self.rounds
        part = experiment.fan_outs[0][1] / sum(weight for _, weight in experiment.fan_outs)
        return max(1, ceil(experiment.samples / (2 * experiment.block_s * rate * part)))


def seconds_of(experiment: Experiment, rounds: int) -> float:
    """How long so many rounds take, about."""
    block_s = experiment.block_s + SETTLE_S + OVERHEAD_S
    return 2 * rounds * sum(block_s + max(WARM_UP_S, cell.condition.after_s) for cell in experiment.cells)


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
