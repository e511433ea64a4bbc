"""What the what-if model expects of each cell, from what single legs took in the healthy cluster.

The model gets the legs of whole requests as the router's ledger timed them, in *reference* blocks before and after the
measuring, without faults and without defences; and what a request took beyond its slowest leg. Of the cells themselves it knows
the faults and the defences only.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from random import Random

from kvshard import Client
from kvshard.client.results import Timing
from kvshard.tail.hedging import ReplicaChoice, parse_policy
from kvshard.tail.whatif import scenario as model
from kvshard.tail.whatif.latency import LegVectors
from kvshard.tail.whatif.prediction import predict
from loadtests.arrivals import Arrival
from loadtests.results import ExperimentResult
from loadtests.scenarios import NONE, Cell, Condition, Experiment
from loadtests.workloads import COLLECTION, Corpus, read_options

REFERENCE_S = 5.0
"""Of a reference block."""

REQUESTS_MAX = 20_000
"""Of a run of the model: some seconds. No more than ten times what was measured: more would be compared with nothing."""

REQUESTS_LEAST = 4_000


@dataclass(slots=True)
class Reference:
    """What requests to all shards took in the healthy cluster, in seconds: each one's legs, and what it took beyond them."""

    legs: list[tuple[float, ...]] = field(default_factory=list)
    networks: list[float] = field(default_factory=list)
    beyond: list[float] = field(default_factory=list)

    def add(self, timing: Timing, seconds: float) -> None:
        """Note a request."""
        legs = tuple(leg.total_us / 1e6 for leg in timing.legs)
        self.legs.append(legs)
        self.networks += [leg.network_us / 1e6 for leg in timing.legs]
        self.beyond.append(max(0.0, seconds - max(legs)))

    @property
    def network_s(self) -> float:
        """The median of the part of a leg that is neither queue nor service."""
        return _median(self.networks)


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2] if values else 0.0


def timed_call(
    client: Client[str], corpus: Corpus, workload: str, reference: Reference, deadline_s: float, now: Callable[[], float]
) -> Callable[[Arrival], Awaitable[None]]:
    """A request of the workload to all shards, without defences, whose legs are noted."""
    options = read_options(NONE, deadline_s)
    options["explain_timing"] = True
    docs = client.collection(COLLECTION)

    async def call(arrival: Arrival) -> None:
        rng, began = Random(arrival.seed), now()
        if workload == "search":
            timing = (await docs.search(rng.choice(corpus.queries), limit=10, **options)).timing
        else:
            keys = [rng.choice(part) for part in corpus.keys]
            timing = (await client.get_many(keys, **options)).timing
        assert timing is not None, "it was asked for"
        reference.add(timing, now() - began)

    return call


def is_predicted(experiment: Experiment, cell: Cell) -> bool:
    """Whether the model speaks of such a cell: not of one that asks past the router, nor of a cluster that is full."""
    return cell.arm.control is None and not experiment.is_overload


def add_predictions(
    experiment: Experiment, result: ExperimentResult, reference: Reference, *, leaves: int, replicas: int, seed: int
) -> None:
    """Run the model for every cell that it speaks of. Takes seconds of processor time a cell."""
    if not reference.legs:
        return
    latency, widest = LegVectors(reference.legs, reference.beyond), int(result.widest)
    weights = sum(weight for _, weight in experiment.fan_outs)
    for cell, measured in zip(experiment.cells, result.cells, strict=True):
        if not is_predicted(experiment, cell):
            continue
        rates = {fan_out: result.rate * cell.condition.load * weight / weights for fan_out, weight in experiment.fan_outs}
        setting = model.Setting(
            leaves=leaves,
            shards=widest,
            replicas=replicas,
            fan_out=widest,
            rate=rates.pop(widest),
            background=tuple(rates.items()),
            deadline_s=experiment.deadline_s,
            network_s=reference.network_s,
            is_light=experiment.workload != "search",
        )
        requests = max(REQUESTS_LEAST, min(REQUESTS_MAX, 10 * measured.latency(result.widest).count))
        scenario = model.Scenario(cell.condition.name, _faults(cell.condition, result.leg_p50_s))
        arm = model.Arm(cell.arm.name, parse_policy(cell.arm.hedge), ReplicaChoice(cell.arm.replica_choice))
        found = predict(latency, scenario, arm, setting, requests, seed)
        measured.prediction = {"p50": found.p50, "p99": found.p99, "p99.9": found.p999, "extra": found.extra_fraction}


def _faults(condition: Condition, leg_p50_s: float) -> tuple[model.Fault, ...]:
    faults: list[model.Fault] = []
    for fault in condition.faults:
        leaves, seconds = _first(fault.leaves), fault.seconds(leg_p50_s)
        if fault.kind == "pause":
            faults.append(model.Pause(fault.probability, seconds, leaves))
        else:
            faults.append(model.Delay(seconds, fault.probability, leaves))
    if condition.throttle is not None:
        throttle = condition.throttle
        share = throttle.stop_s / throttle.period_s
        faults.append(model.Pause(share, throttle.stop_s, _first(throttle.leaves), is_regular=True))
    return tuple(faults)


def _first(leaves: int) -> tuple[int, ...]:
    return tuple(range(leaves))
