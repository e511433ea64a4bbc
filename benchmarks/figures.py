"""A figure: what was measured, from how many samples, against which bound."""

import json
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value. bound: what it has to keep to, None where it is only for information.

    is_upper_bound: the value must not exceed the bound; else it must not fall below it.
    """

    name: str
    value: float
    unit: str
    samples: int
    bound: float | None = None
    is_upper_bound: bool = True
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the bound is kept; None without a bound."""
        if self.bound is None:
            return None
        return self.value <= self.bound if self.is_upper_bound else self.value >= self.bound


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of the values do not exceed. Raises ValueError when there are none."""
    if not values:
        raise ValueError("no samples")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(fraction * 1_000_000) * len(ordered) // 1_000_000) - 1))]


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}"


def show(figures: Sequence[Figure], target: pathlib.Path) -> bool:
    """Print the figures as a table, write them as JSON, and say whether every bound is kept."""
    table = Table("figure", "measured", "bound", "met", "n", "note", title="kvshard benchmarks")
    marks = {True: "[green]yes[/]", False: "[red]no[/]", None: ""}
    for figure in figures:
        sign = "<=" if figure.is_upper_bound else ">="
        bound = "" if figure.bound is None else f"{sign} {_text(figure.bound)}"
        measured = f"{_text(figure.value)} {figure.unit}"
        table.add_row(figure.name, measured, bound, marks[figure.is_met], f"{figure.samples:,}", figure.note)
    Console(width=max(150, Console().width)).print(table)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps([asdict(figure) | {"is_met": figure.is_met} for figure in figures], indent=2) + "\n")
    print(f"written to {target}")
    return all(figure.is_met is not False for figure in figures)
