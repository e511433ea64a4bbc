import json
from dataclasses import replace

import pytest
from fakes.load_runs import made_run

from loadtests import scenarios
from loadtests.findings import Finding, Tables, findings
from loadtests.results import RunResult
from loadtests.statistics import Estimate


@pytest.fixture(scope="module")
def run():
    return made_run(
        [scenarios.quick()[0], scenarios.control(), scenarios.EXPERIMENTS["shifted-point-batch"]], seconds=10, rate=600
    )


def by_name(found):
    return {finding.name: finding for finding in found}


def test_the_figures_of_pauses(run):
    found = by_name(findings(run, Tables()))
    problem = found["0.5 % pauses: amplification of p99 over 8 legs, no defence: random replica, no hedge"]
    assert not problem.is_upper_bound
    assert problem.estimate.value > 3
    gain = found["2 % pauses: p99 with all defences / with none"]
    cells = [run.experiments[0].cell("pauses-2", arm).latency("8").quantile(0.99) for arm in ("all", "none")]
    assert gain.estimate.value == pytest.approx(cells[0] / cells[1], rel=0.01)
    assert gain.estimate.low <= gain.estimate.value <= gain.estimate.high
    extra = found["2 % pauses: extra requests"]
    assert extra.estimate.value == pytest.approx(100 * run.experiments[0].cell("pauses-2", "all").extra_part)


def test_what_was_sampled_too_seldom_is_left_out(run):
    names = by_name(findings(run, Tables()))
    assert not [name for name in names if "p99.9 with" in name]
    few = made_run([scenarios.quick()[0]], seconds=2, rate=20)
    assert not [name for name in by_name(findings(few, Tables())) if "p99" in name and "pauses" in name]


def test_the_best_static_delay_is_the_one_to_beat(run):
    shifted = by_name(findings(run, Tables()))["latency x 3, 10 s later: p99 adaptive / best static delay"]
    assert "static delay of" in shifted.note


def test_the_worst_prediction_is_told(run):
    told = by_name(findings(run, Tables()))["predicted / measured p99, farthest off"]
    assert 0 < told.estimate.value < 25
    cell = run.experiments[0].cell("pauses-2", "all")
    cell_before, cell.prediction = cell.prediction, {**cell.prediction, "p99": cell.prediction["p99"] * 5}
    try:
        told = by_name(findings(run, Tables()))["predicted / measured p99, farthest off"]
    finally:
        cell.prediction = cell_before
    assert told.estimate.value > 100
    assert "pauses-2/all" in told.note


def test_a_prediction_within_a_measurement_that_is_itself_unknown_counts_for_nothing(run, monkeypatch):
    known = len([cell for experiment in run.experiments for cell in experiment.cells if cell.prediction])
    knee = run.experiments[0].cell("pauses-0.5", "none")
    ask = Tables.quantile

    def at_a_knee(self, cell, kind, fraction):
        found = ask(self, cell, kind, fraction)
        return replace(found, low=found.value / 3, high=found.value * 3) if cell is knee and fraction == 0.99 else found

    monkeypatch.setattr(Tables, "quantile", at_a_knee)
    told = by_name(findings(run, Tables()))["predicted / measured p99, farthest off"]
    assert told.estimate.samples == known - 1
    assert "known too little to tell: pauses-point-batch pauses-0.5/none (" in told.note


@pytest.mark.parametrize(
    ("value", "is_upper", "grade"),
    [(1.0, True, "goal"), (1.3, True, "good"), (1.5, True, "missed"), (7.0, False, "goal"), (0.5, False, "missed")],
)
def test_grades(value, is_upper, grade):
    good, goal = (1.4, 1.1) if is_upper else (3.0, 6.0)
    finding = Finding("x", "y", Estimate(value, value, value, 10), "x", good, goal, is_upper)
    assert finding.grade == grade
    assert finding.as_figure().is_met is (grade != "missed")
    assert replace(finding, good=None, goal=None).grade == ""


def test_a_run_survives_its_file(run, tmp_path):
    run.write(tmp_path / "run.json")
    read = RunResult.read(tmp_path / "run.json")
    assert read.as_record() == run.as_record()
    (tmp_path / "report.json").write_text(json.dumps({"figures": [], "run": run.as_record()}))
    assert RunResult.read(tmp_path / "report.json").as_record() == run.as_record()


@pytest.mark.parametrize("text", ["[]", '{"version": 0}', '{"version": 1}', "no json"])
def test_another_file_is_refused(text, tmp_path):
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError):
        RunResult.read(tmp_path / "other.json")
