"""What is stored and read: the same keys and values for every arm, in the same order.

Pure: imports only the standard library and the lane's messages, which say how large a batch is on the wire.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import msgspec

from kvshard.lane_messages import KeysRead, KeysReadReply

KEYS = 100_000
"""More than the few that a cache of any arm would hold by chance, few enough to be written in seconds."""

VALUE_BYTES = 100
SHUFFLED = 50_000
"""Keys drawn for single operations before they come again in the same order."""

BATCHES = 64
"""Batches drawn, which then come again."""

LOADED_AT_ONCE = 5_000
"""Keys of one batch while the data is loaded."""


def key_name(number: int) -> str:
    """As redis-benchmark names its keys, so that it finds ours."""
    return f"key:{number:012d}"


@dataclass(frozen=True, slots=True)
class Data:
    """Keys that are all stored, each with a value of VALUE_BYTES."""

    keys: int
    value: bytes
    seed: int = 1

    def pairs(self) -> Iterator[list[tuple[str, bytes]]]:
        """Everything that is to be stored, in batches."""
        for first in range(0, self.keys, LOADED_AT_ONCE):
            last = min(self.keys, first + LOADED_AT_ONCE)
            yield [(key_name(number), self.value) for number in range(first, last)]

    def single_keys(self) -> Iterator[str]:
        """Keys drawn evenly, without end."""
        rng = Random(self.seed)
        return itertools.cycle([key_name(rng.randrange(self.keys)) for _ in range(min(SHUFFLED, 10 * self.keys))])

    def batches(self, size: int) -> Iterator[list[str]]:
        """Batches of so many different keys drawn evenly, without end. Raises ValueError when there are not so many."""
        rng = Random(self.seed)
        drawn = [[key_name(number) for number in rng.sample(range(self.keys), size)] for _ in range(BATCHES)]
        return itertools.cycle(drawn)

    def wire_bytes(self, size: int) -> tuple[int, int]:
        """How many bytes the request for a batch of this size and its answer have, as kvshard sends them."""
        names = [key_name(number).encode() for number in range(size)]
        request = KeysRead("default", names)
        answer = KeysReadReply([self.value] * size, [self.keys] * size)
        return len(msgspec.msgpack.encode(request)), len(msgspec.msgpack.encode(answer))


def sample_data(keys: int = KEYS, seed: int = 1) -> Data:
    """The data of a run: values that no compression can shrink."""
    return Data(keys, Random(seed).randbytes(VALUE_BYTES), seed)
