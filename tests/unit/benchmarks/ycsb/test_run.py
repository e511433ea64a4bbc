import itertools

import pytest

from benchmarks.loops import WrongAnswer
from benchmarks.ycsb.run import CALLERS, StoreUnderLoad
from benchmarks.ycsb.workloads import RECORD_BYTES, WORKLOADS, Inserted, Kind, Operation, RecordKeys


@pytest.fixture(autouse=True)
def _few_operations(monkeypatch):
    """Drawn beforehand: many would take longer than the tests."""
    monkeypatch.setattr("benchmarks.ycsb.workloads.DRAWN", 2_000)


class MemoryStore:
    """A store that is a dictionary."""

    def __init__(self):
        self.records = {}
        self.writes = 0

    async def load(self, records):
        self.records.update(records)

    async def read(self, key):
        return self.records.get(key)

    async def update(self, key, record):
        assert key in self.records
        self.writes += 1
        self.records[key] = record

    async def insert(self, key, record):
        assert key not in self.records
        self.records[key] = record

    async def scan(self, start, count):
        return [self.records[key] for key in sorted(self.records) if key >= start][:count]


def under_load(loaded=200):
    store = MemoryStore()
    return store, StoreUnderLoad("memory", store, Inserted(loaded), RecordKeys(loaded))


async def test_what_is_loaded_is_every_record():
    store, load = under_load()
    await load.load()
    assert len(store.records) == 200
    assert {len(record) for record in store.records.values()} == {RECORD_BYTES}


@pytest.mark.parametrize("name", sorted(WORKLOADS))
async def test_every_workload_runs_and_its_operations_are_timed_by_kind(name):
    store, load = under_load()
    await load.load()
    block = await load.run(load.operations(WORKLOADS[name], 1_000), 0.03)
    assert block.operations >= CALLERS
    assert sum(map(len, block.latencies.values())) == block.operations
    assert set(block.latencies) <= {str(kind) for kind in WORKLOADS[name].shares}
    assert len(store.records) == load.inserted.newest + 1 >= 200


async def test_a_block_that_is_over_before_it_began_has_a_rate():
    _, load = under_load()
    await load.load()
    assert (await load.run(load.operations(WORKLOADS["C"], 1_000), 0.0)).operations == CALLERS


async def test_a_read_modify_write_reads_and_writes():
    store, load = under_load()
    await load.load()
    before = store.records[RecordKeys(1)[0]]
    await load.perform(Operation(Kind.READ_MODIFY_WRITE, 0))
    assert store.writes == 1
    assert store.records[RecordKeys(1)[0]] != before


@pytest.mark.parametrize("kind", [Kind.READ, Kind.READ_MODIFY_WRITE])
async def test_a_record_that_is_lost_or_cut_is_a_wrong_answer(kind):
    store, load = under_load()
    await load.load()
    key = RecordKeys(1)[0]
    store.records[key] = b"short"
    with pytest.raises(WrongAnswer, match="5 bytes"):
        await load.perform(Operation(kind, 0))
    del store.records[key]
    with pytest.raises(WrongAnswer, match="absent"):
        await load.perform(Operation(kind, 0))


async def test_a_scan_has_to_find_something_and_not_too_much():
    store, load = under_load()
    await load.load()
    await load.perform(Operation(Kind.SCAN, 0, 10))

    async def too_much(start, count):
        return list(itertools.islice(store.records.values(), count + 1))

    store.scan = too_much
    with pytest.raises(WrongAnswer, match="11 records"):
        await load.perform(Operation(Kind.SCAN, 0, 10))


async def test_a_failure_ends_the_load():
    store, load = under_load()
    await load.load()
    store.records.clear()
    with pytest.raises(ExceptionGroup) as raised:
        await load.run(load.operations(WORKLOADS["C"], 1_000), 30.0)
    assert raised.group_contains(WrongAnswer)
