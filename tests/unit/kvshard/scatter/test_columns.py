"""Columns are cut by shard and joined again, in order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.scatter.columns import Division, pick


@given(st.lists(st.tuples(st.integers(0, 5), st.binary(max_size=3)), max_size=40))
def test_what_was_cut_is_joined_again(keys: list[tuple[int, bytes]]) -> None:
    division = Division([shard for shard, _ in keys])
    column = [key for _, key in keys]
    parts = division.split(column)
    assert {shard: list(part) for shard, part in parts.items()} == {
        shard: [key for each, key in keys if each == shard] for shard in {shard for shard, _ in keys}
    }
    assert division.join(parts) == column


@given(st.lists(st.integers(0, 3), min_size=1, max_size=20))
def test_places_lead_back_to_the_keys(shard_of: list[int]) -> None:
    division = Division(shard_of)
    keys = [b"%d" % place for place in range(len(shard_of))]
    places = division.split(range(len(shard_of)))
    assert {shard: pick(keys, part) for shard, part in places.items()} == {
        shard: list(part) for shard, part in division.split(keys).items()
    }
    assert all(list(part) == sorted(part) for part in places.values())


def test_one_shard_takes_the_column_as_it_is() -> None:
    column = [b"a", b"b"]
    assert Division([7, 7]).split(column)[7] is column
    assert Division([7, 7]).join({7: (1, 2)}) == [1, 2]


def test_nothing() -> None:
    assert Division([]).split([]) == {}
    assert Division([]).join({}) == []


@pytest.mark.parametrize("parts", [{1: [1], 2: [2]}, {1: [1, 2], 2: []}, {1: [1, 2, 3], 2: [4]}])
def test_parts_that_do_not_fit_are_a_defect_and_not_a_shorter_answer(parts: dict[int, list[int]]) -> None:
    with pytest.raises(AssertionError):
        Division([1, 2, 2]).join(parts)


def test_a_column_that_is_not_parallel_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        Division([1, 2]).split([b"k"])


def test_it_tells_what_it_is() -> None:
    assert repr(Division([3, 1, 3])) == "Division(3 keys, shards [3, 1])"
