"""From comparisons to figures: how one arm did by another, and what held it.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass

from benchmarks.figures import Figure
from benchmarks.measured import Comparison, ratio

ROUTER_BOUND_MB, ROUTER_GOAL_MB = 200.0, 120.0


@dataclass(frozen=True, slots=True)
class Asked:
    """What a ratio has to reach, and what is aimed at; None: it is for information."""

    bound: float | None = None
    goal: float | None = None


FOR_INFORMATION = Asked()


def ratio_figure(
    name: str, compared: Comparison, one: str, other: str, asked: Asked = FOR_INFORMATION, note: str = ""
) -> Figure:
    """The rate of one arm by that of the other. Without a value when one of them is missing: the note says why."""
    if why := compared.why_absent(one, other):
        return Figure(name, None, "x", 0, asked.bound, False, why, asked.goal)
    mine, theirs = compared.arms[one], compared.arms[other]
    found = ratio(mine, theirs)
    settings = (
        f", {mine.setting or 'as it comes'} / {theirs.setting or 'as it comes'}" if mine.setting or theirs.setting else ""
    )
    rates = f"{mine.rate:,.0f} / {theirs.rate:,.0f} {compared.unit}{settings}"
    used = " / ".join(f"{_short(sum(arm.processor_us().values()))} us" for arm in (mine, theirs))
    parts = [rates, str(found), f"processor time {used}", f"busiest: {mine.busiest}", note]
    return Figure(name, found.value, "x", mine.operations, asked.bound, False, "; ".join(filter(None, parts)), asked.goal)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def router_memory(peak_bytes: int) -> Figure:
    """The most that the router had resident in a run."""
    note = "everything in this run, one after the other"
    name = "router memory, peak of the run"
    return Figure(name, peak_bytes / 1e6, "MB", 1, ROUTER_BOUND_MB, note=note, goal=ROUTER_GOAL_MB)
