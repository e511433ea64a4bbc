"""What a leaf does by itself: expired keys, dropped collections, the log's length."""

import asyncio

from fakes.hosted_leaf import DOCS, HostedLeaf, hosted_leaf
from fakes.maps import FakeMaps, one_leaf_map

from kvshard.clustermap import Leaf, Replica
from leaf import layout
from leaf.expiry import SWEEP_MAX_KEYS, sweep
from leaf.index_feed import IndexFeed
from leaf.log import RETAINED_ENTRIES, TRIM_STEP
from leaf.memory_engine import MemoryEngine


def rows_of(leaf: HostedLeaf, tag: bytes) -> list[bytes]:
    assert isinstance(leaf.engine, MemoryEngine)
    return [key for key in leaf.engine.rows() if key[:1] == tag]


async def quiet(leaf: HostedLeaf) -> None:
    """Wait until what was proposed is applied."""
    while any(replica.applied < replica.last for replica in leaf.driver.replicas.values()):
        await asyncio.sleep(0)


async def test_expired_keys_are_removed_by_logged_deletes() -> None:
    async with hosted_leaf() as leaf:
        await leaf.write({b"a": b"1", b"b": b"2", b"c": b"3"}, ttl_ms=[1_000, 2_000, 0])
        feed = IndexFeed(leaf.store, leaf.clock)
        assert len(rows_of(leaf, b"x")) == 2
        leaf.clock.advance(1.5)
        assert feed.has_expired_unswept(0, 1, leaf.clock.wall_ms())
        assert not feed.has_expired_unswept(0, 2, leaf.clock.wall_ms())
        applied = leaf.driver.replicas[0].applied
        await leaf.housekeeper.turn()
        await quiet(leaf)
        assert leaf.driver.replicas[0].applied == applied + 1
        assert leaf.store.counts(0, 1).documents == 2
        assert len(rows_of(leaf, b"v")) == 2
        assert len(rows_of(leaf, b"x")) == 1
        assert not feed.has_expired_unswept(0, 1, leaf.clock.wall_ms())
        await leaf.housekeeper.turn()
        assert leaf.driver.replicas[0].last == applied + 1, "nothing more was due"


async def test_a_key_that_was_written_again_does_not_expire() -> None:
    async with hosted_leaf() as leaf:
        await leaf.write({b"renewed": b"1", b"kept": b"1", b"busy": b"1"}, ttl_ms=[1_000] * 3)
        await leaf.write({b"renewed": b"2"}, ttl_ms=[9_000])
        await leaf.write({b"kept": b"2"})
        leaf.clock.advance(2.0)
        busy = asyncio.ensure_future(leaf.write({b"busy": b"2"}))
        await asyncio.sleep(0)
        sweep(leaf.driver, 0, leaf.clock.wall_ms())
        await busy
        await quiet(leaf)
        assert leaf.read_all([b"renewed", b"kept", b"busy"]).values == [b"2"] * 3


async def test_a_sweep_is_bounded() -> None:
    async with hosted_leaf(maps=FakeMaps(one_leaf_map(shards=1))) as leaf:
        keys = {b"%05d" % n: b"v" for n in range(SWEEP_MAX_KEYS + 10)}
        await leaf.write(keys, ttl_ms=[1] * len(keys))
        leaf.clock.advance(1.0)
        assert await leaf.housekeeper.turn()
        await quiet(leaf)
        assert leaf.store.counts(0, 1).documents == 10
        assert not await leaf.housekeeper.turn()
        await quiet(leaf)
        assert leaf.store.counts(0, 1).documents == 0


async def test_the_keys_of_a_dropped_collection_are_removed() -> None:
    async with hosted_leaf() as leaf:
        await leaf.write({b"d1": b'{"title": "x"}', b"d2": b"{}" + b" " * 50_000}, collection_id=DOCS.id, ttl_ms=[500, 0])
        await leaf.write({b"k": b"v"})
        collections = dict(leaf.maps.current.collections)
        del collections["docs"]
        leaf.maps.install(collections=collections)
        assert leaf.index.collections == ["default"]
        await leaf.housekeeper.turn()
        await quiet(leaf)
        assert [record.collection_id for record in leaf.driver.status()[0].collections] == [1]
        assert len(rows_of(leaf, b"v")) == 1
        assert rows_of(leaf, b"b") == []
        last = leaf.driver.replicas[0].last
        leaf.clock.advance(1.0)
        await leaf.housekeeper.turn()
        await quiet(leaf)
        assert rows_of(leaf, b"x") == [], "left behind by the drop, removed when due"
        assert leaf.driver.replicas[0].last == last, "a drop is logged once"


async def test_the_log_is_trimmed_and_what_indexes_need_is_kept() -> None:
    async with hosted_leaf(maps=FakeMaps(one_leaf_map(shards=1, collections=[DOCS]))) as leaf:
        feed = IndexFeed(leaf.store, leaf.clock)
        leaf.index.through = 0
        for _ in range((RETAINED_ENTRIES + TRIM_STEP) // 100 + 1):
            await asyncio.gather(*(leaf.write({b"k": b"v"}) for _ in range(100)))
        await leaf.housekeeper.turn()
        entries = feed.committed_entries(0, 0, 10)
        assert entries is not None
        assert [seqno for seqno, _ in entries] == list(range(1, 11))
        last = leaf.driver.replicas[0].applied
        leaf.index.through = last
        await leaf.housekeeper.turn()
        assert len(rows_of(leaf, b"l")) == RETAINED_ENTRIES
        trimmed = last - RETAINED_ENTRIES
        assert feed.committed_entries(0, 0, 10) is None
        assert feed.committed_entries(0, trimmed - 1, 10) is None
        kept = feed.committed_entries(0, trimmed, 10)
        assert kept is not None
        assert [seqno for seqno, _ in kept] == list(range(trimmed + 1, trimmed + 11))
        assert feed.committed_entries(0, last, 10) == []
        maps = leaf.maps
    assert isinstance(leaf.engine, MemoryEngine)
    async with hosted_leaf(leaf.engine.crash(leaf.engine.unsynced), maps) as again:
        assert again.store.state(0).window.trimmed == trimmed
        assert again.store.engine.get(layout.log_key(0, trimmed)) is None
        await again.write({b"k": b"w"})


async def test_a_failed_replica_is_left_alone() -> None:
    async with hosted_leaf() as leaf:
        leaf.driver.committer.fail("broken")
        assert not await leaf.housekeeper.turn()


async def test_a_sweep_does_not_pass_again_over_what_it_removed() -> None:
    """The engine keeps tombstones of removed rows; from the beginning each sweep would take longer than the one before."""
    async with hosted_leaf() as leaf:
        store, last_ms = leaf.store, leaf.clock.wall_ms() + 9_000
        await leaf.write({b"a": b"1", b"b": b"2", b"c": b"3"}, ttl_ms=[1_000, 2_000, 9_000])
        leaf.clock.advance(3.0)
        await leaf.housekeeper.turn()
        await quiet(leaf)
        await leaf.housekeeper.turn()
        assert store.state(0).expires_from == last_ms, "nor looks before that instant at all"
        assert store.due(0, leaf.clock.wall_ms(), 10) == []
        # A clock that goes back, and a life that ended before its entry was applied: both are found all the same.
        leaf.clock.set_wall(leaf.clock.wall_ms() - 5_000)
        await leaf.write({b"d": b"4"}, ttl_ms=[1])
        assert len(rows_of(leaf, b"x")) == 2
        leaf.clock.advance(1.0)
        await leaf.housekeeper.turn()
        await quiet(leaf)
        assert len(rows_of(leaf, b"x")) == 1
        assert leaf.read(b"d") is None
        leaf.clock.advance(25.0)
        await leaf.housekeeper.turn()
        await quiet(leaf)
        assert rows_of(leaf, b"x") == []
        assert rows_of(leaf, b"v") == []


async def test_a_secondary_knows_from_when_on_keys_expire_and_removes_none() -> None:
    async with hosted_leaf() as leaf:
        soonest_ms = leaf.clock.wall_ms() + 2_000
        await leaf.write({b"a": b"1", b"b": b"2"}, ttl_ms=[2_000, 9_000])
        config = leaf.maps.current.shards[0]
        leaf.maps.install(leaves={**leaf.maps.current.leaves, "leaf-2": Leaf("leaf-2", "127.0.0.1:2")})
        members = (*config.in_sync, Replica("leaf-2", "i"))
        leaf.maps.change_shard(0, epoch=config.epoch + 1, primary="leaf-2", in_sync=members)
        assert not leaf.driver.replicas[0].is_primary
        leaf.store.state(0).expires_from = 0
        await leaf.housekeeper.turn()
        assert leaf.store.state(0).expires_from == soonest_ms
        last = leaf.driver.replicas[0].last
        leaf.clock.advance(3.0)
        await leaf.housekeeper.turn()
        assert leaf.store.state(0).expires_from == soonest_ms
        assert IndexFeed(leaf.store, leaf.clock).has_expired_unswept(0, 1, leaf.clock.wall_ms())
        assert leaf.driver.replicas[0].last == last
        assert len(rows_of(leaf, b"x")) == 2
