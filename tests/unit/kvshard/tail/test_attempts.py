"""The exact actions of the attempt machine."""

from random import Random

import pytest
from fakes.hedge_gate import OpenGate

from kvshard.errors import (
    DataLoss,
    DeadlineExceeded,
    ErrorDetails,
    Expired,
    InvalidArgument,
    KvShardError,
    NotReady,
    ResourceExhausted,
    StaleEpoch,
    StorageFailed,
    Unavailable,
    VersionConflict,
)
from kvshard.tail.attempts import LOOK_INTERVAL_S, MAX_REPEATS, AttemptMachine, Phase
from kvshard.tail.hedging import Refusal
from kvshard.tail.leg_events import (
    AttemptFailed,
    AttemptKind,
    AttemptSucceeded,
    Cancel,
    Candidate,
    Config,
    DeadlinePassed,
    Finish,
    HedgeGranted,
    LookAtMap,
    Lost,
    MapRefreshed,
    MapSeen,
    RefreshFailed,
    RefreshMap,
    Send,
    SetTimer,
    TimerFired,
    Won,
)

A, B, C = Candidate("a", 1), Candidate("b", 1), Candidate("c", 1)
NEWER = Candidate("a", 2)
DEADLINE = 10.0


def machine(config: Config = Config(), *candidates: Candidate, gate: OpenGate | None = None) -> AttemptMachine:  # noqa: B008
    return AttemptMachine(config, candidates or (A,), DEADLINE, gate=gate)


def hedge(attempt: int, candidate: Candidate) -> Send:
    return Send(attempt, candidate, AttemptKind.HEDGE)


def failover(attempt: int, candidate: Candidate) -> Send:
    return Send(attempt, candidate, AttemptKind.FAILOVER)


def retry(attempt: int, candidate: Candidate) -> Send:
    return Send(attempt, candidate, AttemptKind.RETRY)


def lost(leg: AttemptMachine) -> KvShardError:
    assert isinstance(leg.outcome, Lost)
    return leg.outcome.error


class TestOneAttempt:
    def test_the_answer_wins(self) -> None:
        leg = machine()
        assert leg.start(0.0) == [Send(1, A)]
        assert leg.step(AttemptSucceeded(1), 0.1) == [Finish(Won(1, A))]

    @pytest.mark.parametrize(
        "error", [Unavailable("x"), StorageFailed("x"), DataLoss("x"), InvalidArgument("x"), VersionConflict("x")]
    )
    def test_an_error_ends_it(self, error: KvShardError) -> None:
        leg = machine(Config(), A, B)
        leg.start(0.0)
        assert leg.step(AttemptFailed(1, error), 0.1) == [Finish(Lost(error))]

    def test_the_deadline_cancels_it(self) -> None:
        leg = machine()
        leg.start(0.0)
        actions = leg.step(DeadlinePassed(), DEADLINE)
        assert actions[0] == Cancel(1)
        assert isinstance(lost(leg), DeadlineExceeded)
        assert not lost(leg).details.maybe_applied
        assert "no answer from a" in lost(leg).message

    def test_a_write_cut_off_by_the_deadline_may_be_applied(self) -> None:
        leg = machine(Config(is_idempotent=False))
        leg.start(0.0)
        leg.step(DeadlinePassed(), DEADLINE)
        assert lost(leg).details.maybe_applied

    def test_nothing_is_sent_after_the_deadline(self) -> None:
        leg = machine()
        actions = leg.start(DEADLINE)
        assert [type(action) for action in actions] == [Finish]
        assert isinstance(lost(leg), DeadlineExceeded)
        assert not lost(leg).details.maybe_applied

    def test_what_comes_after_the_end_does_nothing(self) -> None:
        leg = machine()
        leg.start(0.0)
        leg.step(AttemptSucceeded(1), 0.1)
        late = [AttemptSucceeded(1), AttemptFailed(1, Unavailable("x")), MapRefreshed((B,)), TimerFired(), DeadlinePassed()]
        assert [leg.step(event, 0.2) for event in late] == [[]] * len(late)
        assert leg.outcome == Won(1, A)


class TestRefusals:
    def test_a_stale_epoch_leads_to_a_refresh_and_another_attempt(self) -> None:
        leg = machine()
        leg.start(0.0)
        assert leg.step(AttemptFailed(1, StaleEpoch("old")), 0.1) == [RefreshMap()]
        assert leg.step(MapRefreshed((NEWER,)), 0.2) == [retry(2, NEWER)]
        assert leg.step(AttemptSucceeded(2), 0.3) == [Finish(Won(2, NEWER))]
        assert [(each.leaf, each.kind.value, each.outcome) for each in leg.tries] == [
            ("a", "first", "stale_epoch"),
            ("a", "retry", "won"),
        ]

    def test_writes_ask_again_too_since_nothing_was_done(self) -> None:
        leg = machine(Config(is_idempotent=False))
        leg.start(0.0)
        assert leg.step(AttemptFailed(1, NotReady("recovering")), 0.1) == [RefreshMap()]
        assert leg.step(MapRefreshed((NEWER,)), 0.2) == [retry(2, NEWER)]

    def test_pauses_grow_until_the_refreshes_are_used_up(self) -> None:
        leg = machine()
        actions, now, pauses = leg.start(0.0), 0.0, []
        refusal = NotReady("recovering")
        while leg.outcome is None:
            match actions[-1]:
                case Send(attempt):
                    actions = leg.step(AttemptFailed(attempt, refusal), now)
                case SetTimer(at):
                    pauses.append(at - now)
                    now = at
                    actions = leg.step(TimerFired(), now)
                case RefreshMap():
                    actions = leg.step(MapRefreshed((A,)), now)
            leg.check_invariants()
        assert pauses == pytest.approx([0.005, 0.01, 0.02, 0.04, 0.08, *[0.1] * 6])
        assert leg.refreshes == 12
        assert len(leg.tries) == 13
        assert lost(leg) is refusal

    def test_a_pause_that_would_pass_the_deadline_is_not_waited_for(self) -> None:
        leg = machine()
        leg.start(0.0)
        leg.step(AttemptFailed(1, StaleEpoch("old")), 1.0)
        leg.step(MapRefreshed((NEWER,)), 1.0)
        refusal = StaleEpoch("older still")
        assert leg.step(AttemptFailed(2, refusal), DEADLINE - 0.001) == [Finish(Lost(refusal))]

    def test_the_deadline_in_a_pause_tells_the_refusal(self) -> None:
        leg = machine()
        leg.start(0.0)
        refusal = StaleEpoch("old")
        leg.step(AttemptFailed(1, refusal), 0.1)
        assert leg.step(DeadlinePassed(), DEADLINE) == [Finish(Lost(refusal))]

    def test_a_timer_that_fires_early_changes_nothing(self) -> None:
        leg = machine()
        leg.start(0.0)
        leg.step(AttemptFailed(1, StaleEpoch("old")), 0.1)
        leg.step(MapRefreshed((A,)), 0.1)
        assert leg.step(AttemptFailed(2, StaleEpoch("old")), 0.1) == [SetTimer(pytest.approx(0.105))]
        assert leg.step(TimerFired(), 0.104) == []
        assert leg.phase is Phase.PAUSING
        assert leg.step(TimerFired(), 0.106) == [RefreshMap()]

    def test_a_failed_refresh_is_tried_again(self) -> None:
        leg = machine()
        leg.start(0.0)
        leg.step(AttemptFailed(1, StaleEpoch("old")), 0.1)
        problem = Unavailable("no coordinator")
        assert leg.step(RefreshFailed(problem), 0.2) == [SetTimer(pytest.approx(0.205))]
        assert leg.step(TimerFired(), 0.206) == [RefreshMap()]
        assert leg.step(MapRefreshed((NEWER,)), 0.3) == [retry(2, NEWER)]

    def test_a_map_without_the_shard_is_read_again_and_then_said(self) -> None:
        leg = AttemptMachine(Config(max_refreshes=1), (), DEADLINE)
        assert leg.start(0.0) == [RefreshMap()]
        leg.step(MapRefreshed(()), 0.1)
        assert "names no replica" in lost(leg).message


class TestSeveralAttempts:
    hedged = Config(max_attempts=3)

    def test_a_hedge_goes_to_a_spare_candidate_and_the_loser_is_cancelled(self) -> None:
        leg = machine(self.hedged, A, B, gate=OpenGate(0.05))
        assert leg.start(0.0) == [Send(1, A), SetTimer(0.05)]
        assert leg.step(TimerFired(), 0.05) == [hedge(2, B)]  # no third candidate, so no further timer
        assert leg.step(AttemptSucceeded(2), 0.06) == [Cancel(1), Finish(Won(2, B))]

    def test_no_hedge_without_a_spare_candidate(self) -> None:
        leg = machine(self.hedged, A, Candidate("a", 7), gate=OpenGate(0.05))
        assert leg.start(0.0) == [Send(1, A)]

    def test_a_write_is_never_hedged_nor_failed_over(self) -> None:
        leg = machine(Config(max_attempts=3, is_idempotent=False), A, B)
        assert leg.start(0.0) == [Send(1, A)]
        assert leg.step(TimerFired(), 0.05) == []
        error = Unavailable("gone", ErrorDetails(maybe_applied=True))
        assert leg.step(AttemptFailed(1, error), 0.1) == [Finish(Lost(error))]

    def test_failover_to_the_next_candidate(self) -> None:
        leg = machine(Config(max_attempts=2), A, B, C)
        leg.start(0.0)
        assert leg.step(AttemptFailed(1, Unavailable("gone")), 0.1) == [failover(2, B)]
        last = Unavailable("gone too")
        assert leg.step(AttemptFailed(2, last), 0.2) == [Finish(Lost(last))]  # a third one would be one too many

    def test_a_refused_attempt_is_handed_back(self) -> None:
        leg = machine(Config(max_attempts=2), A, B, C)
        leg.start(0.0)
        assert leg.step(AttemptFailed(1, NotReady("x")), 0.1) == [failover(2, B)]
        assert leg.step(AttemptFailed(2, Unavailable("x")), 0.2)[0] == failover(3, C)

    def test_an_answer_that_all_would_give_ends_the_leg(self) -> None:
        leg = machine(self.hedged, A, B, gate=OpenGate(0.05))
        leg.start(0.0)
        leg.step(TimerFired(), 0.05)
        error = InvalidArgument("bad query")
        assert leg.step(AttemptFailed(2, error), 0.06) == [Cancel(1), Finish(Lost(error))]

    def test_a_failure_waits_for_the_attempt_still_out(self) -> None:
        leg = machine(self.hedged, A, B, gate=OpenGate(0.05))
        leg.start(0.0)
        leg.step(TimerFired(), 0.05)
        assert leg.step(AttemptFailed(1, Unavailable("gone")), 0.06) == []
        assert leg.step(AttemptSucceeded(2), 0.07) == [Finish(Won(2, B))]

    def test_a_stale_map_is_not_asked_further(self) -> None:
        leg = machine(self.hedged, A, B, C, gate=OpenGate(0.05))
        leg.start(0.0)
        leg.step(TimerFired(), 0.05)
        assert leg.step(AttemptFailed(1, StaleEpoch("old")), 0.06) == [SetTimer(pytest.approx(0.11))]
        assert leg.step(AttemptFailed(2, StaleEpoch("old")), 0.062) == [RefreshMap()]

    def test_its_state_can_be_read(self) -> None:
        leg = machine(self.hedged, A, B, gate=OpenGate(0.05))
        leg.start(0.0)
        assert "trying, outstanding={1: 'a'}, tries=1" in repr(leg)


class TestRepeatedWrites:
    write = Config(is_idempotent=False, may_repeat=True, max_refreshes=MAX_REPEATS)
    broken = Unavailable("the lane broke", ErrorDetails(maybe_applied=True))

    def test_a_lost_write_is_sent_again_to_the_primary_of_the_newest_map(self) -> None:
        leg = machine(self.write)
        assert leg.start(0.0) == [Send(1, A), SetTimer(LOOK_INTERVAL_S)]
        assert leg.step(AttemptFailed(1, self.broken), 0.1) == [RefreshMap()]
        assert leg.step(MapRefreshed((A,)), 0.1) == [retry(2, A), SetTimer(0.1 + LOOK_INTERVAL_S)]
        assert leg.step(AttemptFailed(2, Unavailable("refused")), 0.1) == [SetTimer(pytest.approx(0.105))]
        assert leg.step(TimerFired(), 0.106) == [RefreshMap()]
        assert leg.step(MapRefreshed((B,)), 0.107)[0] == failover(3, B)
        assert leg.step(AttemptSucceeded(3), 0.2) == [Finish(Won(3, B))]

    def test_the_deadline_ends_it_and_the_error_says_that_it_may_be_done(self) -> None:
        leg, now = machine(self.write), 0.0
        actions, first = leg.start(now), True
        while leg.outcome is None:
            match actions[0]:
                case Send(attempt):
                    actions = leg.step(AttemptFailed(attempt, self.broken if first else Unavailable("refused")), now)
                    first = False
                case SetTimer(at):
                    now = at
                    actions = leg.step(TimerFired(), now)
                case RefreshMap():
                    actions = leg.step(MapRefreshed((A,)), now)
            leg.check_invariants()
        assert now == pytest.approx(DEADLINE, abs=0.11)
        assert lost(leg).message == "refused"
        assert lost(leg).details.maybe_applied

    def test_a_write_that_no_leaf_took_was_not_done(self) -> None:
        leg = machine(self.write)
        leg.start(0.0)
        leg.step(AttemptFailed(1, Unavailable("refused")), 0.0)
        leg.step(DeadlinePassed(), DEADLINE)
        assert not lost(leg).details.maybe_applied

    def test_while_it_waits_it_looks_whether_the_primary_is_still_the_same(self) -> None:
        leg = machine(self.write)
        leg.start(0.0)
        assert leg.step(TimerFired(), 0.25) == [LookAtMap()]
        assert leg.step(MapSeen((NEWER,)), 0.25) == [SetTimer(0.5)]  # The same leaf: the answer may yet come.
        assert leg.step(TimerFired(), 0.5) == [LookAtMap()]
        assert leg.step(MapSeen((B,)), 0.5) == [Cancel(1), failover(2, B), SetTimer(0.75)]
        assert leg.step(AttemptSucceeded(1), 0.6) == []  # Cancelled is cancelled.
        leg.step(DeadlinePassed(), DEADLINE)
        assert lost(leg).details.maybe_applied

    def test_what_the_shard_says_of_a_repetition_is_the_truth(self) -> None:
        for error, is_open in ((VersionConflict("x"), False), (InvalidArgument("x"), False), (Expired("x"), True)):
            leg = machine(self.write)
            leg.start(0.0)
            leg.step(AttemptFailed(1, self.broken), 0.1)
            leg.step(MapRefreshed((A,)), 0.1)
            leg.step(AttemptFailed(2, error), 0.2)
            assert type(lost(leg)) is type(error)
            assert lost(leg).details.maybe_applied is is_open

    def test_a_write_of_which_the_shard_knows_nothing_is_expired(self) -> None:
        leg = machine(self.write)
        leg.start(0.0)
        error = Expired("never sent")
        assert leg.step(AttemptFailed(1, error), 0.1) == [Finish(Lost(error))]

    def test_a_shard_that_sheds_load_is_not_asked_again(self) -> None:
        leg = machine(self.write)
        leg.start(0.0)
        error = ResourceExhausted("busy")
        assert leg.step(AttemptFailed(1, error), 0.1) == [Finish(Lost(error))]

    def test_pauses_are_spread_by_chance(self) -> None:
        pauses = set()
        for seed in range(20):
            leg = AttemptMachine(self.write, (A,), DEADLINE, Random(seed))
            leg.start(0.0)
            leg.step(AttemptFailed(1, self.broken), 1.0)
            leg.step(MapRefreshed((A,)), 1.0)
            (action,) = leg.step(AttemptFailed(2, self.broken), 1.0)
            assert isinstance(action, SetTimer)
            pauses.add(action.at - 1.0)
        assert len(pauses) == 20
        assert 0.0025 <= min(pauses) <= max(pauses) <= 0.005


class TestRepeatedReads:
    read = Config(max_attempts=3, may_repeat=True, max_refreshes=MAX_REPEATS)

    def test_every_replica_is_asked_and_then_asked_again(self) -> None:
        leg = machine(self.read, A, B, C, gate=OpenGate(0.1))
        leg.start(0.0)
        assert leg.step(AttemptFailed(1, Unavailable("gone")), 0.0)[0] == failover(2, B)
        assert leg.step(AttemptFailed(2, NotReady("no lease")), 0.0)[0] == failover(3, C)
        assert leg.step(AttemptFailed(3, NotReady("no lease")), 0.0) == [RefreshMap()]
        assert leg.step(MapRefreshed((C, B)), 0.0)[0] == retry(4, C)
        assert leg.step(AttemptSucceeded(4), 0.1) == [Finish(Won(4, C))]

    def test_more_replicas_may_be_gone_than_attempts_may_be_out(self) -> None:
        leg = machine(self.read, A, B, C, Candidate("d"), Candidate("e"), gate=OpenGate(0.1))
        leg.start(0.0)
        for attempt in range(1, 5):
            leg.step(AttemptFailed(attempt, Unavailable("gone")), 0.0)
        assert leg.step(AttemptSucceeded(5), 0.1) == [Finish(Won(5, Candidate("e")))]

    def test_a_damaged_replica_is_not_the_last_word_while_others_may_come_back(self) -> None:
        leg = machine(self.read, A, B, gate=OpenGate(0.1))
        leg.start(0.0)
        leg.step(AttemptFailed(1, Unavailable("gone")), 0.0)
        assert leg.step(AttemptFailed(2, DataLoss("bad")), 0.0) == [RefreshMap()]
        leg.step(MapRefreshed((B,)), 0.0)
        damage = DataLoss("bad")
        assert leg.step(AttemptFailed(3, damage), 0.1) == [Finish(Lost(damage))]

    def test_a_hang_does_not_eat_the_deadline(self) -> None:
        leg = machine(self.read, A, B, C, gate=OpenGate(0.1))
        leg.start(0.0)
        assert leg.step(TimerFired(), 0.1) == [hedge(2, B), SetTimer(0.2)]
        assert leg.step(AttemptFailed(2, NotReady("no lease")), 0.11)[0] == failover(3, C)
        assert leg.step(AttemptSucceeded(3), 0.12) == [Cancel(1), Finish(Won(3, C))]


class TestWaitingForOneWhileOthersRefuse:
    """A primary hangs, its secondaries have no lease until one of them has taken over: that is no matter of the deadline."""

    read = Config(max_attempts=3, may_repeat=True, max_refreshes=MAX_REPEATS)

    def hung(self, *candidates: Candidate) -> AttemptMachine:
        """The first one does not answer, and is hedged at the second."""
        leg = machine(self.read, *candidates, gate=OpenGate(0.004))
        leg.start(0.0)
        assert leg.step(TimerFired(), 0.1)[0] == hedge(2, candidates[1])
        return leg

    def test_those_that_refused_are_asked_again_after_a_pause(self) -> None:
        leg = self.hung(A, B, C)
        assert leg.step(AttemptFailed(2, NotReady("no lease")), 0.1)[0] == failover(3, C)
        assert leg.step(AttemptFailed(3, NotReady("no lease")), 0.1) == [SetTimer(pytest.approx(0.105))]
        assert leg.step(TimerFired(), 0.106) == [LookAtMap()]
        assert leg.step(MapSeen((B, C, A)), 0.106) == [retry(4, B), SetTimer(pytest.approx(0.11))]
        leg.check_invariants()
        assert leg.step(AttemptSucceeded(4), 0.11) == [Cancel(1), Finish(Won(4, B))]

    @pytest.mark.parametrize(("delay", "wait"), [(0.1, 0.1), (None, LOOK_INTERVAL_S)])
    def test_the_last_one_that_is_left_has_its_time(self, delay: float | None, wait: float) -> None:
        leg = machine(self.read, B, C, A, gate=OpenGate(delay))
        leg.start(0.0)
        assert leg.step(AttemptFailed(1, NotReady("no lease")), 0.0)[0] == failover(2, C)
        assert leg.step(AttemptFailed(2, NotReady("no lease")), 0.0) == [failover(3, A), SetTimer(wait)]
        assert leg.step(TimerFired(), wait) == [LookAtMap()]
        assert leg.step(MapSeen((B, C, A)), wait)[0] == retry(4, B)

    def test_a_map_that_became_stale_meanwhile_is_looked_at(self) -> None:
        leg = self.hung(A, B)
        assert leg.step(AttemptFailed(2, StaleEpoch("old")), 0.1) == [SetTimer(pytest.approx(0.105))]
        assert leg.step(TimerFired(), 0.106) == [LookAtMap()]
        newer = Candidate("b", 2)
        assert leg.step(MapSeen((newer,)), 0.106) == [retry(3, newer)]
        assert leg.step(AttemptSucceeded(3), 0.11) == [Cancel(1), Finish(Won(3, newer))]

    def test_pauses_grow_and_stay_bounded(self) -> None:
        leg, now, pauses, attempt = self.hung(A, B), 0.1, [], 2
        while len(pauses) < 9:
            (timer,) = leg.step(AttemptFailed(attempt, NotReady("no lease")), now)
            assert isinstance(timer, SetTimer)
            pauses.append(timer.at - now)
            now, attempt = timer.at, attempt + 1
            assert leg.step(TimerFired(), now) == [LookAtMap()]
            assert leg.step(MapSeen((A, B)), now)[0] == retry(attempt, B)
            leg.check_invariants()
        assert pauses == pytest.approx([0.005, 0.005, 0.01, 0.02, 0.04, 0.08, 0.1, 0.1, 0.1])

    def test_nobody_is_asked_twice_at_once(self) -> None:
        leg = self.hung(A, B)
        leg.step(AttemptFailed(2, NotReady("no lease")), 0.1)
        assert leg.step(TimerFired(), 0.106) == [LookAtMap()]
        assert leg.step(MapSeen((A,)), 0.106) == [SetTimer(pytest.approx(0.111))]  # Only the one that hangs is left.
        leg.check_invariants()


class TestTheGate:
    def test_who_was_granted_before_is_asked_without_it(self) -> None:
        leg = machine(Config(max_attempts=3), A, B, C, gate=OpenGate(0.05))
        leg.start(0.0)
        assert leg.step(HedgeGranted(C), 0.06)[0] == hedge(2, C)
        assert leg.step(HedgeGranted(C), 0.07) == [], "it is no spare any more"
        assert leg.step(HedgeGranted(Candidate("gone")), 0.07) == []
        leg.check_invariants()
        leg.step(AttemptSucceeded(1), 0.08)
        assert leg.step(HedgeGranted(B), 0.09) == []

    reading = Config(max_attempts=3)

    def test_it_is_asked_when_the_delay_has_passed_and_told_who_is_late(self) -> None:
        gate = OpenGate(0.05)
        leg = machine(self.reading, A, B, C, gate=gate)
        leg.start(1.0)
        assert leg.step(TimerFired(), 1.053) == [hedge(2, B), SetTimer(pytest.approx(1.103))]
        assert leg.step(TimerFired(), 1.103) == [hedge(3, C)]
        assert [(spares, waiting) for spares, waiting, _ in gate.asked] == [(["b", "c"], ["a"]), (["c"], ["a", "b"])]
        assert [late for _, _, late in gate.asked] == pytest.approx([0.003, 0.0])

    def test_a_refusal_is_asked_again_each_time_after_twice_as_long(self) -> None:
        leg = machine(self.reading, A, B, gate=OpenGate(0.01, Refusal.BUDGET, Refusal.NO_CANDIDATE))
        leg.start(0.0)
        assert leg.step(TimerFired(), 0.01) == [SetTimer(pytest.approx(0.02))]
        assert leg.step(TimerFired(), 0.02) == [SetTimer(pytest.approx(0.04))]
        assert leg.step(TimerFired(), 0.04) == [hedge(2, B)]
        assert leg.refused == {Refusal.BUDGET, Refusal.NO_CANDIDATE}

    def test_a_delay_of_nothing_is_no_busy_loop(self) -> None:
        leg, now = machine(self.reading, A, B, gate=OpenGate(0.0, *[Refusal.BUDGET] * 20)), 0.0
        actions = leg.start(now)[1:]
        for _ in range(20):
            (timer,) = actions
            assert isinstance(timer, SetTimer)
            now = timer.at
            actions = leg.step(TimerFired(), now)
        assert 0.8 < now < 2

    def test_a_late_router_gives_itself_as_long_as_it_was_late(self) -> None:
        leg = machine(self.reading, A, B, gate=OpenGate(0.01, Refusal.LATE_ROUTER, Refusal.LATE_ROUTER))
        leg.start(0.0)
        assert leg.step(TimerFired(), 0.5) == [SetTimer(pytest.approx(0.99))]
        assert leg.step(TimerFired(), 0.99) == [SetTimer(pytest.approx(1.0))]  # a delay at least

    def test_no_timer_is_set_beyond_the_deadline(self) -> None:
        leg = machine(self.reading, A, B, gate=OpenGate(0.01, Refusal.BUDGET))
        leg.start(DEADLINE - 0.015)
        assert leg.step(TimerFired(), DEADLINE - 0.005) == []
        assert leg.phase is Phase.TRYING

    def test_a_gate_without_a_delay_never_hedges(self) -> None:
        leg = machine(self.reading, A, B, gate=OpenGate(None))
        assert leg.start(0.0) == [Send(1, A)]

    @pytest.mark.parametrize("may_fail_over", [True, False])
    def test_load_that_was_shed_goes_elsewhere_only_within_the_budget(self, may_fail_over: bool) -> None:
        leg = machine(self.reading, A, B, gate=OpenGate(None, may_fail_over=may_fail_over))
        leg.start(0.0)
        error = ResourceExhausted("busy")
        expected = failover(2, B) if may_fail_over else Finish(Lost(error))
        assert leg.step(AttemptFailed(1, error), 0.1) == [expected]

    def test_the_records_tell_the_story(self) -> None:
        leg = machine(self.reading, A, B, C, gate=OpenGate(0.05))
        leg.start(1.0)
        leg.step(TimerFired(), 1.05)
        leg.step(AttemptFailed(2, Unavailable("gone")), 1.06)
        leg.step(AttemptSucceeded(3), 1.07)
        told = [
            (each.leaf, each.kind.value, round(each.began_s, 6), round(each.ended_s, 6), each.outcome) for each in leg.tries
        ]
        assert told == [
            ("a", "first", 0.0, 0.07, "cancelled"),
            ("b", "hedge", 0.05, 0.06, "unavailable"),
            ("c", "failover", 0.06, 0.07, "won"),
        ]

    def test_a_write_has_no_gate(self) -> None:
        with pytest.raises(AssertionError):
            machine(Config(is_idempotent=False), A, gate=OpenGate(0.1))
