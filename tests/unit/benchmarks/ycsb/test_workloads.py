import itertools
from collections import Counter

import pytest

from benchmarks.ycsb.workloads import (
    DRAWN,
    RECORD_BYTES,
    SCAN_LENGTH_MAX,
    WORKLOADS,
    Distribution,
    Inserted,
    Kind,
    Operations,
    RecordKeys,
    operations,
    record_key,
)

DRAWS = 20_000
PUBLISHED = {
    "A": {"read": 0.5, "update": 0.5},
    "B": {"read": 0.95, "update": 0.05},
    "C": {"read": 1.0},
    "D": {"read": 0.95, "insert": 0.05},
    "E": {"scan": 0.95, "insert": 0.05},
    "F": {"read": 0.5, "read-modify-write": 0.5},
}


def drawn(name, loaded=1_000, draws=DRAWS, seed=1):
    inserted = Inserted(loaded)
    found = []
    for operation in itertools.islice(Operations(WORKLOADS[name], inserted, draws, seed), draws):
        if operation.kind is Kind.INSERT:
            inserted.acknowledge(operation.record)
        found.append((operation, inserted.newest))
    return found


@pytest.mark.parametrize("name", PUBLISHED)
def test_shares_are_the_published_ones(name):
    counted = Counter(operation.kind for operation, _ in drawn(name))
    assert {kind: count / DRAWS for kind, count in counted.items()} == pytest.approx(PUBLISHED[name], abs=0.015)
    assert sum(WORKLOADS[name].shares.values()) == pytest.approx(1.0)


def test_only_d_reads_the_latest():
    assert [each.name for each in WORKLOADS.values() if each.distribution is Distribution.LATEST] == ["D"]
    newest_first = [newest - operation.record for operation, newest in drawn("D") if operation.kind is Kind.READ]
    assert Counter(newest_first).most_common(1)[0][0] == 0


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_asked_for_is_there_and_inserts_are_new(name):
    inserts = []
    for operation, newest in drawn(name):
        assert 0 <= operation.record <= newest
        if operation.kind is Kind.INSERT:
            inserts.append(operation.record)
    assert inserts == list(range(1_000, 1_000 + len(inserts)))


def test_scans_are_of_every_length_alike():
    lengths = Counter(operation.length for operation, _ in drawn("E") if operation.kind is Kind.SCAN)
    assert set(lengths) == set(range(1, SCAN_LENGTH_MAX + 1))
    expected = sum(lengths.values()) / SCAN_LENGTH_MAX
    assert all(count == pytest.approx(expected, rel=0.35) for count in lengths.values())
    assert not any(operation.length for operation, _ in drawn("A", draws=100))


def test_popular_records_stay_popular_while_records_are_added():
    found = [operation.record for operation, _ in drawn("E", loaded=5_000) if operation.kind is Kind.SCAN]
    first, last = (Counter(found[start : start + 8_000]).most_common(1)[0][0] for start in (0, len(found) - 8_000))
    assert first == last


def test_the_same_seed_gives_the_same_operations():
    assert drawn("A", seed=3) == drawn("A", seed=3)
    assert drawn("A", seed=3) != drawn("A", seed=4)


def test_records_have_ten_fields_of_a_hundred_bytes_and_hashed_keys():
    assert RECORD_BYTES == 1_000
    keys = RecordKeys(2)
    assert keys[0] == record_key(0) == "user6284781860667377211"
    # Beyond what was made at first.
    assert keys[5] == record_key(5)
    assert keys[3] == record_key(3)


def test_only_what_every_earlier_insert_has_reached_counts_as_there():
    inserted = Inserted(10)
    assert inserted.newest == 9
    numbers = [inserted.next() for _ in range(3)]
    assert numbers == [10, 11, 12]
    inserted.acknowledge(11)
    inserted.acknowledge(12)
    assert inserted.newest == 9
    inserted.acknowledge(10)
    assert inserted.newest == 12


def test_operations_come_again_only_where_nothing_is_inserted():
    again = operations(WORKLOADS["C"], Inserted(100), 1_000)
    first = list(itertools.islice(again, 10))
    assert next(itertools.islice(again, DRAWN - 10, None)) == first[0]
    assert isinstance(operations(WORKLOADS["D"], Inserted(100), 1_000), Operations)
