"""A load-test run that nobody measured: a small model of legs and pauses, for the report's tests."""

import random

from loadtests.results import CellResult, ExperimentResult, ExtraPoint, RunResult
from loadtests.scenarios import Experiment, kinds_of
from loadtests.tally import Tally
from loadtests.usage import Usage

PAUSED = {"healthy": 0.0, "pauses-0.5": 0.005, "pauses-2": 0.02}


def made_cell(cell, experiment: Experiment, *, seconds: int, rate: int, rng: random.Random) -> CellResult:
    """What a cluster of four leaves would do, roughly: none waits for pauses, all waits for a hedge."""
    tally = Tally(experiment.deadline_s)
    paused = PAUSED.get(cell.condition.name, 0.02)
    names, weights = zip(*kinds_of(experiment), strict=True)
    result = CellResult(cell.condition.name, cell.condition.title, cell.arm.name, cell.arm.title, tally)
    for second in range(seconds):
        legs = hedges = 0
        for _ in range(rate):
            kind = rng.choices(names, weights)[0]
            slowest = 0.0
            for _ in range(int(kind)):
                leg = rng.lognormvariate(-6.2, 0.35)
                if rng.random() < paused:
                    left = rng.random() * 0.05
                    hedges += cell.arm.hedge != "off"
                    leg += left if cell.arm.hedge == "off" else min(left, 0.004 + rng.lognormvariate(-6.2, 0.35))
                slowest = max(slowest, leg)
                legs += 1
            tally.record_sent(rng.lognormvariate(-9.5, 0.8))
            tally.record_ok(kind, second + rng.random(), slowest + rng.lognormvariate(-6.5, 0.3))
            tally.record_overrun(0.0)
        result.extra.append(ExtraPoint(second + 0.5, legs, hedges))
        result.legs += legs
        result.hedges += hedges
    result.blocks, result.measured_s = 2, float(seconds)
    result.usages = [Usage(seconds / 2, 0.22, 0.17, 0.07, 0.01, 0.14, 0.8 * seconds, 0.44 * seconds)] * 2
    if "hedge-python" not in cell.arm.name:
        measured = tally.latency((names[0],)).quantiles((0.5, 0.99, 0.999))
        result.prediction = dict(zip(("p50", "p99", "p99.9"), (x * rng.uniform(0.9, 1.15) for x in measured), strict=True))
        result.prediction["extra"] = result.extra_part * 0.9
    return result


def made_run(experiments: list[Experiment], *, seconds: int = 4, rate: int = 100, seed: int = 1) -> RunResult:
    rng = random.Random(seed)
    made = [
        ExperimentResult(
            each.name, each.title, each.workload, float(rate), 0.0021, each.deadline_s,
            sorted(fan_out for fan_out, _ in each.fan_outs),
            [made_cell(cell, each, seconds=seconds, rate=rate, rng=rng) for cell in each.cells],
        )
        for each in experiments
    ]  # fmt: skip
    setting = {"cluster": "8 shards x 3 replicas on 4 leaf processes", "machine": "2 cores", "python": "3.11"}
    return RunResult("2026-01-02T03:04:05+00:00", seed, setting, made, 60.0)
