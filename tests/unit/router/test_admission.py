"""What a router takes on: bounds of calls and bytes, and a share refused by how long calls wait."""

from random import Random

import pytest

from kvshard.errors import ResourceExhausted, Unavailable
from router.admission import CALM_DECAY_PER_S, MAX_SHARE, RETRY_MAX_MS, RETRY_MIN_MS, TARGET_S, RouterAdmission


def made(**bounds: int) -> RouterAdmission:
    return RouterAdmission(Random(7), **bounds)


def test_calls_are_bounded() -> None:
    admission = made(max_calls=2)
    for _ in range(2):
        assert admission.refusal(1) is None
        admission.enter(1)
    refusal = admission.refusal(1)
    assert isinstance(refusal, ResourceExhausted)
    assert refusal.details.limit == 2
    assert refusal.details.retry_after_ms == RETRY_MIN_MS
    admission.leave(1)
    assert admission.refusal(1) is None
    assert (admission.arrived, admission.refused) == (4, 1)
    assert repr(admission) == "RouterAdmission(calls=1, bytes=1, wait=0 ms, share=0.00, refused=1)"


def test_bytes_are_bounded_but_a_single_large_call_gets_in() -> None:
    admission = made(max_bytes=100)
    assert admission.refusal(500) is None
    admission.enter(500)
    assert admission.refusal(1) is not None
    admission.leave(500)
    admission.enter(60)
    assert admission.refusal(41) is not None
    assert admission.refusal(40) is None


def test_a_short_wait_refuses_nobody_however_it_jumps() -> None:
    admission = made()
    for turn in range(200):
        admission.note_wait(TARGET_S * (0.9 if turn % 2 else 0.01), turn * 0.1)
        assert admission.share == 0.0


def test_a_router_that_was_stopped_for_a_moment_refuses_nobody() -> None:
    """All that came meanwhile has waited for long; but it is over soon, and who is refused comes back much later."""
    admission, now = made(), 5.0
    admission.note_wait(0.001, now)
    for wait_s in (1.0, 0.8, 0.5, 0.3, 0.1, 0.001):
        now += 0.025
        admission.note_wait(wait_s, now)
        assert admission.share == 0.0


def test_an_overload_that_is_over_is_forgotten_soon() -> None:
    admission, now = made(), 0.0
    while admission.share < 0.3:
        now += 0.025
        admission.note_wait(0.5, now)
    ended = now
    while admission.share > 0.01:
        now += 0.025
        admission.note_wait(0.001, now)
    assert now - ended < 2 / CALM_DECAY_PER_S


def test_the_share_stays_below_its_bound_and_says_when_to_come_again() -> None:
    admission = made()
    for turn in range(100):
        admission.note_wait(0.1 * turn, 0.1 * turn)
        assert 0.0 <= admission.share <= MAX_SHARE
    assert admission.share == MAX_SHARE
    refusals = [refusal for _ in range(1_000) if (refusal := admission.refusal(1)) is not None]
    assert len(refusals) == pytest.approx(950, abs=30)
    assert refusals[0].details.retry_after_ms == RETRY_MAX_MS
    assert refusals[0].details.limit is None


def settle(load: float, cost: float, seconds: float = 10.0) -> tuple[list[float], float]:
    """The waits of the last half, and the part of what a router can do that was of use then.

    load: what comes, by what can be done. cost of a refusal, by that of an answer. Fluid, in steps of 1 ms; one probe at a
    time, which tells of the wait that it has had itself.
    """
    admission, noise = made(), Random(3)
    wait_s, now, send_at, waits, useful = 0.0, 0.0, 0.0, list[float](), 0.0
    probe: tuple[float, float] | None = None
    while now < seconds:
        refused = admission.share
        wait_s = max(0.0, wait_s + 0.001 * (load * (1 - refused + refused * cost) - 1))
        if probe is None and now >= send_at:
            probe = now + wait_s, max(0.0, wait_s + noise.gauss(0, 0.005))
        if probe is not None and now >= probe[0]:
            admission.note_wait(probe[1], now)
            probe, send_at = None, now + 0.025
        if now >= seconds / 2:
            waits.append(wait_s)
            useful += 0.001 * min(load * (1 - refused), 1 - load * refused * cost)
        now += 0.001
    return waits, useful / (seconds / 2)


@pytest.mark.parametrize(("load", "cost"), [(1.1, 0.1), (1.1, 0.35), (1.2, 0.2), (1.5, 0.35), (2.0, 0.35), (2.5, 0.2)])
def test_an_overload_settles_at_the_target(load: float, cost: float) -> None:
    waits, useful = settle(load, cost)
    assert min(waits) > 0.8 * TARGET_S
    assert max(waits) < 1.3 * TARGET_S
    # What is left after the refusals that are needed: hardly anything is refused beyond them.
    assert useful > 0.93 * (1 - cost * load) / (1 - cost)


def test_nobody_is_refused_at_nine_tenths_of_what_can_be_done() -> None:
    waits, useful = settle(0.9, 0.2)
    assert max(waits) == 0.0
    assert useful == pytest.approx(0.9, abs=0.001)


def test_who_comes_to_one_that_stops_is_told_so_and_the_last_one_to_leave_ends_it() -> None:
    admission, told = made(), []
    for _ in range(2):
        admission.enter(1)
    admission.stop(lambda: told.append(admission.calls))
    refusal = admission.refusal(1)
    assert isinstance(refusal, Unavailable)
    assert refusal.details.retry_after_ms == RETRY_MIN_MS
    admission.leave(1)
    assert not told
    admission.leave(1)
    assert told == [0]


def test_an_idle_one_has_stopped_at_once() -> None:
    admission, told = made(), []
    admission.stop(lambda: told.append(admission.calls))
    assert told == [0]
