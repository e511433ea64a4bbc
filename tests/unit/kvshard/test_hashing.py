"""Tokens: frozen vectors (a change here would lose every stored key) and the rule of the routing key."""

import struct

import mmh3
import pytest

from kvshard import hashing

VECTORS = [
    (b"", 0, 0x0000000000000000),
    (b"", 1, 0x4610ABE56EFF5CB5),
    (b"a", 0, 0x85555565F6597889),
    (b"foo", 0, 0xE271865701F54561),
    (b"user:1", 0, 0x54F09E266816C56E),
    (b"user:1", 42, 0x3721210E082F6913),
    (b"{user:1}:cart", 42, 0x3721210E082F6913),
    (b"kvshard", 4294967295, 0x7F1A7D84665AA5B4),
    (bytes(16), 0, 0x4BBD1BF27DA918D6),
    (bytes(range(256)), 7, 0x4B8B5AD4BB16A076),
    (b"k" * 1024, 0, 0xE3AEEE4FF2170BE9),
    (b"schl\xc3\xbcssel", 2026, 0x4211A385C17C7C13),
]


@pytest.mark.parametrize(("key", "seed", "expected"), VECTORS)
def test_frozen_vectors(key: bytes, seed: int, expected: int) -> None:
    assert hashing.token(key, seed) == expected
    assert hashing.slot(key, seed) == expected >> 48


def test_published_vector() -> None:
    """MurmurHash3_x64_128 of this sentence with seed 0 is published as e34bbc7bbc071b6c 7a433ca9c49a9347."""
    assert hashing.token(b"The quick brown fox jumps over the lazy dog", 0) == 0xE34BBC7BBC071B6C


@pytest.mark.parametrize("seed", [0, 1, 0x9747B28C, hashing.SEED_MAX])
def test_the_token_is_the_first_word_of_the_digest(seed: int) -> None:
    for length in range(70):
        key = bytes(range(length))
        (first_word,) = struct.unpack("<Q", mmh3.mmh3_x64_128_digest(key, seed)[:8])
        assert hashing.token(key, seed) == first_word == mmh3.mmh3_x64_128_utupledigest(key, seed)[0]
        assert hashing.slot(key, seed) == first_word >> 48


@pytest.mark.parametrize(
    ("key", "part"),
    [
        (b"user:1", b"user:1"),
        (b"{user:1}:cart", b"user:1"),
        (b"cart:{user:1}", b"user:1"),
        (b"a{b}c{d}", b"b"),
        (b"a{{b}}", b"{b"),
        (b"a{}b{c}", b"a{}b{c}"),
        (b"{}", b"{}"),
        (b"a}b{c", b"a}b{c"),
        (b"}{a}", b"a"),
        (b"{a", b"{a"),
        (b"", b""),
        (b"{\x00}\xff", b"\x00"),
    ],
)
def test_routing_key(key: bytes, part: bytes) -> None:
    assert hashing.routing_key(key) == part
    assert hashing.token(key, 7) == mmh3.mmh3_x64_128_utupledigest(part, 7)[0]


def test_keys_of_one_tag_share_a_token() -> None:
    assert len({hashing.token(b"%d{tag}%d" % (n, n), 3) for n in range(100)}) == 1


def test_a_seed_changes_the_token() -> None:
    assert len({hashing.token(b"key", seed) for seed in range(100)}) == 100


def test_ring_points_have_no_routing_part() -> None:
    assert hashing.point("{a}b", 0) != hashing.point("{a}c", 0)
    assert hashing.point("leaf", 5) == hashing.token(b"leaf", 5)


@pytest.mark.parametrize("seed", [0, 99, hashing.SEED_MAX])
def test_the_slots_of_many_keys_are_those_of_each(seed: int) -> None:
    keys = [b"", b"{tag}:1", b"{}x", b"{x", *(b"key-%d" % number for number in range(500)), b"k" * 1024]
    assert list(hashing.slots(keys, seed)) == [hashing.slot(key, seed) for key in keys]
    plain = [key for key in keys if b"{" not in key]
    assert list(hashing.slots(plain, seed)) == [hashing.slot(key, seed) for key in plain]
    assert list(hashing.slots([], seed)) == []
