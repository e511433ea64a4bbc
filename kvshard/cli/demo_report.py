"""What the demo makes of its measurements: percentiles, the amplification by fan-out, pictures for terminal and browser.

Pure: imports only the standard library. Takes microseconds, gives numbers and text; measuring and printing is `demo.py`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

FAN_OUTS = (1, 2, 4, 8)
"""Shards asked by one search. Doubling shows the trend; 8 is every shard of the demo's cluster."""

_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class Percentiles:
    """A distribution in milliseconds, with the number of samples it stands on."""

    n: int
    p50: float
    p90: float
    p99: float


def percentile(ordered: Sequence[float], fraction: float) -> float:
    """Nearest-rank percentile of ascending values: the smallest one that at least this fraction of them does not exceed."""
    assert ordered
    assert 0.0 < fraction <= 1.0
    # The rounding keeps 0.99 * 100 = 99.00000000000001 from becoming rank 100.
    return ordered[math.ceil(round(fraction * len(ordered), 9)) - 1]


def percentiles(values_us: Sequence[int]) -> Percentiles:
    """The percentiles of raw microseconds; no value is dropped or averaged."""
    ordered = sorted(values_us)
    p50, p90, p99 = (percentile(ordered, fraction) / 1000 for fraction in (0.50, 0.90, 0.99))
    return Percentiles(len(ordered), p50, p90, p99)


@dataclass(frozen=True, slots=True)
class FanOutRow:
    """Searches of one fan-out. amplification: p99 of the answer / p99 of a leg that was asked alone, in the same run."""

    fan_out: int
    legs: Percentiles
    answers: Percentiles
    amplification: float


@dataclass(slots=True)
class FanOutSamples:
    """Raw times of one run, in microseconds, by fan-out."""

    answers: dict[int, list[int]] = field(default_factory=dict)
    legs: dict[int, list[int]] = field(default_factory=dict)

    def add(self, fan_out: int, answer_us: int, legs_us: Sequence[int]) -> None:
        """One search: the time of the gathered answer and of each of its legs."""
        assert len(legs_us) == fan_out
        self.answers.setdefault(fan_out, []).append(answer_us)
        self.legs.setdefault(fan_out, []).extend(legs_us)

    @property
    def single_leg(self) -> Percentiles:
        """A leg that was asked alone: those of fan-out 1, where no sibling competes with it for the cores."""
        return percentiles(self.legs[1])

    def rows(self) -> list[FanOutRow]:
        """A row a fan-out, ascending."""
        single = self.single_leg
        return [
            FanOutRow(fan_out, percentiles(self.legs[fan_out]), answers, answers.p99 / max(single.p99, 0.001))
            for fan_out, answers in sorted((fan_out, percentiles(values)) for fan_out, values in self.answers.items())
        ]


def rotated(items: Sequence[int], turn: int) -> list[int]:
    """The items, begun at another one each turn, so that each stands at every place equally often."""
    start = turn % len(items)
    return [*items[start:], *items[:start]]


def query_words(counts: dict[str, int], documents: int) -> list[str]:
    """Words worth searching for, most frequent first: in 10 to 5 % of the documents, so neither a typo nor a stop word."""
    most = max(10, documents // 20)
    return sorted((word for word, count in counts.items() if 10 <= count <= most), key=lambda word: (-counts[word], word))


def bar(value: float, largest: float, width: int) -> str:
    """A horizontal bar in eighths of a character; what is above zero is never invisible."""
    eighths = round(value / largest * width * 8) if largest > 0 else 0
    if value > 0:
        eighths = max(1, eighths)
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def picture(single: Percentiles, rows: Sequence[FanOutRow], width: int = 48) -> list[str]:
    """Bars of p50 and p99: the single leg, then the gathered answer of each fan-out."""
    largest = max(single.p99, *(row.answers.p99 for row in rows))
    entries = [("one leg alone", single), *((f"fan-out {row.fan_out}", row.answers) for row in rows)]
    lines = []
    for label, values in entries:
        for name, value in (("p50", values.p50), ("p99", values.p99)):
            shown = label if name == "p50" else ""
            lines.append(f"{shown:>13} {name} {bar(value, largest, width)} {value:.2f} ms")
    return lines


def explanation(samples: FanOutSamples, cores: int, replicas: int) -> str:
    """What the table shows and what it does not, in plain words and with its own numbers."""
    rows, single = samples.rows(), samples.single_leg
    last = rows[-1]
    return (
        f"A search over {last.fan_out} shards is answered when the slowest of its {last.fan_out} legs is: its p99 is "
        f"{last.answers.p99:.1f} ms where one leg asked alone has {single.p99:.1f} ms, an amplification of "
        f"{last.amplification:.1f}. Two things add up in it: waiting for the slowest leg, and {last.fan_out} legs sharing "
        f"{cores} cores with the router and this program (p99 of a leg among {last.fan_out}: {last.legs.p99:.1f} ms). Each "
        f"leg is asked at one of its shard's {replicas} replicas, and at another one when that fails or is silent for 100 ms."
    )


def svg(single: Percentiles, rows: Sequence[FanOutRow]) -> str:
    """The picture as a self-contained SVG document."""
    entries = [("one leg alone", single), *((f"fan-out {row.fan_out}", row.answers) for row in rows)]
    largest = max(values.p99 for _, values in entries) or 1.0
    left, width, step = 120, 480, 58
    height = 60 + step * len(entries)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 100}" height="{height}" '
        'font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="24" font-weight="bold">Search latency by fan-out (n = {rows[-1].answers.n} each), ms</text>',
    ]
    for index, (label, values) in enumerate(entries):
        top = 44 + step * index
        parts.append(f'<text x="{left - 10}" y="{top + 20}" text-anchor="end">{label}</text>')
        shown = (("p50", values.p50, "#9ecae1"), ("p90", values.p90, "#4292c6"), ("p99", values.p99, "#08519c"))
        for line, (name, value, colour) in enumerate(shown):
            y, length = top + line * 15, value / largest * width
            parts.append(f'<rect x="{left}" y="{y}" width="{length:.1f}" height="12" fill="{colour}"/>')
            parts.append(f'<text x="{left + length + 6:.1f}" y="{y + 10}" font-size="11">{name} {value:.2f}</text>')
    return "\n".join([*parts, "</svg>", ""])
