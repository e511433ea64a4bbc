"""Long searches give way to short ones, each time for a bounded while, and in the end not at all."""

import os
import sys
import threading
from queue import SimpleQueue

import pytest
from fakes.clock import ManualClock

from leaf.precedence import FREE_TRACK, LONG_NICENESS, PAUSE_MAX_S, WORK_LEAST_S, LowPriority, Precedence, RunApart
from leaf.search_threads import SearchThread, busy_seconds


class Impatience(Precedence):
    """Somebody short is always under way; counts how often that was waited for."""

    def __init__(self, clock):
        super().__init__()
        self._clock = clock
        self.waits = 0
        self.begin(1)

    def wait(self, timeout_s):
        self.waits += 1
        self._clock.advance(timeout_s)
        return super().wait(0.0)


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def threads():
    turns = SimpleQueue()
    made = []

    def make(precedence, clock, **named):
        made.append(SearchThread(turns, lambda thread, turn: None, precedence, clock, **named))
        return made[-1]

    yield make
    for _ in made:
        turns.put(None)
    for thread in made:
        thread.join()


def test_precedence_lasts_from_the_first_short_job_to_the_end_of_the_last():
    precedence = Precedence()
    assert (precedence.is_wanted, precedence.wait(0.0)) == (False, True)
    precedence.begin(2)
    precedence.end(1)
    assert (precedence.is_wanted, precedence.wait(0.0)) == (True, False)
    precedence.end(1)
    assert (precedence.is_wanted, precedence.wait(0.0)) == (False, True)


def test_a_long_job_works_a_fifth_of_the_time_however_many_short_ones_there_are(threads, clock):
    precedence = Impatience(clock)
    thread = threads(precedence, clock, is_apart=True)
    until, worked, piece_s = clock.monotonic() + 1.0, 0.0, WORK_LEAST_S / 5
    while clock.monotonic() < until:
        thread.between(until)
        clock.advance(piece_s)
        worked += piece_s
    assert worked >= 1.0 * WORK_LEAST_S / (PAUSE_MAX_S + WORK_LEAST_S)
    assert precedence.waits > 30


def test_a_long_job_is_not_patient_for_ever(threads, clock):
    precedence = Impatience(clock)
    thread = threads(precedence, clock, is_apart=True)
    thread.between(clock.monotonic())
    assert precedence.waits == 0


def test_a_job_that_is_not_known_to_be_long_waits_for_nobody(threads, clock):
    precedence = Impatience(clock)
    threads(precedence, clock).between(clock.monotonic() + 1.0)
    FREE_TRACK.between(clock.monotonic() + 1.0)
    assert precedence.waits == 0


def test_only_the_job_that_was_asked_goes_apart(threads, clock):
    thread = threads(Precedence(), clock)
    thread.begin("long", clock.monotonic())
    thread.ask_apart("long", clock.monotonic())
    with pytest.raises(RunApart):
        thread.between(0.0)
    thread.begin("next", clock.monotonic())
    thread.between(0.0)


def test_calls_at_a_low_priority_return_and_raise_what_they_do():
    low = LowPriority("low")

    def fail():
        raise ValueError("no such field")

    assert low.run(lambda: 7) == 7
    with pytest.raises(ValueError, match="no such field"):
        low.run(fail)
    low.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux knows the niceness of a thread")
def test_a_low_priority_is_lower_than_the_process_has():
    low = LowPriority("low")
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    assert low.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())) == min(19, mine + LONG_NICENESS)
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine
    low.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells it")
def test_the_busy_time_of_a_thread_grows_while_it_works_and_has_none_once_it_has_ended():
    before = busy_seconds(threading.get_native_id())
    sum(range(100_000))
    assert busy_seconds(threading.get_native_id()) > before
    thread = threading.Thread(target=lambda: None)
    thread.start()
    native_id = thread.native_id
    thread.join()
    while os.path.exists(f"/proc/self/task/{native_id}"):  # The system takes a moment longer.
        pass
    assert busy_seconds(native_id) is None
