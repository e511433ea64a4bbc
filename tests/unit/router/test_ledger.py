"""The ledger: rows in shard order, the straggler, no leg at all."""

from router.ledger import LegTime, Timing, micros, timing_of


def leg(shard: int, ended_at: float) -> LegTime:
    return LegTime(shard, "leaf-1", 1, 100, 10, 50, ended_at)


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
