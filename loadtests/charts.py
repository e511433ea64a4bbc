"""The charts of the report, as SVG that stands in the page itself: no script, no network, sharp at every size.

Colours say the arm, everywhere the same: warm for no defence, green for all of them, grey for the cluster in health. Ink and
grid are variables of the page's style (see `benchmarks/drawing.py`), so that they follow the reader's light or dark scheme.
"""

from collections.abc import Iterable, Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, NullFormatter

from benchmarks.drawing import FAINT, QUIET, as_svg
from loadtests.findings import Tables, amplification
from loadtests.results import CellResult, ExperimentResult
from loadtests.scenarios import PAUSE_S
from loadtests.statistics import (
    Estimate,
    chance_of_a_straggler,
    gathered_quantile,
    is_enough,
    percentile_points,
    slower_than,
)

COLOURS = {
    "none": "#d9480f", "all": "#0b7a75", "choice": "#7c3aed", "hedge": "#2563eb", "healthy": "#8795a6",
    "direct": "#d9480f", "hedge-python": "#b7791f", "hedge-python-p99": "#7c3aed", "kvshard-leg": "#0b7a75",
}  # fmt: skip
SPARE_COLOURS = ("#2563eb", "#7c3aed", "#b7791f", "#be185d", "#4d7c0f")
BUDGET_PART = 0.05
BAND_POINTS = (0.5, 0.7, 0.8, 0.9, 0.94, 0.96, 0.97, 0.975, 0.98, 0.985, 0.99, 0.993, 0.995, 0.998, 0.999, 0.9995, 0.9999)
"""Where a curve's interval is drawn: each takes a bootstrap."""


def colour_of(cell: CellResult, others: Sequence[CellResult] = ()) -> str:
    """The colour of a cell's arm; the healthy cluster's is grey beside faults."""
    if cell.condition == "healthy" and any(other.condition != "healthy" for other in others):
        return COLOURS["healthy"]
    if cell.arm in COLOURS:
        return COLOURS[cell.arm]
    unknown = sorted({other.arm for other in (*others, cell)} - COLOURS.keys())
    return SPARE_COLOURS[unknown.index(cell.arm) % len(SPARE_COLOURS)]


def conditions_of(experiment: ExperimentResult) -> list[str]:
    """The conditions that hurt, in order; only the healthy one where there is no other."""
    names = list(dict.fromkeys(cell.condition for cell in experiment.cells))
    return [name for name in names if name != "healthy"] or names


def latency_by_percentile(experiment: ExperimentResult, tables: Tables) -> str:
    """Latency against percentile, both on log axes, one panel a condition: every arm, and the cluster in health."""
    conditions = conditions_of(experiment)
    healthy = experiment.cell("healthy", "none") or experiment.cell("healthy", "all")

    def draw(axes: Sequence[Axes]) -> None:
        for panel, condition in zip(axes, conditions, strict=True):
            cells = [cell for cell in experiment.cells if cell.condition == condition]
            if healthy is not None and condition != "healthy":
                _curve(panel, healthy, experiment, tables, "the same cluster without stragglers", is_dashed=True)
            for cell in cells:
                _curve(panel, cell, experiment, tables, cell.arm_title)
            _percentile_axes(panel)
            panel.set_title(cells[0].condition_title)
            _legend(panel, "upper left")
        low, high = axes[0].get_ylim()
        if axes[0].get_yscale() == "log":
            axes[0].set_ylim(low, high * (high / low) ** (0.11 * max(1, len(axes[0].get_lines()) - 1)))  # Room for the legend.
        axes[0].set_ylabel(f"latency of {_asks(experiment.widest)}")

    return as_svg(draw, panels=len(conditions), height=4.0, is_shared=True)


def _legend(panel: Axes, place: str) -> None:
    if panel.get_legend_handles_labels()[0]:
        panel.legend(loc=place, fontsize=8.5)


def _asks(kind: str) -> str:
    return "a request to one shard" if kind == "1" else f"a request to {kind} shards"


def _curve(
    panel: Axes, cell: CellResult, experiment: ExperimentResult, tables: Tables, label: str, *, is_dashed: bool = False
) -> None:
    kind = experiment.widest
    histogram = cell.latency(kind)
    points = percentile_points(histogram, least=0.5)
    if not points:
        return
    colour = colour_of(cell, experiment.cells)
    is_main = cell.arm in ("none", "all", "kvshard-leg") and not is_dashed
    panel.plot(
        [tail for tail, _ in points], [seconds for _, seconds in points],
        color=colour, linewidth=2.4 if is_main else 1.5, linestyle="--" if is_dashed else "-",
        label=f"{label} (n {histogram.count:,})", zorder=3 if is_main else 2,
    )  # fmt: skip
    if is_main:
        band = [(1 - at, estimate) for at in BAND_POINTS if (estimate := tables.quantile(cell, kind, at)) is not None]
        if len(band) > 1:
            panel.fill_between(
                [tail for tail, _ in band], [each.low for _, each in band], [each.high for _, each in band],
                color=colour, alpha=0.16, linewidth=0,
            )  # fmt: skip


def _percentile_axes(panel: Axes) -> None:
    if not panel.get_lines():
        return  # Too few samples for any curve; nothing has no logarithm.
    panel.set_xscale("log")
    panel.set_yscale("log")
    if panel.get_xlim()[0] < panel.get_xlim()[1]:
        panel.invert_xaxis()
    panel.xaxis.set_major_formatter(FuncFormatter(lambda tail, _: f"p{100 * (1 - tail):.6g}"))
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.yaxis.set_major_formatter(FuncFormatter(lambda seconds, _: _milliseconds(seconds)))
    panel.yaxis.set_minor_formatter(FuncFormatter(_minor_milliseconds))
    panel.tick_params(axis="y", which="minor", labelsize=7.5, labelcolor=QUIET)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:g} ms" if seconds < 1 else f"{seconds:g} s"


def _minor_milliseconds(seconds: float, _: object) -> str:
    leading = f"{seconds:e}"[0]
    return _milliseconds(float(f"{seconds:.0e}")) if leading in "25" else ""


def amplification_by_fan_out(experiment: ExperimentResult, tables: Tables) -> str:
    """What fan-out does to p99, and how often a request meets a straggler, both beside what theory says of independent legs."""
    conditions = conditions_of(experiment)

    def draw(axes: Sequence[Axes]) -> None:
        for index, condition in enumerate(conditions):
            _amplification(axes[2 * index], experiment, condition, tables)
            _stragglers(axes[2 * index + 1], experiment, condition)

    return as_svg(draw, panels=2 * len(conditions), height=3.7, columns=2)


def _amplification(panel: Axes, experiment: ExperimentResult, condition: str, tables: Tables) -> None:
    fan_outs = experiment.fan_outs
    for arm in ("none", "all"):
        cell = experiment.cell(condition, arm)
        if cell is None:
            continue
        found = [(n, estimate) for n in fan_outs if (estimate := amplification(tables, cell, str(n))) is not None]
        _with_bars(panel, found, COLOURS[arm], f"{cell.arm_title} ({_least_n(cell, fan_outs)})")
        leg = cell.latency("1")
        if arm == "none" and is_enough(leg.count, 0.99 ** (1 / fan_outs[-1])):
            lone = leg.quantile(0.99) or 1.0
            theory = [gathered_quantile(leg, 0.99, n) / lone for n in fan_outs]
            panel.plot(fan_outs, theory, color=QUIET, linestyle=":", linewidth=1.6, label="theory: independent legs")
    if not panel.containers:
        panel.annotate("too few samples for a p99", (0.5, 0.5), xycoords="axes fraction", ha="center", color=QUIET)
    panel.axhline(1.0, color=FAINT, linewidth=1.0, zorder=1)
    _fan_out_axis(panel, fan_outs)
    panel.set_ylim(bottom=0)
    panel.set_ylabel("p99 / p99 of one leg")
    panel.set_title(f"{_title_of(experiment, condition)}: amplification")
    _legend(panel, "upper left")


def _stragglers(panel: Axes, experiment: ExperimentResult, condition: str) -> None:
    limit = straggler_limit(experiment)
    fan_outs = experiment.fan_outs
    for arm in ("none", "all"):
        cell = experiment.cell(condition, arm)
        if cell is None:
            continue
        parts = [slower_than(cell.latency(str(n)), limit) for n in fan_outs]
        label = f"{cell.arm_title} ({_least_n(cell, fan_outs)})"
        panel.plot(fan_outs, [100 * part for part in parts], "o-", color=COLOURS[arm], linewidth=2.0, label=label)
        if arm == "none":
            theory = [100 * chance_of_a_straggler(parts[0], n) for n in fan_outs]
            label = f"1 - (1 - p)$^n$ with p = {100 * parts[0]:.2g} %"
            panel.plot(fan_outs, theory, color=QUIET, linestyle=":", linewidth=1.6, label=label)
    _fan_out_axis(panel, fan_outs)
    panel.set_ylim(bottom=0)
    panel.set_ylabel(f"requests slower than {_milliseconds(float(f'{limit:.3g}'))}, %")
    panel.set_title(f"{_title_of(experiment, condition)}: stragglers met")
    _legend(panel, "upper left")


def _least_n(cell: CellResult, fan_outs: Sequence[int]) -> str:
    return f"n {min(cell.latency(str(n)).count for n in fan_outs):,} and more"


def straggler_limit(experiment: ExperimentResult) -> float:
    """What counts as a straggler: twice the p99 of the widest requests of the healthy cluster, but half a pause always does."""
    healthy = experiment.cell("healthy", "none")
    found = None if healthy is None else healthy.latency(experiment.widest).quantile(0.99)
    return min(PAUSE_S / 2, 2 * found) if found else PAUSE_S / 2


def _title_of(experiment: ExperimentResult, condition: str) -> str:
    return next(cell.condition_title for cell in experiment.cells if cell.condition == condition)


def _with_bars(panel: Axes, found: Sequence[tuple[int, Estimate]], colour: str, label: str) -> None:
    if not found:
        return
    at = [n for n, _ in found]
    values = [each.value for _, each in found]
    below = [max(0.0, each.value - each.low) for _, each in found]
    above = [max(0.0, each.high - each.value) for _, each in found]
    panel.errorbar(at, values, yerr=[below, above], fmt="o-", color=colour, linewidth=2.0, capsize=3, label=label)


def _fan_out_axis(panel: Axes, fan_outs: Sequence[int]) -> None:
    panel.set_xscale("log", base=2)
    panel.set_xticks(list(fan_outs), [str(n) for n in fan_outs])
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.set_xlabel("shards asked by one request")


def extra_over_time(experiment: ExperimentResult) -> str:
    """Hedges as a part of the first attempts, second by second, of every arm that hedges."""
    cells = [cell for cell in experiment.cells if cell.extra and cell.hedges]

    def draw(axes: Sequence[Axes]) -> None:
        panel = axes[0]
        for number, cell in enumerate(cells):
            colour = colour_of(cell, experiment.cells)
            style = ("-", "--", ":", "-.")[number % 4]
            at = [point.at for point in cell.extra if point.legs]
            parts = [100 * point.hedges / point.legs for point in cell.extra if point.legs]
            label = f"{cell.condition_title}, {cell.arm_title}: {100 * cell.extra_part:.2g} % of {cell.legs:,}"
            panel.step(at, parts, where="mid", color=colour, linestyle=style, linewidth=1.6, label=label)
        panel.axhline(100 * BUDGET_PART, color=QUIET, linestyle=":", linewidth=1.4)
        panel.annotate("budget", (0, 100 * BUDGET_PART), xytext=(4, 3), textcoords="offset points", color=QUIET, fontsize=8.5)
        panel.set_xlabel("seconds of measuring (blocks of this cell, one after the other)")
        panel.set_ylabel("hedges, % of first attempts")
        panel.set_ylim(0, 1.3 * max(100 * BUDGET_PART, panel.get_ylim()[1] / 1.05))  # Room for the legend.
        _legend(panel, "upper right")

    return as_svg(draw, panels=1, height=3.2)


def prediction_against_measurement(experiments: Iterable[ExperimentResult]) -> str:
    """Each predicted percentile over the measured one; on the diagonal they agree, in the band they do within a quarter."""
    marks = {"p50": ("o", 0.5), "p99": ("s", 0.99), "p99.9": ("^", 0.999)}

    def draw(axes: Sequence[Axes]) -> None:
        panel, ends = axes[0], []
        for experiment in experiments:
            for cell in experiment.cells:
                measured = cell.latency(experiment.widest)
                for name, (mark, fraction) in marks.items():
                    value = measured.quantile(fraction)
                    if cell.prediction is None or value is None or not is_enough(measured.count, fraction):
                        continue
                    panel.plot(value, cell.prediction[name], mark, color=colour_of(cell, experiment.cells), markersize=6)
                    ends += [value, cell.prediction[name]]
        for name, (mark, _) in marks.items():
            panel.plot([], [], mark, color=QUIET, label=name)
        if ends:
            line = [min(ends) * 0.8, max(ends) * 1.25]
            panel.plot(line, line, color=QUIET, linewidth=1.0)
            panel.fill_between(line, [0.75 * x for x in line], [1.25 * x for x in line], color=QUIET, alpha=0.15, linewidth=0)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_formatter(FuncFormatter(lambda seconds, _: _milliseconds(seconds)))
            axis.set_minor_formatter(NullFormatter())
        if ends:
            panel.set_xscale("log")
            panel.set_yscale("log")
        panel.set_xlabel("measured")
        panel.set_ylabel("predicted")
        _legend(panel, "upper left")

    return as_svg(draw, panels=1, height=4.2, width=5.2)
