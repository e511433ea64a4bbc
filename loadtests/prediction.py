"""What the what-if model expects of each cell, from what single legs took in the healthy cluster.

The model gets a `Reference`, measured in blocks between those of the cells, without faults and without hedges, by the same
choice of replicas. Of the cells themselves it knows the defences and the faults: of pauses when they were, since chance makes
more or fewer of them, and of delays what they take. Of what the cells measured it knows nothing.
"""

import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from itertools import count
from math import ceil
from random import Random

from kvshard import Client
from kvshard.tail.hedging import ReplicaChoice, parse_policy
from kvshard.tail.whatif import scenario as model
from kvshard.tail.whatif.prediction import predict
from loadtests.arrivals import Arrival
from loadtests.reference import PLAIN_EVERY, Reference
from loadtests.results import CellResult, ExperimentResult
from loadtests.scenarios import NONE, Cell, Condition, Experiment, full, quick
from loadtests.workloads import COLLECTION, Corpus, read_options

REQUESTS_MAX = 50_000
"""Of a run of the model: some ten seconds, for cells that took as many minutes."""

REQUESTS_LEAST = 8_000
"""What was measured more briefly is run through several times: the same pauses, other arrivals. Some seconds."""


def choices_of(experiment: Experiment) -> list[str]:
    """The choices of replicas by the cells that are predicted: each takes a reference of its own."""
    return sorted({cell.arm.replica_choice for cell in experiment.cells if is_predicted(experiment, cell)})


def timed_call(
    client: Client[str],
    corpus: Corpus,
    workload: str,
    choice: str,
    reference: Reference,
    deadline_s: float,
    now: Callable[[], float] = time.monotonic,
) -> Callable[[Arrival], Awaitable[None]]:
    """A request of the workload to all shards, without hedges, that is noted."""
    arm = replace(NONE, replica_choice=choice)
    docs, numbers = client.collection(COLLECTION), count()

    async def call(arrival: Arrival) -> None:
        options = read_options(arm, deadline_s)
        options["explain_timing"] = next(numbers) % PLAIN_EVERY != 0
        rng, began = Random(arrival.seed), now()
        if workload == "search":
            timing = (await docs.search(rng.choice(corpus.queries), limit=10, **options)).timing
        else:
            keys = [rng.choice(part) for part in corpus.keys]
            timing = (await client.get_many(keys, **options)).timing
        if timing is None:
            reference.add_plain(now() - began)
        else:
            reference.add(timing, began, now() - began)

    return call


def is_predicted(experiment: Experiment, cell: Cell) -> bool:
    """Whether the model speaks of such a cell: not of one that asks past the router, nor of a cluster that is full."""
    return cell.arm.control is None and not experiment.is_overload


def add_predictions(experiment: Experiment, result: ExperimentResult, seed: int) -> None:
    """Run the model for every cell that it speaks of. Takes seconds of processor time a cell."""
    for cell, measured in zip(experiment.cells, result.cells, strict=True):
        reference = result.references.get(cell.arm.replica_choice)
        if is_predicted(experiment, cell) and reference is not None and reference.requests:
            measured.prediction = _predicted(experiment, result, reference, cell, measured, seed)


def predict_again(result: ExperimentResult, seed: int) -> None:
    """The same for a run that was read from its file, by the model as it is now.

    What has no reference, and what is not among the experiments of now, keeps what it has.
    """
    for experiment in (*full(), *quick()):
        cells = {cell.name: cell for cell in experiment.cells}
        fan_outs = sorted(fan_out for fan_out, _ in experiment.fan_outs)
        if (experiment.name, fan_outs) == (result.name, result.fan_outs) and all(cell.name in cells for cell in result.cells):
            add_predictions(replace(experiment, cells=tuple(cells[cell.name] for cell in result.cells)), result, seed)
            return


def _predicted(
    experiment: Experiment, result: ExperimentResult, reference: Reference, cell: Cell, measured: CellResult, seed: int
) -> dict[str, float]:
    widest = int(result.widest)
    weights = sum(weight for _, weight in experiment.fan_outs)
    rates = {fan_out: result.rate * cell.condition.load * weight / weights for fan_out, weight in experiment.fan_outs}
    setting = model.Setting(
        leaves=result.leaves,
        shards=widest,
        replicas=result.replicas,
        fan_out=widest,
        rate=rates.pop(widest),
        background=tuple(rates.items()),
        deadline_s=experiment.deadline_s,
        network_s=reference.network_s,
        is_light=experiment.workload != "search",
    )
    # As long as was measured, or several times that, so that every pause counts as often as it did.
    planned = max(1, round(setting.rate * measured.measured_s))
    requests = min(REQUESTS_MAX, planned * ceil(REQUESTS_LEAST / planned)) if measured.measured_s else REQUESTS_LEAST
    faults = (*_faults(cell.condition, result.leg_p50_s, reference), *_pauses(cell.condition, measured))
    arm = model.Arm(cell.arm.name, parse_policy(cell.arm.hedge), ReplicaChoice(cell.arm.replica_choice))
    found = predict(reference.replay(), model.Scenario(cell.condition.name, faults), arm, setting, requests, seed)
    return {"p50": found.p50, "p99": found.p99, "p99.9": found.p999, "extra": found.extra_fraction}


def _faults(condition: Condition, leg_p50_s: float, reference: Reference) -> tuple[model.Fault, ...]:
    """All but pauses by chance."""
    faults: list[model.Fault] = []
    for fault in condition.faults:
        if fault.kind == "delay":
            seconds = fault.seconds(leg_p50_s)
            taken = reference.slept.get(round(seconds, 6), seconds)
            faults.append(model.Delay(taken, fault.probability, _first(fault.leaves)))
    if condition.throttle is not None:
        throttle = condition.throttle
        share = throttle.stop_s / throttle.period_s
        faults.append(model.Pause(share, throttle.stop_s, _first(throttle.leaves), is_regular=True))
    return tuple(faults)


def _pauses(condition: Condition, measured: CellResult) -> list[model.Fault]:
    """As they were; where that was not noted, as they were to be on average."""
    if measured.pauses is None:
        pauses = (fault for fault in condition.faults if fault.kind == "pause")
        return [model.Pause(fault.probability, fault.delay, _first(fault.leaves)) for fault in pauses]
    spans: dict[int, list[tuple[float, float]]] = {}
    for leaf, start, end in sorted(measured.pauses):
        of_leaf = spans.setdefault(leaf, [])
        if of_leaf and start <= of_leaf[-1][1]:  # Of two faults: the leaf goes on when both are over.
            start, end = of_leaf[-1][0], max(end, of_leaf.pop()[1])
        of_leaf.append((start, end))
    return [model.RecordedPauses(tuple(found), measured.measured_s, (leaf,)) for leaf, found in spans.items()]


def _first(leaves: int) -> tuple[int, ...]:
    return tuple(range(leaves))
