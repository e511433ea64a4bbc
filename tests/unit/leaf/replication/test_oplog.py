"""The log in memory: what follows what, what is taken back, and what is let go."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leaf.replication.messages import Entry
from leaf.replication.oplog import PINNED_FACTOR, ReplicatedLog, Retention


def log_of(*epochs: int, base: int = 0, size: int = 1) -> ReplicatedLog:
    """A log with entries of these epochs."""
    return ReplicatedLog(base, 0, [Entry(epoch, base + index, None, size=size) for index, epoch in enumerate(epochs, 1)])


def test_positions_and_epochs() -> None:
    log = log_of(1, 1, 2, base=10)
    assert (log.last, log.last_epoch, log.bytes) == (13, 2, 3)
    assert [log.epoch_at(seqno) for seqno in (9, 10, 11, 13, 14)] == [None, 0, 1, 2, None]
    assert [entry.seqno for entry in log.between(11, 13)] == [12, 13]


@pytest.mark.parametrize("entry", [Entry(2, 3, None), Entry(2, 5, None), Entry(1, 4, None)])
def test_only_the_next_entry_of_no_older_epoch_is_added(entry: Entry) -> None:
    log = log_of(1, 1, 2)
    with pytest.raises(AssertionError):
        log.append(entry)


def test_the_hint_skips_the_whole_epoch_that_differs() -> None:
    log = log_of(1, 1, 3, 3, 3)
    assert log.conflict_hint(5) == 2
    assert log.conflict_hint(2) == 0


def test_what_is_taken_back_can_be_replaced() -> None:
    log = log_of(1, 1, 1)
    assert [entry.seqno for entry in log.truncate(1)] == [2, 3]
    log.append(Entry(2, 2, None, size=5))
    assert (log.last, log.last_epoch, log.bytes) == (2, 2, 6)


def test_a_batch_has_bounds_and_never_nothing() -> None:
    log = log_of(*[1] * 10, size=4)
    assert len(log.batch(2, 3, 100)) == 3
    assert len(log.batch(2, 100, 9)) == 2
    assert len(log.batch(2, 100, 1)) == 1, "one larger entry goes alone"
    assert log.batch(10, 5, 5) == ()


def test_only_what_is_committed_is_let_go_and_half_of_the_bound_stays() -> None:
    log = log_of(*[1] * 30)
    retention = Retention(entries=10, bytes=1_000)
    assert log.trim_point(10, 10, None, retention) == 0
    assert log.trim_point(11, 11, None, retention) == 6
    log.trim(6)
    assert (log.base_seqno, log.base_epoch, log.last, log.bytes) == (6, 1, 30, 24)
    assert log.trim_point(16, 10, None, retention) == 6


def test_bytes_count_too() -> None:
    log = log_of(*[1] * 10, size=100)
    assert log.trim_point(10, 1_000, None, Retention(entries=100, bytes=600)) == 7


def test_what_a_learner_needs_is_kept_longer_but_not_for_ever() -> None:
    retention = Retention(entries=10, bytes=100_000)
    log = log_of(*[1] * 500)
    assert log.trim_point(60, 60, 3, retention) == 0
    assert log.trim_point(60, 60, 20, retention) == 20
    most = PINNED_FACTOR * retention.entries
    assert log.trim_point(most + 1, most + 1, 3, retention) == most // 2 + 1


@given(st.lists(st.integers(0, 50), min_size=1, max_size=60), st.integers(0, 60), st.integers(0, 60) | st.none())
def test_a_trim_obeys_the_bounds(sizes: list[int], committed: int, pinned: int | None) -> None:
    committed = min(committed, len(sizes))
    log = ReplicatedLog(0, 0, [Entry(1, seqno, None, size=size) for seqno, size in enumerate(sizes, 1)])
    retention = Retention(entries=8, bytes=120)
    point = log.trim_point(committed, sum(sizes[:committed]), pinned, retention)
    assert 0 <= point <= committed
    factor = PINNED_FACTOR if pinned is not None else 1
    assert committed - point <= factor * retention.entries
    assert sum(sizes[point:committed]) <= factor * retention.bytes
