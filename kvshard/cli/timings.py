"""Where the time of a read went, for people: a row a leg, and who was asked when where a leg took several attempts."""

from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kvshard.client.results import AttemptTiming, LegTiming, Timing

LEGS_SHOWN_MAX = 40
"""Rows of a table: more fill a terminal, and the slowest ones tell the story."""


def show_timing(console: "Console", timing: "Timing") -> None:
    """Print the whole account."""
    console.print(
        f"{_ms(timing.total_us)} ms in the router, {_before_text(timing)}{_ms(timing.merge_us)} ms of it merging; "
        f"{_legs_text(timing)}",
        markup=False,
        style="dim",
        soft_wrap=True,
    )
    shown = _slowest(timing)
    if shown:
        console.print(_table(shown, timing.straggler))
    for leg in shown:
        if story := _story(leg):
            console.print(f"shard {leg.shard}: {'; '.join(story)}", markup=False, style="dim", soft_wrap=True)
    if left_out := len(timing.legs) - len(shown) + timing.legs_omitted:
        console.print(f"{left_out:,} faster legs are not shown", style="dim")


def timing_json(timing: "Timing") -> dict[str, object]:
    """The account for programs, as the service gives it."""
    return asdict(timing)


def blame_text(timing: "Timing") -> str:
    """What a read waited for, in a few words: the leg that was last, or what took longer before its legs were sent."""
    leg = timing.straggler
    if leg is not None and timing.before_us > leg.total_us:
        return f"before its legs {_ms(timing.before_us)} ms"
    return straggler_text(timing)


def straggler_text(timing: "Timing") -> str:
    """The leg that a read waited for last, in a few words; a dash when it asked nobody."""
    leg = timing.straggler
    if leg is None:
        return "-"
    if not leg.leaf:
        return f"shard {leg.shard}: no answer, {_ms(leg.total_us)} ms"
    what, took_us = max(_parts(leg), key=lambda part: part[1])
    return f"shard {leg.shard} at {leg.leaf}: {what} {_ms(took_us)} ms"


def attempts_text(timing: "Timing") -> str:
    """How many attempts the legs took, and how many of them were hedges: "8", "9 (1 hedge)"."""
    attempts = sum(leg.attempts for leg in timing.legs)
    hedges = sum(each.kind == "hedge" for leg in timing.legs for each in leg.tries)
    return f"{attempts} ({hedges} hedge{'s' if hedges > 1 else ''})" if hedges else str(attempts)


def _before_text(timing: "Timing") -> str:
    return f"{_ms(timing.before_us)} ms before its legs, " if timing.before_us else ""


def _legs_text(timing: "Timing") -> str:
    leg = timing.straggler
    if leg is None:
        return "no leaf was asked"
    count = len(timing.legs) + timing.legs_omitted
    return f"{count} leg{'s' if count > 1 else ''}, waited for last: {straggler_text(timing)} of {_ms(leg.total_us)} ms"


def _parts(leg: "LegTiming") -> list[tuple[str, int]]:
    """Where a leg's time went, in the order in which it passed."""
    known_us = leg.network_us + leg.queue_us + leg.service_us
    return [
        ("other attempts", max(0, leg.total_us - known_us)),
        ("network", leg.network_us),
        ("queue", leg.queue_us),
        ("work", leg.service_us),
    ]


def _slowest(timing: "Timing") -> "list[LegTiming]":
    """The legs to show, in shard order."""
    slowest = sorted(timing.legs, key=lambda leg: -leg.total_us)[:LEGS_SHOWN_MAX]
    return sorted(slowest, key=lambda leg: leg.shard)


def _table(legs: "list[LegTiming]", last: "LegTiming | None") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("shard", justify="right")
    table.add_column("answered by", no_wrap=True)
    for column in ("total ms", "other attempts", "network", "queue", "work", "attempts"):
        table.add_column(column, justify="right")
    table.add_column("")
    for leg in legs:
        figures = [_ms(leg.total_us), *(_ms(took_us) for _, took_us in _parts(leg)), str(leg.attempts)]
        leaf = escape(leg.leaf) if leg.leaf else "[red]nobody[/]"
        is_last = leg is last
        table.add_row(str(leg.shard), leaf, *figures, "<- last" if is_last else "", style="yellow" if is_last else "")
    return table


def _story(leg: "LegTiming") -> list[str]:
    """Who was asked when, where it took several attempts, and why there were not more."""
    return [*map(_try_text, leg.tries), *([f"not hedged: {', '.join(leg.refused)}"] if leg.refused else [])]


def _try_text(each: "AttemptTiming") -> str:
    return f"{each.kind} {each.leaf} {_ms(each.began_us)} to {_ms(each.ended_us)} {each.outcome}"


def _ms(microseconds: int) -> str:
    return f"{microseconds / 1000:.2f}"
