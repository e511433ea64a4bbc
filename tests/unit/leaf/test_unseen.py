from hypothesis import given
from hypothesis import strategies as st

from leaf.unseen import ENTRIES_MAX, RESOLUTION_S, UnseenWrites

# (seqnos passed over, seconds passed, how far behind the index is then; None: it is not refreshed)
STEPS = st.lists(st.tuples(st.integers(1, 3), st.floats(0, 0.02), st.none() | st.integers(0, 40)), max_size=60)


@given(STEPS)
def test_the_age_told_is_never_too_small_and_exact_but_for_the_resolution(steps) -> None:
    unseen, noted, seqno, now, through = UnseenWrites(), {}, 0, 100.0, 0
    for passed, seconds, behind in steps:
        seqno, now = seqno + passed, now + seconds
        noted[seqno] = now
        unseen.note(seqno, now)
        if behind is not None:
            through = max(through, seqno - behind)
            unseen.forget(through)
        true = min((at for each, at in noted.items() if each > through), default=None)
        told = unseen.oldest_after(through)
        assert (told is None) == (true is None)
        if told is not None:
            assert true - RESOLUTION_S <= told <= true


def test_an_index_that_is_far_behind_costs_no_more_than_so_many_entries() -> None:
    unseen = UnseenWrites()
    for seqno in range(1, 20 * ENTRIES_MAX):
        unseen.note(seqno, float(seqno))
        assert len(unseen._entries) <= ENTRIES_MAX
    assert unseen.oldest_after(0) == 1.0
    for through in range(1, 20 * ENTRIES_MAX - 1):
        told = unseen.oldest_after(through)
        assert told is not None
        assert through + 1 - 20 * ENTRIES_MAX / 32 <= told <= through + 1
    unseen.forget(20 * ENTRIES_MAX - 1)
    assert unseen.oldest_after(0) is None


def test_what_is_forgotten_is_what_the_index_shows() -> None:
    unseen = UnseenWrites()
    unseen.note(3, 1.0)
    unseen.note(5, 2.0)
    unseen.forget(2)
    assert unseen.oldest_after(2) == 1.0
    unseen.forget(3)
    assert (unseen.oldest_after(0), unseen.oldest_after(5)) == (2.0, None)
