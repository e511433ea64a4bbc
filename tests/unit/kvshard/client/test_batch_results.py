"""What a batch hands back: a sequence that makes its items when they are looked at, and results by key."""

import pytest

from kvshard.client.batch_results import GetResults, PutResults, ReadColumns
from kvshard.client.results import Coverage, Item
from kvshard.errors import KvShardError, Unavailable

WHOLE = Coverage(True, 3, 3, 1.0, 1, 1)


def results(failures: dict[int, KvShardError] | None = None) -> GetResults[str, bytes]:
    columns = ReadColumns([b"1", None, b""], [7, 0, 9], [0, 0, 5], failures or {})
    return GetResults([b"a", b"b", b"c"], columns, bytes.decode, WHOLE)


ITEMS = [Item("a", b"1", 7), None, Item("c", b"", 9, 5)]


def test_it_is_a_sequence() -> None:
    found = results()
    assert len(found) == 3
    assert list(found) == ITEMS
    assert [found[0], found[1], found[-1]] == ITEMS
    assert found[:2] == ITEMS[:2]
    assert found[::-1] == ITEMS[::-1]
    assert list(reversed(found)) == ITEMS[::-1]
    assert None in found
    assert found.index(None) == 1
    assert bool(found)
    for index in (3, -4):
        with pytest.raises(IndexError):
            found[index]


def test_it_equals_what_has_the_same_entries() -> None:
    found = results()
    assert found == ITEMS
    assert found == ITEMS
    assert found == tuple(ITEMS)
    assert found == results()
    assert found != ITEMS[:2]
    assert found != [*ITEMS[:2], None]
    assert found != "abc"
    assert GetResults([], ReadColumns[bytes]([], [], [], {}), bytes.decode, WHOLE) == []
    with pytest.raises(TypeError, match="unhashable"):
        hash(found)


def test_values_come_without_items() -> None:
    found = results()
    values = found.values()
    assert values == [b"1", None, b""]
    values.clear()
    assert found.values() == [b"1", None, b""]


def test_a_failure_stands_in_its_place_and_no_bare_value_hides_it() -> None:
    error = Unavailable("shard 3 is silent")
    found = results({1: error})
    assert found[1] is error
    for look in (found.values, found.raise_for_failures):
        with pytest.raises(Unavailable, match="silent"):
            look()
    assert repr(found) == "GetResults(3 keys, 2 found, 1 failed)"
    results().raise_for_failures()


def test_parts_are_put_behind_each_other() -> None:
    error = Unavailable("silent")
    columns = ReadColumns([b"1"], [1], [], {})
    columns.add(ReadColumns([None, b"3"], [0, 3], [0, 9], {0: error}))
    columns.add(ReadColumns([b"4"], [4], [], {}))
    assert (columns.values, columns.versions) == ([b"1", None, b"3", b"4"], [1, 0, 3, 4])
    assert (columns.expires_at_ms, columns.failures) == ([0, 0, 9, 0], {1: error})


def test_results_by_key() -> None:
    error = Unavailable("silent")
    done = PutResults([b"a", b"b", b"a"], [1, error, 3], bytes.decode)
    assert dict(done) == {"a": 3, "b": error}
    assert done.outcomes == [1, error, 3]
    assert done.failures == {"b": error}
    assert not done.ok
    with pytest.raises(Unavailable, match="1 of 3 operations failed; the first, 'b': silent"):
        done.raise_for_failures()
