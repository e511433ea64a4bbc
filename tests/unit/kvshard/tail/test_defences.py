"""The gates that a hedge passes, each refusal under its own name; hold-out, budgets and counters."""

from collections import Counter
from random import Random

import pytest

from kvshard.clustermap import Replica, ShardConfig
from kvshard.errors import DeadlineExceeded, ErrorDetails, NotReady, ResourceExhausted, Unavailable
from kvshard.tail import defences as module
from kvshard.tail.defences import (
    LATE_MEMORY_MAX_S,
    LATE_TIMER_S,
    QUEUE_MAX,
    STORM_LATE_LEGS,
    STORM_LEGS,
    URGENT_DELAYS,
    Defences,
    LegHedges,
)
from kvshard.tail.hedging import Auto, FixedDelay, HedgePolicy, HedgeSettings, Off, Quantile, Refusal, ReplicaChoice
from kvshard.tail.hold_out import HOLD_OUT_DELAYS, HOLD_OUT_PER_S, HOLD_OUT_S, HOLD_OUT_SHARE, Comparison
from kvshard.tail.latency import UNKNOWN_DELAY_S
from kvshard.tail.leaf_health import Attempt, LeafState
from kvshard.tail.leg_events import AttemptKind, AttemptRecord, Candidate
from kvshard.tail.replica_health import RELEASE_FACTOR, STALL_FRACTION
from kvshard.tail.replica_plan import plan_read
from kvshard.tail.tail_counters import TailCounters
from kvshard.tail.tuning import POOR_MIN

A, B, C = Candidate("a", 1), Candidate("b", 1), Candidate("c", 1)
NOW = 1_000.0
DEADLINE = NOW + 10.0
FIRST, HEDGE = AttemptKind.FIRST, AttemptKind.HEDGE


class Unlucky(Random):
    """Chance that never holds a request out."""

    def random(self) -> float:
        return 0.999


def defences(settings: HedgeSettings = HedgeSettings(), rng: Random | None = None) -> Defences:  # noqa: B008
    return Defences(settings, rng or Unlucky())


def a_leg(held: Defences, legs: int = 8, policy: HedgePolicy | None = None) -> LegHedges:
    return held.request(policy, legs, NOW).leg("Get", NOW)


def answer(held: Defences, leg: LegHedges, leaf: str, seconds: float, count: int = 1, at: float = NOW) -> None:
    for _ in range(count):
        attempt = held.began(leaf, leg, at, FIRST)
        held.answered(attempt, at + seconds, 0, seconds / 2)


def hang(held: Defences, leg: LegHedges, leaf: str) -> Attempt:
    return held.began(leaf, leg, NOW, FIRST)


def admitted(leg: LegHedges, spares: tuple[Candidate, ...] = (B, C), late_by_s: float = 0.0, now: float = NOW):
    return leg.admit(spares, [A], late_by_s, now, DEADLINE)


class TestGates:
    def test_a_hedge_passes(self) -> None:
        held = defences()
        assert admitted(a_leg(held)) is B
        assert held.counters.hedges_sent == 1
        assert not any(held.counters.refused.values())

    def refused(self, held: Defences, leg: LegHedges, wanted: Refusal, **how) -> None:
        before, sent = dict(held.counters.refused), held.counters.hedges_sent
        extra = held.budget_now(NOW).counts(NOW)[1]
        assert admitted(leg, **how) is wanted
        assert held.counters.refused == {**before, wanted: before[wanted] + 1}
        assert held.counters.hedges_sent == sent
        assert held.budget_now(NOW).counts(NOW)[1] == extra, "a refused hedge cost budget"

    def test_late_router(self) -> None:
        held = defences()
        leg = a_leg(held, policy=FixedDelay(0.01))
        assert admitted(leg, late_by_s=0.005) is B
        self.refused(held, leg, Refusal.LATE_ROUTER, late_by_s=0.006)
        self.refused(held, a_leg(held), Refusal.LATE_ROUTER, now=NOW + 0.005)  # its answers lie unread for as long again
        assert admitted(a_leg(held), now=NOW + 0.007) is B

    def test_a_long_stall_is_forgotten_after_half_a_second(self) -> None:
        held = defences()
        self.refused(held, a_leg(held), Refusal.LATE_ROUTER, late_by_s=60.0)
        self.refused(held, a_leg(held), Refusal.LATE_ROUTER, now=NOW + LATE_MEMORY_MAX_S - 0.01)
        assert admitted(a_leg(held), now=NOW + LATE_MEMORY_MAX_S) is B

    def test_any_late_timer_of_the_process_counts(self) -> None:
        held = defences()
        held.note_late(LATE_TIMER_S, NOW)
        assert admitted(a_leg(held)) is B
        held.note_late(0.1, NOW)
        held.note_late(0.01, NOW)
        self.refused(held, a_leg(held), Refusal.LATE_ROUTER, now=NOW + 0.09)
        assert admitted(a_leg(held), now=NOW + 0.1) is B

    def test_late_legs_of_a_late_router_are_looked_at_together_and_ever_more_seldom(self) -> None:
        held = defences()
        answer(held, a_leg(held), "a", 0.002, count=100)
        request = held.request(None, 8, NOW + 1.0)
        timing = request.timing("Get", NOW + 1.0)
        late = timing.pool.least_delay
        assert request.postponed_s(8, LATE_TIMER_S, timing, 0, NOW + 1.0) is None
        assert request.postponed_s(8, 0.03, timing, 0, NOW + 1.0) == pytest.approx(0.03)
        assert request.postponed_s(5, 0.0, timing, 1, NOW + 1.029) == pytest.approx(2 * late)
        assert request.postponed_s(5, 0.0, timing, 3, NOW + 1.029) == pytest.approx(8 * late)
        assert request.postponed_s(5, 0.0, timing, 1, NOW + 1.031) is None
        assert held.counters.refused[Refusal.LATE_ROUTER] == 18

    def test_a_late_router_does_not_say_that_the_leaves_are_late(self) -> None:
        """Its legs are all late then, at every leaf: if that counted, none of them could be hedged any more."""
        held = defences()
        request = held.request(FixedDelay(0.01), 3, NOW)
        for waiting in (A, B, C):
            leg = request.leg("Get", NOW)
            assert leg.admit([A, B, C], [waiting], 0.5, NOW, DEADLINE) is Refusal.LATE_ROUTER
        assert request.leg("Get", NOW).admit([B, C], [A], 0.0, NOW + 0.5, DEADLINE) is B

    def test_requests_that_begin_while_the_router_is_late_do_not_ask_before_it_has_caught_up(self) -> None:
        """Each timer of an overloaded router took what it needed to catch up."""
        held = defences()
        answer(held, a_leg(held), "c", 0.004, 100)
        held.note_late(0.3, NOW + 1)
        leg = held.request(None, 8, NOW + 1.1).leg("Get", NOW + 1.1)
        assert leg.wait_s(NOW + 1.1, NOW + 10) == pytest.approx(0.2)
        assert leg.wait_s(NOW + 1.1, NOW + 1.2) == pytest.approx(0.05), "but within half of its time"
        self.refused(held, leg, Refusal.LATE_ROUTER, late_by_s=0.05, now=NOW + 1.35)
        assert held.request(None, 8, NOW + 2).leg("Get", NOW + 2).wait_s(NOW + 2, NOW + 10) == pytest.approx(0.012, rel=0.01)

    def test_a_late_router_is_one_to_a_request_that_is_held_out_too(self) -> None:
        held = defences(rng=Random(3))
        leg = next(leg for leg in (a_leg(held) for _ in range(1_000)) if leg.request.is_held_out)
        self.refused(held, leg, Refusal.LATE_ROUTER, late_by_s=0.3)

    def test_deadline(self) -> None:
        held = defences()
        answer(held, a_leg(held), "c", 0.2, 10)
        held.pool("Get").delay(0.95, NOW + 1)
        leg = a_leg(held)
        self.refused(held, leg, Refusal.DEADLINE, now=DEADLINE - 0.19)
        assert isinstance(admitted(leg, now=DEADLINE - 0.21), Candidate)

    @pytest.mark.parametrize("worse", ["stalled", "silent", "unreachable"])
    def test_no_candidate_that_is_in_a_bad_state(self, worse: str) -> None:
        held = defences()
        leg = a_leg(held, policy=FixedDelay(0.01))
        attempt = held.began("b", leg, NOW - 1.0, FIRST)
        if worse == "silent":
            held.cancelled(attempt, NOW)
        if worse == "unreachable":
            held.failed(attempt, Unavailable("gone"), NOW)
        self.refused(held, leg, Refusal.NO_CANDIDATE, spares=(B,))
        assert admitted(leg) is C

    def test_no_candidate_that_has_a_late_leg_of_this_request(self) -> None:
        held = defences()
        request = held.request(None, 8, NOW)
        assert request.leg("Get", NOW).admit([A, C], [B], 0.0, NOW, DEADLINE) is A
        self.refused(held, request.leg("Get", NOW), Refusal.NO_CANDIDATE, spares=(B,))
        assert admitted(a_leg(held), spares=(B,)) is B, "of another request it is no matter"

    def test_nobody_is_no_candidate(self) -> None:
        held = defences()
        self.refused(held, a_leg(held), Refusal.NO_CANDIDATE, spares=())

    def test_pushback(self) -> None:
        held = defences()
        leg = a_leg(held)
        held.failed(hang(held, leg, "b"), ResourceExhausted("busy", ErrorDetails(retry_after_ms=100)), NOW)
        self.refused(held, leg, Refusal.PUSHBACK, spares=(B,))
        assert admitted(leg) is C
        assert admitted(a_leg(held), spares=(B,), now=NOW + 0.101) is B

    def test_queue(self) -> None:
        held = defences()
        leg = a_leg(held)
        held.answered(hang(held, leg, "b"), NOW, QUEUE_MAX + 1, 0.0)
        for leaf in ("a", "c", "d"):
            held.answered(hang(held, leg, leaf), NOW, 1, 0.0)
        self.refused(held, leg, Refusal.QUEUE, spares=(B,))
        assert admitted(leg) is C

    def test_a_queue_like_all_others_is_none(self) -> None:
        held = defences()
        leg = a_leg(held)
        for leaf in ("a", "b", "c"):
            held.answered(hang(held, leg, leaf), NOW, 40, 0.0)
        assert admitted(leg, spares=(B,)) is B

    @pytest.mark.parametrize(("legs", "most"), [(1, STORM_LEGS), (16, STORM_LEGS), (100, 25)])
    def test_storm(self, legs: int, most: int) -> None:
        held = defences(HedgeSettings(budget=0.5))
        request = held.request(None, legs, NOW)
        held.budget_now(NOW).first_attempts(NOW, 10_000)
        for leaf in "abcdefghijkl" * 10:
            hang(held, request.leg("Get", NOW), leaf)
        request.leg("Get", NOW).admit((), [Candidate("d", 1)], 0.0, NOW, DEADLINE)  # Another leaf is late, too.
        hedged = [request.leg("Get", NOW) for _ in range(most)]
        assert all(admitted(leg) is B for leg in hedged)
        self.refused(held, request.leg("Get", NOW), Refusal.STORM)
        assert admitted(hedged[0], spares=(C,)) is C, "a leg that is hedged already may have one more"

    def test_many_legs_at_one_sick_leaf_are_no_storm(self) -> None:
        held = defences(HedgeSettings(budget=0.5))
        request = held.request(None, 8, NOW)
        held.budget_now(NOW).first_attempts(NOW, 10_000)
        assert all(admitted(request.leg("Get", NOW)) is B for _ in range(2 * STORM_LEGS))

    def test_many_late_legs_at_most_of_the_leaves_are_a_storm(self) -> None:
        held = defences(HedgeSettings(budget=0.5))
        held.budget_now(NOW).first_attempts(NOW, 10_000)
        legs = [a_leg(held, policy=FixedDelay(0.1)) for _ in range(STORM_LATE_LEGS + 1)]
        for number, leg in enumerate(legs):
            held.began("abd"[number % 3], leg, NOW, FIRST)
        for number, leg in enumerate(legs[:-1]):
            leg.admit((), [Candidate("ab"[number % 2], 1)], 0.0, NOW, DEADLINE)
        self.refused(held, legs[-1], Refusal.STORM, spares=(C,))
        legs[0].ended([])
        assert admitted(legs[-1], spares=(C,)) is C
        for leg in legs:
            leg.given_up()
        assert held.late == {}

    def test_a_leaf_whose_late_leg_has_ended_is_a_candidate_again(self) -> None:
        held = defences()
        request = held.request(None, 8, NOW)
        late, other = request.leg("Get", NOW), request.leg("Get", NOW)
        late.admit([A], [B], 0.0, NOW, DEADLINE)
        late.admit([A], [B], 0.0, NOW, DEADLINE)
        self.refused(held, other, Refusal.NO_CANDIDATE, spares=(B,))
        late.ended([])
        assert admitted(other, spares=(B,)) is B
        assert request.late == {"a": 1}

    def test_budget(self) -> None:
        held = defences()
        for _ in range(3):
            assert admitted(a_leg(held, legs=1)) is B
        leg = a_leg(held, legs=1)
        self.refused(held, leg, Refusal.BUDGET)
        assert held._budgets[None].seen.missed == 1
        assert leg.delay is not None
        late = NOW + 2 * leg.delay
        assert admitted(leg, now=late) is B, "what is kept for stragglers"
        self.refused(held, a_leg(held, legs=1), Refusal.BUDGET, now=late)
        assert held._budgets[None].seen.missed == 2

    def test_a_hedge_that_the_budget_made_wait_is_told(self) -> None:
        for slow, stretched in ((0.005, 1), (0.002, 0)):
            held = defences()
            for seconds, count in ((0.001, 80), (slow, 20)):
                answer(held, a_leg(held), "a", seconds, count)
            assert admitted(held.request(None, 8, NOW + 1).leg("Get", NOW + 1), now=NOW + 1) is B
            assert held._budgets[None].seen.stretched == stretched, slow

    def test_not_idempotent(self) -> None:
        held = defences()
        for _ in range(20):
            held.late_write(0.01, NOW)
        held.late_write(UNKNOWN_DELAY_S, NOW + 1)
        assert held.counters.refused[Refusal.NOT_IDEMPOTENT] == 1
        held.late_write(0.01, NOW + 1)
        assert held.counters.refused[Refusal.NOT_IDEMPOTENT] == 1

    def test_they_are_asked_in_order(self) -> None:
        """All speak against it; one after the other is taken away, and the next one shows."""
        held = defences(HedgeSettings(budget=0.0))
        answer(held, a_leg(held), "c", 0.2, 10)
        held.pool("Get").delay(0.95, NOW + 1)
        request = held.request(FixedDelay(0.01), 1, NOW)
        request.hedged_legs = STORM_LEGS
        request.late = {"x": 1}
        leg = request.leg("Get", NOW)
        held.failed(hang(held, leg, "b"), ResourceExhausted("busy", ErrorDetails(retry_after_ms=1_000)), NOW)
        late = {"now": DEADLINE - 0.1}
        self.refused(held, leg, Refusal.LATE_ROUTER, spares=(), late_by_s=1.0, **late)
        held.health.late_until = NOW
        self.refused(held, leg, Refusal.DEADLINE, spares=(), **late)
        self.refused(held, leg, Refusal.NO_CANDIDATE, spares=())
        self.refused(held, leg, Refusal.PUSHBACK, spares=(B,))
        self.refused(held, leg, Refusal.STORM, spares=(C,))
        request.hedged_legs = 0
        self.refused(held, leg, Refusal.BUDGET, spares=(C,))

    def test_the_best_spare_is_taken(self) -> None:
        held = defences()
        leg = a_leg(held)
        hang(held, leg, "b")
        assert admitted(leg) is C  # less in flight
        held.health.leaf("c", NOW).is_on_probation = True
        assert admitted(leg) is B  # in a better state

    def test_shed_load_that_goes_elsewhere_is_paid_for(self) -> None:
        held = defences()
        leg = a_leg(held, legs=1)
        assert [leg.may_fail_over(NOW) for _ in range(5)] == [True] * 4 + [False]


class TestWaiting:
    def test_the_delay_of_an_unknown_kind_is_long(self) -> None:
        leg = a_leg(defences())
        assert leg.wait_s(NOW, DEADLINE) == UNKNOWN_DELAY_S

    def test_never_longer_than_half_of_what_is_left(self) -> None:
        leg = a_leg(defences())
        assert leg.wait_s(NOW, NOW + 0.001) == pytest.approx(0.0005)

    def test_off_waits_for_ever(self) -> None:
        assert a_leg(defences(), policy=Off()).wait_s(NOW, DEADLINE) is None
        assert a_leg(defences(), policy=Off()).again_s(Refusal.BUDGET, NOW, DEADLINE) is None

    def test_a_late_router_is_asked_again_when_it_is_late_no_more(self) -> None:
        held = defences()
        leg = a_leg(held, policy=FixedDelay(0.5))
        held.note_late(0.01, NOW)
        assert leg.again_s(Refusal.LATE_ROUTER, NOW + 0.004, DEADLINE) == pytest.approx(0.006)
        assert admitted(leg, now=NOW + 0.011) is B

    def test_what_the_budget_refused_is_asked_again_as_soon_as_it_is_urgent(self) -> None:
        held = defences(HedgeSettings(budget=0.0))
        leg = a_leg(held, policy=FixedDelay(0.01))
        again = NOW + 0.01 + (leg.again_s(Refusal.BUDGET, NOW + 0.01, DEADLINE) or 0.0)
        assert again == pytest.approx(NOW + URGENT_DELAYS * 0.01)
        assert leg.again_s(Refusal.BUDGET, again, DEADLINE) == 0.01, "it was urgent, and there was nothing"
        assert leg.again_s(Refusal.STORM, NOW + 0.01, DEADLINE) == 0.01

    def test_what_is_known_shortens_it(self) -> None:
        held = defences()
        answer(held, a_leg(held), "a", 0.004, 100)
        leg = held.request(None, 1, NOW + 1).leg("Get", NOW + 1)
        assert leg.wait_s(NOW + 1, DEADLINE) == pytest.approx(0.012, rel=0.01)
        assert held.request(None, 1, NOW + 1).leg("Search", NOW + 1).wait_s(NOW + 1, DEADLINE) == UNKNOWN_DELAY_S

    @pytest.mark.parametrize("tried", [("slow", "b"), ("b", "slow")])
    def test_hedges_from_or_to_a_leaf_that_is_known_to_be_slow_teach_no_patience(self, tried: tuple[str, str]) -> None:
        held = defences()
        a_leg(held)
        seen = held._budgets[None].seen
        for slowness, told in ((1.0, 1), (RELEASE_FACTOR, 1), (1.0, 2)):
            held.health.leaf("slow", NOW).slowness = slowness
            first, hedge = AttemptRecord(tried[0], FIRST, 0, 1, "cancelled"), AttemptRecord(tried[1], HEDGE, 0, 1, "won")
            a_leg(held).ended([first, hedge])
            assert seen.telling_won == told
        held.health.leaf("slow", NOW).is_on_probation = True
        a_leg(held).ended([AttemptRecord(tried[0], FIRST, 0, 1, "won"), AttemptRecord(tried[1], HEDGE, 0, 1, "cancelled")])
        assert (seen.won, seen.wasted, seen.telling_wasted) == (3, 1, 0)

    def test_hedges_that_do_not_win_teach_patience_to_auto_alone(self) -> None:
        held = defences()
        answer(held, a_leg(held), "a", 0.004, 100)
        held._budgets[None].tuner.patience.look(0, POOR_MIN)

        def delay(policy: HedgePolicy | None) -> float | None:
            return held.request(policy, 1, NOW + 1).leg("Get", NOW + 1).delay

        assert delay(None) == pytest.approx(0.024, rel=0.01)
        assert delay(FixedDelay(0.005)) == 0.005
        lost = AttemptRecord("b", HEDGE, 0, 1, "cancelled")
        for policy in (None, FixedDelay(0.005)):
            a_leg(held, policy=policy).ended([lost])
        seen = held._budgets[None].seen
        assert (seen.wasted, seen.telling_wasted) == (2, 1)
        assert delay(Quantile(0.9)) == pytest.approx(0.004, rel=0.01)
        leg = held.request(None, 1, NOW + 1).leg("Get", NOW + 1)
        assert leg.again_s(Refusal.STORM, NOW + 1.024, DEADLINE) == pytest.approx(0.012, rel=0.01), "it was patient before"
        assert leg.stalled_after == pytest.approx(STALL_FRACTION * 0.012, rel=0.01), "whom to ask first is another matter"

    def test_a_request_may_say_it_itself_and_so_may_its_collection(self) -> None:
        held = defences(HedgeSettings(FixedDelay(0.03)))
        of_collection = HedgeSettings(FixedDelay(0.02))
        delays = [
            held.request(FixedDelay(0.01), 1, NOW, of_collection).leg("Get", NOW).delay,
            held.request(None, 1, NOW, of_collection).leg("Get", NOW).delay,
            held.request(None, 1, NOW).leg("Get", NOW).delay,
        ]
        assert delays == [0.01, 0.02, 0.03]

    @pytest.mark.parametrize("policy", [FixedDelay(1e-6), Quantile(0.01)])
    def test_an_impatient_caller_does_not_make_a_leaf_look_stalled_to_others(self, policy: HedgePolicy) -> None:
        held = defences()
        answer(held, a_leg(held), "a", 0.01, 100)
        leg = held.request(policy, 1, NOW + 1).leg("Get", NOW + 1)
        held.began("b", leg, NOW + 1, FIRST)
        leaf = held.health.leaf("b", NOW + 1)
        assert leaf.state(NOW + 1.02) is LeafState.OK
        assert leaf.state(NOW + 1.022) is LeafState.STALLED  # 0.7 x 3 medians

    def test_a_patient_caller_does_not_hide_a_stalled_leaf(self) -> None:
        held = defences()
        answer(held, a_leg(held), "a", 0.01, 100)
        for policy in (Off(), FixedDelay(60.0), Auto()):
            leg = held.request(policy, 1, NOW + 1).leg("Get", NOW + 1)
            assert leg.stalled_after == pytest.approx(STALL_FRACTION * 0.03, rel=0.01)

    def test_an_attempt_that_the_deadline_ended_is_a_bound_of_its_latency(self) -> None:
        """Left out, a cluster slower than its callers' deadlines would look as fast as the few that it answers in time."""
        held = defences()
        leg = a_leg(held)
        answer(held, leg, "a", 0.001, 10)
        for _ in range(30):
            held.failed(hang(held, leg, "b"), DeadlineExceeded("late"), NOW + 0.5)
        assert held.pool("Get").samples == 40
        assert held.pool("Get").quantile(0.95, NOW + 1) == pytest.approx(0.5, rel=0.01)

    def test_other_errors_are_no_latency(self) -> None:
        held = defences()
        leg = a_leg(held)
        for error in (Unavailable("gone"), ResourceExhausted("busy"), NotReady("no lease")):
            held.failed(hang(held, leg, "b"), error, NOW + 0.5)
        assert held.pool("Get").samples == 0

    def test_only_first_attempts_are_pooled(self) -> None:
        held = defences()
        leg = a_leg(held)
        for kind in (HEDGE, AttemptKind.RETRY, AttemptKind.FAILOVER):
            held.answered(held.began("a", leg, NOW, kind), NOW + 0.1, 0, 0.1)
            held.cancelled(held.began("a", leg, NOW, kind), NOW + 0.1)
        assert held.pool("Get").samples == 0


def saved_s_mean(counters: TailCounters) -> float:
    without, hedged = counters.held_out.sum.mean, counters.hedgeable.sum.mean
    assert without is not None
    assert hedged is not None
    return without - hedged


class TestHoldOut:
    def test_one_request_in_a_hundred_is_hedged_much_later(self) -> None:
        held = defences(rng=Random(3))
        waits = [a_leg(held, legs=1).wait_s(NOW, NOW + 60.0) for _ in range(20_000)]
        usual = min(waits)
        later = [wait for wait in waits if wait != usual]
        assert set(later) == {max(HOLD_OUT_S, HOLD_OUT_DELAYS * usual)}
        assert len(later) / len(waits) == pytest.approx(HOLD_OUT_SHARE, rel=0.2)

    def test_a_leaf_that_hangs_costs_it_half_a_second_and_not_half_of_its_deadline(self) -> None:
        held = defences(rng=Random(3))
        answer(held, a_leg(held), "c", 0.01, 100)
        now = NOW + 1.0
        request = next(request for request in (held.request(None, 1, now) for _ in range(1_000)) if request.is_held_out)
        leg = request.leg("Get", now)
        assert leg.wait_s(now, now + 60.0) == HOLD_OUT_S
        assert leg.wait_s(now, now + 0.6) == pytest.approx(0.3)
        assert isinstance(leg.admit([B, C], [A], 0.0, now + HOLD_OUT_S, now + 60.0), Candidate)

    def test_wide_requests_are_held_out_less_often(self) -> None:
        held = defences(rng=Random(3))
        share = sum(held.request(None, 80, NOW).is_held_out for _ in range(20_000)) / 20_000
        assert share == pytest.approx(HOLD_OUT_SHARE / 10, rel=0.5)

    @pytest.mark.parametrize("rate", [50, 1_000])
    def test_at_a_high_rate_about_one_a_second(self, rate: int) -> None:
        held, seconds = defences(rng=Random(3)), 100
        for number in range(rate * seconds):
            held.request(None, 1, NOW + number / rate).ended(NOW + number / rate + 0.01)
        counters = held.counters
        wanted = min(HOLD_OUT_PER_S, HOLD_OUT_SHARE * rate) * seconds
        assert counters.held_out_requests == pytest.approx(wanted, rel=0.3)
        assert counters.held_out_requests + counters.hedgeable_requests == rate * seconds

    def test_after_a_pause_the_rate_is_unknown(self) -> None:
        comparison = Comparison()
        parts = [comparison.part(1, NOW + number / 1_000) for number in range(2_000)]
        assert (parts[999], parts[1_000]) == (1.0, 0.1)
        assert comparison.part(1, NOW + 3.5) == 1.0

    def test_busy_seconds_are_no_other_part_of_one_arm_than_of_the_other(self) -> None:
        held = defences(rng=Random(3))
        for number in range(60):
            for step in range(2_000 if number % 20 < 10 else 100):
                now = NOW + number + step / 2_000
                held.request(None, 1, now).ended(now + (0.02 if number % 20 < 10 else 0.001))
        without, hedged = held.counters.held_out.sum, held.counters.hedgeable.sum
        assert without.count == pytest.approx(HOLD_OUT_SHARE * hedged.count, rel=0.4)
        assert hedged.mean is not None
        assert without.mean == pytest.approx(hedged.mean, rel=0.25)

    def test_all_legs_of_a_request_share_its_fate(self) -> None:
        held = defences(rng=Random(3))
        for _ in range(500):
            request = held.request(None, 3, NOW)
            assert {request.leg("Get", NOW).delay >= HOLD_OUT_S for _ in range(3)} == {request.is_held_out}

    def test_what_is_never_hedged_anyway_is_not_held_out(self) -> None:
        held = defences(rng=Random(3))
        requests = [held.request(Off(), 1, NOW) for _ in range(2_000)]
        for request in requests:
            request.ended(NOW + 1)
        assert not any(request.is_held_out for request in requests)
        assert (held.counters.held_out_requests, held.counters.hedgeable_requests) == (0, 0)

    def test_the_difference_is_what_hedging_saves(self) -> None:
        held = defences(rng=Random(3))
        for _ in range(1_000):
            request = held.request(None, 1, NOW)
            request.ended(NOW + (0.05 if request.is_held_out else 0.01))
        assert held.counters.held_out_requests + held.counters.hedgeable_requests == 1_000
        assert saved_s_mean(held.counters) == pytest.approx(0.04)

    def test_wide_requests_are_no_other_part_of_one_arm_than_of_the_other(self) -> None:
        """Hedging changes nothing here: wide requests take longer, so an arm with fewer of them would look the faster."""
        held = defences(rng=Random(3))
        for number in range(40_000):
            legs = 80 if number % 2 else 1
            held.request(None, legs, NOW).ended(NOW + 0.001 * legs)
        counters = held.counters
        assert counters.held_out_requests + counters.hedgeable_requests == 40_000
        assert counters.hedgeable.sum.mean == pytest.approx(0.0082, rel=0.05)
        assert saved_s_mean(counters) == pytest.approx(0.0, abs=0.004)


class TestBudgets:
    def test_a_collection_with_a_budget_of_its_own_spends_only_that(self) -> None:
        held, own = defences(), HedgeSettings(budget=0.2)
        for _ in range(4):
            assert admitted(held.request(None, 1, NOW, own).leg("Get", NOW)) is B
        assert admitted(held.request(None, 1, NOW, own).leg("Get", NOW)) is Refusal.BUDGET
        assert admitted(a_leg(held, legs=1)) is B
        assert held.budget_now(NOW, own) is not held.budget_now(NOW)
        assert held.budget_now(NOW, own).fraction == 0.2

    def test_other_settings_share_the_routers(self) -> None:
        held = defences()
        assert held.budget_now(NOW, HedgeSettings(Off(), max_attempts=2)) is held.budget_now(NOW)

    def test_they_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module, "BUDGETS_MAX", 3)
        held = defences()
        budgets = [held.budget_now(NOW, HedgeSettings(budget=number / 100)) for number in range(1, 8)]
        assert len(set(map(id, budgets))) == 4
        assert budgets[-1] is held.budget_now(NOW)

    def test_a_budget_of_nothing_hedges_nothing(self) -> None:
        held = defences(HedgeSettings(budget=0.0))
        assert admitted(a_leg(held, legs=1_000)) is Refusal.BUDGET

    def test_it_is_tuned_once_a_second(self) -> None:
        held = defences()
        leg = a_leg(held)
        held.failed(hang(held, leg, "b"), ResourceExhausted("busy"), NOW)
        fractions = []
        for step in range(4):
            held.request(None, 1, NOW + 0.6 * step)
            fractions.append(held.budget_now(NOW).fraction)
        assert fractions == [0.05, 0.05, 0.025, pytest.approx(0.025)]

    def test_what_was_shed_before_is_nothing_to_a_new_one(self) -> None:
        held, own = defences(), HedgeSettings(budget=0.2)
        held.failed(hang(held, a_leg(held), "b"), ResourceExhausted("busy"), NOW)
        held.request(None, 1, NOW, own)
        held.request(None, 1, NOW + 1.1, own)
        assert held.budget_now(NOW, own).fraction == 0.2

    def test_a_change_of_the_mix_of_requests_is_no_slowness(self) -> None:
        held = defences()
        answer(held, a_leg(held), "a", 0.001, 100)
        held.request(None, 1, NOW + 1)
        search = held.request(None, 1, NOW + 1).leg("Search", NOW + 1)
        answer(held, search, "a", 0.05, 200, at=NOW + 1)
        held.request(None, 1, NOW + 2.1)
        assert held.budget_now(NOW).fraction == 0.05


class TestCounters:
    def test_every_hedge_that_was_sent_has_won_or_was_wasted_in_the_end(self) -> None:
        held = defences(HedgeSettings(budget=0.5))
        held.budget_now(NOW).first_attempts(NOW, 1_000)
        legs = [a_leg(held) for _ in range(4)]
        for leg in legs:
            assert isinstance(admitted(leg), Candidate)
        counters = held.counters
        assert (counters.hedges_sent, counters.hedges_won, counters.hedges_wasted) == (4, 0, 0)
        first = AttemptRecord("a", FIRST, 0.0, 0.1, "cancelled")
        legs[0].ended([first, AttemptRecord("b", HEDGE, 0.05, 0.1, "won")])
        legs[1].ended([AttemptRecord("a", FIRST, 0.0, 0.1, "won"), AttemptRecord("b", HEDGE, 0.05, 0.1, "cancelled")])
        legs[2].ended([first, AttemptRecord("b", HEDGE, 0.05, 0.1, "unavailable")])
        assert (counters.hedges_won, counters.hedges_wasted) == (1, 2)
        legs[3].given_up()
        legs[3].given_up()
        assert (counters.hedges_sent, counters.hedges_won, counters.hedges_wasted) == (4, 1, 3)
        assert held._budgets[None].seen.wasted == 2, "a caller that has gone says nothing about hedging"

    def test_failovers(self) -> None:
        held = defences()
        leg = a_leg(held)
        leg.ended([AttemptRecord("a", FIRST, 0, 1, "unavailable"), AttemptRecord("b", AttemptKind.FAILOVER, 1, 2, "won")])
        assert held.counters.failovers == 1

    def test_first_attempts_are_those_of_all_legs(self) -> None:
        held = defences()
        held.request(None, 8, NOW)
        held.request(Off(), 3, NOW)
        assert (held.counters.requests, held.counters.first_attempts) == (2, 11)
        assert held.budget_now(NOW).counts(NOW) == (11, 0)


class TestLegsTogether:
    def order(self, held: Defences, leaves: int = 4, shards: int = 8, kind: str = "Get") -> list[str]:
        """Who is asked first for each shard by one request, whose legs begin anywhere, as the router has it."""
        names = [f"leaf-{number}" for number in range(leaves)]
        request, firsts = held.request(None, shards, NOW), []
        first = held._rng.randrange(shards)
        for shard in (*range(first, shards), *range(first)):
            in_sync = tuple(Replica(names[(shard + place) % leaves], "i") for place in range(3))
            plan = plan_read(ShardConfig(shard, 0, 1, 1, in_sync[0].leaf, in_sync), is_stale=False)
            leg = request.leg(kind, NOW)
            firsts.append(held.order(plan, ReplicaChoice.ADAPTIVE, NOW, leg)[0].leaf)
            held.began(firsts[-1], leg, NOW, FIRST)
        return firsts

    def test_light_legs_go_to_few_leaves(self) -> None:
        counts = [len(set(self.order(defences(rng=Random(seed))))) for seed in range(50)]
        assert sum(counts) / 50 < 2.7
        heavy = [len(set(self.order(defences(rng=Random(seed)), kind="Search"))) for seed in range(50)]
        assert sum(heavy) / 50 > 3.5

    def test_where_all_queues_are_long_as_well(self) -> None:
        counts = []
        for seed in range(50):
            held = defences(rng=Random(seed))
            held.health.hot_limit(NOW)  # What was hot a moment ago.
            other = a_leg(held)
            for number in range(400):
                held.began(f"leaf-{number % 4}", other, NOW, FIRST)
            counts.append(len(set(self.order(held))))
        assert sum(counts) / 50 < 2.7

    def test_what_is_sent_again_looks_anew(self) -> None:
        held = defences(rng=Random(1))
        request = held.request(None, 8, NOW)
        plan = plan_read(ShardConfig(0, 0, 1, 1, "a", tuple(Replica(leaf, "i") for leaf in "abc")), is_stale=False)
        leg = request.leg("Get", NOW)
        first = held.order(plan, ReplicaChoice.ADAPTIVE, NOW, leg)[0].leaf
        held.began(first, leg, NOW, FIRST)
        assert held.order(plan, ReplicaChoice.ADAPTIVE, NOW, leg)[0].leaf == first
        later = NOW + 10
        assert held.order(plan, ReplicaChoice.ADAPTIVE, later, leg)[0].leaf != first, "it has stalled meanwhile"

    def test_requests_together_are_spread_evenly(self) -> None:
        firsts = Counter(leaf for seed in range(300) for leaf in self.order(defences(rng=Random(seed))))
        assert min(firsts.values()) > 0.8 * max(firsts.values())

    def test_not_to_one_that_is_hot_or_stalled_or_slower(self) -> None:
        for spoil in ("hot", "stalled", "slower"):
            held = defences(rng=Random(1))
            other = a_leg(held)
            for _ in range(30 if spoil == "hot" else 1):
                held.began("leaf-0", other, NOW - (10 if spoil == "stalled" else 0), FIRST)
            if spoil == "slower":
                held.health.leaf("leaf-0", NOW).slowness = 2.0
            assert "leaf-0" not in self.order(held), spoil
