"""What of a batch is sent again, and what is known of its keys in the end."""

from kvshard.client.batch_retry import Written, part_of, passing_failures, put_in, why_to_pause
from kvshard.errors import ErrorDetails, ResourceExhausted, StorageFailed, Unavailable, VersionConflict
from kvshard.lane_messages import KeysWrite

LOST = Unavailable("lost", ErrorDetails(maybe_applied=True))
SILENT = Unavailable("silent")


def test_only_what_failed_for_a_while_is_sent_again() -> None:
    busy = ResourceExhausted("busy", ErrorDetails(retry_after_ms=5))
    full = ResourceExhausted("the disk is full")
    failures = {0: SILENT, 2: StorageFailed("broken"), 3: busy, 4: full, 5: VersionConflict("no"), 6: LOST}
    assert passing_failures(Written([0] * 7, [False] * 7, failures)) == {0: SILENT, 3: busy, 6: LOST}


def test_the_longest_pause_counts_and_a_doubt_of_any() -> None:
    busy = ResourceExhausted("busy", ErrorDetails(retry_after_ms=5))
    assert why_to_pause([SILENT, busy]) is busy
    decisive = why_to_pause([LOST, busy])
    assert isinstance(decisive, ResourceExhausted)
    assert decisive.details.maybe_applied


def test_a_part_keeps_its_columns() -> None:
    whole = KeysWrite("c", [b"a", b"b", b"c"], [b"1", None, b"3"], [1, 2, 3], [None, 7, 0], True, b"id")
    assert part_of(whole, [0, 2]) == KeysWrite("c", [b"a", b"c"], [b"1", b"3"], [1, 3], [None, 0], True, b"id")
    plain = part_of(KeysWrite("c", [b"a", b"b"], [b"1", b"2"]), [1])
    assert (plain.ttl_ms, plain.conditions) == ([], [])


def test_the_second_outcome_takes_the_place_of_the_first_and_a_doubt_stays() -> None:
    broken = StorageFailed("broken")
    written = Written([1, 0, 0, 0, 0], [True] + [False] * 4, {1: LOST, 2: SILENT, 3: broken, 4: LOST})
    again = Written([0, 0, 9], [False, False, True], {0: SILENT, 1: SILENT})
    put_in(written, {1: LOST, 2: SILENT, 4: LOST}, again)
    assert (written.versions, written.existed) == ([1, 0, 0, 0, 9], [True, False, False, False, True])
    assert list(written.failures) == [1, 2, 3]
    assert written.failures[1].details.maybe_applied
    assert written.failures[2] is SILENT
    assert written.failures[3] is broken


def test_what_a_shard_has_evaluated_is_in_no_doubt() -> None:
    written = Written([0], [False], {0: LOST})
    put_in(written, {0: LOST}, Written([0], [False], {0: VersionConflict("no")}))
    assert not written.failures[0].details.maybe_applied
