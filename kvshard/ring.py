"""The placement ring: in which order leaves are considered for a shard.

Every leaf has virtual nodes at hashed points of the 64-bit circle, in proportion to its weight; a shard walks the circle from
its own point and meets the leaves in an order of its own. When a leaf joins or goes, the order of the others among themselves
stays, which is what keeps movement small. The ring proposes; `placement.py` decides under its bounds.

Pure: imports only the standard library and other pure files.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kvshard import hashing

VIRTUAL_NODES_PER_WEIGHT = 64
"""A leaf's share of the circle deviates by about 1 / sqrt(virtual nodes) = 12 %. More is not worth its time: the bound on load
is kept by placement, not by the ring."""

VIRTUAL_NODES_MAX = 512
"""Per leaf, so that the ring is built in milliseconds whatever the unit of the weights. Above a weight of 8 leaves are equally
likely to be met first; the quotas of placement still see to it that each holds its share."""


@dataclass(frozen=True, slots=True)
class RingLeaf:
    """A leaf as the ring sees it. weight 0: it is never met."""

    id: str
    zone: str = ""
    weight: float = 1.0


class Ring:
    """A built ring; it does not change. Depends on the set of leaves and the seed only, not on their order."""

    def __init__(self, leaves: Sequence[RingLeaf], seed: int = 0) -> None:
        self._seed = seed
        self._zone_of = {leaf.id: leaf.zone for leaf in leaves if leaf.weight > 0}
        # Equal hashes of two names are possible: the name then decides, so that the order of the input never does.
        nodes = sorted(
            (hashing.point(f"leaf/{leaf.id}/{index}", seed), leaf.id) for leaf in leaves for index in range(_count(leaf))
        )
        self._points = [point for point, _ in nodes]
        self._owners = [leaf for _, leaf in nodes]

    def __repr__(self) -> str:
        return f"Ring({len(self._zone_of)} leaves, {len(self._points)} virtual nodes, seed={self._seed})"

    def walk(self, name: str) -> Iterator[str]:
        """Every leaf once, in the order in which a walk from the point of a name meets them."""
        met: set[str] = set()
        start = bisect_left(self._points, hashing.point(name, self._seed))
        for step in range(len(self._points)):
            leaf = self._owners[(start + step) % len(self._points)]
            if leaf not in met:
                met.add(leaf)
                yield leaf
                if len(met) == len(self._zone_of):
                    return

    def order(self, shard: int) -> tuple[str, ...]:
        """Every leaf once, in order of preference for a shard: the first met of each zone, then the second of each..."""
        seen_in: dict[str, int] = {}
        ranked: list[tuple[int, int, str]] = []
        for position, leaf in enumerate(self.walk(f"shard/{shard}")):
            zone = self._zone_of[leaf]
            ranked.append((seen_in.get(zone, 0), position, leaf))
            seen_in[zone] = seen_in.get(zone, 0) + 1
        return tuple(leaf for _, _, leaf in sorted(ranked))


def _count(leaf: RingLeaf) -> int:
    """Virtual nodes of a leaf; one that has any weight has at least one."""
    if leaf.weight <= 0:
        return 0
    return min(VIRTUAL_NODES_MAX, max(1, round(leaf.weight * VIRTUAL_NODES_PER_WEIGHT)))
