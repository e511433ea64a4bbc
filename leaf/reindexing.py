"""Changes of schemas, as a leaf takes part in them: it reports which new indexes it has, and the balancer's leaf switches.

The indexes themselves are built by the indexer, beside those that serve. The switch is one write of the map; it waits until no
replica in sync lacks its index, so a leaf that is down holds it up until its replicas have been put out of their sets.
"""

import asyncio
from collections.abc import Collection as Several
from typing import Final, Protocol

import structlog

from kvshard.clustermap import ClusterMap, Collection
from kvshard.coordination import schema_changes
from kvshard.coordination.base import Coordinator, CoordinatorUnavailable
from kvshard.coordination.leases import LeasedKey
from kvshard.errors import CollectionNotFound, Unavailable

LOOK_INTERVAL_S: Final = 0.25
"""Between two looks. Without a change under way a look costs nothing, with one a read of the coordinator and few writes."""

_log = structlog.get_logger(__name__)


class Maps(Protocol):
    """What it wants of the map store."""

    @property
    def current(self) -> ClusterMap:
        """The newest map."""
        ...

    async def refresh(self) -> ClusterMap:
        """Read the map now."""
        ...


class Indexes(Protocol):
    """What it wants of the indexer."""

    def ready(self, collection_id: int, version: int) -> frozenset[int]:
        """The shards in which the index of this schema version could serve."""
        ...


class Reindexing:
    """Of one leaf. office: the balancer's key."""

    def __init__(self, leaf: str, coordinator: Coordinator, maps: Maps, indexes: Indexes, office: LeasedKey) -> None:
        self._leaf = leaf
        self._coordinator = coordinator
        self._maps = maps
        self._indexes = indexes
        self._office = office
        self._reported: dict[str, Several[int]] = {}
        self._may_have_reports = True
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"Reindexing({self._leaf!r}, {self._reported})"

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._act(), name="reindexing")

    async def close(self) -> None:
        """Stop to look."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _act(self) -> None:
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            try:
                await self.look()
            except (CoordinatorUnavailable, Unavailable) as error:
                _log.warning("a change of a schema cannot go on yet", reason=str(error))
            except Exception:  # A change that cannot be made must not keep the others from being made.
                _log.exception("a change of a schema failed")

    async def look(self) -> None:
        """Report what has become ready here, and, if this leaf is the balancer, make the switches that are due."""
        known = self._maps.current
        changing = {(each.id, each.change.version): each for each in known.collections.values() if each.change is not None}
        keys = {schema_changes.report_key(*change, self._leaf): change for change in changing}
        self._reported = {key: shards for key, shards in self._reported.items() if key in keys}
        for key, change in keys.items():
            ready = self._indexes.ready(*change)
            if self._reported.get(key) != ready and await schema_changes.report(self._coordinator, key, ready):
                self._reported[key] = ready
        if not self._office.is_held:
            self._may_have_reports = True  # Whoever holds the key next looks at what was left.
        elif changing or self._may_have_reports:
            await self._switch(known, changing)

    async def _switch(self, known: ClusterMap, changing: dict[tuple[int, int], Collection]) -> None:
        reports = await schema_changes.read_reports(self._coordinator)
        self._may_have_reports = bool(reports)
        for change, collection in changing.items():
            if schema_changes.lacking(known, reports.get(change, {})):
                continue
            try:
                is_done = await schema_changes.finish(self._coordinator, collection, [self._office.guard()])
            except CollectionNotFound:
                continue  # dropped meanwhile
            if is_done:
                _log.info("collection has another schema now", collection=collection.name, version=change[1])
                await self._maps.refresh()
        for change in reports.keys() - changing.keys():
            await schema_changes.forget_reports(self._coordinator, change, reports[change].keys())
