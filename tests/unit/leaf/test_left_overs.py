"""Data of shards that went elsewhere: found, and wiped at the next start; what the map does not know is kept."""

from dataclasses import replace

from fakes.hosted_leaf import hosted_leaf
from fakes.maps import FakeMaps, one_leaf_map

from kvshard.clustermap import Leaf, Replica
from leaf.left_overs import left_over, shards_held
from leaf.memory_engine import MemoryEngine


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
