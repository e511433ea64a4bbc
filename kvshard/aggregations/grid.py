"""The grid of a histogram: which position a value has, and where a position begins.

Pure: imports only the standard library and other pure files.
"""

from math import floor

from kvshard.aggregations.doubles import code_of, double_of


def position_of(value: float, interval: float, offset: float) -> int:
    """The number of the bucket that a value lies in."""
    return floor((value - offset) / interval)


def lower_edge(position: int, interval: float, offset: float) -> float:
    """The least double that has this position. It may lie beside position * interval + offset, since doubles are rounded."""

    def is_inside(code: int) -> bool:
        return (double_of(code) - offset) / interval >= position

    near = code_of(position * interval + offset)
    below = above = near
    step = 1
    while is_inside(below):
        below -= step
        step *= 2
    step = 1
    while not is_inside(above):
        above += step
        step *= 2
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if is_inside(middle) else (middle, above)
    return double_of(above)
