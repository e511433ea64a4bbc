import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.model import ABSENT, NEVER
from leaf.key_cache import ENTRY_BYTES, Found, KeyCache

SHARD, COLLECTION = 3, 7
ENTRY = ENTRY_BYTES + 3 + 10
"""What a key of 3 bytes with a value of 10 counts."""


def keys(*numbers: int) -> list[bytes]:
    return [b"k%02d" % number for number in numbers]


def filled(cache: KeyCache, *numbers: int, shard: int = SHARD, collection_id: int = COLLECTION, version: int = 5) -> None:
    count = len(numbers)
    cache.fill(shard, collection_id, keys(*numbers), [b"v" * 10] * count, [version] * count)
    cache.check_invariants()


def found(cache: KeyCache, *numbers: int, shard: int = SHARD, collection_id: int = COLLECTION) -> list[int]:
    """The numbers among these whose keys are there."""
    result = cache.look_up(shard, collection_id, keys(*numbers))
    cache.check_invariants()
    assert [value is None for value in result.values] == [version == ABSENT for version in result.versions]
    return [number for number, value in zip(numbers, result.values, strict=True) if value is not None]


def written(cache: KeyCache, number: int, value: bytes | None, version: int = 9, expires_at_ms: int = NEVER) -> None:
    cache.note_write(SHARD, COLLECTION, keys(number), [value], version, [expires_at_ms] if expires_at_ms else [], 100)
    cache.check_invariants()


def test_what_was_read_is_found_where_it_belongs_and_nowhere_else() -> None:
    cache = KeyCache(100 * ENTRY)
    assert found(cache, 1, 2) == []
    cache.fill(SHARD, COLLECTION, keys(1, 2), [b"one", b""], [4, 5], [(b"k02", 77)])
    assert cache.look_up(SHARD, COLLECTION, keys(3, 2, 1)) == Found([None, b"", b"one"], [ABSENT, 5, 4], {1: 77})
    assert found(cache, 1, 2, shard=SHARD + 1) == []
    assert found(cache, 1, 2, collection_id=COLLECTION + 1) == []
    assert cache.has_any(SHARD, COLLECTION, keys(9, 2))
    assert not cache.has_any(SHARD, COLLECTION, keys(9, 3))
    assert not cache.has_any(SHARD, COLLECTION + 1, keys(1, 2))
    assert cache.look_up(SHARD, COLLECTION, []) == Found([], [], {})


def test_the_short_way_finds_what_was_read_lately_if_that_is_all_and_nothing_expires() -> None:
    cache = KeyCache(8 * ENTRY)
    assert cache.find_all(SHARD, COLLECTION, keys(1)) is None
    cache.fill(SHARD, COLLECTION, keys(1, 2), [b"v" * 10, b""], [5, 6])
    assert cache.find_all(SHARD, COLLECTION, keys(2, 1, 2)) == ([b"", b"v" * 10, b""], [6, 5, 6])
    assert cache.find_all(SHARD, COLLECTION, []) == ([], [])
    assert (cache.hits, cache.misses) == (3, 0)
    assert cache.find_all(SHARD, COLLECTION, keys(1, 2), max_bytes=9) is None, "they would be too large"
    assert cache.find_all(SHARD, COLLECTION, keys(2, 1), max_bytes=10) == ([b"", b"v" * 10], [6, 5])
    assert cache.find_all(SHARD, COLLECTION, keys(1, 3)) is None, "one is not there"
    assert cache.find_all(SHARD + 1, COLLECTION, keys(1)) is None
    filled(cache, 3, 4, 5, 6)
    assert cache.turns == 1
    assert cache.find_all(SHARD, COLLECTION, keys(1)) is None, "it is old, and has to be taken over"
    assert found(cache, 1) == [1]
    assert cache.find_all(SHARD, COLLECTION, keys(1)) == ([b"v" * 10], [5])
    written(cache, 1, b"new", expires_at_ms=99)
    assert cache.find_all(SHARD, COLLECTION, keys(1)) is None, "somebody has to look at the clock"
    assert cache.hits == 6


def test_keys_that_are_asked_for_outlive_those_that_are_not() -> None:
    cache = KeyCache(20 * ENTRY)
    filled(cache, *range(10))
    assert cache.turns == 0
    for number in range(10, 100):
        assert found(cache, 3) == [3], number
        filled(cache, number)
    assert cache.turns >= 9
    assert found(cache, *[number for number in range(10) if number != 3]) == []


def test_the_old_generation_is_asked_too_and_what_it_has_moves() -> None:
    cache = KeyCache(8 * ENTRY)
    cache.fill(SHARD, COLLECTION, keys(1, 2), [b"v" * 10] * 2, [5, 6], [(b"k01", 50)])
    filled(cache, 3, 4)
    filled(cache, 5)  # A turn.
    assert cache.turns == 1
    assert cache.has_any(SHARD, COLLECTION, keys(9, 4))
    assert cache.look_up(SHARD, COLLECTION, keys(2, 5, 1)) == Found([b"v" * 10] * 3, [6, 5, 5], {2: 50})
    cache.check_invariants()
    filled(cache, 6)
    filled(cache, 7)  # Another one: what was not asked for is gone.
    assert cache.turns == 2
    assert found(cache, 1, 2, 3, 4, 5, 6, 7) == [1, 2, 5, 6, 7]
    assert cache.look_up(SHARD, COLLECTION, keys(1)).expiries == {0: 50}


def test_a_key_that_is_asked_for_twice_at_once_moves_once() -> None:
    cache = KeyCache(4 * ENTRY)
    filled(cache, 1, 2)
    filled(cache, 3)
    assert cache.look_up(SHARD, COLLECTION, keys(1, 4, 1)) == Found([b"v" * 10, None, b"v" * 10], [5, ABSENT, 5], {})
    cache.check_invariants()
    assert found(cache, 1, 1) == [1, 1]


def test_a_write_changes_what_is_there_and_brings_in_nothing_new() -> None:
    cache = KeyCache(8 * ENTRY)
    written(cache, 1, b"unread")
    assert len(cache) == 0
    filled(cache, 1, 2, 3, 4)
    filled(cache, 5)  # The first four are old now.
    written(cache, 1, b"newer", 10, 99)
    written(cache, 5, b"newer still", 11)
    written(cache, 6, b"unread", 12)
    result = cache.look_up(SHARD, COLLECTION, keys(1, 5, 6))
    assert result == Found([b"newer", b"newer still", None], [10, 11, ABSENT], {0: 99})
    written(cache, 1, b"for ever", 13)
    assert cache.look_up(SHARD, COLLECTION, keys(1)) == Found([b"for ever"], [13], {})


@pytest.mark.parametrize("gone", [None, b"x" * 101])
def test_a_deleted_key_and_a_value_that_became_large_are_not_kept(gone: bytes | None) -> None:
    cache = KeyCache(100 * ENTRY)
    filled(cache, 1, 2)
    written(cache, 1, gone)
    assert found(cache, 1, 2) == [2]


def test_the_last_of_several_writes_of_one_key_counts() -> None:
    cache = KeyCache(100 * ENTRY)
    filled(cache, 1, 2)
    cache.note_write(SHARD, COLLECTION, keys(1, 2, 1, 2), [b"a", b"b", None, b"c"], 8, [], 100)
    assert cache.look_up(SHARD, COLLECTION, keys(1, 2)) == Found([None, b"c"], [ABSENT, 8], {})
    cache.check_invariants()


def test_shards_and_collections_are_forgotten_alone() -> None:
    cache = KeyCache(100 * ENTRY)
    for shard in (1, 2):
        for collection_id in (1, 2):
            filled(cache, 1, shard=shard, collection_id=collection_id)
    cache.forget_collection(1, 1)
    cache.forget_collection(1, 9)
    cache.check_invariants()
    assert [found(cache, 1, shard=shard, collection_id=c) for shard in (1, 2) for c in (1, 2)] == [[], [1], [1], [1]]
    cache.forget_shard(2)
    cache.check_invariants()
    assert [found(cache, 1, shard=shard, collection_id=c) for shard in (1, 2) for c in (1, 2)] == [[], [1], [], []]
    assert not cache.has_any(2, 1, keys(1))


def test_what_was_dropped_is_freed_bit_by_bit_as_more_comes_in() -> None:
    cache = KeyCache(40 * ENTRY)
    filled(cache, *range(20))
    filled(cache, *range(20, 40))
    assert cache.size_bytes == 40 * ENTRY
    filled(cache, 40)  # Drops the first twenty; frees two of them for the one that came.
    assert cache.size_bytes == (20 + 1 + 18) * ENTRY
    for number in range(41, 50):
        filled(cache, number)
    assert cache.size_bytes == (20 + 10) * ENTRY


def test_more_than_a_generation_is_not_taken_in_at_once() -> None:
    cache = KeyCache(10 * ENTRY)
    filled(cache, 1)
    filled(cache, *range(10, 20))
    assert (len(cache), cache.turns) == (1, 0)
    written(cache, 1, b"x" * 5 * ENTRY)
    assert found(cache, 1) == []


def test_a_cache_of_nothing_keeps_nothing() -> None:
    cache = KeyCache(0)
    filled(cache, 1)
    written(cache, 1, b"v")
    assert (found(cache, 1), len(cache), cache.size_bytes, cache.turns) == ([], 0, 0, 0)


@pytest.mark.parametrize("count", [20_000, 30_000])
@pytest.mark.parametrize("value_bytes", [100, 1_000])
def test_the_size_of_keys_is_about_what_they_take_in_memory(count: int, value_bytes: int) -> None:
    cache = KeyCache(10**9)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for first in range(0, count, 100):
            some = [b"user%010d" % number for number in range(first, first + 100)]
            cache.fill(SHARD, COLLECTION, some, [bytes(value_bytes) for _ in some], [1_000_000 + first + n for n in range(100)])
            del some
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(cache) == count
    # The dicts double when they are two thirds full, so that what they take goes up and down.
    assert 0.75 < cache.size_bytes / taken < 1.25


KEYS = st.integers(0, 5)
VALUES = st.sampled_from([b"", b"v", b"v" * 60, b"v" * 150])
STEPS = st.one_of(
    st.tuples(st.just("read"), st.lists(KEYS, min_size=1, max_size=3)),
    st.tuples(st.just("write"), st.lists(st.tuples(KEYS, st.none() | VALUES, st.sampled_from([0, 0, 40])), max_size=4)),
    st.tuples(st.just("drop")),
    st.tuples(st.just("elsewhere"), KEYS),
)


class Rig:
    """A cache before a dict that stands for the engine: key -> (value, version, expires_at_ms)."""

    def __init__(self, max_bytes: int) -> None:
        self.cache = KeyCache(max_bytes)
        self.stored: dict[bytes, tuple[bytes, int, int]] = {}
        self.version = 0

    def read(self, numbers: list[int]) -> None:
        asked = keys(*numbers)
        values, versions, expiries = self.cache.look_up(SHARD, COLLECTION, asked)
        for index, key in enumerate(asked):
            if values[index] is not None:
                assert (values[index], versions[index], expiries.get(index, 0)) == self.stored[key]
        missing = [key for key, value in zip(asked, values, strict=True) if value is None and key in self.stored]
        rows = [self.stored[key] for key in missing]
        expiring = [(key, row[2]) for key, row in zip(missing, rows, strict=True) if row[2]]
        self.cache.fill(SHARD, COLLECTION, missing, [row[0] for row in rows], [row[1] for row in rows], expiring)

    def write(self, items: list[tuple[int, bytes | None, int]]) -> None:
        self.version += 1
        for number, value, expires_at_ms in items:
            self.stored.pop(*keys(number), None)
            if value is not None:
                self.stored[keys(number)[0]] = (value, self.version, expires_at_ms)
        numbers, values, expiries = ([item[n] for item in items] for n in range(3))
        self.cache.note_write(SHARD, COLLECTION, keys(*numbers), values, self.version, expiries if any(expiries) else [], 100)

    def drop(self) -> None:
        self.stored.clear()
        self.cache.forget_collection(SHARD, COLLECTION)

    def elsewhere(self, number: int) -> None:
        if not found(self.cache, number, shard=SHARD + 1):
            filled(self.cache, number, shard=SHARD + 1)


@given(st.sampled_from([0, 3, 5, 8, 50]), st.lists(STEPS, min_size=5, max_size=30))
@settings(max_examples=250, deadline=None)
def test_the_cache_never_differs_from_what_is_stored(entries: int, steps: list[tuple[Any, ...]]) -> None:
    rig = Rig(entries * ENTRY)
    for number in range(6):
        rig.write([(number, b"first", 0)])
        rig.read([number])
    for name, *arguments in steps:
        getattr(rig, name)(*arguments)
        rig.cache.check_invariants()
    for number in range(6):
        rig.read([number])
