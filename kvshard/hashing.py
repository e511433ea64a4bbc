"""The token hash: where a key lies among the shards, and where a leaf's virtual nodes lie on the ring.

A token is `h1` of murmur3 x64-128: the first of the two 64-bit words that the reference implementation returns, which is the
high half of the hash as usually printed (h1 then h2, each as a big-endian number) and the word that Cassandra takes. In bytes:
the first 8 of the 16-byte digest, read as a little-endian unsigned integer. The key is hashed as it is, without terminator or
length prefix. Tokens are stored in no file, but shard boundaries are: another hash here would lose every key.

Pure apart from the hash itself, a foreign function that depends on its arguments only.
"""

import sys
from array import array
from collections.abc import Sequence
from itertools import repeat

from mmh3 import mmh3_x64_128_digest, mmh3_x64_128_uintdigest

TOKEN_BITS = 64
SLOT_BITS = 16
"""A token's slot is its top bits: 65,536 slots are enough to cut 4,096 shards within 6 % of equal size (16 slots each)."""

SEED_MAX = (1 << 32) - 1
"""murmur3 takes a 32-bit seed."""

_H1_MASK = (1 << 64) - 1
# mmh3's integer is h2 * 2^64 + h1, so a slot, the top 16 bits of h1, is bits 48 to 63.
_SLOT_SHIFT = TOKEN_BITS - SLOT_BITS
_SLOT_MASK = (1 << SLOT_BITS) - 1
# A digest in bytes is h1 and then h2, each little-endian: eight words of 16 bits, of which the fourth is the top of h1.
_DIGEST_WORDS = 128 // SLOT_BITS
_SLOT_WORD = TOKEN_BITS // SLOT_BITS - 1


def routing_key(key: bytes) -> bytes:
    """The part of a key that decides its shard: what stands inside the first `{...}` unless that is empty, else the whole key.

    The rule of Redis Cluster: from the first `{` to the first `}` after it. `{}x` and `{x` have no tag.
    """
    start = key.find(b"{")
    if start < 0:
        return key
    end = key.find(b"}", start + 1)
    return key if end <= start + 1 else key[start + 1 : end]


def token(key: bytes, seed: int) -> int:
    """The 64-bit position of a key."""
    if b"{" in key:
        key = routing_key(key)
    return mmh3_x64_128_uintdigest(key, seed) & _H1_MASK


def slot(key: bytes, seed: int) -> int:
    """The slot of a key's token: its top 16 bits."""
    # On the path of every key of every batch, hence without calls of our own for a key that has no tag.
    if b"{" in key:
        key = routing_key(key)
    return (mmh3_x64_128_uintdigest(key, seed) >> _SLOT_SHIFT) & _SLOT_MASK


def slots(keys: Sequence[bytes], seed: int) -> "array[int]":
    """The slots of many keys, in order: `slot` of each, in a third of the time, since no step of it is taken in Python."""
    if b"{" in b"".join(keys):
        keys = list(map(routing_key, keys))
    words = array("H", b"".join(map(mmh3_x64_128_digest, keys, repeat(seed))))
    if sys.byteorder == "big":
        words.byteswap()
    return words[_SLOT_WORD::_DIGEST_WORDS]


def point(name: str, seed: int) -> int:
    """The position of a name on the placement ring; names have no routing part."""
    return mmh3_x64_128_uintdigest(name.encode(), seed) & _H1_MASK
