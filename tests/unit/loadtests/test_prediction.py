import random
from dataclasses import replace

import pytest

from kvshard.client.results import LegTiming, Timing
from kvshard.tail.whatif.scenario import Delay, Pause, RecordedPauses
from loadtests import scenarios
from loadtests.prediction import _faults, _pauses, add_predictions, choices_of, is_predicted, predict_again
from loadtests.reference import Reference
from loadtests.results import CellResult, ExperimentResult, RunResult
from loadtests.tally import Tally


def reference_of(requests):
    rng, made = random.Random(1), Reference(("leaf-1", "leaf-2", "leaf-3", "leaf-4"))
    for number in range(requests):
        legs = [
            LegTiming(shard, f"leaf-{rng.randint(1, 4)}", 1, int(rng.lognormvariate(7.3, 0.3)), 0, 0, network_us=200)
            for shard in range(8)
        ]
        made.add(Timing(tuple(legs), 0, 0, 0), number / 200, max(leg.total_us for leg in legs) / 1e6 + 0.0005)
    return made


def empty(experiment):
    cells = [CellResult(c.condition.name, "", c.arm.name, "", Tally(2.0)) for c in experiment.cells]
    return ExperimentResult(experiment.name, "", experiment.workload, 200.0, 0.002, 2.0, [1, 2, 4, 8], cells, [], 4, 3)


def test_pauses_are_predicted_to_hurt_and_the_defences_to_help(monkeypatch):
    monkeypatch.setattr("loadtests.prediction.REQUESTS_LEAST", 1_500)
    quick = scenarios.quick()[0]
    cells = [cell for cell in quick.cells if cell.name in ("healthy/none", "pauses-2/none", "pauses-2/all")]
    experiment = replace(quick, cells=tuple(cells))
    result = empty(experiment)
    result.references = dict.fromkeys(("random", "adaptive"), reference_of(300))
    add_predictions(experiment, result, seed=1)
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
    result.references = {"random": Reference()}
    add_predictions(experiment, result, seed=1)
    assert all(cell.prediction is None for cell in result.cells)


def test_pauses_are_those_that_were_and_not_those_that_were_to_be(monkeypatch):
    monkeypatch.setattr("loadtests.prediction.REQUESTS_LEAST", 1_500)
    experiment = replace(scenarios.quick()[0], cells=(scenarios.Cell(scenarios.PAUSES_HALF, scenarios.NONE),))

    def p99(pauses):
        result = empty(experiment)
        result.references = dict.fromkeys(("random", "adaptive"), reference_of(300))
        (cell,) = result.cells
        cell.measured_s, cell.pauses = 15.0, pauses
        add_predictions(experiment, result, seed=1)
        return cell.prediction["p99"]

    lucky, unlucky = p99([]), p99([(leaf, 3.0 * leaf, 3.0 * leaf + 0.1) for leaf in range(4)])
    assert lucky < 0.01
    assert unlucky > 0.05, "four pauses of a tenth in fifteen seconds stop each leaf for 0.7 % of its time"


def test_pauses_of_two_faults_are_one_where_they_meet():
    measured = CellResult("pauses-2", "", "none", "", Tally(2.0), measured_s=15.0)
    measured.pauses = [(2, 1.0, 1.1), (0, 4.0, 4.1), (2, 1.05, 1.2), (2, 3.0, 3.1)]
    assert _pauses(scenarios.PAUSES_TWO, measured) == [
        RecordedPauses(((4.0, 4.1),), 15.0, (0,)),
        RecordedPauses(((1.0, 1.2), (3.0, 3.1)), 15.0, (2,)),
    ]


def test_pauses_that_were_not_noted_are_those_that_were_to_be():
    measured = CellResult("pauses-2", "", "none", "", Tally(2.0))
    assert _pauses(scenarios.PAUSES_TWO, measured) == [Pause(0.02, scenarios.PAUSE_S)]


def test_other_faults_in_the_model_are_those_that_are_injected():
    assert _faults(scenarios.PAUSES_TWO, 0.002, Reference()) == ()
    assert _faults(scenarios.ONE_SLOW, 0.002, Reference()) == (Delay(pytest.approx(0.018), 1.0, (0,)),)
    (throttled,) = _faults(scenarios.THROTTLED, 0.002, Reference())
    assert (throttled.share, throttled.length_s, throttled.leaves, throttled.is_regular) == (0.1, 0.1, (0,), True)


def test_a_delay_takes_what_a_sleep_of_that_length_took():
    assert _faults(scenarios.ONE_SLOW, 0.002, Reference(slept={0.018: 0.0187})) == (Delay(0.0187, 1.0, (0,)),)


def test_a_run_that_was_kept_is_predicted_again_to_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr("loadtests.prediction.REQUESTS_LEAST", 300)
    quick = scenarios.quick()[0]
    experiment = replace(quick, cells=(quick.cells[0], quick.cells[-1]))
    result = empty(experiment)
    result.references = dict.fromkeys(("random", "adaptive"), reference_of(50))
    result.cells[1].measured_s, result.cells[1].pauses = 1.0, [(0, 0.2, 0.3)]
    RunResult("", 3, {}, [result]).write(tmp_path / "run.json")
    add_predictions(experiment, result, seed=3)
    (again,) = RunResult.read(tmp_path / "run.json").experiments
    assert all(cell.prediction is None for cell in again.cells)
    predict_again(again, 3)
    assert [cell.prediction for cell in again.cells] == [
        {name: pytest.approx(value, rel=0.02) for name, value in cell.prediction.items()} for cell in result.cells
    ]


def test_a_reference_is_measured_for_each_choice_of_replicas_that_is_predicted():
    assert choices_of(scenarios.quick()[0]) == ["adaptive", "random"]
    assert choices_of(scenarios.EXPERIMENTS["shifted-point-batch"]) == ["adaptive"]
    assert choices_of(scenarios.control()) == []


def test_what_goes_past_the_router_is_not_predicted():
    control, overload = scenarios.control(), scenarios.EXPERIMENTS["overload"]
    assert not any(is_predicted(experiment, cell) for experiment in (control, overload) for cell in experiment.cells)
