"""The legs of one search that come to a leaf together: each tells the others what it has, and looks before any is finished.

A search sends a leaf one leg for each of its shards, and they run one after the other on one thread (`leaf/search_pool.py`).
The first of them has tantivy look in the shards of all of them. Then it is known about which score the page will begin to end
(`leaf/joint_best.py`), and of each shard only those documents are scored exactly, read and sent that reach it: for a page of
ten from four shards some eleven instead of forty.
"""

from collections.abc import Callable
from math import inf
from typing import Final, Protocol

from kvshard.clock import Clock
from kvshard.model import ShardSearch, changed
from leaf.joint_best import JointBest

LEGS_MAX: Final = 8
"""Of one group: as many as share a thread."""

LOOK_AHEAD_S: Final = 0.005
"""Once the looks of a group have taken so long, the other legs look for themselves: a slow shard must not hide the others, and
in a long search little would be saved."""


class Leg(Protocol):
    """What looks in one shard."""

    def look(self) -> None:
        """Find the first hits, unless that is done. What fails is kept for the leg itself."""
        ...


class LegGroup:
    """Legs of one search. `join` belongs to the event loop, all else to the threads that run the legs."""

    def __init__(self, request: ShardSearch, clock: Clock) -> None:
        """request: of any of the legs; `together` of it is not 0."""
        self.best = JointBest(request.together)
        self._request = _of_any_shard(request)
        self._clock = clock
        self._legs: dict[int, Leg] = {}

    def __repr__(self) -> str:
        return f"LegGroup({sorted(self._legs)}, {self.best!r})"

    def join(self, request: ShardSearch, leg: Leg) -> bool:
        """Whether the leg is of this search; then it belongs to the group. Documents of a shard must not count twice."""
        if request.shard in self._legs or len(self._legs) >= LEGS_MAX or _of_any_shard(request) != self._request:
            return False
        self._legs[request.shard] = leg
        return True

    @property
    def bar(self) -> float:
        """The score that whatever is on the page reaches; -inf: not known, or there is one leg only."""
        return self.best.bar if len(self._legs) > 1 else -inf

    def look_ahead(self) -> None:
        """Have the legs look that have not done so."""
        began = self._clock.monotonic()
        for leg in list(self._legs.values()):
            leg.look()
            if self._clock.monotonic() - began > LOOK_AHEAD_S:
                break


class LegGroups:
    """Puts legs into groups that come within one pass of the event loop, as the pool does. call_soon: of the loop."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._gathered: dict[tuple[int, str, str], LegGroup] = {}

    def __repr__(self) -> str:
        return f"LegGroups({len(self._gathered)} gathered)"

    def group_of(self, request: ShardSearch, leg: Leg, call_soon: Callable[[Callable[[], object]], object]) -> LegGroup:
        """The group that this leg belongs to."""
        if not self._gathered:
            call_soon(self._gathered.clear)
        name = (request.collection_id, request.query, request.tree)
        group = self._gathered.get(name)
        if group is None or not group.join(request, leg):
            group = self._gathered[name] = LegGroup(request, self._clock)
            group.join(request, leg)
        return group


def _of_any_shard(request: ShardSearch) -> ShardSearch:
    """The request without what differs between the legs of a search."""
    return changed(request, shard=0, epoch=0, min_seqno=0, cuts=None)
