from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.errors import DataLoss
from kvshard.limits import KEY_MAX_BYTES
from kvshard.model import ShardScan, ShardScanReply, changed
from leaf import layout
from leaf.key_cache import KeyCache
from leaf.key_reader import KeyReader
from leaf.layout import INLINE_MAX_BYTES
from leaf.memory_engine import MemoryEngine
from leaf.scan_reader import SCAN_REPLY_MAX_BYTES, SCAN_REPLY_MAX_KEYS, ScanReader

SHARD, COLLECTION = 3, 7
EVERYTHING = ShardScan(SHARD, 1, COLLECTION, b"", None, 1_000)
NOW = 100


class Rig:
    """A reader over the rows of one collection, with rows of others around it."""

    def __init__(self) -> None:
        self.engine = MemoryEngine()
        self.reader = ScanReader(self.engine, KeyReader(self.engine, KeyCache(0)))
        for shard, collection_id in ((SHARD, COLLECTION - 1), (SHARD, COLLECTION + 1), (SHARD - 1, 9), (SHARD + 1, 1)):
            self.put(b"other", b"?", shard=shard, collection_id=collection_id)

    def put(
        self,
        key: bytes,
        value: bytes,
        version: int = 1,
        expires_at_ms: int = 0,
        large_version: int = 0,
        shard: int = SHARD,
        collection_id: int = COLLECTION,
    ) -> None:
        batch = self.engine.new_batch()
        is_large = len(value) > INLINE_MAX_BYTES
        header = layout.pack_header(version, expires_at_ms, len(value))
        batch.put(layout.value_prefix(shard, collection_id) + key, header + (b"" if is_large else value))
        if is_large:
            batch.put(layout.large_prefix(shard, collection_id) + key, layout.pack_number(large_version or version) + value)
        self.engine.write(batch)

    def scan(self, is_own: Any = None, **fields: Any) -> ShardScanReply:
        return self.reader.read(changed(EVERYTHING, **fields), NOW, is_own, 42, seqno=5, age_ms=6)


def test_a_chunk_has_the_live_keys_of_the_range_in_columns() -> None:
    rig = Rig()
    for n in range(5):
        rig.put(b"k%d" % n, b"v%d" % n, version=n + 1)
    assert rig.scan() == ShardScanReply(
        [b"k%d" % n for n in range(5)], [b"v%d" % n for n in range(5)], [1, 2, 3, 4, 5], [0] * 5, False, b"", 42, 5, 6
    )
    part = rig.scan(start=b"k1", end=b"k4", limit=2)
    assert (part.keys, part.has_more, part.resume) == ([b"k1", b"k2"], True, b"k2\0")
    rest = rig.scan(start=part.resume, end=b"k4", limit=2)
    assert (rest.keys, rest.has_more, rest.resume) == ([b"k3"], False, b"")
    names = rig.scan(keys_only=True)
    assert (names.keys, names.values, names.versions) == (rig.scan().keys, [], [1, 2, 3, 4, 5])
    assert rig.scan(start=b"x") == ShardScanReply([], [], [], [], False, b"", 42, 5, 6)


def test_expired_keys_and_those_of_other_shards_are_passed_over_but_not_forgotten_as_the_place_to_go_on() -> None:
    rig = Rig()
    rig.put(b"a", b"v", expires_at_ms=NOW)
    rig.put(b"b", b"v", expires_at_ms=NOW + 1)
    rig.put(b"c", b"v")
    found = rig.scan()
    assert (found.keys, found.expires_at_ms) == ([b"b", b"c"], [NOW + 1, 0])
    nothing = rig.scan(limit=1)
    assert (nothing.keys, nothing.has_more, nothing.resume) == ([], True, b"a\0")
    left = rig.scan(is_own=lambda key: key < b"c", limit=3)
    assert (left.keys, left.has_more) == ([b"b"], False)


def test_values_beyond_the_bound_of_a_chunk_come_with_the_next_one() -> None:
    rig = Rig()
    size = SCAN_REPLY_MAX_BYTES // 3 + 1
    for n in range(4):
        rig.put(b"k%d" % n, bytes(size))
    first = rig.scan()
    assert (first.keys, first.has_more, first.resume) == ([b"k0", b"k1"], True, b"k2")
    rest = rig.scan(start=first.resume)
    assert (rest.keys, rest.has_more, rest.resume) == ([b"k2", b"k3"], False, b"")
    rig.put(b"k0", bytes(2 * SCAN_REPLY_MAX_BYTES))
    assert rig.scan().keys == [b"k0"]  # One value alone may be larger, else it would never come.


def test_small_values_that_are_too_many_bytes_come_with_the_next_chunk() -> None:
    rig = Rig()
    count = SCAN_REPLY_MAX_BYTES // INLINE_MAX_BYTES + 2
    for n in range(count):
        rig.put(b"%04d" % n, bytes(INLINE_MAX_BYTES))
    first = rig.scan()
    assert sum(map(len, first.values)) <= SCAN_REPLY_MAX_BYTES
    rest = rig.scan(start=first.resume)
    assert first.keys + rest.keys == [b"%04d" % n for n in range(count)]
    assert (first.has_more, rest.has_more) == (True, False)


def test_a_chunk_is_bounded_in_keys_and_a_start_in_bytes() -> None:
    rig = Rig()
    batch = rig.engine.new_batch()
    for n in range(SCAN_REPLY_MAX_KEYS + 1):
        batch.put(layout.value_prefix(SHARD, COLLECTION) + b"%05d" % n, layout.pack_header(1, 0, 1) + b"v")
    rig.engine.write(batch)
    first = rig.scan(limit=10**6)
    assert (len(first.keys), first.has_more, first.resume) == (SCAN_REPLY_MAX_KEYS, True, b"%05d\0" % (SCAN_REPLY_MAX_KEYS - 1))
    assert rig.scan(start=b"x" * (KEY_MAX_BYTES + 500)).keys == []


def test_a_large_value_that_is_not_there_is_damage() -> None:
    rig = Rig()
    rig.put(b"k", bytes(INLINE_MAX_BYTES + 1), version=5, large_version=4)
    assert rig.scan(keys_only=True).keys == [b"k"]
    with pytest.raises(DataLoss):
        rig.scan()


ROWS = st.dictionaries(
    st.binary(min_size=1, max_size=3),
    st.tuples(
        st.sampled_from([b"", b"v", bytes(INLINE_MAX_BYTES), bytes(INLINE_MAX_BYTES + 1)]),
        st.sampled_from([0, 0, 0, NOW, NOW + 1]),
    ),
    max_size=8,
)


@given(ROWS, st.integers(1, 9), st.binary(max_size=2))
@settings(max_examples=100, deadline=None)
def test_the_quick_way_through_a_chunk_leads_where_the_long_one_does(
    rows: dict[bytes, tuple[bytes, int]], limit: int, start: bytes
) -> None:
    rig = Rig()
    for version, (key, (value, expires_at_ms)) in enumerate(rows.items(), 1):
        rig.put(key, value, version, expires_at_ms)
    assert rig.scan(limit=limit, start=start) == rig.scan(is_own=lambda key: True, limit=limit, start=start)
