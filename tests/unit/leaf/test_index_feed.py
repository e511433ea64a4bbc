from collections.abc import Callable

import pytest
from fakes.clock import ManualClock
from fakes.hosted_leaf import DOCS, hosted_leaf

from kvshard.errors import NotReady, StorageFailed
from leaf.index_feed import DOCUMENTS_CHUNK_BYTES, IndexFeed
from leaf.layout import INLINE_MAX_BYTES
from leaf.memory_engine import MemoryEngine
from leaf.operations import WriteOperation, keys_of, size_of
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import Entry
from leaf.shard_store import ShardStore

LARGE = b'{"title": "' + b"x" * INLINE_MAX_BYTES + b'"}'


async def test_the_log_and_the_documents() -> None:
    async with hosted_leaf() as leaf:
        feed = IndexFeed(leaf.store, leaf.clock)
        before = feed.applied_seqno(0)
        first = (await leaf.write({b"a": b"{}", b"b": LARGE}, collection_id=DOCS.id)).versions[0]
        second = (await leaf.write({b"c": b"{}"}, collection_id=DOCS.id, ttl_ms=[1_000])).versions[0]
        await leaf.write({b"c": b"other collection"})
        assert feed.applied_seqno(0) == before + 3
        assert feed.committed_entries(0, before, 2) == [
            (first, WriteOperation(DOCS.id, [b"a", b"b"], [b"{}", LARGE])),
            (second, WriteOperation(DOCS.id, [b"c"], [b"{}"], [leaf.clock.wall_ms() + 1_000])),
        ]
        expires = leaf.clock.wall_ms() + 1_000
        everything = [(b"a", b"{}", first, 0), (b"b", LARGE, first, 0), (b"c", b"{}", second, expires)]
        assert feed.scan_documents(0, DOCS.id, b"", 10) == everything
        assert feed.scan_documents(0, DOCS.id, b"", 2) == everything[:2]
        assert feed.scan_documents(0, DOCS.id, b"b\0", 10) == everything[2:]
        assert feed.scan_documents(0, DOCS.id, b"d", 10) == []
        assert feed.live_documents(0, DOCS.id) == 3
        assert feed.read_documents(0, DOCS.id, [b"c", b"nope", b"b"]) == [(b"{}", second, expires), None, (LARGE, first, 0)]
        leaf.clock.advance(1.0)
        assert feed.read_documents(0, DOCS.id, [b"c"]) == [None]


async def test_scans_of_large_documents_are_bounded_and_make_progress() -> None:
    async with hosted_leaf() as leaf:
        feed = IndexFeed(leaf.store, leaf.clock)
        size = DOCUMENTS_CHUNK_BYTES // 3 + 1
        for n in range(4):
            await leaf.write({b"k%d" % n: bytes(size)})
        found: list[bytes] = []
        start = b""
        while chunk := feed.scan_documents(0, 1, start, 100):
            found += [row[0] for row in chunk]
            assert len(chunk) <= 3
            start = found[-1] + b"\0"
        assert found == [b"k0", b"k1", b"k2", b"k3"]


def test_a_shard_that_is_not_loaded_is_not_ready() -> None:
    with pytest.raises(NotReady):
        IndexFeed(ShardStore(MemoryEngine()), ManualClock()).applied_seqno(0)


def store_of(count: int, applied: int) -> ShardStore:
    """A shard with so many entries in its log."""
    store = ShardStore(MemoryEngine())
    store.load(0)
    entries = []
    for seqno in range(1, count + 1):
        payload = WriteOperation(1, [b"k%d" % seqno], [b"v"])
        entries.append(Entry(1, seqno, payload, keys_of(payload), size_of(payload), None, b""))
    batch = store.engine.new_batch()
    store.append(0, entries).write_to(batch)
    store.engine.write(batch)
    store.apply(0, entries[:applied], DedupTable())
    return store


def test_entries_that_are_not_committed_are_not_shown() -> None:
    feed = IndexFeed(store_of(5, applied=3), ManualClock())
    assert feed.applied_seqno(0) == 3
    assert [seqno for seqno, _ in feed.committed_entries(0, 0, 10) or ()] == [1, 2, 3]
    assert feed.committed_entries(0, 3, 10) == []
    assert feed.committed_entries(0, 4, 10) == []
    store = store_of(5, applied=3)
    store.state(0).trim_through = 2
    store.trim_log(0, 2)
    feed = IndexFeed(store, ManualClock())
    assert feed.committed_entries(0, 1, 10) is None
    assert [seqno for seqno, _ in feed.committed_entries(0, 2, 10) or ()] == [3]


def test_a_snapshot_is_another_history_whose_log_begins_behind_it() -> None:
    store = store_of(3, applied=3)
    feed = IndexFeed(store, ManualClock())
    before = feed.history(0)
    staged = store.stage_snapshot(0)
    for call in (
        lambda: feed.committed_entries(0, 0, 10),
        lambda: feed.scan_documents(0, 1, b"", 10),
        lambda: feed.read_documents(0, 1, [b"k1"]),
        lambda: feed.has_expired_unswept(0, 1, 0),
        lambda: feed.history(0),
    ):
        with pytest.raises(NotReady):
            call()
    staged.install(9, 2, (), 0)
    assert feed.history(0) != before
    assert feed.applied_seqno(0) == 9
    assert feed.committed_entries(0, 3, 10) is None
    assert feed.committed_entries(0, 9, 10) == []


def install_snapshot(store: ShardStore) -> None:
    store.stage_snapshot(0).install(9, 2, (), 0)


def create_anew(store: ShardStore) -> None:
    batch = store.engine.new_batch()
    store.wipe(0).write_to(batch)
    store.engine.write(batch)
    store.load(0)


@pytest.mark.parametrize("replace", [install_snapshot, create_anew])
def test_what_is_read_while_the_data_is_replaced_is_no_answer(replace: Callable[[ShardStore], None]) -> None:
    store = store_of(3, applied=3)
    feed = IndexFeed(store, ManualClock())
    scan = store.engine.scan

    def scan_and_replace(*args):
        rows = scan(*args)
        store.engine.scan = scan  # type: ignore[method-assign]
        replace(store)
        return rows

    store.engine.scan = scan_and_replace  # type: ignore[method-assign]
    with pytest.raises(NotReady):
        feed.scan_documents(0, 1, b"", 10)
    assert feed.scan_documents(0, 1, b"", 10) == []


async def test_storage_errors_are_typed() -> None:
    async with hosted_leaf() as leaf:
        feed = IndexFeed(leaf.store, leaf.clock)
        await leaf.write({b"k": b"v"})
        leaf.engine.close()
        for call in (
            lambda: feed.committed_entries(0, 0, 1),
            lambda: feed.scan_documents(0, 1, b"", 1),
            lambda: feed.read_documents(0, 1, [b"k"]),
            lambda: feed.has_expired_unswept(0, 1, 0),
        ):
            with pytest.raises(StorageFailed):
                call()
        with pytest.raises(StorageFailed):
            leaf.read(b"k")
        with pytest.raises(StorageFailed):
            leaf.scan()
        with pytest.raises(StorageFailed):
            await leaf.write({b"k": b"w"})
