"""What is done to a cluster, and which defences it may use meanwhile: the rows of the table of figures, as data.

An *experiment* compares *cells*: a condition of the cluster (which faults are in force) under an arm (which defences its
readers ask for). The cells take turns in one run on one cluster, there and back (ABBA), so that the machine's moods hit all.

Pure: imports only the standard library.
"""

from dataclasses import dataclass, replace
from enum import Enum
from typing import Literal


class Control(Enum):
    """What an arm runs on instead of the router: the client of this process asks the leaves itself, one leg a request."""

    NOTHING = "nothing"
    HEDGE_PYTHON = "hedge-python"
    HEDGE_PYTHON_TUNED = "hedge-python-tuned"
    KVSHARD = "kvshard"


@dataclass(frozen=True, slots=True)
class Arm:
    """Which defences the readers ask for. control: None, or who hedges instead of the router."""

    name: str
    title: str
    hedge: str = "off"
    replica_choice: str = "random"
    control: Control | None = None


NONE = Arm("none", "no defence: random replica, no hedge")
ALL = Arm("all", "all defences", "auto", "adaptive")
CHOICE = Arm("choice", "replica choice alone", "off", "adaptive")
HEDGE = Arm("hedge", "hedging alone", "auto", "random")


def static_delay(milliseconds: float) -> Arm:
    """Hedging after a fixed time, replicas chosen as in ALL: what one would have to guess without the adaptive delay."""
    return Arm(f"static-{milliseconds:g}ms", f"static delay of {milliseconds:g} ms", f"{milliseconds:g}ms", "adaptive")


DIRECT_NONE = Arm("direct", "one leg, no hedge", control=Control.NOTHING)
DIRECT_LIBRARY = Arm("hedge-python", "one leg, hedge-python as it comes", control=Control.HEDGE_PYTHON)
DIRECT_TUNED = Arm("hedge-python-p99", "one leg, hedge-python at p99 within 5 %", control=Control.HEDGE_PYTHON_TUNED)
DIRECT_KVSHARD = Arm("kvshard-leg", "one leg, all of kvshard's defences", "auto", "adaptive", Control.KVSHARD)


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault as `Client.inject_fault` takes it. leaves: how many of them have it, counted from the first; 0: all of them.

    delay: seconds. of_legs: a delay as a multiple of what a lone leg takes here (its median in the calibration); "ten times as
    slow" then means the same on every machine.
    """

    kind: Literal["pause", "delay"]
    probability: float = 1.0
    delay: float = 0.0
    of_legs: float = 0.0
    leaves: int = 0

    def seconds(self, leg_p50_s: float) -> float:
        """The delay."""
        return self.delay + self.of_legs * leg_p50_s


@dataclass(frozen=True, slots=True)
class Throttle:
    """SIGSTOP and SIGCONT in turns: stopped for stop_s of each period_s. leaves: how many of them, counted from the first."""

    stop_s: float
    period_s: float
    leaves: int = 1


@dataclass(frozen=True, slots=True)
class Condition:
    """The state that the cluster is kept in. load: of the calibrated rate. after_s: measured only so long after it began."""

    name: str
    title: str
    faults: tuple[Fault, ...] = ()
    throttle: Throttle | None = None
    load: float = 1.0
    after_s: float = 0.0


PAUSE_S = 0.1
"""Of an injected pause: a full garbage collection, a noisy neighbour's time slices."""

HEALTHY = Condition("healthy", "no stragglers")
PAUSES_HALF = Condition("pauses-0.5", "0.5 % pauses", (Fault("pause", 0.005, PAUSE_S),))
PAUSES_TWO = Condition("pauses-2", "2 % pauses", (Fault("pause", 0.02, PAUSE_S),))
SLOW_REQUESTS = Condition("slow-requests", "5 % of requests x10", (Fault("delay", 0.05, of_legs=9.0),))
ONE_SLOW = Condition("one-slow", "one leaf 10 x slow for good", (Fault("delay", of_legs=9.0, leaves=1),), after_s=2.0)
ALL_SLOW = Condition("all-slow", "all leaves 10 x slow", (Fault("delay", of_legs=9.0),), after_s=3.0)
THROTTLED = Condition("throttled", "one leaf stopped 100 ms of each second", throttle=Throttle(0.1, 1.0))
OVERLOAD = Condition("overload", "1.2 x overload", load=1.2)
SHIFTED = Condition(
    "shifted", "latency x 3, 2 % pauses", (Fault("delay", of_legs=2.0), Fault("pause", 0.02, PAUSE_S)), after_s=10.0
)


@dataclass(frozen=True, slots=True)
class Cell:
    """What is measured: a condition under an arm."""

    condition: Condition
    arm: Arm

    @property
    def name(self) -> str:
        """Unique in its experiment."""
        return f"{self.condition.name}/{self.arm.name}"


@dataclass(frozen=True, slots=True)
class Experiment:
    """Cells that are compared with each other. fan_outs: how many shards a request asks, and how often relative to others.

    is_overload: the rate is found as the one at which the cluster is full, not as the one that leaves it room.
    deadline_s: the timeout of each request. samples: of the widest requests, wanted of each cell. block_s: length of a block
    without its warm-up.
    """

    name: str
    title: str
    workload: str
    cells: tuple[Cell, ...]
    fan_outs: tuple[tuple[int, float], ...] = ((8, 1.0),)
    deadline_s: float = 2.0
    is_overload: bool = False
    samples: int = 20_000
    block_s: float = 15.0
    notes: tuple[str, ...] = ()


def kinds_of(experiment: Experiment) -> list[tuple[str, float]]:
    """The kinds of its requests, named by how many shards they ask, and how often each comes relative to the others."""
    return [(str(fan_out), weight) for fan_out, weight in experiment.fan_outs]


MIXED_FAN_OUTS = ((8, 0.52), (1, 0.2), (2, 0.14), (4, 0.14))
"""Mostly the whole fan-out, whose p99 needs the samples; single legs for the denominator of the amplification."""

TWO_FAN_OUTS = ((8, 0.64), (1, 0.36))
"""Where there are too few requests for more: a search costs several times what a batch does."""

ONE_AND_ALL = ((8, 0.5), (1, 0.5))
"""Where a figure is about single legs, and the whole fan-out stands beside it."""

SLOW_REQUESTS_LOAD = 0.4
"""Of the usual rate. A request that is ten times as slow takes 7 ms here; at the usual rate the queues of two processors, which
no hedge shortens, make a healthy p99 of 4 ms, so that the best possible figure would be 0.53 x."""

P999_SAMPLES = 50_000
"""For a p99.9 that fifty samples lie above; p99 has 20,000, so two hundred."""

WORKLOADS = {"point-batch": "a batch of one key from every shard", "search": "a search over every shard, top 10"}


def pauses(workload: str, *, with_parts: bool = False) -> Experiment:
    """Pauses of all leaves against none, under no and all defences. with_parts: under each defence alone too."""
    arms = (NONE, CHOICE, HEDGE, ALL) if with_parts else (NONE, ALL)
    cells = [Cell(condition, arm) for condition in (HEALTHY, PAUSES_HALF, PAUSES_TWO) for arm in arms]
    return Experiment(f"pauses-{workload}", f"Pauses: {WORKLOADS[workload]}", workload, tuple(cells), MIXED_FAN_OUTS)


def _one(
    condition: Condition,
    title: str,
    workload: str,
    *arms: Arm,
    healthy: bool = True,
    fan_outs: tuple[tuple[int, float], ...] = ((8, 1.0),),
    load: float = 1.0,
) -> Experiment:
    cells = [Cell(replace(condition, load=load), arm) for arm in (arms or (NONE, ALL))]
    if healthy:
        cells.append(Cell(replace(HEALTHY, load=load), ALL))
    return Experiment(f"{condition.name}-{workload}", f"{title}: {WORKLOADS[workload]}", workload, tuple(cells), fan_outs)


QUICK_ROUNDS = 2
"""With one, a burst of somebody else's work in the middle of the run would hit both blocks of the same cell."""


def quick() -> list[Experiment]:
    """What `make amplification` measures, in under eight minutes: QUICK_ROUNDS of short blocks."""
    batch, search = (pauses(workload) for workload in WORKLOADS)
    return [replace(batch, block_s=5.0), replace(search, block_s=6.0, fan_outs=TWO_FAN_OUTS)]


def full() -> list[Experiment]:
    """What `make amplification-full` measures: every row of the table of figures."""
    batch = "point-batch"
    shifted = (ALL, *(static_delay(ms) for ms in (5, 10, 20, 40)))
    return [
        replace(pauses(batch, with_parts=True), samples=P999_SAMPLES),
        pauses("search"),
        _one(SLOW_REQUESTS, "Slow requests", batch, fan_outs=ONE_AND_ALL, load=SLOW_REQUESTS_LOAD),
        _one(ONE_SLOW, "One slow leaf", batch),
        _one(ALL_SLOW, "All leaves slow", batch, healthy=False),
        _one(THROTTLED, "A throttled leaf", batch),
        Experiment(
            "overload", "1.2 x overload: " + WORKLOADS[batch], batch,
            (Cell(OVERLOAD, NONE), Cell(OVERLOAD, ALL)), deadline_s=0.5, is_overload=True,
        ),
        _one(SHIFTED, "Latency x 3 for all leaves", batch, *shifted, healthy=False),
        Experiment(
            "deadlines", "Deadlines of 20 ms under 2 % pauses", batch,
            (Cell(PAUSES_TWO, NONE), Cell(PAUSES_TWO, ALL)), deadline_s=0.02,
        ),
        control(),
    ]  # fmt: skip


def control() -> Experiment:
    """The control arm: one leg a request, asked at the leaves directly, by nobody's, hedge-python's and kvshard's rules."""
    arms = (DIRECT_NONE, DIRECT_LIBRARY, DIRECT_TUNED, DIRECT_KVSHARD)
    cells = tuple(Cell(condition, arm) for condition in (PAUSES_HALF, PAUSES_TWO) for arm in arms)
    title = "Control: hedge-python on the same leaves, one leg"
    return Experiment("control", title, "point-read", cells, ((1, 1.0),), samples=P999_SAMPLES)


EXPERIMENTS = {experiment.name: experiment for experiment in full()}
"""By name."""
