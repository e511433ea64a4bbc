"""What J. Dean and L. A. Barroso published in "The Tail at Scale" (Communications of the ACM 56(2), 2013), beside what follows
from it by our arithmetic and our attempt machine.

The paper gives quantiles, not distributions, so every comparison says what it had to assume:
- between and beyond published quantiles latencies are log-normal (`GivenLatency`);
- Table 1 does not say how many leaves its tree has: that number is fitted to the median of the slowest leaf;
- the BigTable benchmark does not say how its reads are distributed: two points of the tail follow from what it does say.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, inf, log
from random import Random

from kvshard.tail.attempts import AttemptMachine
from kvshard.tail.hedging import Refusal
from kvshard.tail.histogram import LogHistogram, bounds_of
from kvshard.tail.leg_events import (
    AttemptSucceeded,
    Candidate,
    Config,
    Event,
    Send,
    SetTimer,
    TimerFired,
)
from kvshard.tail.whatif.latency import GivenLatency
from kvshard.tail.whatif.order_statistics import (
    all_below,
    gathered_quantile,
    gathered_quantile_shared,
    hedged_quantile,
    leg_tail,
    most_late_requests,
    part_quantile_shared,
    share_of_slow_requests,
)
from kvshard.tail.whatif.prediction import predict
from kvshard.tail.whatif.scenario import Arm, Scenario, Setting

QUANTILES = (0.5, 0.95, 0.99)
"""The columns of Table 1."""

LEAF_ROW = (0.001, 0.005, 0.010)
"""Table 1, "one random leaf finishes"."""

MOST_ROW = (0.012, 0.032, 0.070)
"""Table 1, "95 % of all leaf requests finish"."""

ALL_ROW = (0.040, 0.087, 0.140)
"""Table 1, "100 % of all leaf requests finish"."""

MOST = 0.95

BIGTABLE_KEYS = 1_000
BIGTABLE_SERVERS = 100
BIGTABLE_DELAY_S = 0.010
BIGTABLE_EXTRA = 0.02
BIGTABLE_P999 = (1.800, 0.074)
"""Gathered p99.9 without and with a second request after the delay."""

RUN_REQUESTS = 10_000
"""Of 1,000 reads each: ten million legs in a few seconds. Ten requests lie beyond p99.9: the arithmetic, which is exact, stands
beside it."""

FAN_OUT_REQUESTS = 1_000
"""Of 100 legs: the share of slow ones is off by at most 3 points, twice the standard error, and it takes a second."""

SHARED_STEP = 0.01
SHARED_MOST = 0.5
LEGS_MOST = 1e7
"""Bounds of the fit: half of all slowness in common, and more leaves than any tree had."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """A published figure and ours. unit: "s" or "" for a share."""

    figure: str
    published: float
    ours: float
    unit: str
    note: str = ""

    @property
    def deviation(self) -> float:
        """Ours over the published one, less 1."""
        return self.ours / self.published - 1

    def as_record(self) -> dict[str, object]:
        """Plain data for JSON."""
        return {
            "figure": self.figure,
            "published": self.published,
            "ours": self.ours,
            "unit": self.unit,
            "deviation": self.deviation,
            "note": self.note,
        }


def fan_out_arithmetic(seed: int = 1, requests: int = FAN_OUT_REQUESTS) -> list[Comparison]:
    """1 - (1 - p)^n at the two points that the paper names in its text."""
    return [
        Comparison("slow requests: 100 leaves, 1 leg in 100 slow", 0.63, share_of_slow_requests(0.01, 100), ""),
        Comparison("slow requests: 2,000 leaves, 1 leg in 10,000 slow", 0.18, share_of_slow_requests(0.0001, 2_000), ""),
        _simulated_share(seed, requests),
    ]


def _simulated_share(seed: int, requests: int) -> Comparison:
    """The first of them as the event loop counts it: leaves that take 10 ms, and a second once in a hundred times."""
    setting = Setting(leaves=100, shards=100, fan_out=100, replicas=1)
    found = predict(GivenLatency([(0.5, 0.010), (0.99, 1.0)]), Scenario(), Arm.none(), setting, requests, seed)
    slow = sum(count for bucket, count in found.gathered.buckets() if bounds_of(bucket)[0] >= 1.0)
    note = f"event loop, {found.requests:,} requests"
    return Comparison("slow requests: 100 leaves, 1 leg in 100 slow", 0.63, slow / found.requests, "", note)


def table_1() -> list[Comparison]:
    """Table 1 from its first row: once with independent legs, once with the part of slowness in common that fits best."""
    leaf = GivenLatency(list(zip(QUANTILES, LEAF_ROW, strict=True)))
    alone = legs_for_median(leaf, ALL_ROW[0], 0.0)
    shared, legs = fitted_sharing(leaf)
    found = []
    for name, leaves, common in (("independent", alone, 0.0), (f"{shared:.0%} of slowness in common", legs, shared)):
        note = f"{leaves:,.0f} leaves, {name}"
        for quantile, published in zip(QUANTILES, ALL_ROW, strict=True):
            ours = gathered_quantile_shared(leaf, leaves, quantile, common)
            found.append(Comparison(f"all leaves, p{quantile * 100:g}", published, ours, "s", note))
        for quantile, published in zip(QUANTILES, MOST_ROW, strict=True):
            ours = part_quantile_shared(leaf, quantile, common, MOST)
            found.append(Comparison(f"95 % of the leaves, p{quantile * 100:g}", published, ours, "s", note))
    return found


def legs_for_median(leaf: GivenLatency, median_s: float, shared: float) -> float:
    """How many legs make this the median of their slowest."""
    at, low, high = leaf.deviation(median_s), 0.0, log(LEGS_MOST)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if all_below(at, exp(middle), shared) > 0.5 else (low, middle)
    return exp(high)


def fitted_sharing(leaf: GivenLatency) -> tuple[float, float]:
    """The part of slowness in common, and the number of leaves, that fit the row of all leaves best: the median exactly, the
    higher quantiles by least squares of their logarithms."""

    def distance(shared: float) -> tuple[float, float, float]:
        legs = legs_for_median(leaf, ALL_ROW[0], shared)
        pairs = zip(QUANTILES[1:], ALL_ROW[1:], strict=True)
        error = sum(log(gathered_quantile_shared(leaf, legs, quantile, shared) / wanted) ** 2 for quantile, wanted in pairs)
        return error, shared, legs

    steps = int(SHARED_MOST / SHARED_STEP)
    low, high = 0, steps
    while high - low > 2:  # the distance has one valley
        third = max(1, (high - low) // 3)
        if distance((low + third) * SHARED_STEP) < distance((high - third) * SHARED_STEP):
            high -= third
        else:
            low += third
    _, shared, legs = min(distance(step * SHARED_STEP) for step in range(low, high + 1))
    return shared, legs


def table_1_contradicts_itself() -> tuple[float, float]:
    """The part of the requests of which 5 % of the leaves can take 10 ms by its first row, and the part of which they do by its
    second.

    A leg taken at random exceeds 10 ms once in a hundred, so at most a fifth of the requests can have a twentieth of their legs
    beyond 10 ms; but half of the requests have that many beyond 12 ms. No model of any kind has both rows: they cannot be of
    the same population of leaf requests.
    """
    return most_late_requests(1 - QUANTILES[2], 1 - MOST), 1 - QUANTILES[0]


def bigtable_latency(legs: int) -> GivenLatency:
    """Reads of which 2 % take longer than 10 ms, and so many longer than 1.8 s that the gathered p99.9 is that."""
    return GivenLatency([(1 - BIGTABLE_EXTRA, BIGTABLE_DELAY_S), (1 - leg_tail(0.999, legs), BIGTABLE_P999[0])])


def bigtable(requests: int = RUN_REQUESTS, seed: int = 1) -> list[Comparison]:
    """The hedging benchmark: by arithmetic for both readings of its legs, and as a run of the real attempt machine."""
    found = []
    for legs, reading in (
        (BIGTABLE_KEYS, "each of the 1,000 keys a read"),
        (BIGTABLE_SERVERS, "one read for each of the 100 servers"),
    ):
        leaf = bigtable_latency(legs)
        hedged = hedged_quantile(leaf, legs, 0.999, BIGTABLE_DELAY_S)
        found.append(Comparison("p99.9, hedged after 10 ms", BIGTABLE_P999[1], hedged, "s", f"arithmetic, {reading}"))
    leaf = bigtable_latency(BIGTABLE_KEYS)
    plain = gathered_quantile(leaf, BIGTABLE_KEYS, 0.999)
    found.append(Comparison("p99.9, not hedged", BIGTABLE_P999[0], plain, "s", "what the tail was fitted to"))
    run = hedged_run(leaf, BIGTABLE_KEYS, BIGTABLE_DELAY_S, requests, Random(seed))
    note = f"attempt machine, {requests:,} requests of {BIGTABLE_KEYS:,} reads"
    found.append(Comparison("p99.9, hedged after 10 ms", BIGTABLE_P999[1], run.gathered.quantile(0.999) or 0.0, "s", note))
    found.append(Comparison("extra requests", BIGTABLE_EXTRA, run.extra_fraction, "", note))
    return found


@dataclass(frozen=True, slots=True)
class HedgedRun:
    """What a run gave."""

    gathered: LogHistogram
    legs: int
    hedges: int

    @property
    def extra_fraction(self) -> float:
        """Second requests / first ones."""
        return self.hedges / self.legs


def hedged_run(leaf: GivenLatency, legs: int, delay_s: float, requests: int, rng: Random) -> HedgedRun:
    """Requests of many independent legs, each asked once more after a fixed delay.

    A leg that is answered before the delay gives its machine nothing to decide: only the slowest of those is needed, so that
    millions of legs take seconds. Every other leg runs through the attempt machine.
    """
    gathered, hedges, in_time = LogHistogram(), 0, 1 - leaf.share_above(delay_s)
    draw = rng.random
    for _ in range(requests):
        slowest_in_time, slowest = 0.0, 0.0
        for _ in range(legs):
            fraction = draw()
            if fraction <= in_time:
                if fraction > slowest_in_time:
                    slowest_in_time = fraction
                continue
            ended, sent = hedged_leg((leaf.quantile(fraction), leaf.attempt(rng)), delay_s)
            hedges += sent - 1
            slowest = max(slowest, ended)
        gathered.record(slowest or leaf.quantile(slowest_in_time))
    return HedgedRun(gathered, legs * requests, hedges)


def hedged_leg(attempts_s: tuple[float, ...], delay_s: float) -> tuple[float, int]:
    """One leg whose attempts take this long: when it ends, and how many of them it made, as the attempt machine decides."""
    candidates = tuple(Candidate(f"leaf-{number}") for number in range(len(attempts_s)))
    machine = AttemptMachine(Config(len(candidates)), candidates, deadline=inf, gate=_AfterDelay(delay_s))
    actions, now = machine.start(0.0), 0.0
    coming: list[tuple[float, Event]] = []
    while machine.outcome is None:
        for action in actions:
            if isinstance(action, Send):
                coming.append((now + attempts_s[action.attempt - 1], AttemptSucceeded(action.attempt)))
            elif isinstance(action, SetTimer):
                coming.append((action.at, TimerFired()))
        coming.sort(key=lambda each: each[0])
        now, event = coming.pop(0)
        actions = machine.step(event, now)
    return now, len(machine.tries)


class _AfterDelay:
    """A gate as the benchmark had it: a delay, and neither a budget nor anything else that might speak against a hedge."""

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s

    def wait_s(self, now: float, deadline: float) -> float | None:
        return self._delay_s

    def admit(
        self, spares: Sequence[Candidate], waiting: Sequence[Candidate], late_by_s: float, now: float, deadline: float
    ) -> Candidate | Refusal:
        return spares[0]

    def again_s(self, refusal: Refusal, now: float, deadline: float) -> float | None:
        return self._delay_s

    def may_fail_over(self, now: float) -> bool:
        return True
