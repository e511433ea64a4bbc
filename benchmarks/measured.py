"""What came out of arms that took turns: rates, processor time per operation by process, and how two arms compare.

Pure: imports only the standard library.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

CLIENT = "client"
"""The role of the process that makes the load; its processes' other roles are named by who started them."""


@dataclass(frozen=True, slots=True)
class Block:
    """One stretch of load. operations: what was done in it, a batch counts its keys. latencies: seconds of calls, by kind.

    refused: calls that the server shed, which are no operations.
    """

    operations: int
    seconds: float
    latencies: Mapping[str, Sequence[float]] = field(default_factory=dict)
    refused: int = 0

    @property
    def rate(self) -> float:
        """Operations a second."""
        return self.operations / self.seconds


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor seconds within a stretch of time. by_role: of the arm's own processes. others: of everybody else's."""

    seconds: float
    by_role: Mapping[str, float]
    others: float = 0.0


@dataclass(frozen=True, slots=True)
class Absent:
    """An arm that cannot be measured here, and why."""

    name: str
    why: str


@dataclass(slots=True)
class Measured:
    """All blocks of one arm, in the order of the turns. processes: how many there are of each role."""

    name: str
    setting: str = ""
    processes: Mapping[str, int] = field(default_factory=dict)
    blocks: list[Block] = field(default_factory=list)
    usages: list[Usage] = field(default_factory=list)

    @property
    def rates(self) -> list[float]:
        """Operations a second, block by block."""
        return [block.rate for block in self.blocks]

    @property
    def rate(self) -> float:
        """The median block's. Raises ValueError when there is none."""
        if not self.blocks:
            raise ValueError(f"{self.name} was not measured")
        return median(self.rates)

    @property
    def operations(self) -> int:
        """Of all blocks together."""
        return sum(block.operations for block in self.blocks)

    @property
    def refused(self) -> int:
        """Calls that were shed in all blocks together."""
        return sum(block.refused for block in self.blocks)

    def latencies(self, kind: str) -> list[float]:
        """Seconds of all calls of a kind."""
        return [seconds for block in self.blocks for seconds in block.latencies.get(kind, ())]

    @property
    def kinds(self) -> list[str]:
        """The kinds of calls that were timed."""
        return sorted({kind for block in self.blocks for kind in block.latencies})

    def processor_us(self) -> dict[str, float]:
        """Microseconds of processor time that one operation took, by role."""
        used = _added(usage.by_role for usage in self.usages)
        return {role: seconds / self.operations * 1e6 for role, seconds in used.items()}

    def cores(self) -> dict[str, float]:
        """How much of a core each process of a role was busy, on average: the one near 1 is what holds the rate."""
        used = _added(usage.by_role for usage in self.usages)
        seconds = sum(usage.seconds for usage in self.usages)
        return {role: value / seconds / self.processes.get(role, 1) for role, value in used.items()}

    @property
    def others(self) -> float:
        """Cores that processes which belong to no arm kept busy meanwhile."""
        return sum(usage.others for usage in self.usages) / sum(usage.seconds for usage in self.usages)

    @property
    def busiest(self) -> str:
        """The role whose processes had the most to do, as text: `router 0.97 cores`."""
        role, cores = max(self.cores().items(), key=lambda each: each[1])
        return f"{role} {cores:.2f} cores"

    def as_record(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "name": self.name,
            "setting": self.setting,
            "rate": self.rate,
            "rates": self.rates,
            "operations": self.operations,
            "refused": self.refused,
            "processor_us": self.processor_us(),
            "cores": self.cores(),
            "other_cores": self.others,
            "latency_ms": {kind: _percentiles(self.latencies(kind)) for kind in self.kinds},
        }


def _added(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for part in parts:
        for role, seconds in part.items():
            total[role] = total.get(role, 0.0) + seconds
    return total


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    ordered = sorted(seconds)
    at = {"p50": 0.5, "p99": 0.99}
    return {name: ordered[min(len(ordered) - 1, int(part * len(ordered)))] * 1e3 for name, part in at.items()} | {
        "n": len(ordered)
    }


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times as fast one arm was: the median of the turns, and the lowest and the highest of them."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"turns {self.low:.3g} to {self.high:.3g}"


def ratio(one: Measured, other: Measured) -> Ratio:
    """The rate of one by that of the other, turn by turn: both met the same noise. Raises ValueError when there is no turn."""
    turns = [mine / theirs for mine, theirs in zip(one.rates, other.rates, strict=True)]
    if not turns:
        raise ValueError(f"{one.name} and {other.name} were not measured")
    return Ratio(median(turns), min(turns), max(turns))


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms that took turns with the same task. unit: of the rates, as in `keys/s`. sweeps: what was tried to find a setting."""

    title: str
    unit: str
    arms: Mapping[str, Measured]
    absent: Sequence[Absent] = ()
    sweeps: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def why_absent(self, *names: str) -> str:
        """Why one of these arms is missing; empty when all are there. Raises KeyError for an arm that was never meant."""
        reasons = {each.name: each.why for each in self.absent}
        missing = [name for name in names if name not in self.arms]
        return "; ".join(f"{name}: {reasons[name]}" for name in missing)

    def as_record(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "title": self.title,
            "unit": self.unit,
            "arms": [arm.as_record() for arm in self.arms.values()],
            "absent": {each.name: each.why for each in self.absent},
            "sweeps": {name: dict(rates) for name, rates in self.sweeps.items()},
        }
