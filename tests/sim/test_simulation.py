"""The real replication machine on virtual time under random faults. A seed that fails: `make sim SEED=n`."""

import os
import pathlib
import subprocess
import sys

import pytest
from sim.faults import FAULT, KINDS
from sim.simulation import run

SEEDS = 200
CHUNK = 20
ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_no_seed_breaks_an_invariant(first: int) -> None:
    for seed in range(first, first + CHUNK):
        error = run(seed).error
        assert not error, error


REPLAYED = range(3, 8)
"""Several, because a single one may be a quiet one: a run whose cluster is away most of the time."""


def test_a_seed_replays_exactly() -> None:
    """Also in another process, where strings hash differently: no decision may rest on the order of a set."""
    ours = [run(seed, is_hashing=True) for seed in REPLAYED]
    code = f"from sim.simulation import run; print(*[run(seed, is_hashing=True).digest for seed in {REPLAYED}])"
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": f"{ROOT}/tests{os.pathsep}{ROOT}"}
    other = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.split() == [result.digest for result in ours]
    assert sum(result.steps for result in ours) > 1_000 * len(ours)


def test_seeds_differ() -> None:
    assert run(1, is_hashing=True, faults_s=1.0).digest != run(2, is_hashing=True, faults_s=1.0).digest


def test_the_faults_and_the_roles_all_occur() -> None:
    """A simulator that stopped reaching something would go on passing: so what it reaches is tested."""
    counts = sum((run(seed).counts for seed in range(1, 40)), run(0).counts)
    for what in ("commits", "reads at a primary", "reads at a secondary", "stale reads", "primary changes", "evictions"):
        assert counts[what] >= 20, what
    for what in ("splits finished", "moved", "parted"):
        assert counts[what] >= 10, what
    for what in ("taken in sync", "snapshots", "truncated", *(f"{FAULT}{kind}" for kind in KINDS)):
        assert counts[what] >= 5, what
    assert counts["acknowledged writes"] >= 2_000
    assert not counts["lost writes"]
