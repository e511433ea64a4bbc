import pytest

from kvshard.errors import DataLoss, DeadlineExceeded, NotReady
from kvshard.model import ShardRead
from leaf import layout
from leaf.entry_codec import encode_entry
from leaf.key_reader import READ_CHUNK_KEYS
from leaf.layout import Changes
from leaf.memory_engine import MemoryEngine
from leaf.operations import DropCollection, WriteOperation, keys_of, size_of
from leaf.recovery import Held
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import Entry
from leaf.replication.oplog import RETAINED_BYTES, RETAINED_ENTRIES
from leaf.shard_store import ShardStore

SHARD = 3


def entry(seqno: int, epoch: int = 1, key: bytes = b"k", value: bytes | None = b"v") -> Entry:
    payload = WriteOperation(1, [key], [value])
    return Entry(epoch, seqno, payload, keys_of(payload), size_of(payload), None, b"")


def write(store: ShardStore, changes: Changes) -> None:
    batch = store.engine.new_batch()
    changes.write_to(batch)
    store.engine.write(batch)


def opened(engine: MemoryEngine | None = None) -> ShardStore:
    store = ShardStore(engine or MemoryEngine())
    store.load(SHARD)
    return store


def grow(store: ShardStore, entries: list[Entry], apply: bool = True) -> None:
    write(store, store.append(SHARD, entries))
    if apply:
        store.apply(SHARD, entries, DedupTable())


def value_of(store: ShardStore, key: bytes = b"k") -> bytes | None:
    return store.read(ShardRead(SHARD, 0, 1, [key]), 0).values[0]


def positions(entries: list[Entry]) -> list[tuple[int, int]]:
    return [(each.epoch, each.seqno) for each in entries]


def test_nothing_is_loaded_from_nothing() -> None:
    store = ShardStore(MemoryEngine())
    assert store.held(SHARD) == Held("", False, True)
    with pytest.raises(NotReady):
        store.state(SHARD)
    loaded = store.load(SHARD)
    assert (loaded.epoch, loaded.base_seqno, loaded.base_epoch, loaded.applied, loaded.entries) == (0, 0, 0, 0, [])
    assert not loaded.has_staging


def test_a_replica_begins_with_its_epoch_and_the_log_that_is_not_applied() -> None:
    store = opened()
    write(store, store.epoch_changes(SHARD, 7))
    entries = [entry(1, 1), entry(2, 5), entry(3, 7)]
    grow(store, entries[:2])
    grow(store, entries[2:], apply=False)
    again = ShardStore(store.engine)
    loaded = again.load(SHARD)
    assert (loaded.epoch, loaded.base_seqno, loaded.applied) == (7, 0, 2)
    assert loaded.entries == entries
    assert again.state(SHARD).window.last == 3
    assert again.held(SHARD).has_history


def test_the_log_in_memory_is_bounded_and_knows_the_epoch_at_its_base() -> None:
    store = opened()
    count = RETAINED_ENTRIES + 10
    grow(store, [entry(seqno, epoch=1 + seqno // 10) for seqno in range(1, count + 1)])
    grow(store, [entry(count + 1, 1_000)], apply=False)
    loaded = opened(store.engine) and ShardStore(store.engine).load(SHARD)
    assert (loaded.base_seqno, loaded.base_epoch) == (10, 2)
    assert [each.seqno for each in loaded.entries] == list(range(11, count + 2))


def test_large_entries_are_retained_by_bytes_but_all_that_are_not_applied() -> None:
    store = opened()
    large = bytes(RETAINED_BYTES // 2)
    grow(store, [entry(seqno, seqno, value=large) for seqno in range(1, 5)])
    grow(store, [entry(seqno, seqno, value=large) for seqno in range(5, 10)], apply=False)
    loaded = ShardStore(store.engine).load(SHARD)
    assert (loaded.base_seqno, loaded.base_epoch) == (3, 3)
    assert [each.seqno for each in loaded.entries] == list(range(4, 10))


def test_entries_that_are_taken_back_are_gone_and_others_come_in_their_place() -> None:
    store = opened()
    grow(store, [entry(1)])
    grow(store, [entry(2), entry(3), entry(4)], apply=False)
    write(store, store.truncate(SHARD, 2))
    grow(store, [entry(3, 2)], apply=False)
    assert positions(ShardStore(store.engine).load(SHARD).entries) == [(1, 1), (1, 2), (2, 3)]
    with pytest.raises(AssertionError):
        store.truncate(SHARD, 0)


def test_trimming_keeps_what_is_not_applied_and_what_others_need() -> None:
    store = opened()
    grow(store, [entry(seqno, epoch=seqno) for seqno in range(1, 11)])
    grow(store, [entry(11, 11)], apply=False)
    store.trim_log(SHARD, 5)
    assert store.state(SHARD).window.trimmed == 0
    store.state(SHARD).trim_through = 6
    store.trim_log(SHARD, 11)
    store.trim_log(SHARD, 2)
    loaded = ShardStore(store.engine).load(SHARD)
    assert (loaded.base_seqno, loaded.base_epoch) == (6, 6)
    assert len(loaded.entries) == 5
    store.state(SHARD).trim_through = 11
    store.trim_log(SHARD, 11)
    loaded = ShardStore(store.engine).load(SHARD)
    assert (loaded.base_seqno, loaded.base_epoch, positions(loaded.entries)) == (10, 10, [(11, 11)])


@pytest.mark.parametrize(("kept", "base"), [(3, (8, 5)), (0, (10, 0))])
def test_the_mark_of_an_earlier_version_names_no_epoch(kept: int, base: tuple[int, int]) -> None:
    store = opened()
    grow(store, [entry(seqno, 5) for seqno in range(1, 11)])
    store.state(SHARD).trim_through = 10
    store.trim_log(SHARD, 10 - kept)
    batch = store.engine.new_batch()
    batch.put(layout.meta_key(SHARD, b"trimmed"), layout.pack_number(10 - kept))
    store.engine.write(batch)
    loaded = ShardStore(store.engine).load(SHARD)
    assert (loaded.base_seqno, loaded.base_epoch) == base
    assert positions(loaded.entries) == [(5, seqno) for seqno in range(base[0] + 1, 11)]


@pytest.mark.parametrize("missing", [[1], [2], [3], [3, 4], [1, 2, 3, 4]])
def test_a_gap_in_the_log_is_data_loss(missing: list[int]) -> None:
    store = opened()
    grow(store, [entry(1), entry(2), entry(3)])
    grow(store, [entry(4)], apply=False)
    batch = store.engine.new_batch()
    for seqno in missing:
        batch.delete(layout.log_key(SHARD, seqno))
    store.engine.write(batch)
    with pytest.raises(DataLoss):
        ShardStore(store.engine).load(SHARD)


def test_an_epoch_that_falls_is_data_loss() -> None:
    store = opened()
    grow(store, [entry(1, 2)])
    batch = store.engine.new_batch()
    batch.put(layout.log_key(SHARD, 2), encode_entry(entry(2, 1)))
    store.engine.write(batch)
    with pytest.raises(DataLoss):
        ShardStore(store.engine).load(SHARD)


def test_wiping_removes_every_row_of_a_shard_and_no_other() -> None:
    engine = MemoryEngine()
    for shard in (SHARD - 1, SHARD, SHARD + 1):
        store = ShardStore(engine)
        store.load(shard)
        payload = WriteOperation(1, [b"a", b"b"], [b"v", bytes(20_000)], [0, 500])
        entries = [Entry(1, 1, payload, keys_of(payload), size_of(payload), None, b"")]
        changes = store.append(shard, entries)
        changes.put(*store.incarnation_row(shard, "some"))
        write(store, changes)
        write(store, store.epoch_changes(shard, 4))
        store.apply(shard, entries, DedupTable())
    store = opened(engine)
    before = engine.rows()
    write(store, store.wipe(SHARD))
    assert store.held(SHARD) == Held("", False, True)
    assert not store.has(SHARD)
    gone = before.keys() - engine.rows().keys()
    assert {key[1:5] for key in gone} == {SHARD.to_bytes(4, "big")}
    assert len(gone) * 3 == len(before)


def entry_of(seqno: int, *keys: bytes, value: bytes | None = b"v") -> Entry:
    payload = WriteOperation(1, list(keys), [value] * len(keys))
    return Entry(1, seqno, payload, keys_of(payload), size_of(payload), None, b"")


def test_an_applied_entry_takes_every_header_of_its_keys_away_also_when_one_was_gone_already() -> None:
    """Two writes with a key in common were in flight together: the first to be applied takes the common header away. What the
    second leaves behind would be the state before it. A replica that applies a deletion with it would keep the row, and one
    that has lost the primary's place reads no newer header before that."""
    store = opened()
    for keys in ([b"common"], [b"common", b"k"]):
        store.remember(SHARD, 1, dict(zip(keys, store.headers(SHARD, 1, keys), strict=True)))
    grow(store, [entry_of(1, b"common")])
    grow(store, [entry_of(2, b"common", b"k")])
    assert value_of(store) == b"v"
    grow(store, [entry_of(3, b"k", value=None)])
    assert value_of(store) is None
    assert store.counts(SHARD, 1).documents == 1


def test_headers_remembered_for_entries_taken_back_are_forgotten() -> None:
    store = opened()
    grow(store, [entry(1)])
    store.remember(SHARD, 1, {b"k": store.headers(SHARD, 1, [b"k"])[0]})
    grow(store, [entry(2)], apply=False)
    write(store, store.truncate(SHARD, 1))
    assert store.state(SHARD).remembered == {}
    grow(store, [Entry(2, 2, DropCollection(1), None, 0, None, b""), entry(3, 2, value=b"new")])
    assert value_of(store) == b"new"
    assert store.counts(SHARD, 1) == (1, 4)


def test_a_long_read_looks_between_its_chunks_whether_to_go_on() -> None:
    store = opened()
    looks: list[int] = []

    def look() -> None:
        looks.append(1)
        if len(looks) == 2:
            raise DeadlineExceeded("too late")

    one_chunk = ShardRead(SHARD, 0, 1, [b"%d" % n for n in range(READ_CHUNK_KEYS)])
    assert len(store.read(one_chunk, 0, look).values) == READ_CHUNK_KEYS
    assert not looks
    with pytest.raises(DeadlineExceeded):
        store.read(ShardRead(SHARD, 0, 1, one_chunk.keys * 4), 0, look)
    assert len(looks) == 2
