"""What the model is asked: which cluster, what makes its leaves slow, and which defences are on.

Pure: imports only the standard library and other pure files. Seconds, and fractions between 0 and 1.
"""

from dataclasses import dataclass
from itertools import chain, pairwise
from math import inf

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.tail.hedging import Auto, FixedDelay, HedgePolicy, Off, ReplicaChoice

LEGS_MAX = 1_024
"""Shards, and so legs of a request: as many as the largest cluster has."""

LEAVES_MAX = 4_096
"""Each is an object with a queue; more than one for each replica of the widest fan-out gain nothing."""

QUEUE_MOST = 1_000_000
"""A longer queue holds more than any deadline lets pass."""

RATE_MAX = 1_000_000.0
"""Requests per second; beyond it the virtual clock passes less than a second in a run."""


@dataclass(frozen=True, slots=True)
class Pause:
    """Leaves stop for `length_s` at a time, `share` of their time; a leaf that is paused begins nothing until the pause ends.

    is_regular: a duty cycle, as when a process is throttled: pauses at equal distances, and what runs is stopped too. Else
    chance decides when (exponential gaps), and what has begun goes on, but its answer waits for the end of the pause, as in the
    injected fault. leaves: which; empty: all, each by itself. In force from `from_s` until `until_s`, counted from the first
    request that counts; from_s=0: before it too.
    """

    share: float
    length_s: float = 0.05
    leaves: tuple[int, ...] = ()
    is_regular: bool = False
    from_s: float = 0.0
    until_s: float = inf

    @property
    def gap_s(self) -> float:
        """The mean time between the end of a pause and the next one's start."""
        return self.length_s * (1 - self.share) / self.share


@dataclass(frozen=True, slots=True)
class RecordedPauses:
    """Pauses as they were: [start, end) after [start, end), in seconds from the first request that counts; and again every
    `period_s`, before it too. Like a `Pause` by chance in all else. leaves: which; empty: all, at the same instants."""

    spans: tuple[tuple[float, float], ...]
    period_s: float
    leaves: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Slow:
    """`share` of the attempts at these leaves take `factor` times as long."""

    factor: float
    share: float = 1.0
    leaves: tuple[int, ...] = ()
    from_s: float = 0.0
    until_s: float = inf


@dataclass(frozen=True, slots=True)
class Delay:
    """`share` of the attempts at these leaves take `delay_s` longer."""

    delay_s: float
    share: float = 1.0
    leaves: tuple[int, ...] = ()
    from_s: float = 0.0
    until_s: float = inf


Fault = Pause | RecordedPauses | Slow | Delay


@dataclass(frozen=True, slots=True)
class Scenario:
    """What makes leaves slow."""

    name: str = "healthy"
    faults: tuple[Fault, ...] = ()


@dataclass(frozen=True, slots=True)
class Arm:
    """Which defences are on. budget: as of a collection; None: it tunes itself."""

    name: str
    hedge: HedgePolicy
    choice: ReplicaChoice
    budget: float | None = None
    max_attempts: int = 3

    @classmethod
    def none(cls) -> "Arm":
        """A random replica, asked once."""
        return cls("none", Off(), ReplicaChoice.RANDOM)

    @classmethod
    def all(cls, budget: float | None = None, max_attempts: int = 3) -> "Arm":
        """What the service does by default."""
        return cls("all", Auto(), ReplicaChoice.ADAPTIVE, budget, max_attempts)

    @classmethod
    def choice_only(cls) -> "Arm":
        """The choice of the replica alone."""
        return cls("choice only", Off(), ReplicaChoice.ADAPTIVE)

    @classmethod
    def hedge_only(cls, budget: float | None = None, max_attempts: int = 3) -> "Arm":
        """Hedging alone, of a random replica."""
        return cls("hedge only", Auto(), ReplicaChoice.RANDOM, budget, max_attempts)

    @classmethod
    def static(cls, delay_s: float, budget: float | None = None, max_attempts: int = 3) -> "Arm":
        """Hedging after a fixed delay, of a random replica."""
        return cls(f"after {delay_s * 1000:g} ms", FixedDelay(delay_s), ReplicaChoice.RANDOM, budget, max_attempts)


@dataclass(frozen=True, slots=True)
class Setting:
    """The cluster and its load.

    fan_out: legs of a request, to as many different shards. rate: requests per second, Poisson. background: (fan-out, requests
    per second) of what else is asked meanwhile, and not counted. deadline_s: a request that takes longer has failed, and counts
    as the deadline. network_s: the part of a latency that is on the wire. overhead_s: what gathering and answering add to the
    slowest leg. busy_s: how long a leg has its leaf to itself, which makes queues; 0: leaves never queue. queue_max: legs that
    may wait at a leaf, hedges half as many; what is more is shed; None: no bound. service_s: what `Slow` multiplies; None: the
    whole latency. is_light: legs are such as key reads, of which the router sends those of one request to few leaves.
    """

    leaves: int = 4
    shards: int = 8
    replicas: int = 3
    fan_out: int = 8
    rate: float = 100.0
    background: tuple[tuple[int, float], ...] = ()
    deadline_s: float = 10.0
    network_s: float = 0.0
    overhead_s: float = 0.0
    busy_s: float = 0.0
    queue_max: int | None = None
    service_s: float | None = None
    is_light: bool = False


def check(scenario: Scenario, arm: Arm, setting: Setting) -> None:
    """Raises InvalidArgument with the field that makes no sense."""
    _within("fan_out", setting.fan_out, 1, LEGS_MAX)
    _within("shards", setting.shards, setting.fan_out, LEGS_MAX)
    _within("leaves", setting.leaves, 1, LEAVES_MAX)
    _within("replicas", setting.replicas, 1, setting.leaves)
    _within("rate", setting.rate, 1e-3, RATE_MAX)
    for fan_out, rate in setting.background:
        _within("background", fan_out, 1, setting.shards)
        _within("background", rate, 1e-3, RATE_MAX)
    _within("deadline_s", setting.deadline_s, 1e-3, 3600)
    _within("queue_max", 1 if setting.queue_max is None else setting.queue_max, 1, QUEUE_MOST)
    _within("max_attempts", arm.max_attempts, 1, 10)
    for seconds in (setting.network_s, setting.overhead_s, setting.busy_s, setting.service_s or 0.0):
        _within("setting", seconds, 0, 3600)
    for fault in scenario.faults:
        _within("leaves", len(fault.leaves) and min(fault.leaves), 0, setting.leaves - 1)
        _within("leaves", len(fault.leaves) and max(fault.leaves), 0, setting.leaves - 1)
        match fault:
            case Pause(share, length_s):
                _within("share", share, 0, 1)
                _within("pauses", share, 0, 0.95)  # what is paused for longer is down, and answers nothing in time
                _within("pause_length", length_s, 1e-6, 3600)
            case RecordedPauses(spans, period_s):
                _within("period_s", period_s, 1e-3, 1e6)
                ends = [0.0, *chain.from_iterable(spans), period_s]
                _within("spans", min(after - before for before, after in pairwise(ends)), 0, period_s)
            case Slow(factor, share):
                _within("share", share, 0, 1)
                _within("factor", factor, 1, 1e6)
            case Delay(delay_s, share):
                _within("share", share, 0, 1)
                _within("delay_s", delay_s, 0, 3600)


def _within(field: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        details = ErrorDetails(field=field, limit=int(most) if most >= 1 else None)
        raise InvalidArgument(f"{field} is {value:g}; it has to lie between {least:g} and {most:g}", details)
