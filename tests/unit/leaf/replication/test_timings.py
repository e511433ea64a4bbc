"""The timings, and the inequalities that safety rests on."""

from dataclasses import replace

import pytest

from leaf.replication.timings import Timings


@pytest.mark.parametrize("timeout", [0.1, 1.5, 30.0])
def test_all_follow_from_one_knob(timeout: float) -> None:
    timings = Timings.of(timeout)
    assert timings.beacon_interval == pytest.approx(timeout / 10)
    assert timings.read_lease == pytest.approx(0.45 * timeout)
    assert timings.evict_after == pytest.approx(0.6 * timeout)
    assert timings.primary_lease == pytest.approx(0.8 * timeout)
    assert timings.grace == pytest.approx(timeout)


@pytest.mark.parametrize("change", [{"read_lease": 0.5}, {"evict_after": 0.5}, {"primary_lease": 0.85}, {"grace": 0.9}])
def test_lengths_that_a_fast_clock_would_break_are_refused(change: dict[str, float]) -> None:
    with pytest.raises(AssertionError):
        replace(Timings.of(1.0), **change)
