"""Which fault hits which request, and when a leaf pauses."""

import itertools
import random
from dataclasses import replace

import pytest

from kvshard.errors import InvalidArgument, ResourceExhausted
from kvshard.fault_model import FaultRecord
from kvshard.faults import DURATION_MAX_S, FAULTS_MAX
from leaf.faults import Effect, Faults, PauseSchedule

DELAY = FaultRecord("d", "delay", 0.3, delay_s=0.01, duration_s=10.0, seed=7)
SLOW = FaultRecord("s", "slow", 1.0, factor=10.0, duration_s=10.0, seed=7)
PAUSE = FaultRecord("p", "pause", 0.02, delay_s=0.05, duration_s=10.0, seed=7)


def hits(faults: Faults, count: int = 2_000, method: str = "read") -> list[int]:
    """Indices of the requests that something happens to."""
    return [index for index in range(count) if faults.draw(method, 1.0) is not None]


def faults_with(*records: FaultRecord, leaf: str = "leaf-1") -> Faults:
    faults = Faults(leaf)
    for record in records:
        faults.inject(record, 0.0)
    return faults


def test_the_share_is_the_probability_and_the_seed_repeats_it() -> None:
    first = hits(faults_with(DELAY))
    assert 540 < len(first) < 660  # 600 expected; 3 standard deviations are 61
    assert hits(faults_with(DELAY)) == first
    assert hits(faults_with(replace(DELAY, seed=8))) != first
    assert hits(faults_with(DELAY, leaf="leaf-2")) != first


def test_other_faults_do_not_change_whom_a_fault_hits() -> None:
    alone, beside = faults_with(DELAY), faults_with(replace(SLOW, probability=0.5), DELAY)
    delayed = [index for index in range(500) if (effect := beside.draw("read", 1.0)) is not None and effect.delay_s]
    assert delayed == hits(alone, 500)


def test_effects_add_up() -> None:
    certain = replace(DELAY, probability=1.0)
    faults = faults_with(certain, replace(certain, id="d2", delay_s=0.02), SLOW, replace(SLOW, id="s2", factor=2.0))
    assert faults.draw("read", 1.0) == Effect(delay_s=0.03, factor=20.0)
    faults.inject(FaultRecord("e", "error", 1.0), 0.0)
    faults.inject(FaultRecord("x", "drop", 1.0), 0.0)
    assert faults.draw("read", 1.0) == Effect(0.03, 20.0, is_failed=True, is_dropped=True)
    assert [(each.fault.id, each.hits) for each in faults.report(1.0)] == [
        ("d", 2),
        ("d2", 2),
        ("s", 2),
        ("s2", 2),
        ("e", 1),
        ("x", 1),
    ]


def test_methods_limit_a_fault() -> None:
    faults = faults_with(replace(SLOW, methods=["search", "scan"]))
    assert [faults.draw(method, 1.0) is not None for method in ("read", "scan", "search", "write")] == [
        False,
        True,
        True,
        False,
    ]


def test_a_fault_ends_by_itself() -> None:
    faults = faults_with(SLOW, replace(PAUSE, duration_s=20.0))
    assert (faults.next_end, faults.has_request_faults) == (10.0, True)
    assert faults.draw("read", 9.999) is not None
    assert faults.draw("read", 10.0) is None
    assert [each.fault.id for each in faults.report(10.0)] == ["p"]
    faults.drop_ended(10.0)
    assert (faults.next_end, faults.has_request_faults, faults.ids) == (20.0, False, {"p"})
    faults.drop_ended(20.0)
    assert (faults.next_end, faults.ids) == (None, set())


def test_clear() -> None:
    faults = faults_with(SLOW, DELAY, PAUSE)
    assert faults.clear(["s", "unknown"]) == 1
    assert faults.ids == {"d", "p"}
    assert faults.clear([]) == 2
    assert faults.draw("read", 1.0) is None


def test_bounds() -> None:
    faults = faults_with(*(replace(SLOW, id=f"s{number}") for number in range(FAULTS_MAX)))
    with pytest.raises(ResourceExhausted) as caught:
        faults.inject(SLOW, 0.0)
    assert caught.value.details.limit == FAULTS_MAX
    with pytest.raises(InvalidArgument, match="duration_s"):
        Faults("leaf-1").inject(replace(SLOW, duration_s=DURATION_MAX_S + 1), 0.0)
    with pytest.raises(InvalidArgument, match="id"):
        faults_with(SLOW).inject(SLOW, 0.0)


def pauses(share: float, length_s: float = 0.05, until: float = 1_000.0, seed: int = 1) -> list[tuple[float, float]]:
    schedule = PauseSchedule(length_s, share, 0.0, until, random.Random(seed))
    found = []
    while (pause := schedule.next_pause()) is not None:
        found.append(pause)
    return found


@pytest.mark.parametrize("share", [0.005, 0.02, 0.5])
def test_pauses_take_their_share_of_the_time(share: float) -> None:
    found = pauses(share)
    assert sum(end - start for start, end in found) / 1_000.0 == pytest.approx(share, rel=0.3)
    assert all(end - start == pytest.approx(0.05) for start, end in found[:-1])
    assert all(earlier[1] <= later[0] for earlier, later in itertools.pairwise(found))
    assert pauses(share) == found
    assert pauses(share, seed=2) != found


def test_gaps_have_no_memory() -> None:
    found = pauses(0.02, until=10_000.0)
    gaps = [later[0] - earlier[1] for earlier, later in itertools.pairwise(found)]
    mean = sum(gaps) / len(gaps)
    above = sum(gap > mean for gap in gaps) / len(gaps)
    assert above == pytest.approx(0.368, abs=0.03)  # 1/e, of an exponential distribution


def test_a_pause_for_all_of_the_time_is_one() -> None:
    assert pauses(1.0, until=5.0) == [(0.0, 5.0)]
    assert pauses(1.0, length_s=0.0, until=5.0) == [(0.0, 5.0)]


def test_the_last_pause_ends_with_the_fault() -> None:
    found = pauses(0.9, length_s=3.0, until=10.0)
    assert found[-1][1] == 10.0
