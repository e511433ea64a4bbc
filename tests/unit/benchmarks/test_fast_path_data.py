import itertools

import msgspec
import pytest

from benchmarks.fast_path.data import VALUE_BYTES, key_name, sample_data
from kvshard.lane_messages import KeysRead, KeysReadReply


def test_keys_are_named_as_redis_benchmark_draws_them():
    assert key_name(12) == "key:000000000012"


def test_every_key_is_stored_once():
    data = sample_data(12_345)
    stored = [key for piece in data.pairs() for key, _ in piece]
    assert len(stored) == len(set(stored)) == 12_345
    assert {len(value) for piece in data.pairs() for _, value in piece} == {VALUE_BYTES}


def test_what_is_read_was_stored_and_is_the_same_in_every_arm():
    data = sample_data(500)
    stored = {key for piece in data.pairs() for key, _ in piece}
    keys = list(itertools.islice(data.single_keys(), 20_000))
    assert set(keys) <= stored
    assert keys == list(itertools.islice(data.single_keys(), 20_000))
    batches = list(itertools.islice(data.batches(100), 200))
    assert batches == list(itertools.islice(data.batches(100), 200))
    assert all(len(set(batch)) == 100 and stored.issuperset(batch) for batch in batches)


def test_a_batch_cannot_be_larger_than_the_data():
    with pytest.raises(ValueError, match="larger than population"):
        sample_data(50).batches(100)


def test_the_bare_stream_moves_as_many_bytes_as_a_batch():
    data = sample_data(500)
    request_bytes, answer_bytes = data.wire_bytes(100)
    names = [key_name(number).encode() for number in range(100)]
    assert request_bytes == len(msgspec.msgpack.encode(KeysRead("default", names)))
    assert answer_bytes == len(msgspec.msgpack.encode(KeysReadReply([data.value] * 100, [500] * 100)))
    assert answer_bytes > 100 * VALUE_BYTES
