"""The figures that a run answers, each with its bound, its goal, its interval and its number of samples.

What a run did not measure, or not often enough for the quantile in question, is left out rather than guessed.

Pure: decides from results only.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from random import Random
from typing import Any

from benchmarks.figures import Figure
from loadtests.agreement import off_by
from loadtests.results import CellResult, ExperimentResult, RunResult
from loadtests.statistics import Estimate, SliceTable, hedged_quantile, is_enough, quantile, ratio

PERCENTILES = ((0.99, "p99"), (0.999, "p99.9"))

SLOW_REQUESTS_EXTRA = 9.0
"""Percent of extra requests against slow requests, at most."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A measured figure. good: what it has to keep to, goal: what is aimed at; None for both: for information.

    estimate: value and interval; its low and high equal the value where there is no interval.
    """

    experiment: str
    name: str
    estimate: Estimate
    unit: str
    good: float | None = None
    goal: float | None = None
    is_upper_bound: bool = True
    note: str = ""

    @property
    def grade(self) -> str:
        """ "goal", "good" or "missed"; empty without a bound."""
        if self.good is None or self.goal is None:
            return ""
        for name, bound in (("goal", self.goal), ("good", self.good)):
            if (self.estimate.value <= bound) if self.is_upper_bound else (self.estimate.value >= bound):
                return name
        return "missed"

    def as_figure(self) -> Figure:
        """As the benchmarks print theirs."""
        parts = [self.note] if self.note else []
        if self.estimate.low != self.estimate.high:
            parts.insert(0, f"95 %: {self.estimate.low:.3g} to {self.estimate.high:.3g}")
        if self.goal is not None:
            parts.insert(0, f"goal {self.goal:g}")
        return Figure(
            f"{self.experiment}: {self.name}", self.estimate.value, self.unit, self.estimate.samples, self.good,
            self.is_upper_bound, "; ".join(parts),
        )  # fmt: skip

    def as_record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {**asdict(self), "estimate": self.estimate.as_record(), "grade": self.grade}


class Tables:
    """The slice tables of a run's cells, made once."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = Random(seed)
        self._made: dict[tuple[int, str], SliceTable] = {}

    def of(self, cell: CellResult, kind: str) -> SliceTable:
        """The latencies of these requests of a cell."""
        key = (id(cell), kind)
        if key not in self._made:
            self._made[key] = SliceTable(cell.tally.of_slices(kind))
        return self._made[key]

    def quantile(self, cell: CellResult, kind: str, fraction: float) -> Estimate | None:
        """With its interval; None when the samples do not reach so far."""
        table = self.of(cell, kind)
        return quantile(table, fraction, self.rng) if is_enough(table.count, fraction) else None

    def ratio(
        self, above: CellResult | None, below: CellResult | None, kind: str, fraction: float, below_kind: str = ""
    ) -> Estimate | None:
        """Of one cell's quantile to another's; None when either was not measured often enough."""
        if above is None or below is None:
            return None
        over, under = self.of(above, kind), self.of(below, below_kind or kind)
        if not (is_enough(over.count, fraction) and is_enough(under.count, fraction)):
            return None
        return ratio(over, under, fraction, self.rng)


def amplification(tables: Tables, cell: CellResult, kind: str) -> Estimate | None:
    """p99 of the requests that ask so many shards / p99 of those that ask one, same cell."""
    return tables.ratio(cell, cell, kind, 0.99, below_kind="1")


def findings(run: RunResult, tables: Tables) -> list[Finding]:
    """All that the run has measured, in the order of its experiments."""
    makers = (_pauses, _healthy, _slow_requests, _one_slow, _all_slow, _throttled, _overload, _shifted, _deadlines, _control)
    found = [each for experiment in run.experiments for maker in makers for each in maker(experiment, tables)]
    return [*found, *_predictions(run, tables), *_wasted(run), *_bookkeeping(run)]


def _bare(value: float, samples: int) -> Estimate:
    return Estimate(value, value, value, samples)


def _extra(experiment: ExperimentResult, cell: CellResult | None, good: float, goal: float, name: str) -> Iterator[Finding]:
    if cell is not None and cell.legs:
        estimate = _bare(100 * cell.extra_part, cell.legs)
        yield Finding(experiment.name, name, estimate, "%", good, goal, note="of the first attempts; n counts those")


def _pauses(experiment: ExperimentResult, tables: Tables) -> Iterator[Finding]:
    """Pauses: against the healthy cluster, against no defence, and the amplification."""
    kind = experiment.widest
    healthy = experiment.cell("healthy", "none")
    bounds = {"p99": (1.4, 1.1), "p99.9": (2.5, 1.3)}
    for condition, label in (("pauses-0.5", "0.5 % pauses"), ("pauses-2", "2 % pauses")):
        defended = experiment.cell(condition, "all")
        for fraction, name in PERCENTILES:
            if estimate := tables.ratio(defended, healthy, kind, fraction):
                yield Finding(
                    experiment.name, f"{label}: {name} with all defences / without any pause", estimate, "x", *bounds[name]
                )
    yield from _two_percent(experiment, tables)
    for arm, bound, is_upper in (("none", (3.0, 6.0), False), ("all", (2.0, 1.5), True)):
        cell = experiment.cell("pauses-0.5", arm)
        if cell is not None and "1" in cell.tally.slices and (estimate := amplification(tables, cell, kind)):
            yield Finding(
                experiment.name, f"0.5 % pauses: amplification of p99 over {kind} legs, {cell.arm_title}", estimate, "x",
                *bound, is_upper_bound=is_upper, note="the problem must show" if arm == "none" else "",
            )  # fmt: skip


def _two_percent(experiment: ExperimentResult, tables: Tables) -> Iterator[Finding]:
    none, defended = experiment.cell("pauses-2", "none"), experiment.cell("pauses-2", "all")
    if experiment.cell("healthy", "none") is None:
        return  # The pauses serve another question there.
    bounds = {"p99": (0.12, 0.07), "p99.9": (0.15, 0.08)}
    kind, healthy = experiment.widest, experiment.cell("healthy", "none")
    for fraction, name in PERCENTILES:
        estimate, best = tables.ratio(defended, none, kind, fraction), tables.ratio(healthy, none, kind, fraction)
        if estimate is None or best is None:
            continue
        # A pause that is only a few times as long as the healthy tail cannot be hidden to a tenth: then there is no bound.
        good, goal = bounds[name] if best.value < bounds[name][0] else (None, None)
        note = f"the cluster without pauses: {best.value:.2g} x"
        yield Finding(
            experiment.name, f"2 % pauses: {name} with all defences / with none", estimate, "x", good, goal, note=note
        )
    yield from _extra(experiment, defended, 3.0, 1.0, "2 % pauses: extra requests")


def _healthy(experiment: ExperimentResult, tables: Tables) -> Iterator[Finding]:
    """What the machinery costs where nothing is wrong."""
    none, defended = experiment.cell("healthy", "none"), experiment.cell("healthy", "all")
    if none is None or defended is None:
        return
    kind = experiment.widest
    for fraction, name, bounds in ((0.99, "p99", (1.10, 1.02)), (0.5, "p50", (1.03, 1.01))):
        if estimate := tables.ratio(defended, none, kind, fraction):
            yield Finding(experiment.name, f"no stragglers: {name} with / without defences", estimate, "x", *bounds)
    yield from _costs(experiment, none, defended)


def _costs(experiment: ExperimentResult, none: CellResult, defended: CellResult) -> Iterator[Finding]:
    costs = [cell.usage.cluster_s / cell.tally.total for cell in (none, defended) if cell.usages and cell.tally.total]
    if len(costs) == 2 and costs[0] > 0:
        cost = _bare(costs[1] / costs[0], min(none.tally.total, defended.tally.total))
        yield Finding(
            experiment.name, "no stragglers: processor time a request, with / without", cost, "x", 1.03, 1.01,
            note="the inverse of throughput",
        )  # fmt: skip


def _slow_requests(experiment: ExperimentResult, tables: Tables) -> Iterator[Finding]:
    """Of single legs: each one is slow by itself. Of eight legs in a hundred requests two have one whose first two attempts are
    both slow: their p99 is that of a third attempt, after two delays of three medians, seven medians of ten in the end."""
    none, defended = experiment.cell("slow-requests", "none"), experiment.cell("slow-requests", "all")
    name = "5 % of requests x10: p99 with all defences / with none"
    for fan_out in map(str, experiment.fan_outs):
        if none is None or (estimate := tables.ratio(defended, none, fan_out, 0.99)) is None:
            continue
        if fan_out != "1":
            yield Finding(experiment.name, f"{name}, {fan_out} legs", estimate, "x")
        else:
            # A healthy tail that is not far below the slow requests leaves less to be won than the bound asks for.
            leg = none.latency(fan_out)
            best = hedged_quantile(leg, 0.99, SLOW_REQUESTS_EXTRA / 100) / tables.of(none, fan_out).quantile(0.99)
            note = f"best fixed delay at {SLOW_REQUESTS_EXTRA:g} % extra: {best:.2g} x"
            yield Finding(experiment.name, f"{name}, one leg", estimate, "x", 0.40, 0.30, note=note)
    extra = "5 % of requests x10: extra requests"
    yield from _extra(experiment, defended, SLOW_REQUESTS_EXTRA, SLOW_REQUESTS_EXTRA, extra)


def _one_slow(experiment: ExperimentResult, tables: Tables) -> Iterator[Finding]:
    defended = experiment.cell("one-slow", "all")
    if defended is None:
        return
    if defended.slow_leaf_share:
        share = _bare(100 * max(defended.slow_leaf_share), len(defended.slow_leaf_share))
        yield Finding(
            experiment.name, "one slow leaf: its share of first attempts", share, "%", 5.0, 2.0,
            note="worst block, from 2 s after it became slow; n counts blocks",
        )  # fmt: skip
    if estimate := tables.ratio(defended, experiment.cell("healthy", "all"), experiment.widest, 0.99):
        yield Finding(experiment.name, "one slow leaf: p99 / healthy p99", estimate, "x", 1.5, 1.2)


def _all_slow(experiment: ExperimentResult, tables: Tables) -> Iterator[Finding]:
    yield from _extra(experiment, experiment.cell("all-slow", "all"), 2.0, 1.0, "all leaves slow: extra requests after 3 s")


def _throttled(experiment: ExperimentResult, tables: Tables) -> Iterator[Finding]:
    none, defended = experiment.cell("throttled", "none"), experiment.cell("throttled", "all")
    if estimate := tables.ratio(defended, none, experiment.widest, 0.99):
        yield Finding(experiment.name, "a throttled leaf: p99 with all defences / with none", estimate, "x")


def _overload(experiment: ExperimentResult, tables: Tables) -> Iterator[Finding]:
    none, defended = experiment.cell("overload", "none"), experiment.cell("overload", "all")
    if none is None or defended is None or not none.tally.goodput:
        return
    part = [cell.tally.goodput / cell.tally.total for cell in (none, defended)]
    goodput = _bare(part[1] / part[0], min(none.tally.total, defended.tally.total))
    note = f"answered in time: {part[0]:.0%} without, {part[1]:.0%} with"
    yield Finding(experiment.name, "1.2 x overload: goodput with / without", goodput, "x", 0.97, 0.99, False, note)


def _shifted(experiment: ExperimentResult, tables: Tables) -> Iterator[Finding]:
    adaptive = experiment.cell("shifted", "all")
    statics = [cell for cell in experiment.cells if cell.arm.startswith("static-")]
    if adaptive is None or not statics:
        return
    kind = experiment.widest
    best = min(statics, key=lambda cell: cell.latency(kind).quantile(0.99) or float("inf"))
    if estimate := tables.ratio(adaptive, best, kind, 0.99):
        note = f"the best is {best.arm_title}, with {best.extra_part:.1%} extra; adaptive {adaptive.extra_part:.1%}"
        name = "latency x 3, 10 s later: p99 adaptive / best static delay"
        yield Finding(experiment.name, name, estimate, "x", 1.15, 1.05, note=note)


def _deadlines(experiment: ExperimentResult, tables: Tables) -> Iterator[Finding]:
    if experiment.name != "deadlines":
        return
    for cell in experiment.cells:
        overrun = cell.tally.overrun
        if is_enough(overrun.count, 0.999):
            estimate = _bare(1e3 * (overrun.quantile(0.999) or 0.0), overrun.count)
            name = f"answer time beyond the deadline, p99.9, {cell.arm_title}"
            yield Finding(experiment.name, name, estimate, "ms", 20.0, 5.0, note=f"deadline {experiment.deadline_s * 1e3:g} ms")


def _control(experiment: ExperimentResult, tables: Tables) -> Iterator[Finding]:
    for cell in experiment.cells:
        ours = experiment.cell(cell.condition, "kvshard-leg")
        if not cell.arm.startswith("hedge-python") or ours is None:
            continue
        if estimate := tables.ratio(ours, cell, experiment.widest, 0.99):
            note = f"extra: kvshard {ours.extra_part:.1%}, {cell.arm} {cell.extra_part:.1%}"
            name = f"{cell.condition_title}: p99 of kvshard / {cell.arm_title}"
            yield Finding(experiment.name, name, estimate, "x", 1.0, 1.0, note=note)


def _predictions(run: RunResult, tables: Tables) -> Iterator[Finding]:
    """See `agreement`."""
    misses: list[tuple[float, str]] = []
    unsure: list[str] = []
    for experiment in run.experiments:
        for cell in experiment.cells:
            measured = tables.quantile(cell, experiment.widest, 0.99)
            if cell.prediction is None or measured is None:
                continue
            name, off = f"{experiment.name} {cell.name}", off_by(cell.prediction["p99"], measured)
            if off is None:
                unsure.append(f"{name} ({1e3 * measured.low:.3g} to {1e3 * measured.high:.3g} ms)")
            else:
                misses.append((off, name))
    if misses:
        worst, where = max(misses)
        estimate = _bare(100 * worst, len(misses))
        note = f"worst: {where}; n counts cells that can tell"
        if unsure:
            note += f"; known too little to tell: {', '.join(unsure)}"
        yield Finding("what-if", "predicted / measured p99, farthest off", estimate, "%", 25.0, 10.0, note=note)


def _wasted(run: RunResult) -> Iterator[Finding]:
    wasted = used = 0.0
    requests = 0
    for experiment in run.experiments:
        for cell in experiment.cells:
            if cell.wasted_s is not None and cell.arm == "all" and cell.usages:
                wasted += cell.wasted_s
                used += sum(usage.leaves_s for usage in cell.usages)
                requests += cell.tally.total
    if used:
        estimate = _bare(100 * wasted / used, requests)
        yield Finding("all experiments", "work wasted by losers, of leaf processor time", estimate, "%", 4.0, 2.0)


def _bookkeeping(run: RunResult) -> Iterator[Finding]:
    if run.bookkeeping_s is not None:
        estimate = _bare(1e6 * run.bookkeeping_s, run.bookkeeping_n)
        note = "requests to every shard, less the bare tasks that they take"
        yield Finding("router", "bookkeeping of a leg, p50", estimate, "us", 60.0, 25.0, note=note)
