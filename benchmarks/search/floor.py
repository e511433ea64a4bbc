"""What a search over these shards costs at the very least, so that one sees which part of its cost is kvshard's own doing.

Two floors. The shards' own indexes, as they lie on the leaves' disks, searched one after the other in this process by bare
tantivy: no network, no other thread, tantivy's own scores. And the way of eight legs through router and leaves that do nothing
there but read one key each.
"""

from collections.abc import Sequence
from itertools import islice
from operator import itemgetter
from pathlib import Path

import msgspec
from tantivy import DocAddress, Searcher

from benchmarks.search.loaded import COLLECTION, Documents, Loaded
from benchmarks.search.reference import TEXT_FIELDS, words_query
from kvshard.clustermap import ClusterMap
from leaf.index_fields import KEY, key_bytes, searched
from leaf.text_index import TextIndex

KEYS_OF_A_SHARD = 100
"""Keys that the legs of one key go through in turn: from the leaves' caches, as is most of what is asked often."""


class ShardIndexes:
    """The indexes of all shards, as they are when this is made. documents: key -> document, as they are stored."""

    def __init__(self, folders: Sequence[Path], schema: dict[str, str], documents: Documents) -> None:
        """folders: one index of each shard."""
        opened = [TextIndex.open(folder, schema, lambda key: 0) for folder in folders]
        self._searchers: list[Searcher] = [index.searcher() for index in opened]
        self._fields = opened[0].fields
        self._stored = {key: msgspec.json.encode(document) for key, document in documents.items()}

    def __repr__(self) -> str:
        return f"ShardIndexes({len(self._searchers)} of {self.segments} segments)"

    @property
    def keys(self) -> list[str]:
        """Of the documents."""
        return list(self._stored)

    @property
    def segments(self) -> int:
        """Of all shards together."""
        return sum(searcher.num_segments for searcher in self._searchers)

    @property
    def documents(self) -> int:
        """In all shards together."""
        return sum(searcher.num_docs for searcher in self._searchers)

    def answer(self, text: str, limit: int) -> tuple[list[bytes], int]:
        """The documents of the first hits by each shard's own scores, and how many match."""
        query = words_query(self._fields, text, [searched(name) for name in TEXT_FIELDS])
        best: list[tuple[float, Searcher, DocAddress]] = []
        total = 0
        for searcher in self._searchers:
            found = searcher.search(query, limit)
            best += [(score, searcher, address) for score, address in found.hits]
            total += int(found.count)  # type: ignore[attr-defined]  # missing in tantivy's stubs
        best.sort(key=itemgetter(0), reverse=True)
        keys = (str(searcher.doc(address).get_first(KEY)) for _, searcher, address in best[:limit])
        return [self._stored[key_bytes(key).decode()] for key in keys], total


async def shard_indexes(loaded: Loaded, documents: Documents) -> ShardIndexes:
    """Those of a cluster at rest: of each shard its primary's."""
    cluster_map = await loaded.fleet.map()
    collection = cluster_map.collection(COLLECTION)
    assert collection is not None
    folders = [
        loaded.fleet.data_dir(shard.primary) / "index" / f"{shard.id}-{collection.id}" for shard in cluster_map.shards.values()
    ]
    return ShardIndexes(folders, dict(collection.schema), documents)


def one_of_each_shard(cluster_map: ClusterMap, keys: Sequence[str], count: int = KEYS_OF_A_SHARD) -> list[list[str]]:
    """Keys of every shard, one each, up to `count` times; fewer where a shard has fewer of them."""
    by_shard: dict[int, list[str]] = {shard: [] for shard in cluster_map.shards}
    for key in keys:
        by_shard[cluster_map.shard_of_key(key.encode())].append(key)
    return [list(each) for each in islice(zip(*by_shard.values(), strict=False), count)]
