"""What a replica does next for a split, and what of the log concerns the child."""

import itertools
from dataclasses import replace

import pytest

from kvshard import hashing
from kvshard.clustermap import WantedSplit
from leaf.operations import Counts, DropCollection, Split, WriteOperation, keys_of
from leaf.replication.messages import Entry
from leaf.splitting import (
    DIVIDED_PATIENCE_S,
    READY_PATIENCE_S,
    Departed,
    Part,
    Shadow,
    Situation,
    Task,
    mirrored,
    next_task,
    without,
)

PART = Part(9, 100, 200)
WANTED = WantedSplit(9, 100)
WALKING, WHOLE = Shadow(PART, b"x"), Shadow(PART, b"", is_complete=True)
COPIED = Departed(PART, 7, 2, is_copied=True, is_counted=True)
LATE = replace(COPIED, is_copied=False, is_counted=False)

APPLIED: dict[str, object] = {"wanted": WANTED, "is_applied": True, "departed": (COPIED,)}

QUIET = Situation(
    wanted=None,
    is_applied=False,
    shadow=None,
    departed=(),
    is_primary=False,
    is_in_flight=False,
    may_begin=True,
    are_others_ready=False,
    waited_s=0.0,
    took_s=0.0,
    divided_s=None,
    have_others_divided=False,
    known={3},
)


@pytest.mark.parametrize(
    ("changes", "task"),
    [
        ({}, None),
        ({"wanted": WANTED}, Task.BEGIN),
        ({"wanted": WANTED, "may_begin": False}, None),
        ({"wanted": WANTED, "is_in_flight": True}, None),
        ({"wanted": WANTED, "shadow": WALKING}, Task.COPY),
        ({"wanted": WANTED, "shadow": WHOLE}, None),
        ({"wanted": WANTED, "shadow": WHOLE, "is_primary": True}, None),
        ({"wanted": WANTED, "shadow": WHOLE, "is_primary": True, "are_others_ready": True}, Task.PROPOSE),
        ({"wanted": WANTED, "shadow": WHOLE, "is_primary": True, "waited_s": READY_PATIENCE_S}, Task.PROPOSE),
        ({"wanted": WANTED, "shadow": WHOLE, "is_primary": True, "waited_s": READY_PATIENCE_S, "took_s": 99.0}, None),
        (
            {"wanted": WANTED, "shadow": WHOLE, "is_primary": True, "are_others_ready": True, "is_in_flight": True},
            None,
        ),
        ({"wanted": WANTED, "shadow": WHOLE, "are_others_ready": True}, None),
        ({"shadow": WALKING}, Task.DISCARD),
        ({"shadow": WHOLE}, Task.DISCARD),
        ({"wanted": WantedSplit(10, 100), "shadow": WHOLE}, Task.DISCARD),
        # The split is done elsewhere, this replica is behind: what it copied will be needed.
        ({"shadow": WALKING, "known": {3, 9}}, Task.COPY),
        ({"shadow": WHOLE, "known": {3, 9}}, None),
        (APPLIED | {"is_primary": True, "divided_s": 0.0, "have_others_divided": True}, Task.FINISH),
        (APPLIED | {"is_primary": True, "divided_s": 0.0}, None),
        (APPLIED | {"is_primary": True, "divided_s": DIVIDED_PATIENCE_S}, Task.FINISH),
        (APPLIED | {"is_primary": True, "have_others_divided": True}, None),
        (APPLIED | {"divided_s": 0.0, "have_others_divided": True}, None),
        ({"wanted": WANTED, "is_applied": True, "departed": (COPIED,)}, None),
        ({"wanted": WANTED, "is_applied": True, "departed": (LATE,), "is_primary": True}, Task.COPY),
        ({"departed": (COPIED,), "known": {3, 9}}, Task.CLEAN),
        ({"departed": (COPIED,)}, None),
        # A second split does not wait for the first one's cleaning, but for its copy.
        ({"wanted": WantedSplit(12, 50), "departed": (COPIED,), "known": {3, 9}}, Task.BEGIN),
        ({"wanted": WantedSplit(12, 50), "departed": (LATE,), "known": {3, 9}}, Task.COPY),
    ],
)
def test_the_next_task(changes: dict[str, object], task: Task | None) -> None:
    assert next_task(replace(QUIET, **changes)) is task  # type: ignore[arg-type]


def test_in_every_situation_only_what_is_safe_is_done() -> None:
    flags = (False, True)
    for wanted, shadow, departed in itertools.product((None, WANTED), (None, WALKING, WHOLE), ((), (COPIED,), (LATE,))):
        for is_applied, is_primary, is_in_flight, are_ready in itertools.product(flags, repeat=4):
            now = replace(
                QUIET,
                wanted=wanted,
                is_applied=is_applied and wanted is not None,
                shadow=shadow,
                departed=departed,
                is_primary=is_primary,
                is_in_flight=is_in_flight,
                are_others_ready=are_ready,
                known={3, 9} if wanted is None else {3},
            )
            task = next_task(now)
            if task is Task.PROPOSE:
                assert is_primary
                assert not is_in_flight
                assert shadow is WHOLE
            if task is Task.FINISH:
                assert is_primary
                assert now.is_applied
                assert LATE not in departed
            if task is Task.CLEAN:
                assert LATE not in departed
                assert 9 in now.known


KEYS = [b"k%d" % n for n in range(200)]


def slot_of(key: bytes) -> int:
    return hashing.slot(key, 0)


def write(*keys: bytes) -> Entry:
    operation = WriteOperation(1, list(keys), [b"v"] * len(keys))
    return Entry(1, 1, operation, keys_of(operation))


def test_only_keys_of_the_part_that_were_walked_are_mirrored() -> None:
    shadow = Shadow(Part(9, 1 << 15, (1 << 16) - 1), b"\0\0\0\1k50")
    entry = write(*KEYS[:100])
    (found,) = mirrored([entry], shadow, slot_of)
    assert isinstance(found.payload, WriteOperation)
    assert found.payload.keys == [key for key in KEYS[:100] if slot_of(key) >= 1 << 15 and key <= b"k50"]
    assert found.payload.values == [b"v"] * len(found.payload.keys)
    shadow.is_complete = True
    (found,) = mirrored([entry], shadow, slot_of)
    assert isinstance(found.payload, WriteOperation)
    assert found.payload.keys == [key for key in KEYS[:100] if slot_of(key) >= 1 << 15]


def test_drops_are_mirrored_and_what_has_no_keys_of_the_part_is_not() -> None:
    shadow = Shadow(Part(9, 1 << 15, (1 << 16) - 1), b"", is_complete=True)
    low = next(key for key in KEYS if slot_of(key) < 1 << 15)
    drop = Entry(1, 2, DropCollection(1), None)
    assert mirrored([write(low), drop, Entry(1, 3, None), Entry(1, 4, Split(9, 1, 2), None)], shadow, slot_of) == [drop]


def test_counts_cannot_become_less_than_nothing() -> None:
    with pytest.raises(AssertionError):
        without({1: Counts(1, 10)}, {1: Counts(2, 10)})
