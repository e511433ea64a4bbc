"""What `kvshard whatif` shows: rows of figures, bars for the terminal, curves for a browser.

Pure: imports only the standard library and other pure files. Takes predictions in seconds, shows milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log10
from xml.sax.saxutils import escape

from kvshard.cli.demo_report import bar
from kvshard.tail.whatif.order_statistics import share_of_slow_requests
from kvshard.tail.whatif.prediction import Prediction
from kvshard.tail.whatif.tail_at_scale import Comparison, table_1_contradicts_itself

PERCENTILES = (0.5, 0.9, 0.99, 0.999)
"""Shown as figures and bars."""

STEADY = 10
"""Requests beyond a percentile that make it steady; with fewer it is marked with "~", with none it is left out."""

CURVE = (0.0, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999)
"""Where the curves have their points."""

COLOURS = ("#08519c", "#e6550d", "#31a354", "#756bb1", "#636363")
"""One a fan-out; beyond the last they begin anew."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One fan-out: without any defence, and with those that were asked for."""

    without: Prediction
    with_defences: Prediction

    @property
    def fan_out(self) -> int:
        """Legs of a request."""
        return self.without.setting.fan_out


def time_text(seconds: float) -> str:
    """Milliseconds with three digits that say something."""
    ms = seconds * 1000
    return f"{ms:.0f}" if ms >= 100 else f"{ms:.1f}" if ms >= 10 else f"{ms:.2f}"


def percentile_text(found: Prediction, fraction: float) -> str:
    """A gathered percentile, marked where it stands on too few requests or measured values."""
    beyond = found.requests * (1 - fraction)
    if beyond < 1:
        return "-"
    text = time_text(found.gathered.quantile(fraction) or 0.0)
    return f"~{text}" if beyond < STEADY or found.is_beyond_the_samples(fraction) else text


def table_rows(pairs: Sequence[Pair]) -> list[tuple[str, ...]]:
    """(fan-out, defences, p50, p90, p99, p99.9, amplification, extra requests, failures, n), two rows a fan-out."""
    rows = []
    for pair in pairs:
        for found, label in ((pair.without, f"{pair.fan_out:,}"), (pair.with_defences, "")):
            rows.append(
                (
                    label,
                    found.arm,
                    *(percentile_text(found, fraction) for fraction in PERCENTILES),
                    f"{found.amplification:.1f}",
                    f"{found.extra_fraction:.2%}",
                    f"{found.failures:,}",
                    f"{found.requests:,}",
                )
            )
    return rows


def theory_text(pairs: Sequence[Pair]) -> str:
    """What fan-out does by itself."""
    parts = (f"{share_of_slow_requests(0.01, pair.fan_out):.0%} at fan-out {pair.fan_out:,}" for pair in pairs)
    return f"If 1 leg in 100 is slow, 1 - 0.99^n of the requests wait for a slow leg: {', '.join(parts)}."


def notes(pairs: Sequence[Pair]) -> list[str]:
    """What a reader has to know about the figures."""
    found = [each for pair in pairs for each in (pair.without, pair.with_defences)]
    lines = []
    if any(percentile_text(each, fraction).startswith("~") for each in found for fraction in PERCENTILES):
        lines.append(f"~ fewer than {STEADY} requests, or measured values of a leg, lie beyond this percentile.")
    refused = {reason: count for reason, count in pairs[-1].with_defences.refused.items() if count}
    if refused:
        texts = ", ".join(f"{reason} {count:,}" for reason, count in sorted(refused.items(), key=lambda item: -item[1]))
        lines.append(f"Hedges refused at fan-out {pairs[-1].fan_out:,}: {texts}.")
    return lines


def picture(pair: Pair, width: int = 48) -> list[str]:
    """Bars on a logarithmic scale: each percentile without and with the defences."""
    shown = [(each, fraction) for fraction in PERCENTILES for each in (pair.without, pair.with_defences)]
    shown = [(each, fraction) for each, fraction in shown if each.requests * (1 - fraction) >= 1]
    values = [each.gathered.quantile(fraction) or 1e-7 for each, fraction in shown]
    floor = log10(min(values)) - 0.25
    name_width = max(len(each.arm) for each, _ in shown)
    lines = [f"fan-out {pair.fan_out:,}, logarithmic scale"]
    for (each, fraction), value in zip(shown, values, strict=True):
        label = f"p{fraction * 100:g}" if each is pair.without else ""
        drawn = bar(log10(value) - floor, log10(max(values)) - floor, width)
        lines.append(f"{label:>6} {each.arm:<{name_width}} {drawn} {percentile_text(each, fraction)} ms")
    return lines


def comparison_rows(found: Sequence[Comparison]) -> list[tuple[str, ...]]:
    """(figure, published, ours, difference, how)."""
    return [
        (each.figure, _value(each.published, each.unit), _value(each.ours, each.unit), _off(each), each.note) for each in found
    ]


def contradiction_text() -> str:
    """Why no model has all of Table 1."""
    possible, published = table_1_contradicts_itself()
    return (
        "The rows of 95 % of the leaves cannot be reached by any model of the first row, whatever legs have in common: a "
        f"random leg exceeds 10 ms once in 100 times, so at most {possible:.0%} of the requests can have 5 % of their legs "
        f"beyond 10 ms; the published median says that {published:.0%} have them beyond 12 ms. The rows must be of different "
        "requests."
    )


def _off(each: Comparison) -> str:
    return "0 %" if abs(each.deviation) < 0.005 else f"{each.deviation * 100:+.0f} %"


def _value(value: float, unit: str) -> str:
    return f"{time_text(value)} ms" if unit == "s" else f"{value:.1%}"


def svg(pairs: Sequence[Pair], title: str) -> str:
    """Latency by percentile, both on logarithmic scales; dashed without defences, solid with them. Self-contained."""
    curves = [(pair.fan_out, each, each is pair.without) for pair in pairs for each in (pair.without, pair.with_defences)]
    points = [(fan_out, is_without, _curve(each)) for fan_out, each, is_without in curves]
    values = [seconds * 1000 for _, _, curve in points for _, seconds in curve]
    low, high = log10(min(values)) - 0.05, log10(max(values)) + 0.05
    furthest = max(place for _, _, curve in points for place, _ in curve)
    frame = _Frame(low, max(high, low + 0.5), max(furthest, 1.0))
    colours = {pair.fan_out: COLOURS[index % len(COLOURS)] for index, pair in enumerate(pairs)}
    parts = [*_head(title), *_axes(frame)]
    for fan_out, is_without, curve in points:
        path = " ".join(f"{frame.x(place):.1f},{frame.y(log10(seconds * 1000)):.1f}" for place, seconds in curve)
        dash = ' stroke-dasharray="5 4"' if is_without else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colours[fan_out]}" stroke-width="2"{dash}/>')
    for line, (fan_out, each, is_without) in enumerate(curves):
        dash = ' stroke-dasharray="5 4"' if is_without else ""
        y = 52 + 17 * line
        parts.append(f'<line x1="82" x2="112" y1="{y}" y2="{y}" stroke="{colours[fan_out]}" stroke-width="2"{dash}/>')
        text = f"fan-out {fan_out:,}, {each.arm}: p99 {time_text(each.p99)} ms, n = {each.requests:,}"
        parts.append(f'<text x="120" y="{y + 4}" font-size="11">{escape(text)}</text>')
    return "\n".join([*parts, "</svg>", ""])


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where the plot lies. low, high: decimal logarithms of milliseconds. furthest: -log10(1 - percentile) at the right end."""

    low: float
    high: float
    furthest: float
    left: float = 66.0
    right: float = 700.0
    top: float = 36.0
    bottom: float = 400.0

    def x(self, place: float) -> float:
        return self.left + place / self.furthest * (self.right - self.left)

    def y(self, value: float) -> float:
        return self.bottom - (value - self.low) / (self.high - self.low) * (self.bottom - self.top)


def _curve(found: Prediction) -> list[tuple[float, float]]:
    """(-log10(1 - percentile), seconds), as far as a request lies beyond."""
    fractions = [fraction for fraction in CURVE if found.requests * (1 - fraction) >= 1]
    return [(-log10(1 - fraction), found.gathered.quantile(fraction) or 1e-7) for fraction in fractions]


def _head(title: str) -> list[str]:
    return [
        '<svg xmlns="http://www.w3.org/2000/svg" width="720" height="450" viewBox="0 0 720 450" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="66" y="22" font-weight="bold">{escape(title)}</text>',
    ]


def _axes(frame: _Frame) -> list[str]:
    parts = []
    for fraction in (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999):
        place = -log10(1 - fraction)
        if place <= frame.furthest + 1e-9:
            x = frame.x(place)
            parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{frame.top}" y2="{frame.bottom}" stroke="#ddd"/>')
            parts.append(f'<text x="{x:.1f}" y="{frame.bottom + 18}" text-anchor="middle">p{fraction * 100:g}</text>')
    for power in range(-4, 8):
        for digit in (1, 2, 5):
            value = log10(digit) + power
            if frame.low <= value <= frame.high:
                y = frame.y(value)
                parts.append(f'<line x1="{frame.left}" x2="{frame.right}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>')
                text = f"{digit * 10.0**power:g} ms"
                parts.append(f'<text x="{frame.left - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
    middle = (frame.left + frame.right) / 2
    return [*parts, f'<text x="{middle}" y="{frame.bottom + 40}" text-anchor="middle">percentile of the gathered answer</text>']
