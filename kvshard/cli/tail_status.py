"""What `kvshard status` shows of a router's doings against slow leaves."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table

    from kvshard.tail.status import LeafHealthStatus, TailStatus

_COLOURS = {"ok": "green", "new": "cyan", "stalled": "red", "unreachable": "red"}


def tail_lines(tail: "TailStatus") -> Iterator[str]:
    """The policy, the budget and what became of it, in words."""
    budget = f"budget {_percent(tail.budget)} of the requests now, {_percent(tail.budget_max)} at most"
    yield f"hedging: {tail.policy}, {budget}, at most {tail.max_attempts} attempts a leg"
    yield f"last 10 s: {tail.hedges:,} hedges, {_percent(tail.extra)} of {tail.first_attempts:,} first attempts"
    won = f", {_percent(tail.won)} of them won" if tail.hedges_total else ""
    refused = ", ".join(f"{reason} {count:,}" for reason, count in sorted(tail.refused_total.items()) if count) or "none"
    yield f"since the start: {tail.hedges_total:,} hedges{won}; refused: {refused}"


def leg_kinds_table(tail: "TailStatus") -> "Table":
    """Latency and delay of each kind of legs."""
    numbers = ("first attempts", "p50 ms", "p99 ms", "hedged after ms")
    table = _table("legs", ("kind",), numbers)
    for each in tail.kinds:
        times = (each.latency_ms_p50, each.latency_ms_p99, each.delay_ms)
        table.add_row(each.kind, f"{each.samples:,}", *(f"{time:.2f}" for time in times))
    return table


def leaf_health_table(tail: "TailStatus") -> "Table":
    """How the router sees each leaf."""
    numbers = ("first attempts", "outstanding", "in flight there", "slowness")
    table = _table("leaves as the router sees them", ("leaf", "state"), numbers)
    for each in tail.leaves:
        counts = (each.first_attempts, each.outstanding, each.in_flight)
        table.add_row(each.leaf, _state(each), *(f"{count:,}" for count in counts), f"{each.slowness:.2f}")
    return table


def _state(leaf: "LeafHealthStatus") -> str:
    from rich.markup import escape

    return f"[{_COLOURS.get(leaf.state, 'yellow')}]{escape(leaf.state)}[/]"


def _percent(part: float) -> str:
    return f"{part * 100:.3g} %"


def _table(title: str, texts: tuple[str, ...], numbers: tuple[str, ...]) -> "Table":
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in (*texts, *numbers):
        table.add_column(column, justify="right" if column in numbers else "left", no_wrap=True)
    return table
