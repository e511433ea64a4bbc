"""How the demo shows texts, tables and hints in a terminal."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from kvshard.cli.demo_report import FanOutSamples, Percentiles
from kvshard.cli.demo_tail_report import TailRow
from kvshard.client.results import Hit


def fragment(hit: Hit[str]) -> Text:
    """The best fragment of a hit's text with the matches marked, or else the text's beginning, on one line."""
    if not hit.highlights:
        doc = str((hit.document or {}).get("doc", ""))
        return Text(" ".join(doc.split())[:150], style="dim")
    best = hit.highlights[0]
    text = Text(best.fragment)
    for start, end in best.spans:
        text.stylize("bold yellow", start, end)
    # Character by character, so that the spans stay where they are; then the runs of spaces go, with their spans.
    text.plain = "".join(" " if char.isspace() else char for char in text.plain)
    return Text(" ").join(word for word in text.split(" ") if word.plain)


def latency_table(samples: FanOutSamples) -> Table:
    """The measured percentiles: the leg asked alone, and the gathered answer by fan-out."""
    table = Table(title="one search at a time, milliseconds, measured in the router", title_justify="left")
    table.add_column("shards asked")
    for name in ("n", "p50", "p90", "p99", "amplification", "p99 of a leg"):
        table.add_column(name, justify="right")

    single = samples.single_leg
    table.add_row("one leg alone", *_cells(single), "1.0 x", f"{single.p99:.2f}", end_section=True)
    for row in samples.rows():
        table.add_row(str(row.fan_out), *_cells(row.answers), f"{row.amplification:.1f} x", f"{row.legs.p99:.2f}")
    return table


def _cells(values: Percentiles) -> tuple[str, ...]:
    return (f"{values.n:,}", f"{values.p50:.2f}", f"{values.p90:.2f}", f"{values.p99:.2f}")


def tail_table(rows: Sequence[TailRow], title: str) -> Table:
    """One kind of reads, without and with the defences, under each condition."""
    table = Table(title=f"{title}, milliseconds", title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("defences")
    for name in ("n", "p50", "p90", "p99", "slowest", "extra requests"):
        table.add_column(name, justify="right")
    for index, row in enumerate(rows):
        condition = row.cell.condition
        is_first = index == 0 or rows[index - 1].cell.condition != condition
        is_last = index + 1 == len(rows) or rows[index + 1].cell.condition != condition
        figures = (*_cells(row.times), f"{row.times.slowest:.2f}", f"{row.extra_part * 100:.2f} %")
        table.add_row(condition.name if is_first else "", row.cell.arm.name, *figures, end_section=is_last)
    return table


def keep_hint(address: str) -> str:
    """How to use the cluster that --keep leaves running."""
    return (
        f"\nThe cluster stays up at [bold]{address}[/] until Ctrl-C. In another terminal:\n"
        f"  kvshard search --router {address} pydocs 'event loop'\n"
        f"  kvshard status --router {address}\n"
        f"  kvshard fault pause --share 2% --length 50ms --router {address}\n"
        f"  kvshard slowlog --router {address}\n"
        "or from Python:\n"
        f'  async with Client("{address}") as kv: page = await kv.collection("pydocs").search("event loop")'
    )
