"""How the budget tunes itself: down fast, up slowly, within its bounds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.tail.hedging import BUDGET_FIRST, BUDGET_LEAST, BUDGET_MOST, HedgeSettings
from kvshard.tail.tuning import (
    CLEAR_MIN,
    GROWTH,
    HEDGES_MIN,
    LONGEST_LOOKS,
    PATIENCE,
    POOR_MIN,
    BudgetTuner,
    Observed,
    Patience,
)

USUAL = {"kind": "Get", "median": 0.001}


@pytest.fixture
def tuner() -> BudgetTuner:
    return BudgetTuner(HedgeSettings())


def settled(tuner: BudgetTuner) -> BudgetTuner:
    for _ in range(5):
        assert tuner.look(Observed(**USUAL)) == BUDGET_FIRST
    return tuner


class TestLess:
    def test_hedges_that_do_not_win(self, tuner: BudgetTuner) -> None:
        assert tuner.look(Observed(won=1, wasted=HEDGES_MIN - 1, missed=5)) == BUDGET_FIRST / 2

    def test_one_win_in_ten_is_enough(self, tuner: BudgetTuner) -> None:
        assert tuner.look(Observed(won=2, wasted=18)) == BUDGET_FIRST

    def test_a_few_hedges_say_nothing_until_they_are_enough_together(self, tuner: BudgetTuner) -> None:
        assert tuner.look(Observed(wasted=HEDGES_MIN - 1)) == BUDGET_FIRST
        assert tuner.look(Observed(wasted=1)) == BUDGET_FIRST / 2
        # They are judged once.
        assert tuner.look(Observed()) > BUDGET_FIRST / 2

    def test_a_leaf_that_sheds_load(self, tuner: BudgetTuner) -> None:
        assert tuner.look(Observed(won=100, missed=100, shed=1)) == BUDGET_FIRST / 2

    def test_a_median_that_has_doubled(self, tuner: BudgetTuner) -> None:
        settled(tuner)
        assert tuner.look(Observed(kind="Get", median=0.0019)) == BUDGET_FIRST
        assert tuner.look(Observed(kind="Get", median=0.0022)) == BUDGET_FIRST / 2

    def test_it_is_at_its_least_after_three_looks_and_no_lower(self, tuner: BudgetTuner) -> None:
        settled(tuner)
        found = [tuner.look(Observed(kind="Get", median=0.1)) for _ in range(5)]
        assert found == [0.025, 0.0125, BUDGET_LEAST, BUDGET_LEAST, BUDGET_LEAST]

    def test_another_kind_of_leg_that_becomes_the_busiest_is_not_slow(self, tuner: BudgetTuner) -> None:
        settled(tuner)
        assert tuner.look(Observed(kind="Search", median=0.02)) == BUDGET_FIRST
        assert tuner.look(Observed(kind="Get", median=0.001)) == BUDGET_FIRST
        assert tuner.look(Observed(kind="Search", median=0.05)) == BUDGET_FIRST / 2


class TestMore:
    def test_hedges_that_win_and_are_missed(self, tuner: BudgetTuner) -> None:
        assert tuner.look(Observed(won=15, wasted=5, missed=1)) == BUDGET_FIRST * GROWTH

    def test_missed_ones_of_which_nothing_is_known(self, tuner: BudgetTuner) -> None:
        assert tuner.look(Observed(missed=1)) == BUDGET_FIRST * GROWTH

    def test_hedges_that_win_though_the_budget_made_them_wait(self, tuner: BudgetTuner) -> None:
        assert tuner.look(Observed(won=HEDGES_MIN - 1, stretched=19)) == BUDGET_FIRST, "too few to say that they win"
        assert tuner.look(Observed(won=1, stretched=1)) == BUDGET_FIRST * GROWTH
        assert tuner.look(Observed(won=14, wasted=6, stretched=20)) < BUDGET_FIRST * GROWTH

    def test_not_if_fewer_than_half_win(self, tuner: BudgetTuner) -> None:
        assert tuner.look(Observed(won=9, wasted=11, missed=1)) == BUDGET_FIRST

    def test_it_never_exceeds_its_most(self, tuner: BudgetTuner) -> None:
        for _ in range(20):
            tuner.look(Observed(won=100, missed=1))
        assert tuner.fraction == BUDGET_MOST

    def test_what_it_got_it_keeps_while_hedges_win(self, tuner: BudgetTuner) -> None:
        grown = tuner.look(Observed(won=19, wasted=1, missed=1))
        assert tuner.look(Observed(won=15, wasted=5)) == grown
        assert tuner.look(Observed(won=14, wasted=6)) < grown

    def test_what_was_taken_from_it_returns_though_hedges_win(self, tuner: BudgetTuner) -> None:
        less = tuner.look(Observed(shed=1))
        assert less < tuner.look(Observed(won=20)) < BUDGET_FIRST

    def test_what_is_left_alone_returns_to_where_it_began(self, tuner: BudgetTuner) -> None:
        tuner.look(Observed(shed=1))
        before = tuner.fraction
        for _ in range(50):
            assert before < tuner.look(Observed()) <= BUDGET_FIRST
            before = tuner.fraction
        assert tuner.fraction == pytest.approx(BUDGET_FIRST, rel=0.01)


class TestPatience:
    def test_it_grows_while_hedges_do_not_win_and_goes_when_they_do(self) -> None:
        patience = Patience()
        found = []
        for won in (8, 7, 0, 0, 11, 12, 8):
            patience.look(won, 20 - won)
            found.append(patience.factor)
        assert found == [1.0, *PATIENCE[1:], PATIENCE[-1], PATIENCE[-1], 1.0, 1.0]

    def test_fewer_hedges_make_patient_than_impatient(self) -> None:
        patience = Patience()
        patience.look(0, POOR_MIN - 1)
        assert patience.factor == 1.0
        patience.look(0, 1)
        assert patience.factor == PATIENCE[1]
        patience.look(10, HEDGES_MIN - 11)
        assert patience.factor == PATIENCE[1]
        patience.look(1, 0)
        assert patience.factor == PATIENCE[1], "as many as it takes, but not enough of them won"
        patience.look(12, HEDGES_MIN - 12)
        assert patience.factor == 1.0

    def test_few_hedges_are_enough_where_they_clearly_win(self) -> None:
        patience = Patience()
        patience.look(0, POOR_MIN)
        patience.look(CLEAR_MIN - 1, 0)
        assert patience.factor == PATIENCE[1]
        patience.look(0, 1)
        assert patience.factor == 1.0

    def test_the_longest_one_ends_by_itself_so_that_slow_requests_are_found_out(self) -> None:
        patience = Patience()
        for _ in PATIENCE:
            patience.look(0, POOR_MIN)
        for _ in range(LONGEST_LOOKS - 1):
            patience.look(0, 0)
            assert patience.factor == PATIENCE[-1]
        for _ in range(2 * LONGEST_LOOKS):
            patience.look(0, 0)
            assert patience.factor == PATIENCE[-2]

    def test_there_is_none_with_requests_that_are_slow(self) -> None:
        patience = Patience()
        patience.look(0, POOR_MIN)
        assert patience.delay(0.003, 0.0059) == 0.006
        assert patience.delay(0.003, 0.0061) == 0.003

    def test_a_budget_has_one(self, tuner: BudgetTuner) -> None:
        tuner.look(Observed(telling_won=1, telling_wasted=HEDGES_MIN - 1))
        assert tuner.patience.factor == PATIENCE[1]

    def test_only_hedges_that_tell_something_of_haste_teach_it(self, tuner: BudgetTuner) -> None:
        tuner.look(Observed(won=5, wasted=HEDGES_MIN))
        assert tuner.patience.factor == 1.0
        tuner.look(Observed(telling_wasted=HEDGES_MIN))
        tuner.look(Observed(won=HEDGES_MIN))
        assert tuner.patience.factor == PATIENCE[1]


def test_a_new_normal_is_normal_after_half_a_minute(tuner: BudgetTuner) -> None:
    settled(tuner)
    for _ in range(30):
        tuner.look(Observed(kind="Get", median=0.003))
    assert tuner.fraction > 0.8 * BUDGET_FIRST


@pytest.mark.parametrize("budget", [0.0, 0.005, 0.2])
def test_a_budget_that_was_set_is_its_own_most(budget: float) -> None:
    tuner = BudgetTuner(HedgeSettings(budget=budget))
    assert tuner.look(Observed(won=100, missed=100)) == budget
    assert tuner.look(Observed(shed=1)) == max(budget / 2, min(budget, BUDGET_LEAST))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(
            Observed,
            won=st.integers(0, 50),
            wasted=st.integers(0, 50),
            missed=st.integers(0, 50),
            shed=st.integers(0, 2),
            kind=st.sampled_from(["Get", "Search"]),
            median=st.none() | st.floats(0, 10),
        ),
        max_size=40,
    ),
    st.none() | st.floats(0, 0.5),
)
def test_it_stays_within_its_bounds(looks: list[Observed], budget: float | None) -> None:
    tuner = BudgetTuner(HedgeSettings(budget=budget))
    for seen in looks:
        fraction = tuner.look(seen)
        assert tuner.least <= fraction <= tuner.most
        assert fraction <= BUDGET_MOST if budget is None else fraction <= budget
