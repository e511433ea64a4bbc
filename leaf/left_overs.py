"""What a leaf's disk holds of shards that were placed elsewhere while the leaf was away: nobody will ask for it again."""

from kvshard.clustermap import ClusterMap
from leaf import layout
from leaf.engine import Engine


def shards_held(engine: Engine) -> list[int]:
    """The shards of which the disk has something. A seek each: every shard's data has meta rows, its identity among them."""
    found: list[int] = []
    start, end = layout.meta_key(0, b""), layout.meta_key(layout.LEAF_SHARD, b"")
    while rows := engine.scan(start, end, 1).rows:
        shard = layout.shard_of_meta(rows[0][0])
        found.append(shard)
        start = layout.meta_key(shard + 1, b"")
    return found


def left_over(engine: Engine, leaf: str, cluster_map: ClusterMap) -> list[int]:
    """The shards of which this leaf holds data that the map places elsewhere.

    Not those that the map does not have: what it does not know may be all that is left of something.
    """
    placed = {shard.id for shard in cluster_map.shards_on(leaf)}
    placed |= {shard.id for shard in cluster_map.shards.values() if leaf in shard.desired}
    return [shard for shard in shards_held(engine) if shard in cluster_map.shards and shard not in placed]
