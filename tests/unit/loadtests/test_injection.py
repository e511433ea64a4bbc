import pytest

from kvshard.fault_model import FaultRecord
from leaf.faults import Faults, PauseSchedule
from loadtests.injection import pauses_of
from loadtests.scenarios import PAUSE_S, PAUSES_TWO

(FAULT,) = PAUSES_TWO.faults


def test_the_pauses_told_are_those_that_the_leaf_makes_of_the_order():
    record = FaultRecord("pause-1", "pause", 0.02, PAUSE_S, duration_s=76.0, seed=7)
    active = Faults("leaf-3").inject(record, 100.0)
    schedule = PauseSchedule(record.delay_s, record.probability, 100.0, active.ends_at, active.rng)
    made = [schedule.next_pause() for _ in range(3)]
    told = pauses_of(FAULT, "leaf-3", 7, 100.0, 76.0 - 60.0)
    assert told[:3] == [pause for pause in made if pause[0] < 116.0][: len(told)]


def test_each_leaf_and_each_seed_has_pauses_of_its_own_within_the_time():
    seconds = 1_000.0
    found = {(leaf, seed): pauses_of(FAULT, leaf, seed, 50.0, seconds) for leaf in ("leaf-1", "leaf-2") for seed in (1, 2)}
    assert len({pauses[0] for pauses in found.values()}) == 4
    for pauses in found.values():
        assert pauses[0][0] >= 50.0
        assert pauses[-1][0] < 50.0 + seconds
        assert sum(end - start for start, end in pauses) / seconds == pytest.approx(0.02, rel=0.3)
