"""How much a scan fetches, from which shards, and what all scans together may hold."""

from random import Random

import pytest

from kvshard import hashing
from kvshard.errors import ResourceExhausted
from kvshard.scatter.requests import key_range
from kvshard.scatter.scan_chunks import (
    CHUNK_FIRST_KEYS,
    CHUNK_MAX_BYTES,
    CHUNK_MAX_KEYS,
    CHUNK_MIN_BYTES,
    CHUNK_MIN_KEYS,
    ROW_GUESS_BYTES,
    SCAN_BYTES,
    SCANS_BYTES,
    ScanMemory,
    chunk_keys,
    common_prefix,
    routing_prefix,
)

ROOMY = CHUNK_MAX_BYTES


def test_a_long_scan_begins_small_and_doubles() -> None:
    sizes = [chunk_keys(None, 8, chunks, ROOMY) for chunks in range(40)]
    assert sizes[:4] == [CHUNK_FIRST_KEYS, 2 * CHUNK_FIRST_KEYS, 4 * CHUNK_FIRST_KEYS, CHUNK_MAX_KEYS]
    assert set(sizes[4:]) == {CHUNK_MAX_KEYS}


@pytest.mark.parametrize(("limit", "shards", "expected"), [(1, 8, 1), (2, 4, 2), (100, 1, 100), (100, 8, 21), (100, 64, 6)])
def test_a_short_scan_asks_each_shard_for_its_share(limit: int, shards: int, expected: int) -> None:
    assert chunk_keys(limit, shards, 0, ROOMY) == expected


def test_a_shard_asked_again_is_asked_for_more_at_most_for_all() -> None:
    assert [chunk_keys(100, 8, chunks, ROOMY) for chunks in range(5)] == [21, 42, 84, 100, 100]


def test_a_long_limited_scan_grows_as_one_without_a_limit() -> None:
    assert [chunk_keys(50_000, 8, chunks, ROOMY) for chunks in range(4)] == [chunk_keys(None, 8, n, ROOMY) for n in range(4)]


def test_chunks_are_small_while_memory_is_short() -> None:
    assert chunk_keys(None, 8, 9, CHUNK_MIN_BYTES) == 20
    assert chunk_keys(None, 8, 9, 1) == CHUNK_MIN_KEYS
    assert chunk_keys(1, 8, 0, 1) == 1


def test_few_short_scans_have_to_ask_a_shard_again() -> None:
    """The next 100 keys among 8 shards by their hash: the share is exceeded in one scan of ten, and seldom by much."""
    rng, share, again = Random(5), chunk_keys(100, 8, 0, ROOMY), 0
    for _ in range(2_000):
        counts = [0] * 8
        for _ in range(100):
            counts[rng.randrange(8)] += 1
        again += max(counts) > share
    assert again / 2_000 < 0.12
    assert 8 * share < 2 * 100, "what is read for it"


@pytest.mark.parametrize(
    ("prefix", "start", "end", "shared"),
    [
        (b"user:", b"", b"", b"user:"),
        (b"user:", b"user:5", b"", b"user:"),
        (b"", b"user:10", b"user:17", b"user:1"),
        (b"", b"user:1", b"user:2", b"user:1"),
        (b"", b"user:1", b"user:3", b"user:"),
        (b"", b"a", b"ab", b"a"),
        (b"", b"a", b"", b""),
        (b"", b"", b"b", b""),
        (b"\xff", b"", b"", b""),
        (b"a\xff", b"", b"", b"a"),
    ],
)
def test_what_all_keys_of_a_range_begin_with(prefix: bytes, start: bytes, end: bytes, shared: bytes) -> None:
    assert common_prefix(key_range(prefix, start, end)) == shared


@pytest.mark.parametrize(
    ("prefix", "start", "end", "routing_key"),
    [
        (b"{user1}", b"", b"", b"user1"),
        (b"{user1}:cart:", b"", b"", b"user1"),
        (b"a{user1}b{c}", b"", b"", b"user1"),
        (b"", b"{u}1", b"{u}9", b"u"),
        (b"{user", b"", b"", None),
        (b"user1", b"", b"", None),
        (b"{}user1", b"", b"", None),
        (b"{}{user1}", b"", b"", None),
        (b"", b"{u}1", b"{v}9", None),
        (b"", b"", b"", None),
    ],
)
def test_a_range_that_names_its_routing_key(prefix: bytes, start: bytes, end: bytes, routing_key: bytes | None) -> None:
    found = routing_prefix(key_range(prefix, start, end))
    assert (None if found is None else hashing.routing_key(found)) == routing_key


def test_one_scan_takes_large_chunks_and_many_small_ones() -> None:
    memory = ScanMemory(bytes=1 << 20, max_bytes=2 << 20)
    assert memory.chunk_bytes(1) == CHUNK_MAX_BYTES
    assert memory.chunk_bytes(8) == (1 << 20) // 16
    parts = [memory.begin() for _ in range(6)]
    asked = []
    for part in parts:
        size = memory.chunk_bytes(8)
        for shard in range(8):
            part.ask(shard, 1_000, size, 1_000)
        asked.append(size)
    assert asked == sorted(asked, reverse=True)
    assert memory.held <= (1 << 20)
    for part in parts:
        part.end()
    assert memory.held == 0


def test_what_is_held_is_counted_until_the_reader_has_it() -> None:
    memory = ScanMemory(bytes=10_000, max_bytes=20_000)
    part = memory.begin()
    part.ask(3, 4, 5_000, 0)
    assert (part.bytes, memory.held) == (4 * ROW_GUESS_BYTES, 4 * ROW_GUESS_BYTES)
    part.ask(4, 1_000, 5_000, 100)
    part.came(3, 12_000, 2)
    part.came(4, 0, 0)
    assert memory.held == 12_000
    assert memory.is_short
    assert memory.chunk_bytes(1) == CHUNK_MIN_BYTES
    part.give(7_000)
    assert not memory.is_short
    part.end()
    assert (part.bytes, memory.held) == (0, 0)


def test_a_scan_that_begins_expects_rows_as_large_as_the_last_ones() -> None:
    memory = ScanMemory(bytes=50_000_000, max_bytes=100_000_000)
    for _ in range(60):
        part = memory.begin()
        part.ask(0, 21, 256 * 1024, 0)
        part.came(0, 1_000_000, 1)
        part.end()
    memory.begin().ask(0, 21, 256 * 1024, 0)
    assert 900_000 < memory.held <= 1_000_000, "one row, however small a chunk was asked for"


def test_one_scan_of_large_values_fetches_nothing_ahead_although_there_is_memory() -> None:
    memory = ScanMemory()
    part, other = memory.begin(), memory.begin()
    for shard in range(9):
        part.ask(shard, 1, CHUNK_MAX_BYTES, 1_000_000)
    assert (part.is_short, other.is_short, memory.is_short) == (True, False, False)
    assert memory.chunk_bytes(64) == SCAN_BYTES // 128


def test_no_scan_is_begun_while_the_others_hold_too_much() -> None:
    memory = ScanMemory(bytes=10_000, max_bytes=20_000)
    part = memory.begin()
    part.ask(0, 1, 5_000, 0)
    part.came(0, 8_000_000, 1)
    with pytest.raises(ResourceExhausted, match="readers are slow") as refused:
        memory.begin()
    assert refused.value.details.limit == 20_000
    assert refused.value.details.retry_after_ms
    part.end()
    memory.begin()


def test_greedy_scans_never_hold_more_than_what_all_may() -> None:
    """Each fetches for all of its shards whenever it may, and nobody reads."""
    memory, shards = ScanMemory(), 8
    for _ in range(30):
        part = memory.begin()
        while part.bytes < SCANS_BYTES // 10 and not memory.is_short:
            size = memory.chunk_bytes(shards)
            for shard in range(shards):
                part.ask(shard, CHUNK_MAX_KEYS, size, 1_000)
                part.came(shard, size, 100)
    assert SCANS_BYTES <= memory.held <= SCANS_BYTES + shards * CHUNK_MIN_BYTES
