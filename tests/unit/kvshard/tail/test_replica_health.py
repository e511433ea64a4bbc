"""What a router knows of each leaf: every state and how it ends, and who is asked first because of it."""

import heapq
from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.errors import (
    DeadlineExceeded,
    ErrorDetails,
    Internal,
    KvShardError,
    NotReady,
    ResourceExhausted,
    StaleEpoch,
    Unavailable,
)
from kvshard.tail import replica_health as module
from kvshard.tail.latency import LatencyPool
from kvshard.tail.leaf_health import FRESH_S, SLOW_START_S, Attempt, LeafState
from kvshard.tail.replica_health import (
    HOT_IN_FLIGHT,
    PROBATION_SHARE,
    PROBATION_SILENT_S,
    PROBE_INTERVAL_S,
    PUSHBACK_MAX_S,
    PUSHBACK_S,
    UNREACHABLE_S,
    ReplicaHealth,
    is_unreachable,
)

NOW = 1_000.0
ABC = ("a", "b", "c")
OVERDUE_S = 0.007


@pytest.fixture
def health() -> ReplicaHealth:
    return ReplicaHealth(Random(7))


@pytest.fixture
def pool() -> LatencyPool:
    """A kind of leg with a median of 10 ms."""
    pool = LatencyPool("Get")
    for _ in range(100):
        pool.record(0.01, NOW)
    pool.delay(0.95, NOW)
    return pool


def began(health: ReplicaHealth, pool: LatencyPool, leaf: str, now: float = NOW, is_first: bool = True) -> Attempt:
    return health.began(leaf, pool, OVERDUE_S, now, is_first)


def state(health: ReplicaHealth, leaf: str, now: float = NOW) -> LeafState:
    return health.leaf(leaf, now).state(now)


def took(health: ReplicaHealth, pool: LatencyPool, leaf: str, seconds: float, times: int, now: float = NOW) -> float:
    """The leaf answers so often, each time after so long. Returns when the last one ended."""
    for _ in range(times):
        attempt = began(health, pool, leaf, now)
        now += max(seconds, 0.011)
        attempt.began = now - seconds
        health.answered(attempt, now, 0)
    return now


def firsts(health: ReplicaHealth, now: float = NOW, names: tuple[str, ...] = ABC, count: int = 300) -> Counter[str]:
    return Counter(names[health.order(names, now)[0]] for _ in range(count))


def on_probation(health: ReplicaHealth) -> list[str]:
    return [leaf.name for leaf in health.leaves() if leaf.is_on_probation]


class TestStalled:
    def test_an_attempt_that_is_overdue(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        attempt = began(health, pool, "a")
        assert state(health, "a", NOW + 0.0069) is LeafState.OK
        assert state(health, "a", NOW + 0.0071) is LeafState.STALLED
        health.answered(attempt, NOW + 0.01, 0)
        assert state(health, "a", NOW + 0.01) is LeafState.OK

    def test_the_oldest_of_any_kind_counts(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        health.began("a", LatencyPool("Search"), 1.0, NOW, True)
        oldest = began(health, pool, "a")
        began(health, pool, "a", NOW + 0.005)
        assert state(health, "a", NOW + 0.008) is LeafState.STALLED
        health.answered(oldest, NOW + 0.009, 0)
        assert state(health, "a", NOW + 0.009) is LeafState.OK
        assert state(health, "a", NOW + 0.013) is LeafState.STALLED

    def test_a_request_that_later_ones_have_overtaken_is_slow_and_not_the_leaf(
        self, health: ReplicaHealth, pool: LatencyPool
    ) -> None:
        began(health, pool, "a")
        later = began(health, pool, "a", NOW + 0.002)
        last = began(health, pool, "a", NOW + 0.004)
        health.answered(later, NOW + 0.005, 0)
        assert state(health, "a", NOW + 0.0105) is LeafState.OK, "the first one was overtaken"
        assert state(health, "a", NOW + 0.0115) is LeafState.STALLED, "the last one was not"
        health.answered(last, NOW + 0.012, 0)
        assert state(health, "a", NOW + 9.0) is LeafState.OK

    def test_those_that_were_sent_together_overtake_each_other(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        one, _ = began(health, pool, "a"), began(health, pool, "a")
        health.answered(one, NOW + 0.001, 0)
        assert state(health, "a", NOW + 0.008) is LeafState.OK

    def test_an_answer_of_another_kind_or_to_an_earlier_one_overtakes_nothing(
        self, health: ReplicaHealth, pool: LatencyPool
    ) -> None:
        earlier = began(health, pool, "a")
        began(health, pool, "a", NOW + 0.001)
        other = health.began("a", LatencyPool("Search"), 1.0, NOW + 0.002, True)
        health.answered(earlier, NOW + 0.003, 0)
        health.answered(other, NOW + 0.003, 0)
        assert state(health, "a", NOW + 0.009) is LeafState.STALLED

    def test_what_was_overtaken_and_given_up_still_makes_the_leaf_slower(
        self, health: ReplicaHealth, pool: LatencyPool
    ) -> None:
        overtaken, later = began(health, pool, "a"), began(health, pool, "a", NOW + 0.001)
        health.answered(later, NOW + 0.002, 0)
        slowness = health.leaf("a", NOW).slowness
        health.cancelled(overtaken, NOW + 0.04)
        assert health.leaf("a", NOW).slowness > slowness

    def test_it_gets_no_first_attempt_while_another_is_not(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        began(health, pool, "a")
        assert set(firsts(health, NOW + 0.01)) == {"b", "c"}
        began(health, pool, "b")
        assert set(firsts(health, NOW + 0.01)) == {"c"}
        began(health, pool, "c")
        assert set(firsts(health, NOW + 0.01)) == {"a", "b", "c"}, "if all are, none is"

    def test_what_is_overdue_says_nothing_while_answers_lie_unread(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        began(health, pool, "a")
        for leaf in ("b", "c"):
            began(health, pool, leaf, NOW + 0.009)
        health.late_until = NOW + 0.012
        assert set(firsts(health, NOW + 0.011)) == {"a", "b", "c"}
        assert set(firsts(health, NOW + 0.012)) == {"b", "c"}


class TestSilent:
    def silent(self, health: ReplicaHealth, pool: LatencyPool) -> ReplicaHealth:
        assert health.cancelled(began(health, pool, "a"), NOW + 0.01)
        return health

    def test_a_leaf_whose_overdue_attempt_was_given_up_stays_stalled(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        self.silent(health, pool)
        assert state(health, "a", NOW + 50) is LeafState.STALLED
        assert set(firsts(health, NOW + 50)) == {"b", "c"}

    def test_once_it_answers_pings_it_gets_one_attempt_a_second_until_it_answers_one(
        self, health: ReplicaHealth, pool: LatencyPool
    ) -> None:
        """A leaf that answers nothing but pings took four hedges of each read, and then the budget was empty."""
        self.silent(health, pool)
        health.pinged("a", NOW + 0.02)
        assert "a" in firsts(health, NOW + 0.02)
        attempt = began(health, pool, "a", NOW + 0.02)
        assert set(firsts(health, NOW + 0.021)) == {"b", "c"}
        health.cancelled(attempt, NOW + 0.03)
        health.pinged("a", NOW + 0.04)
        assert set(firsts(health, NOW + 1.019)) == {"b", "c"}
        assert "a" in firsts(health, NOW + 1.021)
        again = began(health, pool, "a", NOW + 1.021)
        health.answered(again, NOW + 1.022, 0)
        assert "a" in firsts(health, NOW + 1.022)

    def test_it_is_pinged_once(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        attempts = [began(health, pool, "a") for _ in range(3)]
        assert [health.cancelled(each, NOW + 0.01) for each in attempts] == [True, False, False]

    def test_the_deadline_gives_up_too(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        assert health.failed(began(health, pool, "a"), DeadlineExceeded("late"), NOW + 0.01)
        assert state(health, "a", NOW + 1) is LeafState.STALLED

    def test_what_was_given_up_early_says_nothing(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        assert not health.cancelled(began(health, pool, "a"), NOW + 0.005)
        assert state(health, "a", NOW + 1) is LeafState.OK

    def test_a_leaf_that_answered_others_meanwhile_is_not_silent(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        lost, other = began(health, pool, "a"), began(health, pool, "a")
        health.answered(other, NOW + 0.001, 0)
        assert not health.cancelled(lost, NOW + 0.01)
        assert state(health, "a", NOW + 1) is LeafState.OK

    @pytest.mark.parametrize("sign", ["answer", "refusal", "ping"])
    def test_any_sign_of_life_ends_it(self, health: ReplicaHealth, pool: LatencyPool, sign: str) -> None:
        other = began(health, pool, "a")
        self.silent(health, pool)
        if sign == "answer":
            health.answered(other, NOW + 1, 0)
        elif sign == "refusal":
            assert not health.failed(other, NotReady("no lease"), NOW + 1)
        else:
            health.pinged("a", NOW + 1)
        assert other.leaf.state(NOW + 0.001) is (LeafState.PROBATION if sign == "ping" else LeafState.OK)

    def test_a_full_lane_is_no_sign_of_life(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        other = began(health, pool, "a")
        self.silent(health, pool)
        health.failed(other, ResourceExhausted("too many requests wait for the lane"), NOW + 1)
        assert state(health, "a", NOW + 10) is LeafState.STALLED

    def test_one_that_has_answered_a_ping_gets_its_probe_though_it_has_more_in_flight(
        self, health: ReplicaHealth, pool: LatencyPool
    ) -> None:
        self.silent(health, pool).pinged("a", NOW + 1)
        leaf = health.leaf("a", NOW + 1)
        leaf.others, leaf.slowness, leaf.stepped_at = 9, 5.0, NOW + 1
        chosen = firsts(health, NOW + 1, ("a", "b"))
        assert set(chosen) == {"a"}, "as it was when it fell silent; nobody would ever hear that it is well again"
        began(health, pool, "a", NOW + 1)
        assert set(firsts(health, NOW + 1.001, ("a", "b"))) == {"b"}

    def test_one_that_has_answered_pings_alone_is_no_way_out_of_a_hiccup(
        self, health: ReplicaHealth, pool: LatencyPool
    ) -> None:
        self.silent(health, pool).pinged("a", NOW + 1)
        began(health, pool, "a", NOW + 1)
        for name in "bc":
            began(health, pool, name, NOW + 1)
        assert state(health, "b", NOW + 1.5) is LeafState.STALLED
        assert "a" not in firsts(health, NOW + 1.5)

    def test_it_is_worse_than_being_late(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        self.silent(health, pool)
        began(health, pool, "b")
        assert set(firsts(health, NOW + 0.02, ("a", "b"))) == {"b"}

    def test_it_is_forgotten_when_no_ping_was_answered_for_long(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        self.silent(health, pool).forget_silence("a")
        assert state(health, "a", NOW + 60) is LeafState.OK
        assert health.cancelled(began(health, pool, "a", NOW + 60), NOW + 61), "and found out again"


class TestUnreachable:
    def test_until_it_is_heard(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        assert health.failed(began(health, pool, "a"), Unavailable("refused"), NOW)
        assert state(health, "a", NOW + UNREACHABLE_S - 1) is LeafState.UNREACHABLE
        assert (health.has_unreachable, health.is_unreachable("a", NOW)) == (True, True)
        assert [ABC[place] for place in health.order(ABC, NOW)][-1] == "a", "last, but it comes"
        health.pinged("a", NOW + 5)
        assert state(health, "a", NOW + 5) is LeafState.NEW, "it comes back with cold caches"
        assert (health.has_unreachable, health.is_unreachable("a", NOW)) == (False, False)

    def test_it_is_pinged_once(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        attempts = [began(health, pool, "a") for _ in range(3)]
        assert [health.failed(each, Unavailable("refused"), NOW) for each in attempts] == [True, False, False]
        health.forget_silence("a")
        assert not health.has_unreachable
        assert health.unreachable("a", NOW)

    @pytest.mark.parametrize(
        ("error", "wanted"),
        [
            (Unavailable("connection refused"), True),
            (Unavailable("shard 3 has no primary", ErrorDetails(shards=(3,))), False),
            (NotReady("no lease"), False),
            (StaleEpoch("old"), False),
            (DeadlineExceeded("late"), False),
            (ResourceExhausted("busy"), False),
        ],
        ids=repr,
    )
    def test_what_a_leaf_says_itself_is_not_that(self, error: KvShardError, wanted: bool) -> None:
        assert is_unreachable(error) is wanted


class TestPushback:
    @pytest.mark.parametrize(("asked_ms", "seconds"), [(200, 0.2), (None, PUSHBACK_S), (60_000, PUSHBACK_MAX_S)])
    def test_for_as_long_as_it_says(
        self, health: ReplicaHealth, pool: LatencyPool, asked_ms: int | None, seconds: float
    ) -> None:
        busy = ResourceExhausted("busy", ErrorDetails(retry_after_ms=asked_ms))
        assert not health.failed(began(health, pool, "a"), busy, NOW)
        assert state(health, "a", NOW + seconds - 0.001) is LeafState.PUSHBACK
        assert set(firsts(health, NOW + seconds - 0.001)) == {"b", "c"}
        assert state(health, "a", NOW + seconds + 0.001) is LeafState.OK
        assert health.sheds == 1

    def test_other_errors_are_none(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        assert not health.failed(began(health, pool, "a"), Internal("defect"), NOW)
        assert state(health, "a") is LeafState.OK
        assert health.sheds == 0


class TestProbation:
    def slow(self, health: ReplicaHealth, pool: LatencyPool, leaf: str = "a", others: tuple[str, ...] = ("b", "c")) -> float:
        for other in others:
            took(health, pool, other, 0.01, 12)
        now = took(health, pool, leaf, 0.1, 12)
        return took(health, pool, leaf, 0.1, 3, now)

    def test_a_leaf_three_times_as_slow_as_the_others(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        now = self.slow(health, pool)
        assert state(health, "a", now) is LeafState.PROBATION
        assert on_probation(health) == ["a"]

    def test_it_gets_one_first_attempt_a_second(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        now, probes = self.slow(health, pool), 0
        for step in range(1_000):
            leaf = ABC[health.order(ABC, now + step / 100)[0]]
            probes += leaf == "a"
            attempt = began(health, pool, leaf, now + step / 100)
            health.answered(attempt, now + step / 100 + (0.1 if leaf == "a" else 0.01), 0)
        assert 8 <= probes <= 10
        assert state(health, "a", now + 10) is LeafState.PROBATION

    def test_it_is_asked_before_one_that_is_stalled_for_longer_than_it_takes(
        self, health: ReplicaHealth, pool: LatencyPool
    ) -> None:
        now = self.slow(health, pool)
        health.leaf("a", now).slowness = 10.0
        for name in "bc":
            began(health, pool, name, now)
        late, long_late = now + 0.09, now + 0.11
        assert {state(health, name, late) for name in "bc"} == {LeafState.STALLED}
        assert set(firsts(health, late)) == {"b", "c"}, "a hiccup of the others is shorter than what it takes"
        assert health.after(ABC, 1, late) == (1, 2, 0)
        assert set(firsts(health, long_late)) == {"a"}
        assert health.after(ABC, 1, long_late) == (1, 0, 2)

    def test_it_is_released_after_a_few_good_probes(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        now = self.slow(health, pool)
        for name, slowness in zip(ABC, (10.0, 1.0, 1.0), strict=True):
            health.leaf(name, now).slowness = slowness
        for _ in range(3):
            now = took(health, pool, "a", 0.005, 1, now + PROBE_INTERVAL_S)
            assert on_probation(health) == ["a"]
        took(health, pool, "a", 0.005, 1, now + PROBE_INTERVAL_S)
        assert on_probation(health) == []

    def test_one_for_which_there_was_no_room_comes_back_as_fast(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        now = self.slow(health, pool, "a", ("b", "c", "d", "e"))
        for name, slowness in zip("abcde", (30.0, 1.0, 30.0, 1.0, 1.0), strict=True):
            health.leaf(name, now).slowness = slowness
        health.hot_limit(now + 1)
        assert on_probation(health) == ["a"]
        now = took(health, pool, "c", 0.005, 1, now + 1)
        assert health.leaf("c", now).slowness == pytest.approx(20.0)
        assert on_probation(health) == ["a"], "a fast answer puts nobody on probation"
        now = took(health, pool, "c", 1.0, 1, now + 1)
        assert health.leaf("c", now).slowness == pytest.approx(22.0)

    def test_never_more_than_one_in_three(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        names = tuple("abcdefghi")
        for name in names[4:]:
            took(health, pool, name, 0.01, 12)
        for name in names[:4]:
            took(health, pool, name, 0.1, 30)
            assert len(on_probation(health)) <= PROBATION_SHARE * len(names)
        assert len(on_probation(health)) == 3

    @pytest.mark.parametrize("names", ["ab", "abcd"])
    def test_if_all_are_slow_none_is(self, health: ReplicaHealth, pool: LatencyPool, names: str) -> None:
        now = NOW
        for _ in range(40):
            for name in names:
                now = took(health, pool, name, 0.1, 1, now)
        assert on_probation(health) == []

    def test_of_two_none_is(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        self.slow(health, pool, others=("b",))
        assert on_probation(health) == []

    def test_a_leaf_that_left_the_cluster_makes_room_for_another(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        """It would be on probation for good, and with four leaves no second one may be."""
        self.slow(health, pool, "gone", ("a", "b", "c"))
        assert on_probation(health) == ["gone"]
        later = NOW + PROBATION_SILENT_S + 10
        for name in "bc":
            took(health, pool, name, 0.01, 12, later)
        took(health, pool, "a", 0.1, 30, later)
        assert on_probation(health) == ["a"]

    def test_leaves_that_left_do_not_count_among_the_many(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        for name in "uvwxyz":
            took(health, pool, name, 0.01, 12)
        later = NOW + PROBATION_SILENT_S + 10
        for name in "cde":
            took(health, pool, name, 0.01, 12, later)
        for name in "ab":
            took(health, pool, name, 0.1, 30, later)
        assert len(on_probation(health)) == 1

    def test_one_pause_that_holds_up_many_counts_once(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        took(health, pool, "a", 0.01, 12)
        before = health.leaf("a", NOW).slowness
        attempts = [began(health, pool, "a") for _ in range(50)]
        for each in attempts:
            health.answered(each, NOW + 1, 0)
        assert health.leaf("a", NOW).slowness == pytest.approx(before * module.STEP)

    def test_nothing_is_learned_without_a_median(self, health: ReplicaHealth) -> None:
        unknown = LatencyPool("Scan")
        took(health, unknown, "a", 10.0, 50)
        assert health.leaf("a", NOW).samples == 0


class TestSlowStart:
    def test_the_share_of_a_new_leaf_grows(self, health: ReplicaHealth) -> None:
        for name in ("b", "c"):
            health.leaf(name, NOW)
        later = NOW + 100
        health.leaf("a", later)
        assert state(health, "a", later) is LeafState.NEW
        shares = [firsts(health, later + age, count=3_000)["a"] / 3_000 for age in (0.0, 2.5, 4.9)]
        assert shares[0] == pytest.approx(0.1 / 3, rel=0.35)
        assert shares[0] < shares[1] / 3 < shares[2]
        assert shares[2] == pytest.approx(1 / 3, rel=0.15)
        assert state(health, "a", later + SLOW_START_S) is LeafState.OK

    def test_at_the_routers_own_start_none_is_spared(self, health: ReplicaHealth) -> None:
        assert min(firsts(health).values()) > 70
        assert {state(health, name) for name in ABC} == {LeafState.OK}


class TestChoice:
    def test_equals_are_asked_equally(self, health: ReplicaHealth) -> None:
        counts = firsts(health, count=3_000)
        assert min(counts.values()) > 900

    @pytest.mark.parametrize("count", [1, 2, 3, 5])
    def test_an_order_names_each_once(self, health: ReplicaHealth, pool: LatencyPool, count: int) -> None:
        names = tuple("abcde"[:count])
        began(health, pool, "b")
        for _ in range(50):
            assert sorted(health.order(names, NOW + 0.01)) == list(range(count))

    def test_the_emptier_of_two(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        for _ in range(10):
            health.began("a", pool, 60.0, NOW, True)
        assert firsts(health, names=("a", "b")) == {"b": 300}
        assert firsts(health)["a"] == 0, "of two by chance, one is always emptier"

    def test_what_a_leaf_reports_counts_while_it_is_fresh(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        health.answered(began(health, pool, "a"), NOW, 50)
        health.answered(began(health, pool, "b"), NOW, 1)
        assert firsts(health, NOW, ("a", "b")) == {"b": 300}
        assert min(firsts(health, NOW + FRESH_S, ("a", "b")).values()) > 100

    def test_cold_ones_are_told_apart_by_their_speed_and_hot_ones_by_their_load(
        self, health: ReplicaHealth, pool: LatencyPool
    ) -> None:
        health.leaf("a", NOW).slowness, health.leaf("b", NOW).slowness = 2.0, 1.0
        health.leaf("a", NOW).stepped_at = NOW
        for _ in range(HOT_IN_FLIGHT):
            health.began("b", pool, 60.0, NOW, True)
        assert firsts(health, names=("a", "b")) == {"b": 300}
        health.began("b", pool, 60.0, NOW, True)
        assert firsts(health, names=("a", "b")) == {"a": 300}

    def test_a_slow_leaf_of_which_nothing_was_heard_for_a_second_is_tried_again(
        self, health: ReplicaHealth, pool: LatencyPool
    ) -> None:
        """It need not be on probation: between two replicas the slower one would never be asked again."""
        health.leaf("b", NOW)
        took(health, pool, "a", 0.5, 20)
        leaf = health.leaf("a", NOW)
        now = leaf.stepped_at
        assert firsts(health, now + 0.9, ("a", "b")) == {"b": 300}
        for second in range(1, 30):
            assert min(firsts(health, now + 1.01 * second, ("a", "b")).values()) > 50
            took(health, pool, "a", 0.005, 1, now + 1.01 * second - 0.011)
        assert leaf.slowness < 1

    def test_a_little_faster_is_as_fast(self, health: ReplicaHealth) -> None:
        health.leaf("a", NOW).slowness, health.leaf("b", NOW).slowness = 1.2, 1.0
        assert min(firsts(health, names=("a", "b")).values()) > 100

    def test_the_worst_state_counts(self, health: ReplicaHealth, pool: LatencyPool) -> None:
        leaf = health.leaf("a", NOW)
        leaf.is_on_probation = True
        assert leaf.state(NOW) is LeafState.PROBATION
        leaf.pushback_until = NOW + 1
        assert leaf.state(NOW) is LeafState.PUSHBACK
        began(health, pool, "a", NOW - 1)
        assert leaf.state(NOW) is LeafState.STALLED
        health.unreachable("a", NOW)
        assert leaf.state(NOW) is LeafState.UNREACHABLE


def test_leaves_are_bounded(health: ReplicaHealth, pool: LatencyPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LEAVES_MAX", 3)
    busy = began(health, pool, "busy")
    health.unreachable("x", NOW)
    for name in "yzw":
        health.leaf(name, NOW)
    assert len(list(health.leaves())) == 3
    assert not health.has_unreachable
    health.answered(busy, NOW, 0)


ERRORS = (
    Unavailable("gone"),
    DeadlineExceeded("late"),
    ResourceExhausted("busy"),
    NotReady("x"),
    StaleEpoch("x"),
    Internal("x"),
)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["begin", "begin", "answer", "fail", "cancel", "order", "ping", "forget"]),
            st.integers(0, 50),
            st.floats(0, 2),
        ),
        max_size=80,
    )
)
def test_whatever_happens_the_counts_are_right(events: list[tuple[str, int, float]]) -> None:
    health, pools, now = ReplicaHealth(Random(1)), [LatencyPool("Get"), LatencyPool("Search")], NOW
    out: list[Attempt] = []
    for pool in pools:
        for _ in range(10):
            pool.record(0.01, NOW)
        pool.delay(0.95, NOW)
    for event, number, pause in events:
        now += pause / 20
        leaf = "abcdef"[number % 6]
        if event == "begin":
            out.append(health.began(leaf, pools[number % 2], OVERDUE_S, now, number % 3 > 0))
        elif event == "order":
            assert sorted(health.order(ABC, now)) == [0, 1, 2]
        elif event == "ping":
            health.pinged(leaf, now)
        elif event == "forget":
            health.forget_silence(leaf)
        elif out:
            attempt = out.pop(number % len(out))
            if event == "answer":
                health.answered(attempt, now, number)
            elif event == "fail":
                health.failed(attempt, ERRORS[number % len(ERRORS)], now)
            else:
                health.cancelled(attempt, now)
        known = list(health.leaves())
        assert sum(each.waiting for each in known) == len(out)
        for each in known:
            assert each.waiting == sum(map(len, each.outstanding.values())) >= 0
        assert health.has_unreachable == any(each.unreachable_until for each in known)
        assert sum(each.is_on_probation for each in known) <= PROBATION_SHARE * len(known)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_leaf_ten_times_slower_gets_next_to_nothing_after_two_seconds(seed: int) -> None:
    """Six leaves, three replicas a shard, 400 requests a second by chance; latencies spread by half a magnitude."""
    rng = Random(seed)
    health, pool = ReplicaHealth(rng), LatencyPool("Get")
    shards = [tuple(f"leaf-{(shard + place) % 6}" for place in range(3)) for shard in range(8)]
    got: Counter[str] = Counter()
    ending: list[tuple[float, int, Attempt]] = []
    now, count = NOW, 0
    while now < NOW + 12:
        now += rng.expovariate(400)
        while ending and ending[0][0] <= now:
            ended, _, attempt = heapq.heappop(ending)
            pool.record(ended - attempt.began, ended)
            health.answered(attempt, ended, attempt.leaf.waiting)
        names = rng.choice(shards)
        leaf, count = names[health.order(names, now)[0]], count + 1
        is_slow = leaf == "leaf-0" and now > NOW + 5
        seconds = rng.lognormvariate(-5.3, 0.5) * (10 if is_slow else 1)
        attempt = health.began(leaf, pool, 0.7 * pool.delay(0.95, now), now, True)
        heapq.heappush(ending, (now + seconds, count, attempt))
        if now > NOW + 7:
            got[leaf] += 1
    assert got["leaf-0"] / got.total() < 0.02
    others = [got[f"leaf-{number}"] for number in range(1, 6)]
    assert max(others) < 3 * min(others)
    assert got["leaf-0"] >= 5, "it is still probed"


STEPS = st.lists(
    st.tuples(st.sampled_from(["began", "answered", "failed", "cancelled", "unreachable", "order", "time"]), st.integers(0, 5)),
    max_size=60,
)
FAILURES = (
    NotReady("soon"),
    Unavailable("gone"),
    ResourceExhausted("busy"),
    DeadlineExceeded("late"),
    Internal("defect"),
    None,
)


@given(STEPS, st.integers(0, 2**32))
@settings(max_examples=150, deadline=None)
def test_a_leaf_that_was_fine_at_this_instant_is_fine(steps: list[tuple[str, int]], seed: int) -> None:
    """What `order` remembers of a leaf for the other legs of a request holds, whatever has happened at the same instant."""
    health, pool, now = ReplicaHealth(Random(seed)), LatencyPool("Get"), NOW
    for _ in range(100):
        pool.record(0.01, now)
    pool.delay(0.95, now)
    under_way: list[Attempt] = []
    for step, number in steps:
        leaf = ABC[number % 3]
        match step:
            case "began":
                under_way.append(health.began(leaf, pool, 0.004 * (1 + number), now, True))
            case "answered" if under_way:
                health.answered(under_way.pop(number % len(under_way)), now, number)
            case "failed" if under_way and (error := FAILURES[number]) is not None:
                health.failed(under_way.pop(number % len(under_way)), error, now)
            case "cancelled" if under_way:
                health.cancelled(under_way.pop(number % len(under_way)), now)
            case "unreachable":
                health.unreachable(leaf, now)
            case "order":
                health.order(ABC, now)
            case "time":
                now += (0.0005, 0.006, 0.02, 1.1, 6.0, 70.0)[number]
        for each in health.leaves():
            if each.fine_at == now:
                each.fine_at = -1.0
                assert health._rank(each, now) == LeafState.OK, (step, each)
