"""The load tests' runner on a real cluster: short blocks, every kind of condition and of arm."""

import pytest

pytest.importorskip("psutil", reason="measured with the load extra: make amplification installs it")
pytest.importorskip("hedge", reason="measured with the load extra: make amplification installs it")

from loadtests import scenarios
from loadtests.plan import Plan
from loadtests.runner import run
from loadtests.scenarios import Cell, Experiment


async def test_cells_take_turns_and_everything_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("loadtests.calibration.PROBE_S", 0.3)
    monkeypatch.setattr("loadtests.calibration.PROBES", 1)
    monkeypatch.setattr("loadtests.calibration.GROWTH_MAX", 1.0)
    monkeypatch.setattr("loadtests.prediction.REQUESTS_LEAST", 500)
    throttled = scenarios.Condition("throttled", "throttled", throttle=scenarios.Throttle(0.05, 0.2))
    cells = (Cell(scenarios.PAUSES_TWO, scenarios.NONE), Cell(throttled, scenarios.ALL))
    direct = tuple(Cell(scenarios.HEALTHY, arm) for arm in (scenarios.DIRECT_LIBRARY, scenarios.DIRECT_KVSHARD))
    experiments = [
        Experiment("batch", "batch", "point-batch", cells, ((8, 0.5), (1, 0.5)), block_s=0.5),
        Experiment("control", "control", "point-read", direct, ((1, 1.0),), block_s=0.5),
    ]
    monkeypatch.setattr("loadtests.experiment_run.WARM_UP_S", 0.2)
    monkeypatch.setattr("loadtests.workloads.KEYS_PER_SHARD", 100)
    said = []
    result = await run(experiments, Plan(rounds=1), tmp_path, said.append)
    batch, control = result.experiments
    for cell in (*batch.cells, *control.cells):
        assert cell.blocks == 2
        assert cell.tally.total > 0
        assert not cell.tally.failed
        assert cell.tally.lag.count == cell.tally.ok
        assert cell.usage.client > 0
        assert cell.legs > 0
        assert cell.wasted_s is not None
    assert {"1", "8"} == set(batch.cells[0].tally.slices)
    paused, throttled_cell = batch.cells
    assert all(0 <= start < end <= paused.measured_s for _, start, end in paused.pauses)
    assert {leaf for leaf, _, _ in paused.pauses} <= {0, 1, 2, 3}
    assert throttled_cell.pauses == []
    assert paused.prediction["p99"] > 0
    for reference in (batch.references["random"], batch.references["adaptive"]):
        assert {len(request.legs) for request in reference.requests} == {8}
        assert 0 < len(reference.plain) < len(reference.requests)
    assert control.references == {}
    assert control.cells[0].prediction is None
    assert "throttled/all" in "".join(said)
