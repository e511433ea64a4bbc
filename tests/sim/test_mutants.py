"""The planted bugs can still be planted, and the simulator still sees them. The whole table: `make sim-mutants`."""

import pytest
from sim.mutants import CLASSIC, MUTANTS, hunt, planted
from sim.simulation import run

SAMPLE = (
    "reply before all acks",
    "commit before the eviction is confirmed",
    "acks what is not durable",
    "learner taken in before its acks count",
    "read lease counted from receipt",
    "no read lease check",
    "dirty read",
    "dedup not in the snapshot",
    "epoch not persisted",
    "applied before committed",
    "later requests copied to the child of a split",
    "moved key served by the parent",
)
"""Most take a seed or two; in the machine, in the shell, in messages. One that takes hundreds belongs into the whole table."""

SEEDS = 25
"""For one of the sample: several times what it takes, so that a harmless change of the code under test does not fail here."""


@pytest.mark.parametrize("name", SAMPLE)
def test_a_planted_bug_is_caught(name: str) -> None:
    assert hunt(name, SEEDS).seeds, f"{SEEDS} seeds did not see {name!r}"


@pytest.mark.parametrize("name", MUTANTS)
def test_a_bug_can_be_planted_and_is_taken_away(name: str) -> None:
    """One that replaces what is not there any more would survive, and one that stays would spoil what runs after it."""
    with planted(name):
        pass
    assert not run(0, faults_s=0.5).error


def test_no_classic_mistake_is_left_out() -> None:
    assert set(CLASSIC) <= set(MUTANTS)
