"""How many different values there are, counted in parts: HyperLogLog over 64-bit hashes (Flajolet et al. 2007).

Up to HASHES_MAX different hashes are kept as they are, and the count is exact (two of 4,096 values share a hash once in 10^12
times). With more, each hash sets one of 2^14 registers to the length of its run of zeros; the standard error is then 1.04 /
sqrt(2^14) = 0.81 %. The estimate is that of Otmar Ertl ("New cardinality estimation algorithms for HyperLogLog sketches", 2017,
his improved raw estimator), which needs no tables of corrections. Merging takes the union, or the larger register: in any order
it comes to the same.

Pure: imports only the standard library and other pure files.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from math import inf, log, sqrt
from typing import Final

from kvshard.aggregations.partial import Distinct

HASHES_MAX: Final = 4_096
"""As many bytes as two sets of registers: beyond it they are the smaller answer."""

_INDEX_BITS: Final = 14
REGISTERS: Final = 1 << _INDEX_BITS
_RUN_BITS: Final = 64 - _INDEX_BITS

STANDARD_ERROR: Final = 1.04 / sqrt(REGISTERS)


def distinct_of(hashes: Iterable[int]) -> Distinct:
    """Of the values with these 64-bit hashes."""
    different = set(hashes)
    if len(different) <= HASHES_MAX:
        return Distinct(sorted(different))
    return Distinct(registers=bytes(_registered(bytearray(REGISTERS), different)))


def merge_distinct(parts: Sequence[Distinct]) -> Distinct:
    """Of all values together."""
    different = {each for part in parts for each in part.hashes}
    dense = [part.registers for part in parts if part.registers]
    if not dense:
        return distinct_of(different)
    registers = bytearray(dense[0]) if len(dense) == 1 else bytearray(map(max, *dense))
    return Distinct(registers=bytes(_registered(registers, different)))


def is_exact(distinct: Distinct) -> bool:
    """Whether the count is exact."""
    return not distinct.registers


def count_of(distinct: Distinct) -> int:
    """How many different values there are."""
    return round(_estimate(distinct.registers)) if distinct.registers else len(distinct.hashes)


def _registered(registers: bytearray, hashes: Iterable[int]) -> bytearray:
    for each in hashes:
        index, run = each >> _RUN_BITS, each & ((1 << _RUN_BITS) - 1)
        zeros = _RUN_BITS - run.bit_length() + 1
        if zeros > registers[index]:
            registers[index] = zeros
    return registers


def _estimate(registers: bytes) -> float:
    counts = Counter(registers)
    sum_ = REGISTERS * _tau(1 - counts[_RUN_BITS + 1] / REGISTERS)
    for zeros in range(_RUN_BITS, 0, -1):
        sum_ = 0.5 * (sum_ + counts[zeros])
    sum_ += REGISTERS * _sigma(counts[0] / REGISTERS)
    return REGISTERS * REGISTERS / (2 * log(2) * sum_) if sum_ < inf else 0.0


def _sigma(x: float) -> float:
    """x + the sum of x^(2^k) 2^(k-1)."""
    if x == 1.0:
        return inf
    y, z, before = 1.0, x, -1.0
    while z != before:
        x *= x
        before = z
        z += x * y
        y += y
    return z


def _tau(x: float) -> float:
    """(1 - x - the sum of (1 - x^(2^-k))^2 2^-k) / 3."""
    if x in {0.0, 1.0}:
        return 0.0
    y, z, before = 1.0, 1 - x, -1.0
    while z != before:
        x = sqrt(x)
        before = z
        y *= 0.5
        z -= (1 - x) ** 2 * y
    return z / 3
