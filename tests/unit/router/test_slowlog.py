"""The slow log: what gets in, what makes room, how far back it reaches."""

from random import Random

import pytest

from kvshard.scatter.ledger import timing_of
from router.slowlog import KEPT_PER_SLICE, METHODS, SLICE_S, SLICES, SlowLog, SlowRead

NOW = 10 * SLICE_S


def read(took_s: float, method: str = "Get") -> SlowRead:
    return SlowRead(0, method, "default", "", "OK", timing_of([], round(took_s * 1e6), 0))


def offer(log: SlowLog, took_s: float, now: float = NOW, method: str = "Get") -> bool:
    is_wanted = log.wants(method, took_s, now)
    if is_wanted:
        log.add(read(took_s, method), took_s, now)
    return is_wanted


def kept_ms(log: SlowLog, now: float = NOW, limit: int = 1000, method: str = "") -> list[float]:
    return [each.timing.total_us / 1000 for each in log.slowest(limit, now, method)]


def test_the_slowest_are_kept_whatever_their_order() -> None:
    log, times = SlowLog(), [number / 1000 for number in range(1, 501)]
    Random(3).shuffle(times)
    for took_s in times:
        offer(log, took_s)
    assert kept_ms(log) == [float(number) for number in range(500, 500 - KEPT_PER_SLICE, -1)]
    assert kept_ms(log, limit=2) == [500.0, 499.0]


def test_the_bar_rises_so_that_fast_reads_cost_only_a_comparison() -> None:
    log = SlowLog()
    assert all(offer(log, 0.001) for _ in range(KEPT_PER_SLICE))
    assert not log.wants("Get", 0.001, NOW)
    assert not log.wants("Get", 0.0005, NOW)
    assert log.wants("Get", 0.0011, NOW)


def test_an_outlier_keeps_nobody_out_for_longer_than_a_slice() -> None:
    log = SlowLog()
    for _ in range(KEPT_PER_SLICE):
        offer(log, 9.0)
    assert not log.wants("Get", 1.0, NOW + SLICE_S - 1)
    assert offer(log, 1.0, NOW + SLICE_S)
    assert kept_ms(log, NOW + SLICE_S)[-1] == 1000.0


def test_each_method_has_a_bar_of_its_own() -> None:
    log = SlowLog()
    for _ in range(KEPT_PER_SLICE):
        offer(log, 9.0, method="Scan")
    assert offer(log, 0.002)
    assert kept_ms(log, method="Get") == [2.0]
    assert len(log.slowest(1000, NOW)) == KEPT_PER_SLICE + 1


@pytest.mark.parametrize(("later", "is_shown"), [((SLICES - 1) * SLICE_S, True), (SLICES * SLICE_S, False)])
def test_old_reads_are_forgotten_also_when_nothing_comes_after_them(later: float, is_shown: bool) -> None:
    log = SlowLog()
    offer(log, 0.5)
    assert bool(log.slowest(10, NOW + later)) == is_shown


def test_it_is_bounded() -> None:
    log = SlowLog()
    for slice_ in range(3 * SLICES):
        for method in METHODS:
            for number in range(2 * KEPT_PER_SLICE):
                offer(log, number / 1000, NOW + slice_ * SLICE_S, method)
    assert len(log) == len(METHODS) * SLICES * KEPT_PER_SLICE


def test_reset() -> None:
    log = SlowLog()
    offer(log, 0.5)
    log.clear()
    assert (len(log), log.slowest(10, NOW)) == (0, [])
    assert offer(log, 0.1)
