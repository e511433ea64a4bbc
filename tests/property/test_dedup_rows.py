"""The rows of the dedup table are, after every crash, the table at the applied seqno."""

from hypothesis import given, settings
from hypothesis import strategies as st

from leaf.memory_engine import MemoryEngine
from leaf.replication.dedup import DedupTable, Expired
from leaf.replication.messages import Entry, RequestId
from leaf.shard_store import ShardStore

SHARD = 3

requests = st.none() | st.builds(
    RequestId, st.sampled_from(["", "a", "b", "ab", "c\u00fc"]), st.integers(0, 12), st.just(10**6)
)
groups = st.lists(st.lists(st.tuples(requests, st.binary(max_size=4)), min_size=1, max_size=5), max_size=8)


def small_table() -> DedupTable:
    return DedupTable(window=3, clients=2, result_bytes=150)


def entries_of(group: list[tuple[RequestId | None, bytes]], first: int, table: DedupTable) -> list[Entry]:
    """The entries that a machine would make of these requests; the table is brought up to date."""
    entries: list[Entry] = []
    for request, result in group:
        if request is not None and table.find(request) is not None:
            request = None  # A repetition never comes into the log.
        seqno = first + len(entries)
        entries.append(Entry(1, seqno, None, (), 0, request, result if request else b""))
        if request is not None:
            table.record(request, seqno, result)
    return entries


def like(table: DedupTable, found: DedupTable) -> bool:
    return (found.records(), found.forgotten_through) == (table.records(), table.forgotten_through)


def copy_of(table: DedupTable) -> DedupTable:
    copy = small_table()
    copy.restore(table.records(), table.forgotten_through)
    return copy


@given(groups, st.data())
@settings(max_examples=200, deadline=None)
def test_a_crash_at_any_place_gives_back_the_table_at_the_applied_seqno(log, data) -> None:
    engine = MemoryEngine()
    store = ShardStore(engine)
    store.load(SHARD)
    table = small_table()
    tables = [copy_of(table)]
    ends = [0]
    log_changes = []
    for group in log:
        entries = entries_of(group, ends[-1] + 1, table)
        log_changes.append(store.append(SHARD, entries))
        batch = engine.new_batch()
        log_changes[-1].write_to(batch)
        engine.write(batch)
        engine.flush_wal()
        store.apply(SHARD, entries, table)
        tables.append(copy_of(table))
        ends.append(entries[-1].seqno)
    survivor = engine.crash(data.draw(st.integers(0, engine.unsynced)))
    again = ShardStore(survivor)
    loaded = again.load(SHARD)
    at = ends.index(loaded.applied)
    assert like(tables[at], loaded.dedup)
    # Replayed with the same bounds it becomes the table it was.
    found = copy_of(loaded.dedup)
    rest = [entry for entry in loaded.entries if entry.seqno > loaded.applied]
    for entry in rest:
        if entry.request is not None:
            found.record(entry.request, entry.seqno, entry.result)
    if rest:
        again.apply(SHARD, rest, found)
    assert like(table, found)
    assert like(table, ShardStore(survivor).load(SHARD).dedup)


def test_what_is_forgotten_is_expired_after_a_restart_too() -> None:
    engine = MemoryEngine()
    store = ShardStore(engine)
    store.load(SHARD)
    table = DedupTable(window=3, clients=2)
    group = [(RequestId(name, number, 10**6), b"") for name in ("a", "b", "c") for number in range(1, 5)]
    entries = entries_of(group, 1, table)
    batch = engine.new_batch()
    store.append(SHARD, entries).write_to(batch)
    engine.write(batch)
    store.apply(SHARD, entries, table)
    found = ShardStore(engine).load(SHARD).dedup
    assert found.find(RequestId("a", 4, 3)) is Expired.EXPIRED
    assert found.find(RequestId("b", 1, 10**6)) is Expired.EXPIRED
    assert found.find(RequestId("b", 4, 0)) == (8, b"")


def test_a_client_that_is_forgotten_and_comes_back_in_one_group_keeps_only_what_is_new() -> None:
    engine = MemoryEngine()
    store = ShardStore(engine)
    store.load(SHARD)
    table = DedupTable(window=3, clients=2)
    number = 0
    for names in ("a", "abca", "cb", "abcab"):
        group = []
        for name in names:
            number += 1
            group.append((RequestId(name, number, 10**6), b"r"))
        entries = entries_of(group, store.state(SHARD).applied + 1, table)
        batch = engine.new_batch()
        store.append(SHARD, entries).write_to(batch)
        engine.write(batch)
        store.apply(SHARD, entries, table)
        assert like(table, ShardStore(engine).load(SHARD).dedup), names
