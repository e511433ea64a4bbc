"""The model's leaf: order, queue, pauses, cancelled work, slowness."""

from itertools import islice
from math import inf
from random import Random

import pytest

from kvshard.tail.whatif.model_leaf import (
    Events,
    Job,
    ModelLeaf,
    PauseSchedule,
    faults_of,
    pauses_as_they_were,
    pauses_by_chance,
)
from kvshard.tail.whatif.scenario import Delay, Pause, RecordedPauses, Setting, Slow


class Bench:
    """A leaf with a log of what ended when."""

    def __init__(self, *faults, busy_s=0.0, service_s=None, zero=0.0, seed=1, queue_max=None):
        self.events = Events()
        setting = Setting(busy_s=busy_s, service_s=service_s, queue_max=queue_max)
        self.leaf = ModelLeaf(self.events, faults, setting, zero, Random(seed))
        self.ended = []

    def submit_at(self, when, name, latency):
        job = Job(latency, when, lambda job: self.ended.append((name, round(self.events.now, 9), job.is_cancelled)))
        self.events.at(when, self.leaf.submit, job)
        return job

    def run(self, until=inf):
        self.events.run(lambda: self.events.now >= until)


def test_events_of_one_instant_keep_their_order():
    events, seen = Events(), []
    for name in "abc":
        events.at(1.0, seen.append, name)
    events.at(0.5, seen.append, "first")
    events.run(lambda: False)
    assert seen == ["first", "a", "b", "c"]
    assert events.now == 1.0


def test_without_a_queue_everything_runs_at_once():
    bench = Bench()
    bench.submit_at(0.0, "long", 3.0)
    bench.submit_at(0.0, "short", 1.0)
    bench.run()
    assert bench.ended == [("short", 1.0, False), ("long", 3.0, False)]
    assert bench.leaf.in_flight == 0
    assert bench.leaf.begun == 2


def test_a_busy_leaf_takes_one_after_the_other():
    bench = Bench(busy_s=1.0)
    for name in "abc":
        bench.submit_at(0.0, name, 1.0)
    bench.run()
    assert bench.ended == [("a", 1.0, False), ("b", 2.0, False), ("c", 3.0, False)]


def test_a_queued_job_that_is_cancelled_never_begins_and_holds_nobody_up():
    bench = Bench(busy_s=1.0)
    bench.submit_at(0.0, "a", 1.0)
    cancelled = bench.submit_at(0.0, "b", 1.0)
    bench.submit_at(0.0, "c", 1.0)
    bench.events.at(0.5, bench.leaf.cancel, cancelled)
    bench.run()
    assert ("c", 2.0, False) in bench.ended
    assert not cancelled.is_begun
    assert (bench.leaf.begun, bench.leaf.wasted, bench.leaf.in_flight) == (2, 0, 0)


def test_a_running_job_that_is_cancelled_is_wasted_once():
    bench = Bench()
    job = bench.submit_at(0.0, "a", 1.0)
    for when in (0.5, 0.6, 2.0):
        bench.events.at(when, bench.leaf.cancel, job)
    bench.run()
    assert (bench.leaf.begun, bench.leaf.wasted, bench.leaf.in_flight) == (1, 1, 0)
    assert bench.ended == [("a", 1.0, True)]


def test_a_full_queue_sheds_hedges_first():
    bench = Bench(busy_s=0.5, queue_max=4)
    shed = []
    for _ in range(6):
        shed.append((bench.leaf.retry_after_s(is_hedge=True), bench.leaf.retry_after_s(is_hedge=False)))
        bench.leaf.submit(Job(0.5, 0.0, lambda job: None))
    assert shed == [(None, None), (None, None), (None, None), (1.0, None), (1.5, None), (2.0, 2.0)]


def test_a_paused_leaf_begins_nothing_and_answers_no_ping_until_the_pause_ends():
    pause = Pause(0.5, 1.0, is_regular=True)
    bench, twin = Bench(pause), PauseSchedule(pauses_by_chance(pause, Random(1), 0.0))
    start, end = next((when / 100, twin.until(when / 100)) for when in range(1_000) if twin.until(when / 100))
    bench.submit_at(start, "a", 0.1)
    pongs = []
    bench.events.at(start + 0.01, bench.leaf.ping, lambda: pongs.append(bench.events.now))
    bench.run()
    assert pongs == [end]
    assert bench.ended == [("a", round(end + 0.1, 9), False)]


def test_a_throttled_process_stops_what_runs():
    schedule = PauseSchedule(pauses_by_chance(Pause(0.5, 1.0, is_regular=True), Random(1), 0.0))
    first_end = next(end for when in range(1_000) if (end := schedule.until(when / 100)))
    assert schedule.until(first_end) is None
    assert schedule.stretched(first_end, 0.5) == pytest.approx(first_end + 0.5)
    assert schedule.stretched(first_end, 2.5) == pytest.approx(first_end + 2.5 + 2.0)


@pytest.mark.parametrize("share", [0.005, 0.02, 0.3])
@pytest.mark.parametrize("is_regular", [False, True])
def test_the_paused_share_of_time_is_what_was_asked_for(share, is_regular):
    schedule = PauseSchedule(pauses_by_chance(Pause(share, 0.05, is_regular=is_regular), Random(7), 0.0))
    step = 0.01
    paused = sum(schedule.until(index * step) is not None for index in range(200_000))
    assert paused / 200_000 == pytest.approx(share, rel=0.12)


def test_a_pause_of_a_certain_time_begins_and_ends_with_it():
    schedule = PauseSchedule(pauses_by_chance(Pause(0.5, 0.1, from_s=5.0, until_s=10.0), Random(3), 100.0))
    paused = [when / 100 for when in range(0, 20_000) if schedule.until(when / 100)]
    assert paused
    assert min(paused) >= 105.0
    assert max(paused) < 110.1


def test_an_answer_that_is_ready_during_a_pause_waits_for_its_end():
    bench = Bench(RecordedPauses(((1.0, 2.0),), 10.0))
    bench.submit_at(0.5, "begun before", 0.7)
    bench.submit_at(0.6, "longer than the pause", 1.8)
    bench.submit_at(1.5, "come during it", 0.1)
    bench.submit_at(3.0, "after", 0.1)
    bench.run()
    assert bench.ended == [
        ("begun before", 2.0, False),
        ("come during it", 2.1, False),
        ("longer than the pause", 2.4, False),
        ("after", 3.1, False),
    ]


def test_pauses_that_were_recorded_come_again_and_came_before():
    record = RecordedPauses(((1.0, 1.5), (8.0, 8.1)), 10.0)
    assert list(islice(pauses_as_they_were(record, 0.0), 3)) == [(1.0, 1.5), (8.0, 8.1), (11.0, 11.5)]
    before = list(islice(pauses_as_they_were(record, 22.0), 4))
    assert before == [(0.0, pytest.approx(0.1)), (3.0, 3.5), (10.0, pytest.approx(10.1)), (13.0, 13.5)]
    never = PauseSchedule(pauses_as_they_were(RecordedPauses((), 10.0), 3.0))
    assert [never.until(now) for now in (0.0, 5.0, 50.0)] == [None] * 3


def test_slowness_multiplies_the_latency_or_the_service_alone():
    whole, part = Bench(Slow(10)), Bench(Slow(10), service_s=0.1)
    for bench in (whole, part):
        bench.submit_at(0.0, "a", 1.0)
        bench.run()
    assert whole.ended == [("a", 10.0, False)]
    assert part.ended == [("a", 1.9, False)]


def test_a_share_of_the_attempts_is_slow():
    bench = Bench(Delay(1.0, share=0.05))
    for index in range(4_000):
        bench.submit_at(float(index) * 10, "a", 0.5)
    bench.run()
    late = sum(ended % 10 > 1 for _, ended, _ in bench.ended)
    assert late == pytest.approx(200, rel=0.2)


def test_a_fault_is_in_force_in_its_time_only_and_from_the_start_by_default():
    bench = Bench(Slow(2, from_s=10.0, until_s=20.0), Delay(0.25), zero=100.0)
    for when in (50.0, 105.0, 115.0, 125.0):
        bench.submit_at(when, when, 1.0)
    bench.run()
    assert bench.ended == [(50.0, 51.25, False), (105.0, 106.25, False), (115.0, 117.25, False), (125.0, 126.25, False)]


def test_faults_concern_the_leaves_they_name():
    everywhere, there = Slow(2), Pause(0.1, leaves=(1, 3))
    assert faults_of(0, (everywhere, there)) == [everywhere]
    assert faults_of(3, (everywhere, there)) == [everywhere, there]
