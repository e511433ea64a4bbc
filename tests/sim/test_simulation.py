"""The real replication machine on virtual time under random faults. A seed that fails: `make sim SEED=n`."""

import os
import pathlib
import subprocess
import sys

import pytest
from sim.simulation import run

SEEDS = 200
CHUNK = 20
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_an_invariant(first: int) -> None:
    for seed in range(first, first + CHUNK):
        error = run(seed).error
        assert not error, error


def test_a_seed_replays_exactly() -> None:
    """Also in another process, where strings hash differently: no decision may rest on the order of a set."""
    ours = run(4, is_hashing=True)
    code = "from sim.simulation import run; print(run(4, is_hashing=True).digest)"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": f"{ROOT}/tests{os.pathsep}{ROOT}"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == ours.digest
    assert ours.steps > 1_000


def test_seeds_differ() -> None:
    assert run(1, is_hashing=True, faults_s=1.0).digest != run(2, is_hashing=True, faults_s=1.0).digest


def test_the_faults_and_the_roles_all_occur() -> None:
    """A simulator that stopped reaching something would go on passing: so what it reaches is tested."""
    counts = sum((run(seed).counts for seed in range(80)), run(80).counts)
    for what in ("commits", "reads at a primary", "reads at a secondary", "stale reads", "primary changes", "evictions"):
        assert counts[what] >= 20, what
    for what in ("taken in sync", "snapshots", "truncated", "wipe", "pause", "crash", "isolate", "ambiguity", "disk fails"):
        assert counts[what] >= 5, what
