"""The soak itself: its schedule comes from the seed alone, its verdict from what was seen, and a short one runs."""

import os
import pathlib
import random
import subprocess
import sys

from soak.faults import LOSES_DATA, MENU, OF_ALL, Step, draw
from soak.report import Report, Round

ROOT = pathlib.Path(__file__).resolve().parents[2]
LEAVES = ["leaf-1", "leaf-2", "leaf-3"]


def schedule(seed: int, rounds: int = 400, *, may_mount: bool = True) -> list[tuple[Step, ...]]:
    rng = random.Random(seed)
    return [draw(rng, LEAVES, may_mount=may_mount) for _ in range(rounds)]


def test_a_seed_repeats_the_schedule() -> None:
    assert schedule(7) == schedule(7)
    assert schedule(7) != schedule(8)


def test_every_kind_is_drawn_and_nothing_that_may_rightly_lose_writes() -> None:
    rounds = schedule(1)
    assert {step.kind for steps in rounds for step in steps} == set(MENU)
    assert {len(steps) for steps in rounds} == {1, 2}
    for steps in rounds:
        assert sum(step.kind in LOSES_DATA for step in steps) <= 1
        assert len({step.leaf for step in steps}) == len(steps)
        assert len(steps) == 1 or not OF_ALL & {step.kind for step in steps}
    assert not any(step.kind == "full disk" for steps in schedule(1, may_mount=False) for step in steps)


def a_round(*, is_masked: bool = True, errors: dict[str, int] | None = None, problems: tuple[str, ...] = ()) -> Round:
    return Round(("kill -9",), is_masked, 1000, 2, errors or {}, 1.5, 0.5, 2.0, len(problems), list(problems))


def test_the_verdict() -> None:
    assert not Report(1, [a_round(), a_round(is_masked=False, errors={"put: UNAVAILABLE": 3})], 60.0).wrong
    assert "lost" in Report(1, [a_round(problems=("acknowledged write lost: k",))]).wrong[0]
    assert "UNAVAILABLE" in Report(1, [a_round(errors={"put: UNAVAILABLE": 3})]).wrong[0]
    assert Report(1, broken="not whole after 25 s").wrong == ["not whole after 25 s"]


def test_the_summary_adds_up() -> None:
    summary = Report(1, [a_round(), a_round(problems=("acknowledged write lost: k",))], 10.0).summary()
    assert (summary["operations"], summary["operations_per_s"], summary["faults"]) == (2000, 200.0, {"kill -9": 2})
    assert (summary["lost_writes"], summary["violations"], summary["unknown_outcomes"]) == (1, 0, 4)


def test_a_short_soak(tmp_path: pathlib.Path) -> None:
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}/tests{os.pathsep}{ROOT}"}
    command = [sys.executable, "-m", "soak", "--minutes", "0.01", "--seed", "1"]
    ran = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "seed 1" in ran.stdout
    assert (tmp_path / "bench-results" / "soak.json").exists()
