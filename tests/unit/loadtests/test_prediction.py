import random
from dataclasses import replace

import pytest

from kvshard.client.results import LegTiming, Timing
from kvshard.tail.whatif.scenario import Delay, Pause
from loadtests import scenarios
from loadtests.prediction import Reference, _faults, add_predictions, is_predicted
from loadtests.results import CellResult, ExperimentResult
from loadtests.tally import Tally


def reference_of(requests):
    rng, made = random.Random(1), Reference()
    for _ in range(requests):
        legs = [LegTiming(shard, "leaf-1", 1, int(rng.lognormvariate(7.3, 0.3)), 0, 0, network_us=200) for shard in range(8)]
        made.add(Timing(tuple(legs), 0, 0, 0), max(leg.total_us for leg in legs) / 1e6 + 0.0005)
    return made


def empty(experiment):
    cells = [CellResult(c.condition.name, "", c.arm.name, "", Tally(2.0)) for c in experiment.cells]
    return ExperimentResult(experiment.name, "", experiment.workload, 200.0, 0.002, 2.0, [1, 2, 4, 8], cells)


def test_a_request_is_noted_with_its_legs_and_what_it_took_beyond_them():
    reference = reference_of(11)
    assert reference.beyond == pytest.approx([0.0005] * 11)
    assert reference.network_s == pytest.approx(0.0002)
    assert {len(legs) for legs in reference.legs} == {8}
    assert Reference().network_s == 0.0


def test_pauses_are_predicted_to_hurt_and_the_defences_to_help(monkeypatch):
    monkeypatch.setattr("loadtests.prediction.REQUESTS_LEAST", 1_500)
    quick = scenarios.quick()[0]
    cells = [cell for cell in quick.cells if cell.name in ("healthy/none", "pauses-2/none", "pauses-2/all")]
    experiment = replace(quick, cells=tuple(cells))
    result = empty(experiment)
    add_predictions(experiment, result, reference_of(300), leaves=4, replicas=3, seed=1)
    healthy, hurt, defended = (result.cell(*name).prediction for name in (
        ("healthy", "none"), ("pauses-2", "none"), ("pauses-2", "all")
    ))  # fmt: skip
    assert hurt["p99"] > 4 * healthy["p99"]
    assert defended["p99"] < 0.5 * hurt["p99"]
    assert hurt["extra"] == 0.0 < defended["extra"] < 0.1
    assert healthy["p50"] < hurt["p99"]


def test_without_a_reference_nothing_is_predicted():
    experiment = scenarios.quick()[0]
    result = empty(experiment)
    add_predictions(experiment, result, Reference(), leaves=4, replicas=3, seed=1)
    assert all(cell.prediction is None for cell in result.cells)


def test_faults_in_the_model_are_those_that_are_injected():
    assert _faults(scenarios.PAUSES_TWO, 0.002) == (Pause(0.02, scenarios.PAUSE_S),)
    assert _faults(scenarios.ONE_SLOW, 0.002) == (Delay(pytest.approx(0.018), 1.0, (0,)),)
    (throttled,) = _faults(scenarios.THROTTLED, 0.002)
    assert (throttled.share, throttled.length_s, throttled.leaves, throttled.is_regular) == (0.1, 0.1, (0,), True)


def test_what_goes_past_the_router_is_not_predicted():
    control, overload = scenarios.control(), scenarios.EXPERIMENTS["overload"]
    assert not any(is_predicted(experiment, cell) for experiment in (control, overload) for cell in experiment.cells)
