"""Data of shards that went elsewhere: found, and wiped at the next start; what the map does not know is kept."""

from dataclasses import replace

from fakes.hosted_leaf import hosted_leaf
from fakes.maps import FakeMaps, one_leaf_map

from kvshard import hashing
from kvshard.clustermap import Leaf, Replica, WantedSplit
from leaf import layout
from leaf.left_overs import left_over, shards_held
from leaf.memory_engine import MemoryEngine
from leaf.operations import Split
from leaf.replication.messages import Entry
from leaf.shard_store import ShardStore
from leaf.splitting import Part


async def test_the_shards_that_a_disk_holds() -> None:
    engine = MemoryEngine()
    assert shards_held(engine) == []
    async with hosted_leaf(engine, FakeMaps(one_leaf_map(shards=5))) as leaf:
        await leaf.write({b"k": b"v"}, 3)
    assert shards_held(engine) == [0, 1, 2, 3, 4]


async def test_what_was_placed_elsewhere_while_the_leaf_was_away_is_wiped_at_its_start() -> None:
    engine, maps = MemoryEngine(), FakeMaps(one_leaf_map(shards=3))
    async with hosted_leaf(engine, maps) as leaf:
        for shard in range(3):
            await leaf.write({b"k%d" % n: b"v" for n in range(5)}, shard)
    before = len(engine.rows())
    moved = replace(maps.current.shards[1], primary="leaf-2", in_sync=(Replica("leaf-2", "x"),), desired=("leaf-2",), epoch=9)
    maps.install(leaves={**maps.current.leaves, "leaf-2": Leaf("leaf-2")})
    maps.install(shards={**maps.current.shards, 1: moved})
    assert left_over(engine, "leaf-1", maps.current) == [1]
    async with hosted_leaf(engine, maps) as leaf:
        assert sorted(leaf.driver.replicas) == [0, 2]
        assert leaf.index.removed == [1]
        assert leaf.read(b"k1", 2) == b"v"
    assert shards_held(engine) == [0, 2]
    assert len(engine.rows()) < before


def test_what_the_map_does_not_know_is_kept() -> None:
    engine = MemoryEngine()
    batch = engine.new_batch()
    batch.put(b"m\0\0\0\x07incarnation", b"x")
    engine.write(batch)
    assert shards_held(engine) == [7]
    assert left_over(engine, "leaf-1", one_leaf_map(shards=2)) == []


async def test_what_a_split_still_needs_is_copied_before_its_rows_go() -> None:
    """The parent was moved away while this leaf, which was not ready when it was split, was down."""
    engine, maps = MemoryEngine(), FakeMaps(one_leaf_map(shards=1))
    keys = [b"k%03d" % n for n in range(40)]
    async with hosted_leaf(engine, maps) as leaf:
        await leaf.write(dict.fromkeys(keys, b"v"))
    store = ShardStore(engine.crash(10**6))
    table = store.load(0).dedup
    seqno = store.state(0).applied + 1
    entry = Entry(1, seqno, Split(1, 1 << 15, (1 << 16) - 1), None)
    batch = store.engine.new_batch()
    store.append(0, [entry]).write_to(batch)
    store.engine.write(batch)
    store.apply(0, [entry], table)
    assert store.splits.has_uncopied(0)
    incarnation = maps.current.shards[0].in_sync[0].incarnation
    maps.change_shard(0, split=WantedSplit(1, 1 << 15))
    await maps.finish_split(0, maps.current.shards[0].epoch, WantedSplit(1, 1 << 15), frozenset({"leaf-1"}))
    maps.install(leaves={**maps.current.leaves, "leaf-2": Leaf("leaf-2")})
    maps.change_shard(0, primary="leaf-2", in_sync=(Replica("leaf-2", "x"),), desired=("leaf-2",), epoch=9)
    async with hosted_leaf(store.engine, maps) as leaf:
        assert sorted(leaf.driver.replicas) == [1]
        high = [key for key in keys if hashing.slot(key, 0) >= 1 << 15]
        assert leaf.read_all(high, 1).values == [b"v"] * len(high)
    assert shards_held(store.engine) == [1]
    assert store.held(1).incarnation == f"{incarnation}.1"


async def test_the_rows_of_a_split_that_is_being_made_are_no_left_overs() -> None:
    engine, maps = MemoryEngine(), FakeMaps(one_leaf_map(shards=1))
    async with hosted_leaf(engine, maps) as leaf:
        await leaf.write(dict.fromkeys([b"k%03d" % n for n in range(40)], b"v"))
        leaf.store.splits.begin(0, leaf.store.state(0).splits, Part(1, 1 << 15, (1 << 16) - 1))
        leaf.store.copy_chunk(0)
    survivor = engine.crash(10**6)
    maps.install(leaves={**maps.current.leaves, "leaf-2": Leaf("leaf-2")})
    maps.change_shard(0, split=WantedSplit(1, 1 << 15))
    await maps.finish_split(0, maps.current.shards[0].epoch, WantedSplit(1, 1 << 15), frozenset({"leaf-1"}))
    maps.change_shard(1, primary="leaf-2", in_sync=(Replica("leaf-2", "x"),), desired=("leaf-2",))
    assert left_over(survivor, "leaf-1", maps.current) == [1]
    async with hosted_leaf(survivor, maps) as leaf:
        shadow = leaf.store.state(0).splits.shadow
        assert shadow is not None
        assert shadow.is_complete
        assert leaf.store.splits.parent_of_shadow(1) == 0
        assert len(leaf.engine.scan(*layout.shard_range(ord("v"), 1), 100).rows) == shadow.documents > 0


async def test_what_cannot_be_copied_any_more_is_kept_for_a_person_to_look_at() -> None:
    engine, maps = MemoryEngine(), FakeMaps(one_leaf_map(shards=2))
    async with hosted_leaf(engine, maps) as leaf:
        await leaf.write({b"k": b"v"})
    store = ShardStore(engine.crash(10**6))
    table = store.load(0).dedup
    lost = Entry(1, store.state(0).applied + 1, Split(2, 1 << 14, (1 << 15) - 1), None)
    store.append(0, [lost])  # Its row is not written: the log is damaged.
    store.apply(0, [lost], table)
    maps.install(leaves={**maps.current.leaves, "leaf-2": Leaf("leaf-2")})
    maps.change_shard(0, primary="leaf-2", in_sync=(Replica("leaf-2", "x"),), desired=("leaf-2",), epoch=9)
    async with hosted_leaf(store.engine, maps) as leaf:
        assert sorted(leaf.driver.replicas) == [1]
    assert 0 in shards_held(store.engine)
