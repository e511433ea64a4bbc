"""The load tests' commands: `python -m loadtests amplification`, `make amplification`, `make amplification-full`."""

import pathlib
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import uvloop
from cyclopts import App, Parameter
from rich.console import Console

from benchmarks import drawing
from benchmarks.figures import show
from loadtests import charts, report
from loadtests.findings import Tables
from loadtests.plan import Plan
from loadtests.prediction import predict_again
from loadtests.results import RunResult
from loadtests.runner import run
from loadtests.scenarios import EXPERIMENTS, QUICK_ROUNDS, Experiment, quick

TARGET = pathlib.Path("load-results/amplification")

app = App(name="python -m loadtests", help=__doc__)
console = Console(highlight=False, soft_wrap=True)


@app.command
def amplification(
    *names: str,
    full: bool = False,
    cells: Annotated[str, Parameter(help="only these, as in healthy/none,pauses-2/all; default: all of an experiment")] = "",
    rounds: Annotated[int | None, Parameter(help="blocks there and back; default: as many as the samples take")] = None,
    leaves: int = 4,
    seed: int = 1,
    target: pathlib.Path = TARGET,
) -> int:
    """Measure on a cluster of its own, print the figures, and write a page and JSON.

    Parameters
    ----------
    names
        Experiments; none: point batches and searches under pauses, in under eight minutes. `experiments` lists them.
    full
        All experiments, with 20,000 requests a cell and 50,000 where a p99.9 is asked for: some two hours.
    leaves
        Leaf processes, 4 to 6 for figures that are to be compared.
    seed
        Of arrivals, keys and faults.
    target
        Files to write, without their suffix.
    """
    if unknown := [name for name in names if name not in EXPERIMENTS]:
        console.print(f"no such experiment: {', '.join(unknown)}; there are {', '.join(EXPERIMENTS)}")
        return 2
    chosen = [EXPERIMENTS[name] for name in names] or (list(EXPERIMENTS.values()) if full else quick())
    if cells:
        wanted = cells.split(",")
        known = [cell.name for experiment in chosen for cell in experiment.cells]
        if unknown := [name for name in wanted if name not in known]:
            console.print(f"no such cell: {', '.join(unknown)}; there are {', '.join(dict.fromkeys(known))}")
            return 2
        chosen = _only(chosen, wanted)
    if not (names or full):
        rounds = rounds or QUICK_ROUNDS
    with tempfile.TemporaryDirectory(prefix="kvshard-load-") as folder:
        result = uvloop.run(run(chosen, Plan(rounds, seed), pathlib.Path(folder), console.print, leaves))
    return _report(result, target)


def _only(chosen: Sequence[Experiment], wanted: Sequence[str]) -> list[Experiment]:
    """The experiments with these cells alone; those that have none of them are left out."""
    parts = [replace(each, cells=tuple(cell for cell in each.cells if cell.name in wanted)) for each in chosen]
    return [each for each in parts if each.cells]


@app.command(name="report")
def report_again(
    source: pathlib.Path, target: pathlib.Path | None = None, svg_file: pathlib.Path | None = None, predict: bool = False
) -> int:
    """Make the page of a run anew from the JSON that it has written.

    Parameters
    ----------
    source
        The JSON.
    target
        Files to write, without their suffix; default: beside the source.
    svg_file
        Write the first experiment's latency by percentile there too.
    predict
        Predict the cells anew, by the what-if model as it is now; seconds a cell.
    """
    result = RunResult.read(source)
    if predict:
        for experiment in result.experiments:
            predict_again(experiment, result.seed)
    if svg_file is not None:
        svg_file.write_text(drawing.standalone(charts.latency_by_percentile(result.experiments[0], Tables())))
    return _report(result, target or source.with_suffix(""))


@app.command
def experiments() -> int:
    """List the experiments and their cells."""
    for experiment in EXPERIMENTS.values():
        console.print(f"[bold]{experiment.name}[/]: {experiment.title}")
        for cell in experiment.cells:
            console.print(f"    {cell.name:<24} {_describe(experiment, cell.condition.title, cell.arm.title)}")
    return 0


def _describe(experiment: Experiment, condition: str, arm: str) -> str:
    return f"{condition}; {arm}; {experiment.samples:,} requests"


def _report(result: RunResult, target: pathlib.Path) -> int:
    found = report.write(result, target)
    is_met = show([finding.as_figure() for finding in found], target.with_name(f"{target.name}-figures.json"))
    for text in report.warnings(result):
        console.print(f"[yellow]note:[/] {text}")
    console.print(f"page: {target.with_suffix('.html')}")
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(app())
