"""Runs experiments, one after the other, on a cluster of its own."""

import pathlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime

from loadtests.bench import LEAVES, Log, bench, setting
from loadtests.bookkeeping import per_leg_s
from loadtests.experiment_run import ExperimentRun
from loadtests.plan import Plan
from loadtests.results import RunResult
from loadtests.scenarios import Experiment


async def run(experiments: Sequence[Experiment], plan: Plan, folder: pathlib.Path, log: Log, leaves: int = LEAVES) -> RunResult:
    """Measure all of them, one after the other, on one cluster."""
    began = time.monotonic()
    result = RunResult(datetime.now(UTC).isoformat(timespec="seconds"), plan.seed, setting(leaves), [])
    has_documents = any(experiment.workload == "search" for experiment in experiments)
    async with bench(folder, leaves=leaves, has_documents=has_documents) as made:
        log(f"{leaves} leaves serve after {time.monotonic() - began:.0f} s, data loaded")
        result.bookkeeping_s, result.bookkeeping_n = await per_leg_s(await made.client.map())
        for experiment in experiments:
            result.experiments.append(await ExperimentRun(made, experiment, plan, log).run())
    result.seconds = time.monotonic() - began
    return result
