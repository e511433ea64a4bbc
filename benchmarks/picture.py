"""Comparisons as a picture: how fast each arm was, and whose processor time one of its operations took. Needs matplotlib."""

import textwrap
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter

from benchmarks.drawing import QUIET, as_svg
from benchmarks.measured import CLIENT, Comparison, Measured

OURS, THEIRS = "#0b7a75", "#8795a6"
"""Arms of kvshard, and of everybody else."""

ROLE_COLOURS = {
    CLIENT: "#b7791f", "router": "#0b7a75", "leaves": "#7fc4bf", "twemproxy": "#7c3aed",
    "redis": "#d9480f", "etcd": "#2563eb", "echo": "#8795a6",
}  # fmt: skip
OTHER_ROLE = "#be185d"
_BAR = 0.62
_ROW_IN = 0.42
_FRAME_IN = 1.2
"""Inches of a bar, and of a panel's title and axis."""

_TITLE_WIDTH = 62
"""Characters of a line of a title: more would run into the panel beside it."""


def comparisons(found: Sequence[Comparison]) -> str:
    """One row a comparison: rates on the left, processor time by operation on the right."""

    def draw(axes: Sequence[Axes]) -> None:
        for row, compared in enumerate(found):
            arms = list(compared.arms.values())
            _rates(axes[2 * row], compared, arms)
            _processor_time(axes[2 * row + 1], arms)

    most = max(len(compared.arms) for compared in found)
    return as_svg(draw, panels=2 * len(found), height=_FRAME_IN + _ROW_IN * most, columns=2, width=12.0)


def _rates(panel: Axes, compared: Comparison, arms: Sequence[Measured]) -> None:
    rates = [arm.rate for arm in arms]
    below = [arm.rate - min(arm.rates) for arm in arms]
    above = [max(arm.rates) - arm.rate for arm in arms]
    colours = [OURS if arm.name.startswith("kvshard") else THEIRS for arm in arms]
    panel.barh(range(len(arms)), rates, _BAR, color=colours, xerr=[below, above], ecolor=QUIET, capsize=2)
    panel.set_yticks(range(len(arms)), [arm.name for arm in arms])
    panel.invert_yaxis()
    for place, arm in enumerate(arms):
        panel.annotate(
            f"{arm.rate:,.0f}", (max(arm.rates), place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5
        )
    panel.set_xlim(0, max(max(arm.rates) for arm in arms) * 1.22)
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1e3:g}k" if value >= 1e3 else f"{value:g}"))
    _bars_only(panel)
    panel.set_title("\n".join(textwrap.wrap(compared.title, _TITLE_WIDTH)))
    panel.set_xlabel(f"{compared.unit}: median of {len(arms[0].blocks)} blocks, the slowest and the fastest")


def _processor_time(panel: Axes, arms: Sequence[Measured]) -> None:
    used = [arm.processor_us() for arm in arms]
    roles = list(dict.fromkeys(role for each in used for role in each))
    starts = [0.0] * len(arms)
    for role in roles:
        widths = [each.get(role, 0.0) for each in used]
        panel.barh(range(len(arms)), widths, _BAR, left=starts, color=ROLE_COLOURS.get(role, OTHER_ROLE), label=role)
        starts = [start + width for start, width in zip(starts, widths, strict=True)]
    for place, total in enumerate(starts):
        panel.annotate(_short(total), (total, place), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8.5)
    panel.set_yticks(range(len(arms)), [""] * len(arms))
    panel.invert_yaxis()
    panel.set_xlim(0, max(starts) * 1.45)  # Room for the legend.
    _bars_only(panel)
    panel.set_title("processor time of one operation")
    panel.set_xlabel("us, all processes of the arm")
    panel.legend(loc="center right", fontsize=8.5)


def _bars_only(panel: Axes) -> None:
    panel.grid(visible=False, axis="y")
    panel.set_axisbelow(True)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
