import pytest

from kvshard.errors import ResourceExhausted
from kvshard.rpc.lane_admission import RETRY_MIN_MS
from leaf.admission import HEDGE_WAIT_S, SearchQueue


def running(queue: SearchQueue, searches: int, run_s: float) -> SearchQueue:
    """The queue with so many searches in it, which has learnt that one takes so long."""
    for _ in range(1_000):
        queue.note_run(run_s)
    for _ in range(searches):
        assert queue.refusal(60.0) is None
        queue.enter()
    return queue


def test_searches_are_bounded() -> None:
    queue = running(SearchQueue(threads=2, searches_max=3), 3, 0.001)
    refusal = queue.refusal(60.0)
    assert isinstance(refusal, ResourceExhausted)
    assert refusal.details.limit == 3
    assert refusal.details.retry_after_ms == RETRY_MIN_MS
    queue.leave()
    assert queue.refusal(60.0) is None
    assert repr(queue) == "SearchQueue(searches=2, run_ms=1.0, refused=1)"


@pytest.mark.parametrize(("searches", "wait_s"), [(0, 0.0), (1, 0.0), (2, 0.05), (5, 0.2)])
def test_the_wait_is_what_must_end_first(searches: int, wait_s: float) -> None:
    assert running(SearchQueue(threads=2), searches, 0.1).wait_s == pytest.approx(wait_s)


def test_a_search_that_would_begin_too_late_is_refused_while_it_can_go_elsewhere() -> None:
    queue = running(SearchQueue(threads=2), 5, 0.1)
    assert queue.refusal(0.21) is None
    refusal = queue.refusal(0.19)
    assert isinstance(refusal, ResourceExhausted)
    assert refusal.details.retry_after_ms == pytest.approx(100, abs=1)


def test_an_idle_leaf_takes_any_search_however_long_others_took() -> None:
    assert running(SearchQueue(threads=2), 1, 30.0).refusal(0.001) is None


def test_hedges_go_first() -> None:
    by_count = running(SearchQueue(threads=2, searches_max=8), 4, 0.0)
    assert by_count.hedge_refusal() is not None
    assert by_count.refusal(60.0) is None
    by_count.leave()
    assert by_count.hedge_refusal() is None
    by_wait = running(SearchQueue(threads=2), 3, HEDGE_WAIT_S * 1.01)
    refusal = by_wait.hedge_refusal()
    assert isinstance(refusal, ResourceExhausted)
    assert refusal.details.retry_after_ms == pytest.approx(20, abs=1)
    by_wait.leave()
    assert by_wait.hedge_refusal() is None
