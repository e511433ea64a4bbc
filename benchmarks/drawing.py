"""Pictures as SVG that stand in a page or in a file of their own: no script, no network, sharp at every size.

Ink and grid are variables of the page's style, so that they follow the reader's light or dark scheme. Needs matplotlib.
"""

import io
import re
from collections.abc import Callable, Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = "#1f2933"
FAINT = "#d5dbe3"
QUIET = "#7b8794"

_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "kvshard",  # The same data give the same bytes.
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.5,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": QUIET,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "lines.solid_capstyle": "round",
}


def as_svg(
    draw: Callable[[Sequence[Axes]], None],
    *,
    panels: int,
    height: float,
    columns: int = 3,
    width: float = 10.4,
    is_shared: bool = False,
) -> str:
    """The figure that `draw` makes, as an SVG element. width, height: in inches, the height of one row of panels."""
    columns = min(columns, panels)
    rows = -(-panels // columns)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height * rows), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, sharey=is_shared)
        used = list(axes.flat)
        for spare in used[panels:]:
            spare.set_visible(False)
        draw(used[:panels])
        target = io.StringIO()
        figure.savefig(target, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return as_element(target.getvalue())


def standalone(element: str) -> str:
    """An SVG element of a page as a file: with the light colours, on white."""
    text = re.sub(r"var\(--\w+, (#[0-9a-f]{6})\)", r"\1", element)
    text = re.sub(r"(<svg[^>]*>)", r'\1<rect width="100%" height="100%" fill="#ffffff"/>', text, count=1)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}'


def as_element(svg: str) -> str:
    """The SVG without its prologue, as wide as its place, with the page's own colours for ink and grid."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1 width="100%"', svg, count=1)
    for colour, name in ((INK, "ink"), (FAINT, "grid"), (QUIET, "quiet")):
        svg = svg.replace(colour, f"var(--{name}, {colour})")
    return svg
