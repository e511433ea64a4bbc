"""What a search tells about itself, for people: how a hit's score came about as a tree, what the legs did as a table."""

from dataclasses import asdict
from typing import TYPE_CHECKING

from kvshard.cli.console import one_line
from kvshard.cli.timings import LEGS_SHOWN_MAX, show_timing

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from kvshard.client.results import Explanation, LegProfile, Profile

DEPTH_SHOWN_MAX = 12
"""Levels of a tree: deeper ones would begin beyond the middle of a terminal's line."""


def explanation_lines(explanation: "Explanation", indent: str = "     ") -> list[str]:
    """The tree, a line a value, the deeper the further in."""
    lines = [f"{indent}{explanation.value:.6g}  {one_line(explanation.description.encode())}"]
    if len(indent) < 2 * DEPTH_SHOWN_MAX:
        for detail in explanation.details:
            lines += explanation_lines(detail, f"{indent}  ")
    return lines


def show_profile(console: "Console", profile: "Profile") -> None:
    """Print the legs' accounts, the terms with their documents over all legs, and where the time went between them."""
    names = list(dict.fromkeys(leg.collection for leg in profile.legs))
    slowest = sorted(profile.legs, key=lambda leg: -sum(leg.phases_us.values()))[:LEGS_SHOWN_MAX]
    if slowest:
        console.print(_table(sorted(slowest, key=lambda leg: (names.index(leg.collection), leg.shard))))
    if left_out := len(profile.legs) - len(slowest):
        console.print(f"{left_out:,} faster legs are not shown", style="dim")
    documents: dict[tuple[str, str], int] = {}
    for leg in profile.legs:
        for term in leg.terms:
            documents[term.field, term.term] = documents.get((term.field, term.term), 0) + term.documents
    for (field, word), count in documents.items():
        console.print(f"{field}: {one_line(word.encode())} in {count:,} documents", markup=False, soft_wrap=True)
    show_timing(console, profile.timing)


def profile_json(profile: "Profile") -> dict[str, object]:
    """The account for programs, as the service gives it."""
    return {"legs": [{**asdict(leg), "phases_us": dict(leg.phases_us)} for leg in profile.legs]}


def _table(legs: "list[LegProfile]") -> "Table":
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    has_names = any(leg.collection for leg in legs)
    if has_names:
        table.add_column("collection", no_wrap=True)
    table.add_column("shard", justify="right")
    table.add_column("answered by", no_wrap=True)
    phases = list(dict.fromkeys(name for leg in legs for name in leg.phases_us))
    for column in (*(f"{escape(name)} ms" for name in phases), "segments", "documents", "matches", "hits", "through"):
        table.add_column(column, justify="right")
    for leg in legs:
        took = (f"{leg.phases_us[name] / 1000:.2f}" if name in leg.phases_us else "" for name in phases)
        figures = (f"{each:,}" for each in (leg.segments, leg.documents, leg.matches, leg.hits))
        name = (escape(leg.collection),) if has_names else ()
        table.add_row(*name, str(leg.shard), escape(leg.leaf), *took, *figures, str(leg.indexed_through))
    return table
