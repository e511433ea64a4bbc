import json

import pytest

from loadtests.tally import Tally


def test_failed_and_skipped_requests_count_as_the_deadline():
    tally = Tally(2.0)
    tally.record_ok("8", 0.1, 0.01)
    tally.record_failed("8", 0.2, "UNAVAILABLE")
    tally.record_skipped("8", 0.3)
    assert tally.total == 3
    assert tally.latency().maximum == 2.0
    assert tally.latency().quantile(0.5) == pytest.approx(2.0, rel=0.01)
    assert tally.failed == {"UNAVAILABLE": 1}
    assert tally.goodput == 1


def test_an_answer_after_the_deadline_is_no_goodput():
    tally = Tally(0.5)
    tally.record_ok("1", 0.0, 0.6)
    assert (tally.ok, tally.late, tally.goodput) == (1, 1, 0)


def test_slices_follow_the_planned_start_and_blocks_stay_apart():
    first, second = Tally(1.0), Tally(1.0)
    first.record_ok("8", 0.5, 0.001)
    first.record_ok("8", 1.5, 0.002)
    second.record_ok("8", 0.5, 0.003)
    first.append(second, 2.0)
    assert [held.count for held in first.of_slices("8")] == [1, 1, 1]
    assert first.of_slices("8")[2].maximum == 0.003
    assert first.total == 3
    assert first.of_slices("1") == []


def test_the_record_survives_json():
    tally = Tally(1.0)
    tally.record_sent(0.0001)
    tally.record_ok("8", 0.5, 0.25)
    tally.record_failed("1", 3.5, "DEADLINE_EXCEEDED")
    tally.record_overrun(0.01)
    read = Tally.from_record(json.loads(json.dumps(tally.as_record())))
    assert read.as_record() == tally.as_record()
    assert read.total == 2


@pytest.mark.parametrize("broken", [{}, {"deadline_s": "soon"}])
def test_anything_else_is_no_record(broken):
    with pytest.raises((KeyError, TypeError, ValueError)):
        Tally.from_record(broken)
