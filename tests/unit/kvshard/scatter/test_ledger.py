"""The ledger: rows in shard order, the straggler, where a leg's time went, the sums of a scan."""

from dataclasses import replace

import pytest

from kvshard.scatter.ledger import LegTime, ReadTimes, ScanTimes, Timing, micros, network_of, timing_of
from kvshard.tail.leg_events import AttemptKind, AttemptRecord


def leg(shard: int, ended_at: float = 1.0, total_us: int = 100, leaf: str = "leaf-1") -> LegTime:
    return LegTime(shard, leaf, 1, total_us, 10, 50, ended_at, 40)


class EndedLeg:
    """A leg that counts how often its row is made."""

    def __init__(self, row: LegTime) -> None:
        self.row = row
        self.shard = row.shard
        self.total_us = row.total_us
        self.made = 0

    def as_time(self) -> LegTime:
        self.made += 1
        return self.row


def ended(*rows: LegTime) -> list[EndedLeg]:
    return [EndedLeg(row) for row in rows]


def test_rows_in_shard_order_and_straggler_by_end() -> None:
    timing = timing_of([leg(2, 5.0), leg(0, 7.0), leg(1, 6.0)], 900, 30)
    assert [row.shard for row in timing.legs] == [0, 1, 2]
    assert timing.straggler_shard == 0


def test_tie_goes_to_the_higher_shard() -> None:
    assert timing_of([leg(1, 5.0), leg(2, 5.0)], 1, 1).straggler_shard == 2


def test_no_legs() -> None:
    assert timing_of([], 5, 1) == Timing((), 5, 1, None)


def test_micros_is_never_negative() -> None:
    assert micros(0.0015) == 1500
    assert micros(-1e-9) == 0


def test_a_cut_keeps_the_slowest_legs_and_counts_the_rest() -> None:
    timing = timing_of([leg(shard, total_us=shard) for shard in range(10)], 900, 30)
    cut = timing.cut(3)
    assert [row.shard for row in cut.legs] == [7, 8, 9]
    assert (cut.legs_omitted, cut.straggler_shard) == (7, 9)
    assert cut.cut(2).legs_omitted == 8
    assert timing.cut(10) is timing


FIRST = AttemptRecord("leaf-1", AttemptKind.FIRST, 0.0, 0.0008, "cancelled")
HEDGE = AttemptRecord("leaf-2", AttemptKind.HEDGE, 0.0003, 0.0008, "won")


@pytest.mark.parametrize(
    ("tries", "expected"),
    [
        ((), 480),
        ((FIRST, HEDGE), 180),
        ((FIRST, replace(HEDGE, outcome="unavailable")), 0),
        ((FIRST, replace(HEDGE, began_s=0.0006)), 0),
        ((replace(FIRST, outcome="won"), replace(HEDGE, outcome="cancelled")), 480),
    ],
)
def test_network_is_what_the_winner_took_beyond_queue_and_work(tries: tuple[AttemptRecord, ...], expected: int) -> None:
    assert network_of(800, 20, 300, tries) == expected


def test_a_read_makes_no_row_until_somebody_asks() -> None:
    times = ReadTimes(10.0)
    legs = ended(leg(1, 10.2), leg(0, 10.3))
    times.add(legs, 10.3)
    assert (times.took_s(10.5), times.answered_in_s(10.5), times.fan_out) == (0.5, 0.5, 2)
    assert times.leg_times_us() == [100, 100]
    assert [each.made for each in legs] == [0, 0]
    timing = times.timing(10.5)
    assert (timing.total_us, timing.merge_us, timing.straggler_shard) == (500_000, 200_000, 0)
    assert timing.before_us == 199_900, "the first leg was sent 100 us before 10.2"


def test_rounds_of_a_read_are_kept_side_by_side() -> None:
    times = ReadTimes(0.0)
    times.add(ended(leg(0), leg(1)), 1.0)
    times.add(ended(leg(1, 2.0)), 2.0)
    assert [row.shard for row in times.timing(2.5).legs] == [0, 1, 1]
    assert (times.fan_out, times.timing(2.5).merge_us) == (2, 500_000)
    assert ReadTimes(0.0).timing(1.0).before_us == 0, "nobody was asked"


def test_a_scan_has_one_row_a_shard_which_tells_of_its_slowest_chunk() -> None:
    times = ScanTimes(0.0)
    times.add(ended(leg(0, 0.1, 100, "leaf-1"), leg(1, 0.1, 250, "leaf-1")), 0.1)
    times.add(ended(replace(leg(0, 0.2, 900, "leaf-2"), attempts=2, tries=(FIRST, HEDGE), refused=("budget",))), 0.2)
    times.add(ended(leg(0, 0.3, 100, "leaf-3")), 0.3)
    times.waited(0.25)
    first, second = times.timing(0.3).legs
    assert (first.total_us, first.queue_us, first.service_us, first.network_us, first.attempts) == (1100, 30, 150, 120, 4)
    assert (first.leaf, first.tries, first.refused) == ("leaf-2", (FIRST, HEDGE), ("budget",))
    assert (second.total_us, second.leaf) == (250, "leaf-1")
    timing = times.timing(0.3)
    assert (timing.straggler_shard, timing.total_us, timing.merge_us) == (0, 300_000, 50_000)
    assert (times.leg_times_us(), times.fan_out) == ([100, 250], 2)


def test_waiting_for_the_reader_is_not_the_scans_time() -> None:
    times = ScanTimes(0.0)
    times.answered_at = 0.2
    times.paused_s += 5.0
    assert times.took_s(6.0) == 1.0
    assert times.answered_in_s(6.0) == 0.2
    assert times.timing(6.0) == Timing((), 1_000_000, 1_000_000, None)
