"""What `kvshard status` shows of a router's doings against slow leaves.

Where several processes share the router's port, counts are added up; latencies, and how each sees the leaves, cannot be, and
stand there for each by its name.
"""

from collections.abc import Iterator, Mapping
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


def leg_kinds_table(tails: "Mapping[str, TailStatus]") -> "Table":
    """Latency and delay of each kind of legs. tails: of the router's processes, by name."""
    numbers = ("first attempts", "p50 ms", "p99 ms", "hedged after ms")
    table = _table("legs", ("kind", *_worker(tails, "worker")), numbers)
    rows = [(each.kind, name, each) for name, tail in tails.items() for each in tail.kinds]
    for kind, name, each in sorted(rows, key=lambda row: row[0]):
        times = (each.latency_ms_p50, each.latency_ms_p99, each.delay_ms)
        table.add_row(kind, *_worker(tails, name), f"{each.samples:,}", *(f"{time:.2f}" for time in times))
    return table


def leaf_health_table(tails: "Mapping[str, TailStatus]") -> "Table":
    """How the router's processes see each leaf."""
    numbers = ("first attempts", "outstanding", "in flight there", "slowness")
    table = _table("leaves as the router sees them", ("leaf", *_worker(tails, "worker"), "state"), numbers)
    rows = [(each.leaf, name, each) for name, tail in tails.items() for each in tail.leaves]
    for leaf, name, each in sorted(rows, key=lambda row: row[0]):
        counts = (f"{count:,}" for count in (each.first_attempts, each.outstanding, each.in_flight))
        table.add_row(leaf, *_worker(tails, name), _state(each), *counts, f"{each.slowness:.2f}")
    return table


def _worker(tails: "Mapping[str, TailStatus]", text: str) -> tuple[str, ...]:
    """The cell that tells the processes apart; none where there is one."""
    return (text,) if len(tails) > 1 else ()


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
