from collections.abc import Sequence

import pytest

from kvshard.errors import DeadlineExceeded
from leaf import layout
from leaf.key_cache import KeyCache
from leaf.key_reader import READ_CHUNK_KEYS, READ_REPLY_MAX_BYTES, KeyReader
from leaf.layout import INLINE_MAX_BYTES
from leaf.memory_engine import MemoryEngine

SHARD, COLLECTION = 3, 7
LARGE = bytes(INLINE_MAX_BYTES + 1)


class CountingEngine(MemoryEngine):
    """A MemoryEngine that notes what it is asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[bytes]] = []

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        self.asked.append(list(keys))
        return super().get_many(keys)


class Rig:
    """A reader over rows that were put beside it."""

    def __init__(self, cache_bytes: int = 10**9) -> None:
        self.engine = CountingEngine()
        self.cache = KeyCache(cache_bytes)
        self.reader = KeyReader(self.engine, self.cache)

    def put(self, key: bytes, value: bytes, version: int = 1, expires_at_ms: int = 0, large_version: int = 0) -> None:
        batch = self.engine.new_batch()
        is_large = len(value) > INLINE_MAX_BYTES
        header = layout.pack_header(version, expires_at_ms, len(value))
        batch.put(layout.value_prefix(SHARD, COLLECTION) + key, header + (b"" if is_large else value))
        if is_large:
            batch.put(layout.large_prefix(SHARD, COLLECTION) + key, layout.pack_number(large_version or version) + value)
        self.engine.write(batch)

    def read(self, *keys: bytes, now_ms: int = 100, **options):
        return self.reader.read(SHARD, COLLECTION, keys, now_ms, **options)

    def asked(self) -> list[list[bytes]]:
        """The keys of the calls of the engine since the last time."""
        prefix = len(layout.value_prefix(SHARD, COLLECTION))
        asked, self.engine.asked = self.engine.asked, []
        return [[key[prefix:] for key in each] for each in asked]


def test_what_the_cache_lacks_is_read_in_one_call_and_then_it_has_it() -> None:
    rig = Rig()
    for n in range(5):
        rig.put(b"k%d" % n, b"v%d" % n, version=n + 1)
    assert rig.read(b"k1", b"none", b"k3")[:2] == ([b"v1", None, b"v3"], [2, 0, 4])
    assert rig.asked() == [[b"k1", b"none", b"k3"]]
    assert rig.read(b"k0", b"k1", b"k2", b"k3", b"none")[:2] == ([b"v0", b"v1", b"v2", b"v3", None], [1, 2, 3, 4, 0])
    assert rig.asked() == [[b"k0", b"k2", b"none"]]
    assert rig.read(b"k3", b"k2", b"k3")[:2] == ([b"v3", b"v2", b"v3"], [4, 3, 4])
    assert rig.asked() == []
    assert (rig.cache.hits, rig.cache.misses) == (5, 6)


def test_an_empty_value_is_found_and_not_asked_for_again() -> None:
    rig = Rig()
    rig.put(b"k", b"", version=8)
    assert [rig.read(b"k")[:2] for _ in range(2)] == [([b""], [8])] * 2
    assert rig.asked() == [[b"k"]]


def test_no_keys_are_no_values() -> None:
    assert Rig().read() == ([], [], {}, {})


@pytest.mark.parametrize("is_kept", [True, False])
def test_a_key_is_absent_from_its_instant_on_also_in_the_cache(is_kept: bool) -> None:
    rig = Rig(10**9 if is_kept else 0)
    rig.put(b"k", b"v", version=5, expires_at_ms=200)
    rig.put(b"l", LARGE, version=6, expires_at_ms=200)
    rig.put(b"m", b"v", version=7)
    for now_ms in (199, 199, 200, 201):
        columns = rig.read(b"m", b"k", b"l", now_ms=now_ms)
        is_there = now_ms < 200
        assert columns.values == [b"v", b"v" if is_there else None, LARGE if is_there else None]
        assert columns.versions == ([7, 5, 6] if is_there else [7, 0, 0])
        assert columns.expires_at_ms() == ([0, 200, 200] if is_there else [])


def test_large_values_are_read_when_they_are_wanted_and_never_kept() -> None:
    rig = Rig()
    rig.put(b"k", LARGE, version=5)
    for _ in range(2):
        assert rig.read(b"k")[:2] == ([LARGE], [5])
    assert len(rig.cache) == 0


def test_a_large_value_that_is_not_there_is_damage() -> None:
    rig = Rig()
    rig.put(b"k", LARGE, version=5, large_version=4)
    columns = rig.read(b"none", b"k")
    assert (columns.values, columns.versions) == ([None, None], [0, 0])
    assert {index: error.reason for index, error in columns.errors.items()} == {1: "DATA_LOSS"}


def test_keys_beyond_the_bound_of_a_reply_fail_and_smaller_ones_behind_them_do_not() -> None:
    rig = Rig()
    size = READ_REPLY_MAX_BYTES // 4
    for n in range(5):
        rig.put(b"l%d" % n, bytes(size - 10))
    rig.put(b"s", b"v" * 20)
    rig.put(b"t", b"v" * 41)
    for _ in range(2):  # From the engine, and from the cache.
        columns = rig.read(b"l0", b"l1", b"l2", b"l3", b"l4", b"t", b"s")
        assert [value is None for value in columns.values] == [False] * 4 + [True, True, False]
        assert {index: error.reason for index, error in columns.errors.items()} == dict.fromkeys((4, 5), "RESOURCE_EXHAUSTED")
        assert columns.versions == [1, 1, 1, 1, 0, 0, 1]


def test_small_values_of_many_chunks_are_added_up() -> None:
    rig = Rig()
    rig.put(b"k", b"v" * INLINE_MAX_BYTES)
    fit = READ_REPLY_MAX_BYTES // INLINE_MAX_BYTES
    columns = rig.read(*[b"k"] * (fit + 3))
    assert columns.values.count(None) == 3
    assert sorted(columns.errors) == [fit, fit + 1, fit + 2]


def test_between_chunks_somebody_looks_whether_to_go_on() -> None:
    rig = Rig()
    rig.put(b"k", b"v", expires_at_ms=500)
    looks: list[int] = []
    columns = rig.read(*[b"k"] * (READ_CHUNK_KEYS + 1), check=lambda: looks.append(1))
    assert (len(columns.values), len(looks)) == (READ_CHUNK_KEYS + 1, 1)
    assert columns.expires_at_ms() == [500] * (READ_CHUNK_KEYS + 1)

    def stop() -> None:
        raise DeadlineExceeded("too late")

    with pytest.raises(DeadlineExceeded):
        rig.read(*[b"k"] * (READ_CHUNK_KEYS + 1), check=stop)
    rig.read(*[b"k"] * READ_CHUNK_KEYS, check=stop)


def test_what_may_not_be_kept_is_read_and_not_kept() -> None:
    rig = Rig()
    rig.put(b"k", b"v")
    assert rig.read(b"k", may_keep=False).values == [b"v"]
    assert len(rig.cache) == 0


@pytest.mark.parametrize("cached", [[], [b"a"], [b"a", b"e", b"x", b"l"]])
def test_headers_are_those_of_the_rows_wherever_they_are_found(cached: list[bytes]) -> None:
    rig = Rig()
    rig.put(b"a", b"four", version=1)
    rig.put(b"e", b"", version=2)
    rig.put(b"x", b"v", version=3, expires_at_ms=50)
    rig.put(b"l", LARGE, version=4)
    rig.read(*cached)
    rig.asked()
    assert rig.reader.headers(SHARD, COLLECTION, [b"l", b"none", b"x", b"a", b"e", b"a"]) == [
        (4, 0, len(LARGE)),
        None,
        (3, 50, 1),
        (1, 0, 4),
        (2, 0, 0),
        (1, 0, 4),
    ]
    assert {key for each in rig.asked() for key in each}.isdisjoint(cached[:3])
