"""How far the indexes of a new schema are: what a search is told that has to wait for one."""

import asyncio
from collections import OrderedDict
from typing import Final

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection
from kvshard.errors import KvShardError
from kvshard.model import LeafStatusRequest, ReplicaStatusRecord
from kvshard.reindexing_progress import reindexing
from kvshard.rpc.leaf_client import LeafClient

ASKED_FOR_S: Final = 0.25
"""A leaf that takes longer is left out: the search has failed already, and only the figure is waited for."""

KEPT_S: Final = 1.0
"""Callers ask again every second (INDEXED_RETRY_MS); however many they are, each leaf is asked once in that time."""

COLLECTIONS_KEPT: Final = 64
"""Changes under way at once are few."""


class IndexingProgress:
    """Asks the leaves, and keeps what they said for a moment."""

    def __init__(self, leaves: LeafClient, clock: Clock) -> None:
        self._leaves = leaves
        self._clock = clock
        self._known: OrderedDict[tuple[int, int], tuple[float, float | None]] = OrderedDict()

    async def of(self, cluster_map: ClusterMap, collection: Collection) -> float | None:
        """The part of the documents that are in the new indexes of a collection; None where that is not known."""
        if collection.change is None:
            return None
        key = collection.id, collection.change.version
        asked_at, fraction = self._known.get(key, (float("-inf"), None))
        now = self._clock.monotonic()
        if now < asked_at + KEPT_S:
            return fraction
        self._known[key] = now, fraction  # Others need not ask meanwhile.
        names = sorted({member.leaf for shard in cluster_map.shards.values() for member in shard.in_sync})
        told = await asyncio.gather(*(self._replicas(name, now + ASKED_FOR_S) for name in names))
        replicas = {name: reported for name, reported in zip(names, told, strict=True) if reported is not None}
        if replicas:
            fraction = reindexing(cluster_map, replicas, *key).fraction
        self._known[key] = now, fraction
        while len(self._known) > COLLECTIONS_KEPT:
            self._known.popitem(last=False)
        return fraction

    async def _replicas(self, leaf: str, deadline: float) -> list[ReplicaStatusRecord] | None:
        try:
            async with asyncio.timeout(ASKED_FOR_S):
                return (await self._leaves.status(leaf, LeafStatusRequest(), deadline)).reply.replicas
        except (KvShardError, TimeoutError):
            return None
