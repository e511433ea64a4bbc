import time

from leaf.log import LOG_MAX_BYTES, LOG_MAX_ENTRIES, RETAINED_BYTES, RETAINED_ENTRIES, TRIM_STEP, LogWindow

COUNT = RETAINED_ENTRIES + TRIM_STEP


def window_of(count: int, size: int, trimmed: int = 0) -> LogWindow:
    window = LogWindow(trimmed, trimmed)
    for seqno in range(trimmed + 1, trimmed + count + 1):
        window.append(seqno, size)
    return window


def test_a_short_log_is_kept() -> None:
    assert window_of(TRIM_STEP - 1, 10).trim_point(TRIM_STEP - 1, None) is None
    assert window_of(RETAINED_ENTRIES, 10).trim_point(RETAINED_ENTRIES, None) is None


def test_the_newest_entries_are_retained() -> None:
    window = window_of(COUNT, 10)
    assert window.trim_point(COUNT, None) == TRIM_STEP
    assert window.trim_point(COUNT, COUNT) == TRIM_STEP
    window.trim(TRIM_STEP)
    assert repr(window) == f"LogWindow(trimmed={TRIM_STEP}, last={COUNT}, bytes={RETAINED_ENTRIES * 10})"
    assert window.trim_point(COUNT, None) is None


def test_large_entries_are_retained_by_bytes() -> None:
    size = RETAINED_BYTES // 4
    assert window_of(10, size).trim_point(10, None) == 6


def test_nothing_that_an_index_or_a_restart_needs_is_trimmed() -> None:
    window = window_of(COUNT + TRIM_STEP, 10)
    assert window.trim_point(COUNT + TRIM_STEP, 0) is None
    assert window.trim_point(COUNT + TRIM_STEP, TRIM_STEP + 5) == TRIM_STEP + 5
    assert window.trim_point(TRIM_STEP + 3, None) == TRIM_STEP + 3


def test_an_index_that_lags_too_far_does_not_keep_the_log() -> None:
    window = window_of(10, LOG_MAX_BYTES // 8)
    assert window.trim_point(10, 0) == 10
    assert window.trim_point(4, 0) == 4


def test_entries_of_an_earlier_run_count_no_bytes_but_are_trimmed_by_number() -> None:
    window = LogWindow(0, COUNT)
    assert window.trim_point(COUNT, None) == TRIM_STEP
    window.trim(TRIM_STEP)
    window.append(COUNT + 1, 10)
    assert window.bytes == 10


def test_a_log_of_very_many_small_entries_is_not_kept_for_an_index_for_ever() -> None:
    window = window_of(LOG_MAX_ENTRIES + 1, 1)
    assert window.trim_point(LOG_MAX_ENTRIES + 1, 0) == LOG_MAX_ENTRIES + 1 - RETAINED_ENTRIES


def test_to_look_for_the_trim_point_does_not_cost_a_pass_over_the_log() -> None:
    window = window_of(500_000, 10)
    assert window.trim_point(500_000, 2_000) == 2_000
    started = time.process_time()
    for _ in range(100):
        window.trim_point(500_000, 0)
        window.trim_point(500_000, TRIM_STEP)
    assert time.process_time() - started < 1.0


def test_entries_that_are_taken_back_count_no_more() -> None:
    window = window_of(5, 10, trimmed=100)
    window.truncate(103)
    window.append(104, 7)
    assert repr(window) == "LogWindow(trimmed=100, last=104, bytes=37)"
    window.truncate(100)
    assert repr(window) == "LogWindow(trimmed=100, last=100, bytes=0)"


def test_entries_of_an_earlier_run_may_be_taken_back_too() -> None:
    window = LogWindow(10, 20)
    window.append(21, 5)
    window.truncate(15)
    window.append(16, 5)
    assert repr(window) == "LogWindow(trimmed=10, last=16, bytes=5)"
