"""The budget's guarantee, whatever happens."""

from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.tail.budget import SAVED_MIN, URGENT_SHARE, WINDOW_S, HedgeBudget

STEPS = st.lists(
    st.tuples(
        st.floats(0.0, 4.0),  # pause
        st.integers(0, 400),  # first attempts
        st.integers(0, 60),  # hedges asked for
        st.sampled_from([None, None, None, 0.01, 0.03, 0.1]),  # a new fraction
    ),
    min_size=1,
    max_size=80,
)


@settings(max_examples=300, deadline=None)
@given(STEPS, st.floats(0.0, 0.1), st.sampled_from([0.0, 1.0]))
def test_no_ten_seconds_behind_a_hedge_hold_more_than_the_budget(steps, fraction: float, reserve: float) -> None:
    budget, now, most = HedgeBudget(fraction, reserve), 1_000.0, fraction
    first: deque[tuple[float, int]] = deque()
    extra: deque[float] = deque()
    for pause, attempts, wanted, changed in steps:
        now += pause
        if changed is not None:
            budget.fraction = changed
            most = max(most, changed)
        budget.first_attempts(now, attempts)
        first.append((now, attempts))
        for number in range(wanted):
            if budget.try_take(now, is_urgent=number % 3 > 0):
                extra.append(now)
                in_window = sum(count for at, count in first if now - WINDOW_S < at <= now)
                spent = sum(now - WINDOW_S < at for at in extra)
                assert spent <= most * in_window + reserve * WINDOW_S + 1e-9
        budget.check_invariants()


def test_a_steady_stream_gets_its_whole_budget_and_no_more() -> None:
    budget, sent, attempts = HedgeBudget(0.05, reserve_per_s=0.0), 0, 0
    for step in range(6_000):
        now = 100.0 + step / 100
        budget.first_attempts(now, 5)
        attempts += 5
        sent += budget.try_take(now)
    assert 0.045 * attempts <= sent <= 0.05 * attempts


def test_one_bad_moment_does_not_spend_the_allowance_of_the_whole_window() -> None:
    budget = HedgeBudget(0.05)
    for step in range(1_000):
        budget.first_attempts(100.0 + step / 100, 10)
    taken = sum(budget.try_take(110.0) for _ in range(1_000))
    assert 90 <= taken <= 110  # two seconds' income of a thousand attempts a second
    for step in range(100):
        budget.first_attempts(110.0 + step / 100, 10)
    assert sum(budget.try_take(111.0) for _ in range(1_000)) > 40


def test_a_lone_caller_lives_on_the_reserve() -> None:
    budget, sent = HedgeBudget(0.05), 0
    for second in range(100):
        budget.first_attempts(float(second))
        sent += budget.try_take(float(second))
    assert 90 <= sent <= 100


def test_without_budget_and_reserve_there_is_no_hedge() -> None:
    budget = HedgeBudget(0.0, reserve_per_s=0.0)
    budget.first_attempts(1.0, 100_000)
    assert not budget.try_take(1.0)


@pytest.mark.parametrize("idle", [1.0, 100.0, 1e6])
def test_nothing_is_saved_up_while_nobody_asks(idle: float) -> None:
    budget = HedgeBudget(0.1)
    budget.first_attempts(1.0, 10_000)
    budget.first_attempts(1.0 + WINDOW_S + idle, 1)
    assert sum(budget.try_take(1.0 + WINDOW_S + idle) for _ in range(1_000)) <= SAVED_MIN + 1


def test_slow_answers_cannot_take_what_stragglers_need() -> None:
    budget = HedgeBudget(0.05)
    for step in range(1_000):
        budget.first_attempts(100.0 + step / 100, 10)
    plain = sum(budget.try_take(110.0, is_urgent=False) for _ in range(1_000))
    urgent = sum(budget.try_take(110.0) for _ in range(1_000))
    assert plain > 4 * urgent > 40
    budget = HedgeBudget(0.05)
    for step in range(6_000):
        budget.first_attempts(100.0 + step / 100, 5)
        budget.try_take(100.0 + step / 100, is_urgent=False)
    first, extra = budget.counts(160.0)
    assert budget.ordinary * first < extra < 0.05 * (1 - URGENT_SHARE) * first + 10
    assert sum(budget.try_take(160.0) for _ in range(1_000)) > 10
