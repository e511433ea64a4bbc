import pytest
from fakes.hosted_leaf import DOCS, hosted_leaf

from kvshard.errors import NotReady, StorageFailed
from leaf.index_feed import DOCUMENTS_CHUNK_BYTES, IndexFeed
from leaf.layout import INLINE_MAX_BYTES
from leaf.memory_engine import MemoryEngine
from leaf.operations import WriteOperation
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
    from fakes.clock import ManualClock

    with pytest.raises(NotReady):
        IndexFeed(ShardStore(MemoryEngine()), ManualClock()).applied_seqno(0)


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
