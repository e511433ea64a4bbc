"""What the demo makes of its measurements: percentiles, the amplification by fan-out, a picture for the terminal.

Pure: imports only the standard library. Takes microseconds, gives numbers and text; measuring and printing is `demo_steps.py`.
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
    slowest: float


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
    return Percentiles(len(ordered), p50, p90, p99, ordered[-1] / 1000)


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

    @property
    def widest_mean_s(self) -> float:
        """What a search over the most shards takes on average, in seconds."""
        widest = self.answers[max(self.answers)]
        return sum(widest) / len(widest) / 1e6

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
        f"leg is asked at one of its shard's {replicas} replicas, and at another one too when that is late."
    )
