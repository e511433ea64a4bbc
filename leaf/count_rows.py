"""The counts of a shard's collections, read back from the engine."""

from typing import Final

from leaf import layout
from leaf.engine import Engine
from leaf.operations import Counts

CHUNK_ROWS: Final = 512
"""Rows of one read: there is one for each collection."""


def read_counts(engine: Engine, shard: int) -> dict[int, Counts]:
    """The counts by collection. Raises StorageError."""
    start, end = layout.shard_range(ord("c"), shard)
    counts: dict[int, Counts] = {}
    has_more = True
    while has_more:
        rows, has_more = engine.scan(start, end, CHUNK_ROWS)
        counts |= {layout.collection_of_counts(key): Counts(*layout.unpack_counts(value)) for key, value in rows}
        start = rows[-1][0] + b"\0" if rows else start
    return counts
