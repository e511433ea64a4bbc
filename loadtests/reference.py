"""What single legs take in the healthy cluster: from it the what-if model predicts the cells.

The legs of whole requests as the router's ledger times them, and what a request takes beyond its slowest leg. A request that is
timed leg by leg takes longer itself (rows are made, sent and read), so every fourth is not, and the difference is taken off.

The choice of replicas changes what legs take, faults or not: those that join others at a leaf save messages. So there is a
reference for each choice that the cells use.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from kvshard.client.results import Timing
from kvshard.tail.whatif.replay import MeasuredRequest, Replay

PLAIN_EVERY = 4
"""One request in so many is not timed: enough for a median that is known to a few percent."""


@dataclass(slots=True)
class Reference:
    """Requests to all shards, without faults and defences. In seconds.

    leaves: their names, by number. requests: those that were timed leg by leg; plain: what the others took. network_s: the part
    of each leg that was neither queue nor service. slept: what a delay takes that is injected, by what it was to take: the
    event loop's timers are no finer than a millisecond.
    """

    leaves: tuple[str, ...] = ()
    requests: list[MeasuredRequest] = field(default_factory=list)
    timed: list[float] = field(default_factory=list)
    plain: list[float] = field(default_factory=list)
    networks: list[float] = field(default_factory=list)
    slept: dict[float, float] = field(default_factory=dict)

    def add(self, timing: Timing, at: float, seconds: float) -> None:
        """Note a request that was timed: when it began, and how long it took.

        A shard that was asked again (a page of a search may take that) counts by its first leg; the second time comes after the
        legs, and is what the request took beyond them.
        """
        legs = tuple((self.leaves.index(leg.leaf), leg.total_us / 1e6) for leg in timing.first_legs)
        self.requests.append(MeasuredRequest(at, legs, max(0.0, seconds - max(taken for _, taken in legs))))
        self.timed.append(seconds)
        self.networks += [leg.network_us / 1e6 for leg in timing.legs]

    def add_plain(self, seconds: float) -> None:
        """Note one that was not."""
        self.plain.append(seconds)

    @property
    def network_s(self) -> float:
        """The median of the part of a leg that is neither queue nor service."""
        return median(self.networks) if self.networks else 0.0

    @property
    def timing_s(self) -> float:
        """What the timing itself takes of a request."""
        return max(0.0, median(self.timed) - median(self.plain)) if self.timed and self.plain else 0.0

    def replay(self) -> Replay:
        """For the model."""
        timing_s = self.timing_s
        beyond = (max(0.0, each.beyond_s - timing_s) for each in self.requests)
        return Replay([MeasuredRequest(each.at, each.legs, left) for each, left in zip(self.requests, beyond, strict=True)])

    def as_record(self) -> dict[str, Any]:
        """Plain data for JSON, in microseconds."""
        return {
            "leaves": list(self.leaves),
            "requests": [
                [_us(each.at), _us(each.beyond_s), [leaf for leaf, _ in each.legs], [_us(seconds) for _, seconds in each.legs]]
                for each in self.requests
            ],
            "timed": [_us(seconds) for seconds in self.timed],
            "plain": [_us(seconds) for seconds in self.plain],
            "network": _us(self.network_s),
            "slept": [[_us(wanted), _us(taken)] for wanted, taken in self.slept.items()],
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Reference":
        """What `as_record` wrote. Raises KeyError, TypeError, ValueError for anything else."""
        requests = [
            MeasuredRequest(at / 1e6, tuple(zip(leaves, _seconds(taken), strict=True)), beyond / 1e6)
            for at, beyond, leaves, taken in record["requests"]
        ]
        slept = {wanted / 1e6: taken / 1e6 for wanted, taken in record["slept"]}
        return cls(
            tuple(record["leaves"]), requests, _seconds(record["timed"]), _seconds(record["plain"]),
            [record["network"] / 1e6], slept,
        )  # fmt: skip


def _us(seconds: float) -> int:
    return round(seconds * 1e6)


def _seconds(microseconds: Sequence[int]) -> list[float]:
    return [each / 1e6 for each in microseconds]
