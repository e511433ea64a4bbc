"""Measured requests, played again in the order in which they were measured: the weather of a cluster.

`LegVectors` keeps what the legs of one request have in common. More is in common than that, and all of it decides what a
defence is worth:
- legs that go to the same leaf travel in one message and end together, so a request that asks fewer leaves has fewer chances to
  meet a slow one: the legs of a leaf take what the measured legs of *one leaf* took;
- what makes a leaf slow (its processor is taken) makes its neighbours and the next moment slow too: a hedge takes what a leg
  took *so much later*, and one request follows the other as it did.

Which leaf plays which is decided request by request, in the order in which they are asked: in a healthy cluster one is like the
other, and what the leaves of one request have in common is worth more than their names.

Each measured request is used as often as every other, so that a mean over requests stays one: drawing by instants would prefer
those that come after a gap, which are the fast ones.

Pure: imports only the standard library and other pure files.
"""

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.tail.whatif.latency import LONGEST_S


@dataclass(frozen=True, slots=True)
class MeasuredRequest:
    """at: when it began, in seconds of any clock. legs: (leaf, seconds) of each. beyond_s: what it took beyond the slowest."""

    at: float
    legs: tuple[tuple[int, float], ...]
    beyond_s: float = 0.0


class Replay:
    """Requests in the order in which they began."""

    def __init__(self, requests: Sequence[MeasuredRequest]) -> None:
        self.requests = sorted((each for each in requests if each.legs), key=lambda each: each.at)
        if not self.requests:
            raise _bad("no measured request has a leg")
        values = (value for each in self.requests for value in (each.beyond_s, *(seconds for _, seconds in each.legs)))
        if any(not 0 <= value <= LONGEST_S for value in values):
            raise _bad(f"a measured leg takes between 0 and {LONGEST_S:g} s")
        self._instants = [each.at for each in self.requests]
        self._lumps = [_by_leaf(each) for each in self.requests]
        self._leaves = sorted({leaf for lumps in self._lumps for leaf in lumps})
        self._widest = max(len(each.legs) for each in self.requests)
        self._next = 0

    def __repr__(self) -> str:
        return f"Replay({len(self.requests)} requests, {self.samples} legs, {len(self._leaves)} leaves)"

    @property
    def samples(self) -> int | None:
        """Legs measured."""
        return sum(len(each.legs) for each in self.requests)

    def attempt(self, rng: Random) -> float:
        """The time of any leg of any request."""
        return rng.choice(rng.choice(self.requests).legs)[1]

    def request(self, rng: Random, legs: int) -> "ReplayedTimes":
        """Those of the next measured request. One of fewer legs takes a part of it, and leaves it to the next one."""
        times = ReplayedTimes(self, self._next)
        if legs >= self._widest:
            self._next = (self._next + 1) % len(self.requests)
        return times

    def leaves_of(self, place: int) -> Sequence[int]:
        """The leaves that the request of that place asked, and then the others."""
        asked = self._lumps[place]
        return [*asked, *(leaf for leaf in self._leaves if leaf not in asked)]

    def lump(self, place: int, leaf: int) -> Sequence[float]:
        """What the legs at a leaf took: of the request of that place, or of the next one that asked it."""
        while True:
            found = self._lumps[place % len(self._lumps)].get(leaf)
            if found is not None:
                return found
            place += 1

    def place_after(self, place: int, age_s: float) -> int:
        """The place of the first request that began so long after the one of that place; of the last one, if there is none."""
        at = self._instants[place] + age_s
        return min(bisect_left(self._instants, at, place), len(self._instants) - 1)


class ReplayedTimes:
    """The times of one request: those of the measured one of that place."""

    __slots__ = ("_asked", "_place", "_played", "_replay")

    def __init__(self, replay: Replay, place: int) -> None:
        self._replay = replay
        self._place = place
        self._played: dict[int, int] = {}
        self._asked: dict[int, int] = {}

    @property
    def beyond_s(self) -> float:
        """What the measured request took beyond its slowest leg."""
        return self._replay.requests[self._place].beyond_s

    def first(self, number: int, leaf: int) -> float:
        """What a leg took at the leaf that is played by that one; one after the other, and then from the start."""
        lump = self._replay.lump(self._place, self._measured(leaf))
        asked = self._asked.get(leaf, 0)
        self._asked[leaf] = asked + 1
        return lump[asked % len(lump)]

    def further(self, rng: Random, leaf: int, age_s: float) -> float:
        """What a leg took there so much later."""
        return rng.choice(self._replay.lump(self._replay.place_after(self._place, age_s), self._measured(leaf)))

    def _measured(self, leaf: int) -> int:
        """The measured leaf that is played by this one: the first that nobody plays yet; any, if there are too few."""
        found = self._played.get(leaf)
        if found is None:
            leaves, taken = self._replay.leaves_of(self._place), self._played.values()
            found = next((each for each in leaves if each not in taken), leaves[len(taken) % len(leaves)])
            self._played[leaf] = found
        return found


def _by_leaf(request: MeasuredRequest) -> Mapping[int, Sequence[float]]:
    lumps: dict[int, list[float]] = {}
    for leaf, seconds in request.legs:
        lumps.setdefault(leaf, []).append(seconds)
    return lumps


def _bad(message: str) -> InvalidArgument:
    return InvalidArgument(message, ErrorDetails(field="distribution"))
