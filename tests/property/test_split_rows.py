"""A split against the filter of the fold: whatever interleaves with the copy, parent and child have each their half, once."""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from kvshard import hashing
from kvshard.splitting import derived_incarnation
from leaf import layout
from leaf.layout import INLINE_MAX_BYTES, STATE_TAGS
from leaf.memory_engine import MemoryEngine
from leaf.operations import DropCollection, Operation, Split, WriteOperation, keys_of, size_of
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import Entry, RequestId
from leaf.shard_store import ShardStore
from leaf.splitting import Part

PARENT, CHILD = 3, 9
AT, LAST = 1 << 15, (1 << 16) - 1
KEYS = [b"key-%02d" % n for n in range(16)]
VALUES = [b"", b"small", bytes(INLINE_MAX_BYTES + 1)]
SPLIT = Split(CHILD, AT, LAST)


def is_childs(key: bytes) -> bool:
    return hashing.slot(key, 0) >= AT


class Rig:
    """A store under test and one that is never split; the log of both is kept here, and is durable at once."""

    def __init__(self) -> None:
        self.log: list[Entry] = []
        self.plain = ShardStore(MemoryEngine())
        self.plain.load(PARENT)
        self.open(MemoryEngine())
        batch = self.store.engine.new_batch()
        batch.put(*ShardStore.incarnation_row(PARENT, "p"))
        self.engine.write(batch)
        self.engine.flush_wal()
        self.split_at: int | None = None

    def open(self, engine: MemoryEngine) -> None:
        self.engine = engine
        self.store = ShardStore(engine)
        self.store.splits.chunk_rows = 2
        self.table = self.store.load(PARENT).dedup
        for entry in self.log[self.store.state(PARENT).applied :]:
            self.apply(entry)

    def apply(self, entry: Entry) -> None:
        if entry.request is not None:
            self.table.record(entry.request, entry.seqno, entry.result)
        self.store.apply(PARENT, [entry], self.table)

    def write(self, operation: Operation, has_request: bool = False) -> None:
        seqno = len(self.log) + 1
        request = RequestId("client", seqno) if has_request else None
        entry = Entry(2, seqno, operation, keys_of(operation), size_of(operation), request, b"done")
        self.log.append(entry)
        batch = self.engine.new_batch()
        self.store.append(PARENT, [entry]).write_to(batch)
        self.engine.write(batch)
        self.engine.flush_wal()
        self.apply(entry)
        if isinstance(operation, Split):
            self.split_at = seqno
            operation = None
        plain = Entry(2, seqno, operation, (), 0, None, b"")
        self.plain.append(PARENT, [plain])
        self.plain.apply(PARENT, [plain], DedupTable())

    @property
    def splits(self) -> Any:
        return self.store.state(PARENT).splits

    def begin(self) -> None:
        if self.splits.shadow is None and self.split_at is None:
            self.store.splits.begin(PARENT, self.splits, Part.of(SPLIT))

    def copy(self) -> None:
        shadow = self.splits.shadow
        if self.splits.late or (shadow is not None and not shadow.is_complete):
            self.store.copy_chunk(PARENT)

    def clean(self) -> None:
        if self.splits.departed and not self.splits.late:
            self.store.clean_chunk(PARENT, CHILD)

    def crash(self, kept: int) -> None:
        self.open(self.engine.crash(min(kept, self.engine.unsynced)))


def logical(engine: Any, shard: int, is_own: Any = lambda key: True) -> dict[bytes, bytes]:
    """The rows of a shard's own keys without their shard; counts that are zero left out."""
    found = {}
    for row_key, row in engine.rows().items():
        tag = row_key[:1]
        if tag not in (b"b", b"v", b"x") or row_key[1:5] != shard.to_bytes(4, "big"):
            continue
        key = layout.expiry_of(row_key)[2] if tag == b"x" else layout.key_of_place(row_key)[1]
        if is_own(key):
            found[tag + row_key[5:]] = row
    return found


def live_expiries(rows: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Without expiry rows that a drop left behind: a sweep removes them when they are due, wherever they are."""
    expiring = {(layout.header_of(row)[1], row_key[1:]) for row_key, row in rows.items() if row_key[:1] == b"v"}
    return {
        row_key: row
        for row_key, row in rows.items()
        if row_key[:1] != b"x" or (int.from_bytes(row_key[1:9], "big"), row_key[9:]) in expiring
    }


def recounted(rows: dict[bytes, bytes]) -> dict[int, tuple[int, int]]:
    counts: dict[int, tuple[int, int]] = {}
    for row_key, row in rows.items():
        if row_key[:1] == b"v":
            collection_id = int.from_bytes(row_key[1:5], "big")
            documents, size = counts.get(collection_id, (0, 0))
            counts[collection_id] = documents + 1, size + len(row_key[5:]) + layout.header_of(row)[2]
    return counts


def check(rig: Rig, frozen: dict[bytes, bytes], table_at_split: tuple[object, ...]) -> None:
    expected_parent = logical(rig.plain.engine, PARENT, lambda key: not is_childs(key))
    child = logical(rig.engine, CHILD)
    assert live_expiries(child) == live_expiries(frozen)
    # A drop leaves the expiry rows of writes that went to both; but the child has none that the parent had not.
    assert child.keys() <= frozen.keys()
    assert live_expiries(logical(rig.engine, PARENT, lambda key: not is_childs(key))) == live_expiries(expected_parent)
    again = ShardStore(rig.engine)
    loaded = again.load(CHILD)
    # No epoch of its own yet: it has promised nothing to anybody, so that who is to lead it need not wait.
    assert (loaded.applied, loaded.base_seqno, loaded.base_epoch, loaded.epoch) == (rig.split_at, rig.split_at, 2, 0)
    assert loaded.dedup.records() == table_at_split
    assert again.held(CHILD).incarnation == derived_incarnation("p", CHILD)
    assert again.state(CHILD).splits.last_slot == LAST
    for store, shard, rows in ((again, CHILD, child), (rig.store, PARENT, expected_parent)):
        counts = {each: tuple(n) for each, n in store.state(shard).counts.items() if n != (0, 0)}
        assert counts == recounted(rows)


STEPS = st.one_of(
    st.tuples(
        st.just("write"),
        st.sampled_from([1, 2]),
        st.lists(
            st.tuples(st.sampled_from(KEYS), st.sampled_from([*VALUES, None]), st.sampled_from([0, 0, 77])),
            min_size=1,
            max_size=4,
        ),
        st.booleans(),
    ),
    st.tuples(st.sampled_from(["copy", "copy", "copy", "begin", "clean"])),
    st.tuples(st.just("drop"), st.sampled_from([1, 2])),
    st.tuples(st.just("crash"), st.integers(0, 6)),
)


def perform(rig: Rig, step: tuple[Any, ...]) -> None:
    match step:
        case ("write", collection_id, items, has_request):
            kept = [item for item in items if rig.split_at is None or not is_childs(item[0])]
            if kept:
                keys, values, expiries = ([item[n] for item in kept] for n in range(3))
                rig.write(WriteOperation(collection_id, keys, values, expiries), has_request)
        case ("drop", collection_id):
            rig.write(DropCollection(collection_id))
        case ("crash", kept):
            rig.crash(kept)
        case (name,):
            getattr(rig, name)()


@given(st.lists(STEPS, max_size=30), st.lists(STEPS, max_size=15))
@settings(max_examples=150, deadline=None)
def test_parent_and_child_are_the_halves_of_the_fold(before: list[Any], after: list[Any]) -> None:
    rig = Rig()
    for step in before:
        perform(rig, step)
        shadow = rig.splits.shadow
        if shadow is not None and shadow.is_complete:
            rows = live_expiries(logical(rig.engine, PARENT, is_childs))
            assert live_expiries(logical(rig.engine, CHILD)) == rows
            assert {each: tuple(n) for each, n in shadow.counts.items() if n.documents} == recounted(rows)
    rig.write(SPLIT)
    frozen = logical(rig.plain.engine, PARENT, is_childs)
    table = rig.table.records()
    for step in after:
        perform(rig, step)
    while rig.splits.late:
        rig.copy()
    check(rig, frozen, table)
    while rig.splits.departed:
        rig.clean()
    assert live_expiries(logical(rig.engine, PARENT, is_childs)) == {}
    check(rig, frozen, table)
    rig.crash(99)
    assert rig.splits.departed == ()
    check(rig, frozen, table)


@given(st.lists(STEPS, max_size=20), st.lists(STEPS, max_size=10))
@settings(max_examples=60, deadline=None)
def test_a_snapshot_after_the_split_holds_the_parents_half_alone(before: list[Any], after: list[Any]) -> None:
    rig = Rig()
    for step in before:
        perform(rig, step)
    rig.write(SPLIT)
    for step in after:
        perform(rig, step)
    source, receiver = rig.store.open_snapshot(PARENT), ShardStore(MemoryEngine())
    receiver.load(PARENT)
    staged = receiver.stage_snapshot(PARENT)
    cursor: bytes | None = None
    while True:
        rows, cursor = source.read(cursor)
        staged.add(rows)
        if cursor is None:
            break
    staged.install(len(rig.log), 2, (), 0)
    rows_of_all = logical(receiver.engine, PARENT)
    assert not any(is_childs(key[13:] if key[:1] == b"x" else key[5:]) for key in live_expiries(rows_of_all))
    assert live_expiries(rows_of_all) == live_expiries(logical(rig.plain.engine, PARENT, lambda key: not is_childs(key)))
    assert {each: tuple(n) for each, n in receiver.state(PARENT).counts.items() if n.documents} == recounted(rows_of_all)
    assert receiver.state(PARENT).splits.last_slot == AT - 1


def test_a_wiped_parent_takes_its_shadow_along() -> None:
    for is_split in (False, True):
        rig = Rig()
        rig.write(WriteOperation(1, KEYS, [b"v"] * len(KEYS)))
        rig.begin()
        rig.copy()
        if is_split:
            rig.write(SPLIT)
        batch = rig.engine.new_batch()
        rig.store.wipe(PARENT).write_to(batch)
        rig.engine.write(batch)
        assert rig.engine.rows() == {}


def test_a_snapshot_that_arrives_removes_the_shadow() -> None:
    rig = Rig()
    rig.write(WriteOperation(1, KEYS, [b"v"] * len(KEYS)))
    rig.begin()
    rig.copy()
    rig.store.stage_snapshot(PARENT)
    child = CHILD.to_bytes(4, "big")
    assert not [key for key in rig.engine.rows() if key[1:5] == child and key[0] in STATE_TAGS]
    assert rig.splits.shadow is None


def test_a_child_that_was_made_anew_is_left_alone() -> None:
    rig = Rig()
    rig.write(WriteOperation(1, KEYS, [b"v"] * len(KEYS)))
    batch = rig.engine.new_batch()
    batch.put(*ShardStore.incarnation_row(CHILD, "anew"))
    rig.engine.write(batch)
    assert not rig.store.splits.may_begin(CHILD)
    rig.write(SPLIT)
    assert logical(rig.engine, CHILD) == {}
    assert rig.store.held(CHILD).incarnation == "anew"
    while rig.splits.departed:
        rig.clean()
    kept = [key for key in KEYS if rig.store.headers(PARENT, 1, [key]) != [None]]
    assert not any(map(is_childs, kept))
    assert rig.store.counts(PARENT, 1).documents == len(kept)
