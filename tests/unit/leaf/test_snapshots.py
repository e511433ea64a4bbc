import pathlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard.errors import DataLoss, NotReady
from kvshard.model import ShardRead, ShardScan
from leaf.engine import StorageError
from leaf.layout import INLINE_MAX_BYTES, STATE_TAGS
from leaf.memory_engine import MemoryEngine
from leaf.operations import Operation, WriteOperation, keys_of, size_of
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import Entry, RequestId
from leaf.rocks_engine import RocksEngine
from leaf.shard_store import ShardStore
from leaf.snapshots import CHUNK_MAX_BYTES, CHUNK_MAX_ROWS, SYNC_BYTES, Pace, Row, SnapshotSource

SHARD = 3
LARGE = bytes(INLINE_MAX_BYTES + 1)


def grow(
    store: ShardStore, table: DedupTable, operation: Operation, request: RequestId | None = None, shard: int = SHARD
) -> None:
    """Log and apply one more entry."""
    seqno = store.state(shard).applied + 1
    entry = Entry(2, seqno, operation, keys_of(operation), size_of(operation), request, b"done" if request else b"")
    batch = store.engine.new_batch()
    store.append(shard, [entry]).write_to(batch)
    store.engine.write(batch)
    if request is not None:
        table.record(request, seqno, b"done")
    store.apply(shard, [entry], table)


def filled(store: ShardStore, shard: int = SHARD, keys: int = 5) -> DedupTable:
    """A shard with small and large values, expiries, several collections, and a dedup table."""
    table = store.load(shard).dedup
    for n in range(keys):
        values: list[bytes | None] = [b"v%d" % n, LARGE]
        operation = WriteOperation(1 + n % 2, [b"k%d" % n, b"large%d" % n], values, [0, 10_000 + n])
        grow(store, table, operation, RequestId("client", n), shard)
    grow(store, table, WriteOperation(1, [b"k0"], [None]), None, shard)
    return table


def chunks_of(source: SnapshotSource) -> list[list[Row]]:
    chunks: list[list[Row]] = []
    cursor: bytes | None = None
    while True:
        rows, cursor = source.read(cursor)
        chunks.append(rows)
        if cursor is None:
            source.close()
            return chunks


def state_rows(engine: MemoryEngine, shard: int = SHARD) -> dict[bytes, bytes]:
    place = shard.to_bytes(4, "big")
    return {key: value for key, value in engine.rows().items() if key[0] in STATE_TAGS and key[1:5] == place}


def receive(store: ShardStore, chunks: list[list[Row]], seqno: int, table: DedupTable) -> None:
    staged = store.stage_snapshot(SHARD)
    for rows in chunks:
        staged.add(rows)
    batch = store.engine.new_batch()
    staged.install(seqno, 2, table.records(), table.forgotten_through).write_to(batch)
    store.engine.write(batch)


def test_a_snapshot_becomes_the_state_of_another_replica() -> None:
    sender, receiver = ShardStore(MemoryEngine()), ShardStore(MemoryEngine())
    table = filled(sender)
    filled(sender, SHARD + 1)
    filled(receiver, keys=3)
    filled(receiver, SHARD + 1)
    others = state_rows(receiver.engine, SHARD + 1)
    source = sender.open_snapshot(SHARD)
    snapshot_of, seqno = state_rows(sender.engine), sender.state(SHARD).applied
    grow(sender, DedupTable(), WriteOperation(1, [b"later"], [b"v"]))
    chunks = chunks_of(source)
    receive(receiver, chunks, seqno, table)
    assert state_rows(receiver.engine) == snapshot_of
    assert state_rows(receiver.engine, SHARD + 1) == others
    size = sum(len(key) + len(value) for rows in chunks for key, value in rows)
    assert 0.8 < source.total_bytes / size < 1.2

    def check(store: ShardStore) -> None:
        state = store.state(SHARD)
        assert (state.applied, state.window.trimmed, state.window.last, state.generation) == (seqno, seqno, seqno, 1)
        assert store.counts(SHARD, 1) == (5, sum(map(len, (b"k2v2", b"k4v4"))) + 3 * (len(b"large0") + len(LARGE)))
        assert store.read(ShardRead(SHARD, 0, 2, [b"k1", b"large1"]), 0).values == [b"v1", LARGE]
        assert len(store.due(SHARD, 10_001, 10)) == 2

    check(receiver)
    again = ShardStore(receiver.engine)
    loaded = again.load(SHARD)
    check(again)
    assert (loaded.base_seqno, loaded.base_epoch, loaded.applied, loaded.entries) == (seqno, 2, seqno, [])
    assert (loaded.dedup.records(), loaded.has_staging) == (table.records(), False)
    grow(receiver, table, WriteOperation(1, [b"k"], [b"v"]), RequestId("client", 99))
    assert ShardStore(receiver.engine).load(SHARD).dedup.records() == table.records()


def test_with_rocksdb_a_snapshot_shows_one_instant_while_writes_go_on(tmp_path: pathlib.Path) -> None:
    sender, receiver = ShardStore(RocksEngine(tmp_path / "a", False)), ShardStore(RocksEngine(tmp_path / "b", False))
    keys = [b"k%04d" % n for n in range(3 * CHUNK_MAX_ROWS)]
    table = sender.load(SHARD).dedup
    grow(sender, table, WriteOperation(1, keys, [b"old"] * len(keys)))
    receiver.load(SHARD)
    source, staged = sender.open_snapshot(SHARD), receiver.stage_snapshot(SHARD)
    cursor: bytes | None = b""
    while cursor is not None:
        rows, cursor = source.read(cursor or None)
        staged.add(rows)
        grow(sender, table, WriteOperation(1, [*keys, b"more"], [b"new"] * len(keys) + [b""]))
        sender.engine._db.flush()
    source.close()
    batch = receiver.engine.new_batch()
    staged.install(1, 2, table.records(), 0).write_to(batch)
    receiver.engine.write(batch)
    reply = receiver.read(ShardRead(SHARD, 0, 1, [*keys, b"more"]), 0)
    assert (set(reply.values[:-1]), set(reply.versions[:-1]), reply.values[-1]) == ({b"old"}, {1}, None)
    assert receiver.counts(SHARD, 1).documents == len(keys)
    for store in (sender, receiver):
        store.engine.close()


def test_a_snapshot_takes_the_place_of_the_whole_log_and_of_requests_done() -> None:
    store = ShardStore(MemoryEngine())
    table = filled(store)
    leftover = Entry(2, 7, None, (), 0, None, b"")
    batch = store.engine.new_batch()
    store.append(SHARD, [leftover]).write_to(batch)
    store.engine.write(batch)
    assert table.records()
    receive(store, [], 3, DedupTable())
    loaded = ShardStore(store.engine).load(SHARD)
    assert (loaded.base_seqno, loaded.applied, loaded.entries, loaded.dedup.records()) == (3, 3, [], ())
    grow(store, DedupTable(), None)
    assert [entry.seqno for entry in ShardStore(store.engine).load(SHARD).entries] == [4]


def test_while_a_snapshot_arrives_there_is_no_state() -> None:
    store = ShardStore(MemoryEngine())
    filled(store)
    history = store.history(SHARD)
    staged = store.stage_snapshot(SHARD)
    for call in (
        lambda: store.read(ShardRead(SHARD, 0, 1, [b"k"]), 0),
        lambda: store.scan(ShardScan(SHARD, 0, 1, b"", None, 10), 0),
    ):
        with pytest.raises(NotReady):
            call()
    with pytest.raises(AssertionError):
        grow(store, DedupTable(), None)
    with pytest.raises(AssertionError):
        store.open_snapshot(SHARD)
    staged.install(9, 2, (), 0)
    assert store.read(ShardRead(SHARD, 0, 1, [b"k"]), 0).values == [None]
    assert store.history(SHARD) != history


def test_a_snapshot_that_begins_anew_keeps_nothing_of_the_one_before() -> None:
    sender, receiver = ShardStore(MemoryEngine()), ShardStore(MemoryEngine())
    table = filled(sender)
    receiver.load(SHARD)
    chunks = chunks_of(sender.open_snapshot(SHARD))
    receiver.stage_snapshot(SHARD).add([(chunks[0][0][0] + b"other", b"x")])
    receive(receiver, chunks, 6, table)
    assert state_rows(receiver.engine) == state_rows(sender.engine)


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_crash_leaves_the_old_state_or_the_mark_or_the_new_state(data) -> None:
    sender, receiver = ShardStore(MemoryEngine()), ShardStore(MemoryEngine())
    table = filled(sender)
    filled(receiver, keys=2)
    receiver.engine.flush_wal()
    old = state_rows(receiver.engine)
    rows = [[row] for row in state_rows(sender.engine).items()]
    receive(receiver, rows, 6, table)
    survivor = receiver.engine.crash(data.draw(st.integers(0, receiver.engine.unsynced)))
    held, loaded = ShardStore(survivor).held(SHARD), ShardStore(survivor).load(SHARD)
    assert held.is_whole is not loaded.has_staging
    if loaded.has_staging:
        return
    found = state_rows(survivor)
    assert (loaded.applied, found) in [(3, old), (6, state_rows(sender.engine))]
    assert len(loaded.entries) == (3 if found == old else 0)


def test_a_replica_that_was_half_filled_is_empty_once_it_is_wiped() -> None:
    store = ShardStore(MemoryEngine())
    filled(store)
    store.stage_snapshot(SHARD)
    again = ShardStore(store.engine)
    assert again.load(SHARD).has_staging
    with pytest.raises(NotReady):
        again.read(ShardRead(SHARD, 0, 1, [b"k"]), 0)
    batch = store.engine.new_batch()
    again.wipe(SHARD).write_to(batch)
    store.engine.write(batch)
    assert store.engine.rows() == {}


def test_chunks_are_bounded_by_rows_and_bytes_and_one_large_value_may_go_beyond() -> None:
    store = ShardStore(MemoryEngine())
    table = store.load(SHARD).dedup
    small = [b"s%05d" % n for n in range(2 * CHUNK_MAX_ROWS + 500)]
    grow(store, table, WriteOperation(1, small, [b"" for _ in small]))
    for n in range(4):
        grow(store, table, WriteOperation(2, [b"l%d" % n], [bytes(CHUNK_MAX_BYTES * 2 // 3)]))
    grow(store, table, WriteOperation(2, [b"huge"], [bytes(3 * CHUNK_MAX_BYTES)]))
    chunks = chunks_of(store.open_snapshot(SHARD))
    assert dict(row for rows in chunks for row in rows) == state_rows(store.engine)
    sizes = [[len(key) + len(value) for key, value in rows] for rows in chunks]
    assert max(map(len, sizes)) <= CHUNK_MAX_ROWS
    assert all(sum(each[:-1]) < CHUNK_MAX_BYTES for each in sizes)
    assert len(chunks) <= 8


def test_an_empty_shard_has_one_empty_chunk() -> None:
    store = ShardStore(MemoryEngine())
    store.load(SHARD)
    source = store.open_snapshot(SHARD)
    assert source.read(None) == ([], None)
    source.close()
    source.close()
    with pytest.raises(StorageError):
        source.read(None)


@pytest.mark.parametrize("key", [b"", b"v", b"v\0\0\0\4\0\0\0\1k", b"l\0\0\0\3" + bytes(8), b"m\0\0\0\3applied"])
def test_rows_that_are_not_the_shards_state_are_refused(key: bytes) -> None:
    store = ShardStore(MemoryEngine())
    store.load(SHARD)
    staged = store.stage_snapshot(SHARD)
    before = store.engine.rows()
    with pytest.raises(DataLoss):
        staged.add([(b"v\0\0\0\3\0\0\0\1k", b""), (key, b"")])
    assert store.engine.rows() == before


def test_all_snapshots_of_a_leaf_share_one_pace() -> None:
    pace = Pace(0.5)
    assert [pace.take(10.0), pace.take(10.0), pace.take(10.25)] == [0.0, 0.5, 0.75]
    assert pace.take(20.0) == 0.0, "what was not used is not saved up"
    assert pace.take(20.0) == 0.5


def test_staged_rows_are_synced_in_pieces() -> None:
    store = ShardStore(MemoryEngine())
    store.load(SHARD)
    source = ShardStore(MemoryEngine())
    filled(source)
    ((key, value), *_) = source.open_snapshot(SHARD).read(None)[0]
    staged = store.stage_snapshot(SHARD)
    staged.add([(key, value)])
    assert not staged.wants_sync()
    staged.add([(key, bytes(SYNC_BYTES))])
    assert staged.wants_sync()
    assert not staged.wants_sync()
