import pytest

from loadtests import scenarios
from loadtests.plan import Plan, seconds_of


def test_cells_of_an_experiment_have_names_of_their_own():
    for experiment in scenarios.EXPERIMENTS.values():
        names = [cell.name for cell in experiment.cells]
        assert len(set(names)) == len(names), experiment.name


def test_the_quick_run_fits_into_eight_minutes():
    seconds = sum(seconds_of(experiment, scenarios.QUICK_ROUNDS) for experiment in scenarios.quick())
    assert seconds < 380  # The rest starts the cluster, calibrates and draws.


def test_rounds_bring_the_samples_that_are_asked_for():
    experiment = scenarios.pauses("point-batch")
    rounds = Plan().rounds_of(experiment, 300.0)
    part = experiment.fan_outs[0][1]
    assert 2 * rounds * experiment.block_s * 300.0 * part >= experiment.samples
    assert 2 * (rounds - 1) * experiment.block_s * 300.0 * part < experiment.samples
    assert Plan(rounds=1).rounds_of(experiment, 300.0) == 1


def test_every_arm_of_the_issue_is_there():
    arms = {cell.arm.name for experiment in scenarios.full() for cell in experiment.cells}
    assert {"none", "all", "choice", "hedge", "direct", "hedge-python"} <= arms
    conditions = {cell.condition.name for experiment in scenarios.full() for cell in experiment.cells}
    assert conditions == {
        "healthy", "pauses-0.5", "pauses-2", "slow-requests", "one-slow", "all-slow", "throttled", "overload", "shifted"
    }  # fmt: skip


def test_delays_follow_what_a_leg_takes():
    (fault,) = scenarios.SLOW_REQUESTS.faults
    assert fault.seconds(0.002) == pytest.approx(0.018)
