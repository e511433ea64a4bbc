"""Where the time of a read went: one row a leg, who was asked when, and which leg was the straggler.

While a read is under way its account (`ReadTimes`) only collects what was measured anyway; the rows are made when somebody
wants to see them: the caller with explain_timing, or the slow log.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from kvshard.tail.leg_events import AttemptRecord


@dataclass(frozen=True, slots=True)
class LegTime:
    """One leg. leaf: whose answer was used, empty when the leg failed. total_us: from the first attempt to the outcome.

    queue_us, service_us: of the winning request, as its leaf measured them. ended_at: instant of the outcome on the router's
    monotonic clock, in seconds. network_us: what it took from the start of the winning attempt on beyond queue and service: on
    the wire, and waiting for its turn in either process. What is missing to the total went by before that attempt.
    tries: the attempts in the order of asking, empty when the first one answered and nothing else happened. refused: why
    hedges were not sent, each reason once.
    """

    shard: int
    leaf: str
    attempts: int
    total_us: int
    queue_us: int
    service_us: int
    ended_at: float
    network_us: int = 0
    tries: tuple[AttemptRecord, ...] = ()
    refused: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """The ledger of one answer. straggler_shard: the shard whose leg ended last; None when there was no leg.

    legs_omitted: legs that are not among `legs`. before_us: what went by before the first leg was sent.
    """

    legs: tuple[LegTime, ...]
    total_us: int
    merge_us: int
    straggler_shard: int | None
    legs_omitted: int = 0
    before_us: int = 0

    def cut(self, max_legs: int) -> "Timing":
        """The same with only the slowest legs."""
        if len(self.legs) <= max_legs:
            return self
        slowest = sorted(self.legs, key=lambda leg: (-leg.total_us, leg.shard))[:max_legs]
        legs = tuple(sorted(slowest, key=lambda leg: leg.shard))
        return replace(self, legs=legs, legs_omitted=self.legs_omitted + len(self.legs) - max_legs)


class TimedLeg(Protocol):
    """A leg that has ended; `kvshard.scatter.scatter.LegResult` is one."""

    @property
    def shard(self) -> int:
        """Its shard."""
        ...

    @property
    def total_us(self) -> int:
        """From the first attempt to the outcome."""
        ...

    def as_time(self) -> LegTime:
        """Its row."""
        ...


class ReadTimes:
    """The account of one read under way. began: when its call arrived, on the router's monotonic clock.

    fan_out: legs of its largest round. answered_at: when the first part of a stream was ready; None: the answer is one piece.
    paused_s: how long its stream waited for the reader.
    """

    __slots__ = ("answered_at", "began", "fan_out", "gathered_at", "legs", "paused_s")

    def __init__(self, began: float) -> None:
        self.began = began
        self.fan_out = 0
        self.legs: list[TimedLeg] = []
        self.gathered_at: float | None = None
        self.answered_at: float | None = None
        self.paused_s = 0.0

    def add(self, legs: Sequence[TimedLeg], now: float) -> None:
        """A round of legs has ended now; what follows is merging, until another round ends."""
        self.legs += legs
        self.fan_out = max(self.fan_out, len(legs))
        self.gathered_at = now

    def took_s(self, now: float) -> float:
        """How long the read has been under way; time in which its stream waited for the reader is not counted."""
        return now - self.began - self.paused_s

    def answered_in_s(self, now: float) -> float:
        """How long its caller waited: for the whole answer, or for the first part of a stream."""
        return (now if self.answered_at is None else self.answered_at) - self.began

    def leg_times_us(self) -> list[int]:
        """How long each leg took."""
        return [leg.total_us for leg in self.legs]

    def timing(self, now: float) -> Timing:
        """The ledger, if the answer is ready now."""
        merge_s = 0.0 if self.gathered_at is None else now - self.gathered_at
        made = timing_of((leg.as_time() for leg in self.legs), micros(self.took_s(now)), micros(merge_s))
        first_at = min((leg.ended_at - leg.total_us / 1e6 for leg in made.legs), default=self.began)
        return replace(made, before_us=max(0, micros(first_at - self.began)))


class ScanTimes(ReadTimes):
    """The account of a scan: one row a shard, summed over the chunks that were fetched from it, so that it stays small.

    leaf, tries and refused are those of the shard's slowest chunk. The straggler is the shard that took the most time in all.
    fan_out: shards that were asked.
    """

    __slots__ = ("_first_us", "_rows", "_slowest_us", "_waited_s")

    def __init__(self, began: float) -> None:
        super().__init__(began)
        self._rows: dict[int, LegTime] = {}
        self._slowest_us: dict[int, int] = {}
        self._first_us: list[int] = []
        self._waited_s = 0.0

    def add(self, legs: Sequence[TimedLeg], now: float) -> None:
        """Chunks have come, or failed to."""
        for leg in legs:
            row, sum_ = leg.as_time(), self._rows.get(leg.shard)
            if sum_ is None:
                self._rows[leg.shard] = row
                self._slowest_us[leg.shard] = row.total_us
                self._first_us.append(row.total_us)
                continue
            is_slowest = row.total_us >= self._slowest_us[leg.shard]
            if is_slowest:
                self._slowest_us[leg.shard] = row.total_us
            self._rows[leg.shard] = _sum(sum_, row, row if is_slowest else sum_)
        self.fan_out = len(self._rows)

    def waited(self, seconds: float) -> None:
        """Nothing could be done meanwhile: the chunks of some shard were missing."""
        self._waited_s += seconds

    def leg_times_us(self) -> list[int]:
        """How long the first chunk of each shard took; the reader of a stream waits for these."""
        return self._first_us

    def timing(self, now: float) -> Timing:
        """The ledger, if the scan ends now. What was not waiting for chunks counts as merging."""
        took_s = self.took_s(now)
        made = timing_of(self._rows.values(), micros(took_s), micros(took_s - self._waited_s))
        slowest = max(made.legs, key=lambda leg: (leg.total_us, leg.shard), default=None)
        return replace(made, straggler_shard=None if slowest is None else slowest.shard)


def _sum(sum_: LegTime, row: LegTime, telling: LegTime) -> LegTime:
    return LegTime(
        shard=row.shard,
        leaf=telling.leaf,
        attempts=sum_.attempts + row.attempts,
        total_us=sum_.total_us + row.total_us,
        queue_us=sum_.queue_us + row.queue_us,
        service_us=sum_.service_us + row.service_us,
        ended_at=row.ended_at,
        network_us=sum_.network_us + row.network_us,
        tries=telling.tries,
        refused=telling.refused,
    )


def timing_of(legs: Iterable[LegTime], total_us: int, merge_us: int) -> Timing:
    """The ledger of these legs, in shard order; of legs that ended together the higher shard is the straggler."""
    rows = tuple(sorted(legs, key=lambda leg: leg.shard))
    straggler = max(rows, key=lambda leg: (leg.ended_at, leg.shard), default=None)
    return Timing(rows, total_us, merge_us, None if straggler is None else straggler.shard)


def network_of(total_us: int, queue_us: int, service_us: int, tries: Sequence[AttemptRecord]) -> int:
    """What a leg took from the start of its winning attempt on, beyond the leaf's queue and service; 0 without a winner."""
    began_us = 0
    if tries:
        won = next((each for each in tries if each.outcome == "won"), None)
        if won is None:
            return 0
        began_us = micros(won.began_s)
    return max(0, total_us - began_us - queue_us - service_us)


def micros(seconds: float) -> int:
    """A length in whole microseconds, never negative."""
    return max(0, round(seconds * 1_000_000))
