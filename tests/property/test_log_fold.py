"""State = fold(log): however the log is cut into groups, and wherever a replay begins, the rows are those of a plain model."""

from hypothesis import given, settings
from hypothesis import strategies as st

from leaf import layout
from leaf.layout import INLINE_MAX_BYTES
from leaf.memory_engine import MemoryEngine
from leaf.operations import Counts, DropCollection, Operation, WriteOperation, keys_of, size_of
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import Entry
from leaf.shard_store import ShardStore

SHARD = 3
KEYS = [b"a", b"b", b"c", b"\xff"]
COLLECTIONS = [1, 2]
values = st.none() | st.sampled_from([b"", b"small", b"x" * INLINE_MAX_BYTES, b"y" * (INLINE_MAX_BYTES + 1)])


@st.composite
def writes(draw: st.DrawFn) -> WriteOperation:
    rows = draw(st.lists(st.tuples(st.sampled_from(KEYS), values, st.sampled_from([0, 500, 600])), min_size=1, max_size=5))
    expiries = [expires if value is not None else 0 for _, value, expires in rows]
    collection_id = draw(st.sampled_from(COLLECTIONS))
    return WriteOperation(collection_id, [row[0] for row in rows], [row[1] for row in rows], expiries if any(expiries) else [])


operations = st.lists(
    st.one_of(writes(), writes(), writes(), st.builds(DropCollection, st.sampled_from(COLLECTIONS)), st.none()),
    max_size=12,
)

Model = dict[tuple[int, bytes], tuple[bytes, int, int]]


def fold(log: list[Operation]) -> Model:
    """The plainest reading of the log: (collection, key) -> (value, version, expires_at_ms)."""
    model: Model = {}
    for seqno, operation in enumerate(log, 1):
        if isinstance(operation, WriteOperation):
            for index, (key, value) in enumerate(zip(operation.keys, operation.values, strict=True)):
                if value is None:
                    model.pop((operation.collection_id, key), None)
                else:
                    expires = operation.expires_at_ms[index] if operation.expires_at_ms else 0
                    model[operation.collection_id, key] = (value, seqno, expires)
        elif isinstance(operation, DropCollection):
            model = {place: row for place, row in model.items() if place[0] != operation.collection_id}
    return model


def state_of(engine: MemoryEngine) -> tuple[Model, dict[int, Counts], set[tuple[int, int, bytes]], int]:
    """What the rows say: keys, counts, expiry rows, and rows of large values."""
    model: Model = {}
    counts: dict[int, Counts] = {}
    expiries: set[tuple[int, int, bytes]] = set()
    rows = engine.rows()
    large = {key[9:]: value for key, value in rows.items() if key[:1] == b"b"}
    for key, row in rows.items():
        if key[:1] == b"v":
            version, expires, size = layout.header_of(row)
            value = row[layout.HEADER_BYTES :]
            if size > INLINE_MAX_BYTES:
                kept = rows[b"b" + key[1:]]
                assert layout.unpack_number(kept) == version
                value = kept[layout.VERSION_BYTES :]
            assert len(value) == size
            model[int.from_bytes(key[5:9]), key[9:]] = (value, version, expires)
        elif key[:1] == b"c":
            found = Counts(*layout.unpack_counts(row))
            if found.documents:
                counts[layout.collection_of_counts(key)] = found
        elif key[:1] == b"x":
            expiries.add(layout.expiry_of(key))
    assert len([key for key in rows if key[:1] == b"b"]) == sum(len(row[0]) > INLINE_MAX_BYTES for row in model.values())
    return model, counts, expiries, len(large)


def check(engine: MemoryEngine, log: list[Operation]) -> None:
    model, counts, expiries, _ = state_of(engine)
    assert model == fold(log)
    expected: dict[int, Counts] = {}
    for (collection_id, key), (value, _, _) in model.items():
        documents, size = expected.get(collection_id, Counts(0, 0))
        expected[collection_id] = Counts(documents + 1, size + len(key) + len(value))
    assert counts == expected
    due = {(expires, collection_id, key) for (collection_id, key), (_, _, expires) in model.items() if expires}
    dropped = {operation.collection_id for operation in log if isinstance(operation, DropCollection)}
    # A drop leaves expiry rows behind for the sweep; all others are exact.
    assert due <= expiries
    assert {place[1] for place in expiries - due} <= dropped


def entries_of(log: list[Operation]) -> list[Entry]:
    return [
        Entry(1, seqno, operation, keys_of(operation), size_of(operation), None, b"") for seqno, operation in enumerate(log, 1)
    ]


def store_with(engine: MemoryEngine) -> ShardStore:
    store = ShardStore(engine)
    store.load(SHARD)
    return store


@given(operations, st.lists(st.integers(1, 4), max_size=12))
@settings(max_examples=150, deadline=None)
def test_any_grouping_gives_the_state_of_the_model(log: list[Operation], sizes: list[int]) -> None:
    engine = MemoryEngine()
    store = store_with(engine)
    entries = entries_of(log)
    position = 0
    for size in [*sizes, len(entries)]:
        group = entries[position : position + size]
        if group:
            store.apply(SHARD, group, DedupTable())
            position += len(group)
            check(engine, log[:position])
    assert store.state(SHARD).applied == len(log)


@given(operations, st.data())
@settings(max_examples=100, deadline=None)
def test_a_crash_and_replay_gives_the_same_state(log: list[Operation], data: st.DataObject) -> None:
    """The log is durable; of the applied batches any prefix survives."""
    engine = MemoryEngine()
    entries = entries_of(log)
    store = store_with(engine)
    batch = engine.new_batch()
    store.append(SHARD, entries).write_to(batch)
    engine.write(batch)
    engine.flush_wal()
    for entry in entries:
        store.apply(SHARD, [entry], DedupTable())
    survivor = engine.crash(data.draw(st.integers(0, engine.unsynced)))
    again = ShardStore(survivor)
    loaded = again.load(SHARD)
    assert (loaded.base_seqno, loaded.entries) == (0, entries)
    if loaded.applied < len(log):
        again.apply(SHARD, entries[loaded.applied :], loaded.dedup)
    check(survivor, log)
    assert again.state(SHARD).applied == len(log)
    assert state_of(survivor) == state_of(engine)
