"""A figure: what was measured, from how many samples, against which bound."""

import json
import pathlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value; None when it could not be measured, and the note says why.

    bound: what it has to keep to, None where it is only for information. goal: what is aimed at beyond that. is_upper_bound:
    the value must not exceed them; else it must not fall below them.
    """

    name: str
    value: float | None
    unit: str
    samples: int
    bound: float | None = None
    is_upper_bound: bool = True
    note: str = ""
    goal: float | None = None

    @property
    def is_met(self) -> bool | None:
        """Whether the bound is kept; None without a bound or a value."""
        return self._reaches(self.bound)

    @property
    def is_goal_met(self) -> bool | None:
        """Whether the goal is reached; None without a goal or a value."""
        return self._reaches(self.goal)

    def _reaches(self, mark: float | None) -> bool | None:
        if mark is None or self.value is None:
            return None
        return self.value <= mark if self.is_upper_bound else self.value >= mark


def percentile(values: Sequence[float], fraction: float) -> float:
    """The smallest value that at least this fraction of the values do not exceed. Raises ValueError when there are none."""
    if not values:
        raise ValueError("no samples")
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(fraction * 1_000_000) * len(ordered) // 1_000_000) - 1))]


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:,.2f}"


def _marks(figure: Figure) -> tuple[str, str]:
    """The columns that say what was asked, and whether that is so."""
    sign = "<=" if figure.is_upper_bound else ">="
    asked = "" if figure.bound is None else f"{sign} {_text(figure.bound)}"
    if figure.goal is not None:
        asked += f" (goal {_text(figure.goal)})" if asked else f"goal {sign} {_text(figure.goal)}"
    if figure.is_met is False:
        return asked, "[red]no[/]"
    if figure.is_goal_met:
        return asked, "[green]goal[/]"
    return asked, "[green]yes[/]" if figure.is_met else ""


def show(figures: Sequence[Figure], target: pathlib.Path) -> bool:
    """Print the figures as a table, write them as JSON, and say whether every bound is kept.

    What could not be measured breaks no bound.
    """
    table = Table("figure", "measured", "bound", "met", "n", "note", title="kvshard benchmarks")
    for figure in figures:
        asked, met = _marks(figure)
        measured = "missing" if figure.value is None else f"{_text(figure.value)} {figure.unit}"
        table.add_row(figure.name, measured, asked, met, f"{figure.samples:,}", figure.note)
    Console(width=max(150, Console().width)).print(table)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps([_record(figure) for figure in figures], indent=2) + "\n")
    print(f"written to {target}")
    return all(figure.is_met is not False for figure in figures)


def _record(figure: Figure) -> dict[str, object]:
    return asdict(figure) | {"is_met": figure.is_met, "is_goal_met": figure.is_goal_met}
