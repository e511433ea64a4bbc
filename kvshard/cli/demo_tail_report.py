"""What the demo makes of its reads beside slow leaves: rows, pictures and words, with the defences and without them.

Pure: imports only the standard library and other pure files. Takes microseconds, shows milliseconds; the reads are made by
`demo_tail.py`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from kvshard.cli.demo_report import Percentiles, bar, percentiles

FaultKind = Literal["pause", "slow"]
ReadKind = Literal["search", "batch"]

READ_KINDS: tuple[ReadKind, ...] = ("search", "batch")


@dataclass(frozen=True, slots=True)
class Condition:
    """What is done to the leaves. kind: None for nothing, else as `Client.inject_fault` takes it, like the rest."""

    name: str
    title: str
    kind: FaultKind | None = None
    probability: float = 1.0
    delay: float = 0.0
    factor: float = 0.0
    leaves: tuple[str, ...] = ()
    methods: tuple[Literal["read", "search"], ...] = ()


CONDITIONS = (
    Condition("nobody slow", "no leaf is slow"),
    Condition("pauses", "each leaf stops for 50 ms, 2 % of the time", "pause", probability=0.02, delay=0.05),
    Condition(
        "one leaf slow", "one leaf works 10 times as long", "slow", factor=10.0, leaves=("leaf-1",), methods=("read", "search")
    ),
)
"""A pause is what a garbage collection or a noisy neighbour makes; a slow leaf is a bad disk or a hot processor."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Which defences a read asks for; None: what it has by default."""

    name: str
    hedge: str | None = None
    replica_choice: Literal["random"] | None = None


WITHOUT = Arm("without", "off", "random")
WITH = Arm("with")
ARMS = (WITHOUT, WITH)


@dataclass(frozen=True, slots=True)
class Cell:
    """What is compared: a condition under an arm."""

    condition: Condition
    arm: Arm


def blocks(turn: int) -> list[Cell]:
    """One turn of all cells. Odd turns go back the way of the even ones, so that no cell has the better part of the run."""
    cells = [Cell(condition, arm) for condition in CONDITIONS for arm in ARMS]
    return cells if turn % 2 == 0 else cells[::-1]


@dataclass(slots=True)
class ReadTimes:
    """Reads of one kind in one cell. took_us: from the planned start to the answer. legs: shards asked. extra: more attempts.

    failed: reads without an answer; in took_us each counts as its whole timeout, at least.
    """

    took_us: list[int] = field(default_factory=list)
    legs: int = 0
    extra: int = 0
    failed: int = 0

    @property
    def extra_part(self) -> float:
        """Attempts beyond the first of each leg, relative to the legs."""
        return self.extra / self.legs if self.legs else 0.0


@dataclass(frozen=True, slots=True)
class TailRow:
    """A line of the table."""

    kind: ReadKind
    cell: Cell
    times: Percentiles
    extra_part: float
    failed: int


@dataclass(slots=True)
class TailSamples:
    """Everything measured in one run."""

    by_cell: dict[tuple[ReadKind, Cell], ReadTimes] = field(default_factory=dict)

    def of(self, kind: ReadKind, cell: Cell) -> ReadTimes:
        """The reads of that kind in that cell; to add to."""
        return self.by_cell.setdefault((kind, cell), ReadTimes())

    def rows(self, kind: ReadKind) -> list[TailRow]:
        """The rows of one kind of reads, by condition; cells without a read are left out."""
        found = ((cell, self.by_cell.get((kind, cell))) for cell in blocks(0))
        return [
            TailRow(kind, cell, percentiles(times.took_us), times.extra_part, times.failed)
            for cell, times in found
            if times is not None and times.took_us
        ]


def titles(fan_out: int) -> dict[ReadKind, str]:
    """What the reads are, in words."""
    return {"search": f"a search over all {fan_out} shards", "batch": f"a batch of {fan_out} keys, one of each shard"}


def tail_picture(rows: Sequence[TailRow], width: int = 38) -> list[str]:
    """Bars of p50 and p99: the arms of a condition below each other."""
    largest = max((row.times.p99 for row in rows), default=0.0)
    lines, previous = list[str](), ""
    for row in rows:
        name = row.cell.condition.name
        label, previous = (name if name != previous else ""), name
        for percentile_name, value in (("p50", row.times.p50), ("p99", row.times.p99)):
            arm = row.cell.arm.name if percentile_name == "p50" else ""
            lines.append(
                f"{label if arm else '':>13} {arm:<7} {percentile_name} {bar(value, largest, width)} {value:.2f} ms".rstrip()
            )
    return lines


def tail_legend() -> str:
    """What the names in tables and pictures mean."""
    conditions = "; ".join(f"[bold]{condition.name}[/]: {condition.title}" for condition in CONDITIONS)
    return (
        f"{conditions}. [bold]Without[/] defences a read asks a random replica of each shard, and another one only when that "
        "fails. [bold]With[/] them, which is the default, it asks one that does not keep others waiting, and another one too "
        "where the answer is late, within a budget. Both get the same reads and the same pauses, in blocks that take turns."
    )


def tail_explanation(samples: TailSamples) -> str:
    """What the tables show and how far they carry, in plain words and with their own numbers; empty without searches."""
    rows = {(row.cell.condition, row.cell.arm): row for row in samples.rows("search")}
    if len(rows) < len(CONDITIONS) * len(ARMS):
        return ""
    p99 = {key: f"{row.times.p99:.1f} ms" for key, row in rows.items()}
    pairs = "; ".join(f"{each.name}, {p99[each, WITHOUT]} without and {p99[each, WITH]} with" for each in CONDITIONS)
    n = min(row.times.n for row in rows.values())
    failed = sum(times.failed for times in samples.by_cell.values())
    return (
        f"p99 of a search: {pairs}. The smallest n is {n:,}, so {_requests(n // 100)} beyond that p99: a picture, not a "
        "benchmark; `make amplification` takes thousands of requests. Times run from the instant at which a read was due, this "
        "program's timer included, which may be a millisecond late."
        + (f" {failed:,} reads failed and count as their whole timeout." if failed else "")
    )


def _requests(count: int) -> str:
    return f"{count:,} request{' lies' if count == 1 else 's lie'}" if count else "no request lies"


_COLOURS = {WITHOUT: ("#fdd0a2", "#fd8d3c", "#d94801"), WITH: ("#9ecae1", "#4292c6", "#08519c")}
"""p50, p90, p99."""


@dataclass(frozen=True, slots=True)
class _Panel:
    """One kind of reads in the drawing. left: where its bars begin."""

    rows: Sequence[TailRow]
    title: str
    left: int

    @property
    def largest(self) -> float:
        return max((row.times.p99 for row in self.rows), default=0.0) or 1.0


_LABELS, _BARS, _GAP, _TOP, _STEP = 180, 270, 90, 72, 54


def tail_svg(samples: TailSamples, fan_out: int) -> str:
    """The picture as a self-contained SVG document: searches on the left, batches on the right, each on its own scale."""
    kinds = [kind for kind in READ_KINDS if samples.rows(kind)]
    panels = [
        _Panel(samples.rows(kind), titles(fan_out)[kind], _LABELS + index * (_BARS + _GAP)) for index, kind in enumerate(kinds)
    ]
    lines = max((len(panel.rows) for panel in panels), default=0)
    width, height = _LABELS + len(panels) * (_BARS + _GAP), _TOP + lines * _STEP + (lines // len(ARMS)) * 12 + 18
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        '<text x="12" y="24" font-weight="bold">Latency without and with the defences: p50, p90, p99 in ms</text>',
    ]
    for index, panel in enumerate(panels):
        parts.append(f'<text x="{panel.left}" y="52">{panel.title}{_n_text(panel.rows)}</text>')
        parts += _bars(panel, has_labels=index == 0)
    meaning = "; ".join(f"{condition.name}: {condition.title}" for condition in CONDITIONS if condition.kind is not None)
    parts.append(f'<text x="12" y="{height - 12}" font-size="11">{meaning}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _n_text(rows: Sequence[TailRow]) -> str:
    counts = [row.times.n for row in rows]
    few, many = min(counts), max(counts)
    return f", n = {few:,} each" if few == many else f", n = {few:,} to {many:,}"


def _bars(panel: _Panel, *, has_labels: bool) -> Iterator[str]:
    top = _TOP
    for index, row in enumerate(panel.rows):
        is_first = index == 0 or panel.rows[index - 1].cell.condition != row.cell.condition
        top += 12 if is_first and index else 0
        if has_labels and is_first:
            yield f'<text x="12" y="{top + 12}" font-weight="bold">{row.cell.condition.name}</text>'
        if has_labels:
            yield f'<text x="{_LABELS - 10}" y="{top + 26}" text-anchor="end">{row.cell.arm.name}</text>'
        values = (("p50", row.times.p50), ("p90", row.times.p90), ("p99", row.times.p99))
        for line, ((name, value), colour) in enumerate(zip(values, _COLOURS[row.cell.arm], strict=True)):
            y, length = top + line * 15, value / panel.largest * _BARS
            yield f'<rect x="{panel.left}" y="{y}" width="{length:.1f}" height="12" fill="{colour}"/>'
            yield f'<text x="{panel.left + length + 6:.1f}" y="{y + 10}" font-size="11">{name} {value:.2f}</text>'
        top += _STEP
