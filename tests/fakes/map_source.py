"""A cluster map that the test sets, and leaves that hold documents in memory."""

import asyncio
import dataclasses
from collections.abc import Mapping, Sequence

from kvshard.clustermap import (
    DEFAULT_COLLECTION,
    ClusterMap,
    Collection,
    Hedging,
    Leaf,
    Replica,
    SchemaChange,
    ShardConfig,
    equal_ranges,
)
from kvshard.coordination import schema_changes
from kvshard.errors import CollectionExists, CollectionNotFound, DeadlineExceeded, Unavailable
from kvshard.hedge_settings import merged
from kvshard.synonyms import check_synonyms

DOCS = Collection("docs", 2, {"title": "text", "tag": "keyword", "year": "integer"})


def cluster_map(shards: int = 4, leaves: int = 2, version: int = 1, epoch: int = 1, replicas: int = 1) -> ClusterMap:
    """Shard i lives on leaf-(i % leaves + 1) and the leaves after it; collections are the default one and "docs"."""
    names = [f"leaf-{number}" for number in range(1, leaves + 1)]
    configs = {
        shard: ShardConfig(
            id=shard,
            first_slot=first,
            last_slot=last,
            epoch=epoch,
            primary=names[shard % leaves],
            in_sync=tuple(Replica(names[(shard + place) % leaves], "i") for place in range(replicas)),
        )
        for shard, (first, last) in enumerate(equal_ranges(shards))
    }
    entries = {name: Leaf(name, f"127.0.0.1:{1000 + number}") for number, name in enumerate(names)}
    return ClusterMap(version, 0, entries, configs, {each.name: each for each in (DEFAULT_COLLECTION, DOCS)})


class FakeMapSource:
    """Implements router.cluster.MapEditor over one map; `install` replaces it, `upcoming` is what the next refresh finds."""

    def __init__(self, current: ClusterMap | None) -> None:
        self._current = current
        self.upcoming: ClusterMap | None = None
        self.refreshes = 0
        self._changed = asyncio.Event()

    @property
    def has_map(self) -> bool:
        return self._current is not None

    @property
    def current(self) -> ClusterMap:
        if self._current is None:
            raise Unavailable("no map")
        return self._current

    def install(self, new: ClusterMap) -> None:
        """The watch brings a new map."""
        self._current = new
        self._changed.set()
        self._changed = asyncio.Event()

    async def refresh(self) -> ClusterMap:
        self.refreshes += 1
        if self.upcoming is not None:
            self.install(self.upcoming)
            self.upcoming = None
        return self.current

    async def wait_newer(self, version: int, timeout: float | None = None) -> ClusterMap:
        try:
            async with asyncio.timeout(timeout):
                while not self.has_map or self.current.version <= version:
                    await self._changed.wait()
        except TimeoutError:
            raise DeadlineExceeded("no newer map") from None
        return self.current

    async def create_collection(self, name: str, schema: Mapping[str, str], hedging: Hedging | None = None) -> Collection:
        present = self.current.collection(name)
        if present is not None:
            if dict(present.schema) != dict(schema):
                raise CollectionExists(f"{name} has another schema")
            return present
        created = Collection(name, 100 + len(self.current.collections), schema, hedging or Hedging())
        self._change({**self.current.collections, name: created})
        return created

    async def update_collection(
        self, name: str, hedging: Hedging, names: Sequence[str], synonyms: Sequence[str] | None = None
    ) -> Collection:
        held = self.current.collection(name)
        if held is None:
            raise CollectionNotFound(f"no {name}")
        updated = dataclasses.replace(held, hedging=merged(held.hedging, hedging, names))
        if synonyms is not None:
            updated = dataclasses.replace(updated, synonyms=check_synonyms(synonyms))
        self._change({**self.current.collections, name: updated})
        return updated

    async def drop_collection(self, name: str) -> Collection:
        dropped = self.current.collection(name)
        if dropped is None:
            raise CollectionNotFound(f"no {name}")
        self._change({key: value for key, value in self.current.collections.items() if key != name})
        return dropped

    async def add_fields(self, name: str, fields: Mapping[str, str]) -> Collection:
        return self._begin(name, schema_changes.with_fields, fields)

    async def reindex(self, name: str, fields: Mapping[str, str]) -> Collection:
        return self._begin(name, schema_changes.with_types, fields)

    async def call_off_change(self, name: str) -> Collection:
        changed = dataclasses.replace(self._known(name), change=None)
        self._change({**self.current.collections, changed.name: changed})
        return changed

    def finish_change(self, name: str) -> None:
        """Every index is built."""
        changed = self._known(name).changed()
        self._change({**self.current.collections, changed.name: changed})

    def _begin(self, name, schema_of, fields) -> Collection:
        held = self._known(name)
        version = held.versions + 1
        changed = dataclasses.replace(held, change=SchemaChange(schema_of(held, fields), version), versions=version)
        self._change({**self.current.collections, changed.name: changed})
        return changed

    def _known(self, name: str) -> Collection:
        held = self.current.collection(name)
        if held is None:
            raise CollectionNotFound(f"no {name}")
        return held

    async def set_alias(self, alias: str, collection: str, expected: str | None = None) -> None:
        self._set_aliases({**self.current.aliases, alias: collection})

    async def remove_alias(self, alias: str) -> str:
        left = dict(self.current.aliases)
        removed = left.pop(alias)
        self._set_aliases(left)
        return removed

    def _set_aliases(self, aliases: Mapping[str, str]) -> None:
        self.install(dataclasses.replace(self.current, version=self.current.version + 1, aliases=aliases))

    def _change(self, collections: Mapping[str, Collection]) -> None:
        self.install(dataclasses.replace(self.current, version=self.current.version + 1, collections=collections))

    def __repr__(self) -> str:
        return f"FakeMapSource(version={self._current and self._current.version}, refreshes={self.refreshes})"
