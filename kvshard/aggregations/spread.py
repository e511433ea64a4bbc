"""Percentiles of values that were counted in parts: a histogram whose buckets widen by themselves, the same however it was
merged.

A value becomes a *code*, an integer that grows with it: the bits of the double, with its sign (so codes of equal distance are
relatively equally far apart, as in DDSketch and HdrHistogram); for dates their microseconds. While there are at most CODES_MAX
different codes each is kept, and percentiles are exact. With more, the lowest bits are cut off until there are no more than
that: neighbours fall together. Cutting commutes with adding up, and a union never has fewer codes than its parts: so the merge
of any parts is what one pass over the whole would have made.

With `shift` bits cut off, the middle of a code's interval is off by at most 2^(shift - 53) of the value (half a bucket), for
dates by 2^(shift - 1) microseconds. 4,096 codes over values that spread across ten octaves (1 to 1,000) are off by 0.2 %.

Pure: imports only the standard library and other pure files.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import ceil
from typing import Final

from kvshard.aggregations.doubles import code_of, double_of
from kvshard.aggregations.partial import Spread

CODES_MAX: Final = 4_096
"""Some 50 kB on the wire for each shard; dates over ten years are then off by at most twenty hours. As many as doubles have
exponents, with their signs: so never more than the bits of the mantissa are cut off, whatever the values are."""

_MANTISSA_BITS: Final = 52
_TINY: Final = 5e-308
"""Values nearer to 0 than this may be taken for 0: doubles are not relatively precise there."""


def spread_of(counts: Mapping[float, int], is_grid: bool) -> Spread:
    """The spread of values with how often each occurs. is_grid: they are integers whose distances matter, such as dates."""
    coded: dict[int, int] = {}
    for value, count in counts.items():
        code = int(value) if is_grid else code_of(value)
        coded[code] = coded.get(code, 0) + count
    ends = (min(counts), max(counts)) if counts else (None, None)
    return _fitted(coded, 0, is_grid, *ends)


def merge_spreads(parts: Sequence[Spread]) -> Spread:
    """The spread of all values together."""
    shift = max((part.shift for part in parts), default=0)
    coded: dict[int, int] = {}
    for part in parts:
        cut = shift - part.shift
        for code, count in part.counts.items():
            coded[code >> cut] = coded.get(code >> cut, 0) + count
    lows = [part.minimum for part in parts if part.minimum is not None]
    highs = [part.maximum for part in parts if part.maximum is not None]
    is_grid = any(part.is_grid for part in parts)
    return _fitted(coded, shift, is_grid, min(lows, default=None), max(highs, default=None))


def percentiles(spread: Spread, percents: Sequence[float]) -> list[float | None]:
    """For each, the least value that so many percent of the values do not exceed; None where there are no values."""
    codes = sorted(spread.counts)
    if not codes:
        return [None] * len(percents)
    reached = list(accumulate(spread.counts[code] for code in codes))
    low, high = spread.minimum, spread.maximum
    assert low is not None, "there are values"
    assert high is not None, "there are values"
    found: list[float | None] = []
    for percent in percents:
        rank = min(max(ceil(percent / 100 * reached[-1]), 1), reached[-1])
        middle = _middle(codes[bisect_left(reached, rank)], spread)
        found.append(low if rank == 1 else high if rank == reached[-1] else min(max(middle, low), high))
    return found


def relative_error(spread: Spread) -> float:
    """The most by which a percentile is off, as a part of it; 0: exact. Of dates: see `grid_error`."""
    return 0.0 if spread.is_grid or not spread.shift else float(2.0 ** (spread.shift - _MANTISSA_BITS - 1))


def grid_error(spread: Spread) -> int:
    """The most by which a percentile of dates is off, in microseconds; 0: exact."""
    return (1 << spread.shift) >> 1 if spread.is_grid else 0


def _fitted(coded: dict[int, int], shift: int, is_grid: bool, low: float | None, high: float | None) -> Spread:
    if len(coded) > CODES_MAX:
        # The more bits are cut off, the fewer codes are left.
        more = bisect_left(range(64 - shift), True, key=lambda bits: len({code >> bits for code in coded}) <= CODES_MAX)
        shift += more
        kept: dict[int, int] = {}
        for code, count in coded.items():
            kept[code >> more] = kept.get(code >> more, 0) + count
        coded = kept
    return Spread(coded, shift, is_grid, low, high)


def _middle(code: int, spread: Spread) -> float:
    first = code << spread.shift
    middle = first + ((1 << spread.shift) >> 1)
    if spread.is_grid:
        return middle if spread.shift else first
    value = double_of(middle)
    return 0.0 if spread.shift and abs(value) < _TINY else value
