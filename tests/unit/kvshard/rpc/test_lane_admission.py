"""What a leaf takes on, and what it knows of how long messages lay before it read them."""

import pytest

from kvshard.errors import KvShardError, ResourceExhausted
from kvshard.rpc.lane_admission import (
    BASE_WINDOW_S,
    HEDGE_WAIT_S,
    INTERVAL_S,
    MAX_WAIT_S,
    RETRY_MAX_MS,
    RETRY_MIN_MS,
    LaneAdmission,
    MessageWait,
    StandingWait,
)


def details(refusal: KvShardError | None) -> tuple[int | None, int | None]:
    assert isinstance(refusal, ResourceExhausted)
    return refusal.details.limit, refusal.details.retry_after_ms


class TestMessageWait:
    def test_what_took_longer_than_the_quickest_has_waited(self) -> None:
        wait = MessageWait()
        offset = 5_000.0  # the two clocks tell nothing of each other
        assert wait.of(0.0 + offset, 0.003) == 0.0
        assert wait.of(1.0 + offset, 1.001) == 0.0
        assert wait.of(1.1 + offset, 1.151) == pytest.approx(0.05)
        assert wait.of(1.2 + offset, 1.201) == pytest.approx(0.0)

    def test_the_quickest_is_forgotten_after_two_windows(self) -> None:
        wait = MessageWait()
        wait.of(0.0, 0.001)
        now = 0.001
        while now < 2 * BASE_WINDOW_S + 0.1:
            now += 0.1
            last = wait.of(now - 0.021, now)  # the way has become longer by 20 ms
        assert last == pytest.approx(0.0)

    def test_a_drift_over_an_idle_hour_is_no_wait(self) -> None:
        wait = MessageWait()
        wait.of(0.0, 0.001)
        assert wait.of(3_599.0, 3_600.0) == 0.0

    def test_a_clock_that_stood_still_is_no_wait(self) -> None:
        wait = MessageWait()
        wait.of(10.0, 10.0)
        step = MAX_WAIT_S + 1.0
        assert wait.of(10.5, 10.5 + step) == 0.0
        assert wait.of(10.6, 10.65 + step) == pytest.approx(0.05)

    def test_a_pause_is_a_wait_of_those_that_came_meanwhile(self) -> None:
        wait = MessageWait()
        wait.of(1.0, 1.0)
        resumed = 1.5
        waits = [wait.of(sent, resumed) for sent in (1.1, 1.2, 1.49)]
        assert waits == pytest.approx([0.4, 0.3, 0.01])


class TestStandingWait:
    def test_a_burst_does_not_stand(self) -> None:
        standing = StandingWait()
        for now in (0.0, 0.05, 0.12, 0.16, 0.22):
            standing.note(0.03 if now > 0.1 else 0.0, now)
        assert standing.seconds(0.22) == pytest.approx(0.03)
        standing.note(0.0, 0.23)
        assert standing.seconds(0.24) == 0.0

    def test_a_wait_that_nobody_was_spared_stands(self) -> None:
        standing = StandingWait()
        for turn in range(4):
            standing.note(0.02 + turn / 1_000, turn * INTERVAL_S * 0.7)
        assert standing.seconds(3 * INTERVAL_S * 0.7) == pytest.approx(0.021, abs=0.002)

    def test_a_silence_ends_it(self) -> None:
        standing = StandingWait()
        for turn in range(4):
            standing.note(0.02, turn * INTERVAL_S)
        assert standing.seconds(3 * INTERVAL_S) == pytest.approx(0.02)
        assert standing.seconds(10 * INTERVAL_S) == 0.0
        assert StandingWait().seconds(1.0) == 0.0


class TestLaneAdmission:
    def test_requests_are_bounded(self) -> None:
        admission = LaneAdmission(max_requests=2, max_bytes=100)
        for _ in range(2):
            assert admission.refusal(1, 0) is None
            admission.enter(1)
        assert details(admission.refusal(1, 0)) == (2, RETRY_MIN_MS)
        admission.leave(1, 0.0)
        assert admission.refusal(1, 0) is None
        assert repr(admission) == "LaneAdmission(requests=1, bytes=1, refused=1+0)"

    def test_bytes_are_bounded_but_a_single_large_request_gets_in(self) -> None:
        admission = LaneAdmission(max_requests=10, max_bytes=100)
        assert admission.refusal(500, 0) is None
        admission.enter(500)
        assert admission.refusal(1, 0) is not None
        admission.leave(500, 0.0)
        admission.enter(60)
        assert admission.refusal(41, 0) is not None
        assert admission.refusal(40, 0) is None

    def test_a_lane_takes_no_more_than_it_leaves(self) -> None:
        admission = LaneAdmission(max_requests=100)
        mine = 0
        while admission.refusal(1, mine) is None:
            admission.enter(1)
            mine += 1
        assert mine == 51
        theirs = 0
        while admission.refusal(1, theirs) is None:
            admission.enter(1)
            theirs += 1
        assert theirs == 25
        assert admission.requests < 100, "a third one still gets in"
        assert admission.refusal(1, 0) is None

    def test_hedges_are_refused_from_half_of_a_bound_on(self) -> None:
        admission = LaneAdmission(max_requests=4, max_bytes=100)
        admission.enter(1)
        assert admission.hedge_refusal(0.0) is None
        admission.enter(1)
        assert details(admission.hedge_refusal(0.0)) == (None, RETRY_MIN_MS)
        assert admission.refusal(1, 0) is None
        admission.leave(1, 0.0)
        admission.leave(1, 0.0)
        admission.enter(50)
        assert admission.hedge_refusal(0.0) is not None
        assert admission.hedges_refused == 2
        assert admission.refused == 0

    def test_hedges_are_refused_while_a_queue_stands(self) -> None:
        admission = LaneAdmission()
        for turn in range(12):
            admission.standing.note(HEDGE_WAIT_S * 4, turn * 0.02)
        refusal = admission.hedge_refusal(0.22)
        assert details(refusal) == (None, 20)
        assert admission.refusal(1, 0) is None
        admission.standing.note(0.0, 0.23)
        assert admission.hedge_refusal(0.24) is None

    def test_the_hint_when_to_come_again_is_half_the_time_that_requests_are_held(self) -> None:
        admission = LaneAdmission(max_requests=1)
        for held_s in [0.2] * 1_000:
            admission.enter(1)
            admission.leave(1, held_s)
        assert admission.retry_after_ms == pytest.approx(100, abs=1)
        for held_s in [60.0] * 1_000:
            admission.enter(1)
            admission.leave(1, held_s)
        assert admission.retry_after_ms == RETRY_MAX_MS
