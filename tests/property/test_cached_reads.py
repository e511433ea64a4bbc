"""A store with a cache against the same rows without one: whatever changes them, a read never shows the difference."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard import hashing
from kvshard.model import ShardRead
from leaf.key_cache import ENTRY_BYTES, KeyCache
from leaf.key_reader import KeyReader
from leaf.layout import INLINE_MAX_BYTES
from leaf.memory_engine import MemoryEngine
from leaf.operations import DropCollection, Operation, Split, WriteOperation, keys_of, size_of
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import Entry
from leaf.shard_store import ShardStore
from leaf.splitting import Part

SHARD, CHILD = 3, 9
AT, LAST = 1 << 15, (1 << 16) - 1
SPLIT = Split(CHILD, AT, LAST)
COLLECTIONS = [1, 2]
KEYS = [b"key-%02d" % n for n in range(10)]
VALUES = [b"", b"small", b"v" * 90, bytes(INLINE_MAX_BYTES), bytes(INLINE_MAX_BYTES + 1)]
INSTANTS = [0, 0, 0, 40, 60]


class Rig:
    """A store whose cache holds some of its keys."""

    def __init__(self, cache_bytes: int) -> None:
        self.engine = MemoryEngine()
        self.store = ShardStore(self.engine, KeyCache(cache_bytes))
        self.store.splits.chunk_rows = 2
        batch = self.engine.new_batch()
        batch.put(*ShardStore.incarnation_row(SHARD, "parent"))
        self.engine.write(batch)
        self.store.load(SHARD)

    def apply(self, *operations: Operation) -> None:
        seqno = self.store.state(SHARD).applied
        entries = [Entry(1, seqno + n, each, keys_of(each), size_of(each), None, b"") for n, each in enumerate(operations, 1)]
        batch = self.engine.new_batch()
        self.store.append(SHARD, entries).write_to(batch)
        self.engine.write(batch)
        self.store.apply(SHARD, entries, DedupTable())

    def read(self, collection_id: int, keys: list[bytes], now_ms: int) -> None:
        """The same with the cache and without, also of keys that have left, which `Requests` would refuse: these are in no
        answer that comes from the cache alone."""
        request = ShardRead(SHARD, 1, collection_id, keys)
        at_once = self.store.read_cached(request, 5, 6)
        columns = self.store.read(request, now_ms)
        plain = KeyReader(self.engine, KeyCache(0)).read(SHARD, collection_id, keys, now_ms)
        if at_once is not None:
            assert (at_once.values, at_once.versions, at_once.errors) == (plain.values, plain.versions, plain.errors)
            assert (at_once.expires_at_ms, plain.expires_at_ms()) == ([], [])
            assert (at_once.documents, at_once.seqno, at_once.age_ms) == (columns.documents, 5, 6)
            assert not (self.is_split and any(map(is_childs, keys)))
        assert (columns.values, columns.versions, columns.errors) == (plain.values, plain.versions, plain.errors)
        assert columns.expires_at_ms == plain.expires_at_ms()

    def look_at_headers(self, collection_id: int, keys: list[bytes]) -> None:
        plain = KeyReader(self.engine, KeyCache(0)).headers(SHARD, collection_id, keys)
        assert self.store.headers(SHARD, collection_id, keys) == plain

    @property
    def is_split(self) -> bool:
        return self.store.state(SHARD).splits.cuts > 0

    def split(self) -> None:
        if not self.is_split:
            self.apply(SPLIT)

    def begin(self) -> None:
        splits = self.store.state(SHARD).splits
        if splits.shadow is None and not self.is_split:
            self.store.splits.begin(SHARD, splits, Part.of(SPLIT))

    def copy(self) -> None:
        splits = self.store.state(SHARD).splits
        if splits.late or (splits.shadow is not None and not splits.shadow.is_complete):
            self.store.copy_chunk(SHARD)

    def clean(self) -> None:
        splits = self.store.state(SHARD).splits
        if splits.departed and not splits.late:
            self.store.clean_chunk(SHARD, CHILD)

    def snapshot(self, value: bytes) -> None:
        """The state is replaced by that of another replica."""
        other = Rig(0)
        for collection_id in COLLECTIONS:
            other.apply(WriteOperation(collection_id, KEYS[::2], [value] * len(KEYS[::2])))
        source = other.store.open_snapshot(SHARD)
        staged = self.store.stage_snapshot(SHARD)
        cursor: bytes | None = None
        while True:
            rows, cursor = source.read(cursor)
            staged.add(rows)
            if cursor is None:
                break
        batch = self.engine.new_batch()
        staged.install(2, 1, (), 0).write_to(batch)
        self.engine.write(batch)

    def wipe(self) -> None:
        batch = self.engine.new_batch()
        self.store.wipe(SHARD).write_to(batch)
        self.engine.write(batch)
        self.store.load(SHARD)

    def restart(self) -> None:
        self.store.load(SHARD)


def is_childs(key: bytes) -> bool:
    return hashing.slot(key, 0) >= AT


WRITES = st.lists(st.tuples(st.sampled_from(KEYS), st.none() | st.sampled_from(VALUES), st.sampled_from(INSTANTS)), max_size=4)
STEPS = st.one_of(
    st.tuples(st.just("read"), st.sampled_from(COLLECTIONS), st.lists(st.sampled_from(KEYS), max_size=6), st.integers(30, 70)),
    st.tuples(st.just("look_at_headers"), st.sampled_from(COLLECTIONS), st.lists(st.sampled_from(KEYS), max_size=6)),
    st.tuples(st.just("write"), st.lists(st.tuples(st.sampled_from(COLLECTIONS), WRITES), min_size=1, max_size=3)),
    st.tuples(st.sampled_from(["begin", "copy", "copy", "split", "clean", "wipe", "restart"])),
    st.tuples(st.just("drop"), st.sampled_from(COLLECTIONS)),
    st.tuples(st.just("snapshot"), st.sampled_from(VALUES)),
)


def perform(rig: Rig, step: tuple[Any, ...]) -> None:
    match step:
        case ("write", writes):
            operations: list[Operation] = []
            for collection_id, items in writes:
                kept = [item for item in items if not (rig.is_split and is_childs(item[0]))]
                keys, values, expiries = ([item[n] for item in kept] for n in range(3))
                operations.append(WriteOperation(collection_id, keys, values, expiries if any(expiries) else []))
            rig.apply(*operations)
        case ("drop", collection_id):
            rig.apply(DropCollection(collection_id))
        case (name, *arguments):
            getattr(rig, name)(*arguments)


@given(st.sampled_from([3, 8, 20, 1000]), st.lists(STEPS, min_size=5, max_size=30))
@settings(max_examples=250, deadline=None)
def test_a_cached_read_is_a_read(entries: int, steps: list[tuple[Any, ...]]) -> None:
    rig = Rig(entries * (ENTRY_BYTES + 100))
    for collection_id in COLLECTIONS:
        rig.apply(WriteOperation(collection_id, KEYS, [b"first"] * len(KEYS)))
        for key in KEYS:
            rig.read(collection_id, [key], 30)
    for step in steps:
        perform(rig, step)
        rig.store.cache.check_invariants()
        for collection_id in COLLECTIONS:
            rig.look_at_headers(collection_id, KEYS[::3])
    for collection_id in COLLECTIONS:
        rig.read(collection_id, KEYS, 50)


def test_keys_that_have_left_do_not_come_into_the_cache() -> None:
    rig = Rig(10**6)
    rig.apply(WriteOperation(1, KEYS, [b"v"] * len(KEYS)))
    left = [key for key in KEYS if is_childs(key)]
    rig.read(1, left, 30)
    rig.split()
    rig.read(1, left, 30)
    for step in ("copy", "clean"):
        for _ in KEYS:
            getattr(rig, step)()
    assert rig.store.state(SHARD).splits.departed == ()
    assert rig.store.headers(SHARD, 1, left) == [None] * len(left)
    rig.read(1, left, 30)
