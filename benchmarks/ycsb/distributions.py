"""Which record an operation asks for: the distributions of YCSB's core workloads.

Zipfian is drawn as in Gray et al., "Quickly generating billion-record synthetic databases" (SIGMOD 1994), with YCSB's constant
of 0.99. Scrambled zipfian draws from ten billion items and hashes what it drew, so that the popular records lie scattered and
stay the same while records are added. Latest prefers what was inserted last.

Pure: imports only the standard library.
"""

import math
from collections.abc import Callable
from random import Random

ZIPFIAN_CONSTANT = 0.99
SCRAMBLED_ITEMS = 10_000_000_000
SCRAMBLED_ZETA = 26.46902820178302
"""The sum of i ** -0.99 for i from 1 to SCRAMBLED_ITEMS; the most popular record gets one request in so many."""

_FNV_OFFSET_BASIS = 0xCBF29CE484222325
_FNV_PRIME = 1_099_511_628_211
_MASK = (1 << 64) - 1
_SIGN = 1 << 63


def fnv_hash(value: int) -> int:
    """The hash that YCSB scatters records by: 64-bit FNV-1a of eight bytes, low byte first, without its sign as in Java."""
    hashed = _FNV_OFFSET_BASIS
    for _ in range(8):
        hashed = ((hashed ^ (value & 0xFF)) * _FNV_PRIME) & _MASK
        value >>= 8
    return (1 << 64) - hashed if hashed & _SIGN else hashed


def zeta(items: int, since: int = 0, total: float = 0.0) -> float:
    """The sum of i ** -ZIPFIAN_CONSTANT for i from 1 to items; goes on from the total of the first `since` of them."""
    return total + sum(math.pow(i, -ZIPFIAN_CONSTANT) for i in range(since + 1, items + 1))


class Zipfian:
    """Numbers from 0, the smaller the likelier: number k with a probability of (k + 1) ** -0.99 / zeta.

    Their count may grow from draw to draw; the sum goes on from where it was.
    """

    def __init__(self, items: int, rng: Random, zeta_of_items: float | None = None) -> None:
        """zeta_of_items: their sum, if it is known; computing it takes 0.1 s for a million items."""
        self._random = rng.random
        self._alpha = 1.0 / (1.0 - ZIPFIAN_CONSTANT)
        self._second = 1.0 + 0.5**ZIPFIAN_CONSTANT
        self._items = 0
        self._zeta = 0.0
        self._eta = 0.0
        self._install(items, zeta(items) if zeta_of_items is None else zeta_of_items)

    def _install(self, items: int, zeta_of_items: float) -> None:
        if items < 1:
            raise ValueError(f"there is nothing to draw from: {items} items")
        self._items, self._zeta = items, zeta_of_items
        # With two items or fewer the two likeliest are all there is.
        rest = 1.0 - self._second / zeta_of_items
        self._eta = (1.0 - (2.0 / items) ** (1.0 - ZIPFIAN_CONSTANT)) / rest if items > 2 else 0.0

    def draw(self, items: int | None = None) -> int:
        """The next number. items: how many there are from now on; never fewer than before. Raises ValueError for fewer."""
        if items is not None and items != self._items:
            if items < self._items:
                raise ValueError(f"{items} items are fewer than the {self._items} before")
            self._install(items, zeta(items, self._items, self._zeta))
        chance = self._random()
        place = chance * self._zeta
        if place < 1.0 or self._items == 1:
            return 0
        if place < self._second or self._items == 2:
            return 1
        drawn = int(self._items * (self._eta * chance - self._eta + 1.0) ** self._alpha)
        return min(drawn, self._items - 1)


class ScrambledZipfian:
    """Numbers below `items`, each as popular as any other on average, a few of them very much so."""

    def __init__(self, items: int, rng: Random) -> None:
        self._items = items
        self._zipfian = Zipfian(SCRAMBLED_ITEMS, rng, SCRAMBLED_ZETA)

    def draw(self) -> int:
        """The next number."""
        return fnv_hash(self._zipfian.draw()) % self._items


class Latest:
    """Numbers up to the newest, which is the likeliest."""

    def __init__(self, newest: Callable[[], int], rng: Random) -> None:
        """newest: the greatest number that there is; it only grows."""
        self._newest = newest
        self._zipfian = Zipfian(newest() + 1, rng)

    def draw(self) -> int:
        """The next number."""
        newest = self._newest()
        return newest - self._zipfian.draw(newest + 1)
