"""Whom the gate lets be asked, and when it is asked again."""

import pytest
from fakes.hedge_gate import OpenGate

from kvshard.tail.hedger import ASK_PAUSE_S, DOUBLINGS_MAX, Hedger
from kvshard.tail.hedging import Refusal
from kvshard.tail.leg_events import Candidate

A, B = Candidate("a"), Candidate("b")
NOW = 50.0
FAR = NOW + 1_000.0


def refused(reason: Refusal, times: int = 1, again_s: float | None = 0.004) -> Hedger:
    """Of a leg whose gate refuses so often."""
    return Hedger(OpenGate(again_s, *[reason] * times))


def asked(hedger: Hedger, late_by_s: float = 0.0, deadline: float = FAR):
    return hedger.ask([B], [A], late_by_s, NOW, deadline)


def test_whom_the_gate_admits_is_asked() -> None:
    hedger = Hedger(OpenGate(0.004))
    assert asked(hedger) is B
    assert not hedger.refused


def test_after_each_refusal_it_waits_twice_as_long_up_to_a_bound() -> None:
    times = DOUBLINGS_MAX + 3
    hedger = refused(Refusal.QUEUE, times)
    waits = [asked(hedger) - NOW for _ in range(times)]
    assert waits == pytest.approx([0.004 * 2.0 ** min(n, DOUBLINGS_MAX) for n in range(times)])
    assert hedger.refused == {Refusal.QUEUE}
    assert asked(hedger) is B


def test_a_late_router_is_asked_as_soon_as_it_is_late_no_more() -> None:
    hedger = refused(Refusal.LATE_ROUTER, 4)
    assert [asked(hedger) - NOW for _ in range(3)] == pytest.approx([0.004] * 3)
    assert asked(hedger, late_by_s=0.03) - NOW == pytest.approx(0.03)


@pytest.mark.parametrize("reason", [Refusal.LATE_ROUTER, Refusal.BUDGET])
def test_it_never_asks_at_once_nor_beyond_the_deadline(reason: Refusal) -> None:
    assert asked(refused(reason, again_s=0.0)) == pytest.approx(NOW + ASK_PAUSE_S)
    assert asked(refused(reason), deadline=NOW + 0.004) is None
    assert asked(refused(reason, again_s=None)) is None
