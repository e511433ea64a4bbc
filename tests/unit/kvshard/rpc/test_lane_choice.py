"""Which requests are bulk."""

import pytest

from kvshard.lane_messages import KeysRead
from kvshard.model import LeafStatusRequest, ShardRead, ShardScan, ShardSearch, ShardWrite
from kvshard.rpc.lane_choice import SMALL_MAX_BYTES, is_bulk


def read(keys: int) -> ShardRead:
    return ShardRead(1, 1, 1, [b"k"] * keys)


def scan(limit: int, keys_only: bool = False) -> ShardScan:
    return ShardScan(1, 1, 1, b"", None, limit, keys_only)


def search(limit: int, keys_only: bool = False) -> ShardSearch:
    return ShardSearch(1, 1, 1, "q", [], limit, keys_only=keys_only)


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (read(1), False),
        (read(64), False),
        (read(65), True),
        (KeysRead("", [b"k"] * 64), False),
        (KeysRead("", [b"k"] * 65), True),
        (scan(16), False),
        (scan(1000), True),
        (scan(1000, keys_only=True), False),
        (search(0), False),
        (search(10), False),
        (search(100), True),
        (search(1000, keys_only=True), False),
        (ShardWrite(1, 1, 1, [b"k"] * 1000, [b"v"] * 1000), False),
        (LeafStatusRequest(), False),
    ],
    ids=str,
)
def test_by_the_expected_answer(request_: object, expected: bool) -> None:
    assert is_bulk(request_, 100) is expected


@pytest.mark.parametrize("request_", [read(1), ShardWrite(1, 1, 1, [b"k"], [b"v"]), search(0)], ids=str)
def test_by_size(request_: object) -> None:
    assert not is_bulk(request_, SMALL_MAX_BYTES)
    assert is_bulk(request_, SMALL_MAX_BYTES + 1)
