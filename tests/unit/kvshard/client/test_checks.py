"""What the client refuses by itself, and how it cuts batches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.client.checks import (
    batches,
    check_condition,
    check_values,
    key_after,
    key_bytes,
    keys_bytes,
    parse_address,
    range_bytes,
    ttl_milliseconds,
)
from kvshard.errors import InvalidArgument
from kvshard.limits import BATCH_MAX_BYTES, BATCH_MAX_KEYS, KEY_MAX_BYTES, VALUE_MAX_BYTES


@pytest.mark.parametrize(("key", "wire"), [("a", b"a"), ("ä", b"\xc3\xa4"), ("\udcff", b"\xff"), (b"\x00", b"\x00")])
def test_keys(key: str | bytes, wire: bytes) -> None:
    assert key_bytes(key) == wire


@pytest.mark.parametrize("key", ["", b"", "k" * 1025, "ä" * 513, 7, None, "\ud800"])
def test_wrong_keys(key: object) -> None:
    with pytest.raises(InvalidArgument) as refused:
        key_bytes(key)
    assert refused.value.details.field == "key"


def test_open_ranges() -> None:
    assert (range_bytes(None, "start"), range_bytes("", "start"), range_bytes("a", "start")) == (b"", b"", b"a")


@pytest.mark.parametrize(("ttl", "milliseconds"), [(None, 0), (60, 60_000), (0.0001, 1), (1.5, 1500)])
def test_ttl(ttl: float | None, milliseconds: int) -> None:
    assert ttl_milliseconds(ttl) == milliseconds


@pytest.mark.parametrize("ttl", [0, -1, float("nan"), float("inf")])
def test_wrong_ttl(ttl: float) -> None:
    with pytest.raises(InvalidArgument):
        ttl_milliseconds(ttl)


@pytest.mark.parametrize(("if_version", "if_absent"), [(0, False), (-1, False), (3, True)])
def test_wrong_conditions(if_version: int, if_absent: bool) -> None:
    with pytest.raises(InvalidArgument):
        check_condition(if_version, if_absent)


@pytest.mark.parametrize("address", ["", "localhost", ":7700", "localhost:", "localhost:x", "localhost:0", "localhost:70000"])
def test_wrong_addresses(address: str) -> None:
    with pytest.raises(InvalidArgument, match="host:port"):
        parse_address(address)


def test_addresses() -> None:
    assert [parse_address(address) for address in ("localhost:1", "[::1]:7700")] == ["localhost:1", "[::1]:7700"]


keys_of_any_length = st.one_of(
    st.binary(min_size=1, max_size=4),
    st.binary(min_size=1, max_size=4).map(lambda end: bytes(KEY_MAX_BYTES - len(end)) + end),
    st.binary(min_size=1, max_size=4).map(lambda start: start + b"\xff" * (KEY_MAX_BYTES - len(start))),
)


@given(keys_of_any_length, keys_of_any_length)
def test_no_key_lies_between_a_key_and_the_one_after_it(key: bytes, other: bytes) -> None:
    after = key_after(key)
    if after is None:
        assert key == b"\xff" * KEY_MAX_BYTES
        assert other <= key
    else:
        assert 0 < len(after) <= KEY_MAX_BYTES
        assert key < after
        assert other <= key or other >= after


def test_batches_of_keys() -> None:
    assert batches([]) == []
    assert batches([b"k"] * BATCH_MAX_KEYS) == [slice(0, BATCH_MAX_KEYS)]
    assert len(batches([b"k"] * (BATCH_MAX_KEYS + 1))) == 2


@given(st.lists(st.sampled_from([0, 1, 1 << 20, 8 << 20]), max_size=30))
def test_batches_keep_all_in_order_within_the_limits(sizes: list[int]) -> None:
    values = [_Sized(size) for size in sizes]
    pieces = batches([b"k"] * len(values), values)
    assert [index for piece in pieces for index in range(piece.start, piece.stop)] == list(range(len(values)))
    for piece in pieces:
        assert sum(1 + len(value) for value in values[piece]) <= BATCH_MAX_BYTES


class _Sized:
    """A value of some length, without the bytes."""

    def __init__(self, size: int) -> None:
        self._size = size

    def __len__(self) -> int:
        return self._size


@pytest.mark.parametrize(
    ("keys", "wire"),
    [
        (["a", "ä"], [b"a", "ä".encode()]),
        ([b"a", b"\xff"], [b"a", b"\xff"]),
        (["a", b"b"], [b"a", b"b"]),
        (["a", "\udcff"], [b"a", b"\xff"]),
        ([], []),
    ],
)
def test_the_keys_of_a_batch_travel_as_each_would_alone(keys: list[str | bytes], wire: list[bytes]) -> None:
    assert keys_bytes(keys) == wire == [key_bytes(key) for key in keys]
    assert keys_bytes(iter(keys)) == wire


@pytest.mark.parametrize("bad", ["", "k" * 1025, b"", b"k" * 1025, 7, "\ud800"])
def test_a_wrong_key_of_a_batch_is_named(bad: object) -> None:
    for good in ("a", b"a"):
        with pytest.raises(InvalidArgument) as refused:
            keys_bytes([good, bad])  # type: ignore[list-item]
        assert refused.value.details.field == "keys[1]"


@pytest.mark.parametrize("bad", ["text", None, bytes(VALUE_MAX_BYTES + 1)])
def test_a_wrong_value_of_a_batch_is_named(bad: object) -> None:
    assert check_values([b"a", b""]) == [b"a", b""]
    assert check_values([]) == []
    with pytest.raises(InvalidArgument) as refused:
        check_values([b"a", bad])  # type: ignore[list-item]
    assert refused.value.details.field == "values[1]"
