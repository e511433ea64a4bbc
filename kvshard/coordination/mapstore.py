"""The cluster map as a process sees it: followed by a watch on the coordinator, installed whole, changed through `mapwriter`.

One task follows the watch. It survives everything that may happen to a coordinator: no answer, a broken watch, history that is
gone. A map that is invalid is refused and the one before it stays.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection, Hedging, InvalidMap, Leaf, ShardConfig, WantedSplit
from kvshard.coordination import collections, mapwriter, placements, replica_sets, schema_changes, splits
from kvshard.coordination.base import Coordinator, CoordinatorUnavailable, Event, HistoryCompacted, KeyValue
from kvshard.coordination.mapwriter import BootstrapPlan, MapMeta, bootstrap
from kvshard.coordination.placements import Removal
from kvshard.coordination.replica_sets import CasOutcome, CasResult
from kvshard.errors import DeadlineExceeded, Unavailable

__all__ = ["BootstrapPlan", "MapMeta", "MapStore", "assemble", "bootstrap"]

REFRESH_INTERVAL_S = 0.01
"""Least time between the starts of two refreshes: a thousand requests that meet a stale epoch together cost one read, and a
process that meets them for ever costs the coordinator at most 100 reads a second."""

BACKOFF_S = 0.05
BACKOFF_MAX_S = 2.0
"""Pause of the follower after a failure, doubled with each further one: the map is late by at most the maximum once the
coordinator is back, and a hundred processes do not keep a struggling one down."""

log = structlog.get_logger(__name__)
MapCallback = Callable[[ClusterMap], None]


def version_of(items: Iterable[KeyValue]) -> int:
    """The version of the map in these keys: their highest revision (`mapwriter` keeps that true across deletes)."""
    return max((item.revision for item in items), default=0)


def assemble(items: Sequence[KeyValue]) -> ClusterMap | None:
    """The map that the keys under map/ make up; None when the cluster has not been bootstrapped. Raises InvalidMap."""
    by_key = {item.key: item for item in items}
    meta_item = by_key.get(mapwriter.META_KEY)
    if meta_item is None:
        return None
    meta = mapwriter.decode_meta(meta_item.value)
    leaves = [mapwriter.decode_leaf(item) for item in items if item.key.startswith(mapwriter.LEAF_PREFIX)]
    shards = [mapwriter.decode_shard(item) for item in items if item.key.startswith(mapwriter.SHARD_PREFIX)]
    known = [mapwriter.decode_collection(item) for item in items if item.key.startswith(mapwriter.COLLECTION_PREFIX)]
    aliases = dict(mapwriter.decode_alias(item) for item in items if item.key.startswith(mapwriter.ALIAS_PREFIX))
    named = [mapwriter.leaf_key(each.id) for each in leaves] + [mapwriter.shard_key(each.id) for each in shards]
    named += [mapwriter.collection_key(each.name) for each in known] + [mapwriter.alias_key(alias) for alias in aliases]
    misnamed = [key for key in named if key not in by_key]
    if misnamed:
        raise InvalidMap(f"invalid cluster map: a value names itself {misnamed[0]!r} but stands under another key")
    return ClusterMap(
        version=version_of(items),
        seed=meta.seed,
        replicas=meta.replicas,
        leaves={leaf.id: leaf for leaf in leaves},
        shards={shard.id: shard for shard in shards},
        collections={collection.name: collection for collection in known},
        aliases=aliases,
    )


class MapStore:
    """The newest valid map this process knows. For the tasks of one event loop.

    Invariants: the version only grows; an installed map is valid; everyone who waits or subscribed sees each map installed.
    """

    def __init__(self, coordinator: Coordinator, clock: Clock, rng: random.Random | None = None) -> None:
        self._coordinator = coordinator
        self._clock = clock
        self._rng = rng or random.Random()
        self._map: ClusterMap | None = None
        self._cluster_id = ""
        self._callbacks: list[MapCallback] = []
        self._waiters: set[asyncio.Future[None]] = set()
        self._follower: asyncio.Task[None] | None = None
        self._reader: asyncio.Task[None] | None = None
        self._refreshers: list[asyncio.Future[ClusterMap]] = []
        self._last_read_at = float("-inf")
        self._is_closed = False

    def __repr__(self) -> str:
        return f"MapStore(version={self._map.version if self._map else None})"

    async def start(self) -> None:
        """Follow the map; returns when there is one, so not before the cluster is bootstrapped."""
        if self._follower is None:
            self._follower = asyncio.create_task(self._follow(), name="mapstore-follower")
        while self._map is None:
            await self._next_install()

    async def close(self) -> None:
        """Stop following. Those who wait get Unavailable. The coordinator handle stays open."""
        self._is_closed = True
        tasks = [task for task in (self._follower, self._reader) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._follower = self._reader = None
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(Unavailable("the map store is closed"))
        _answer(self._refreshers, Unavailable("the map store is closed"))
        self._refreshers.clear()

    @property
    def has_map(self) -> bool:
        """A map is installed."""
        return self._map is not None

    @property
    def current(self) -> ClusterMap:
        """The newest map. Raises Unavailable before the first one."""
        if self._map is None:
            raise Unavailable("the cluster map is not known yet")
        return self._map

    @property
    def cluster_id(self) -> str:
        """The cluster's random name, given when it was bootstrapped; empty before the first map."""
        return self._cluster_id

    def subscribe(self, callback: MapCallback) -> Callable[[], None]:
        """Call back with each map installed from now on, on the event loop. Returns what ends the subscription."""
        self._callbacks.append(callback)

        def unsubscribe() -> None:
            if callback in self._callbacks:
                self._callbacks.remove(callback)

        return unsubscribe

    async def wait_newer(self, version: int, timeout: float | None = None) -> ClusterMap:
        """The map, once it is newer than a version. Raises DeadlineExceeded after timeout seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self._map is None or self._map.version <= version:
                    await self._next_install()
                return self._map
        except TimeoutError:
            raise DeadlineExceeded(f"the cluster map did not get newer than version {version} in {timeout} s") from None

    async def refresh(self) -> ClusterMap:
        """Read the map now. The read begins after this call does, so it shows every change made before; callers share reads.

        Raises Unavailable when the coordinator does not answer; what is installed stays.
        """
        if self._is_closed:
            raise Unavailable("the map store is closed")
        answer: asyncio.Future[ClusterMap] = asyncio.get_running_loop().create_future()
        self._refreshers.append(answer)
        if self._reader is None or self._reader.done():
            self._reader = asyncio.create_task(self._serve_refreshers(), name="mapstore-refresh")
        return await answer

    async def register_leaf(
        self, leaf: str, address: str, zone: str | None, weight: float | None, *, may_join: bool = True
    ) -> Leaf:
        """Say where a leaf serves. See `mapwriter.register_leaf`."""
        registered = await mapwriter.register_leaf(self._coordinator, leaf, address, zone, weight, may_join=may_join)
        await self._refresh_after_write()
        return registered

    async def claim_incarnations(self, leaf: str, incarnations: Mapping[int, str]) -> dict[int, ShardConfig]:
        """Record the identities of replicas' data, by shard. Raises FailedPrecondition when the map has another one.

        Returns the shards as they are now; the installed map follows by the watch.
        """
        return await replica_sets.claim_incarnations(self._coordinator, leaf, incarnations)

    async def compare_and_set(self, config: ShardConfig, expected_epoch: int) -> CasResult:
        """Write a shard's replica set if it is still at the epoch; tried once. The installed map follows by the watch."""
        return await replica_sets.compare_and_set(self._coordinator, config, expected_epoch)

    async def read_shard(self, shard: int) -> ShardConfig:
        """A shard as the coordinator holds it now. Raises CoordinatorUnavailable."""
        return (await mapwriter.read_shard(self._coordinator, shard))[1]

    async def create_collection(self, name: str, schema: Mapping[str, str], hedging: Hedging | None = None) -> Collection:
        """Create a collection; one with the same schema is returned as it is. See `collections.create_collection`."""
        collection = await collections.create_collection(self._coordinator, name, schema, hedging)
        await self._refresh_after_write()
        return collection

    async def update_collection(
        self, name: str, hedging: Hedging, names: Sequence[str], synonyms: Sequence[str] | None = None
    ) -> Collection:
        """Change the named fields of a collection's hedging settings, and its synonyms. See `collections.update_collection`."""
        collection = await collections.update_collection(self._coordinator, name, hedging, names, synonyms)
        await self._refresh_after_write()
        return collection

    async def drop_collection(self, name: str) -> Collection:
        """Drop a collection. See `collections.drop_collection`."""
        collection = await collections.drop_collection(self._coordinator, name)
        await self._refresh_after_write()
        return collection

    async def add_fields(self, name: str, fields: Mapping[str, str]) -> Collection:
        """Begin to add fields to a collection's schema. See `schema_changes.add_fields`."""
        collection = await schema_changes.add_fields(self._coordinator, name, fields)
        await self._refresh_after_write()
        return collection

    async def reindex(self, name: str, fields: Mapping[str, str]) -> Collection:
        """Begin to build a collection's indexes anew. See `schema_changes.reindex`."""
        collection = await schema_changes.reindex(self._coordinator, name, fields)
        await self._refresh_after_write()
        return collection

    async def call_off_change(self, name: str) -> Collection:
        """Call off the change of a collection's schema. See `schema_changes.call_off`."""
        collection = await schema_changes.call_off(self._coordinator, name)
        await self._refresh_after_write()
        return collection

    async def set_alias(self, alias: str, collection: str, expected: str | None = None) -> None:
        """Let an alias stand for a collection. See `collections.set_alias`."""
        await collections.set_alias(self._coordinator, alias, collection, expected)
        await self._refresh_after_write()

    async def remove_alias(self, alias: str) -> str:
        """Remove an alias. Returns what it stood for. See `collections.remove_alias`."""
        collection = await collections.remove_alias(self._coordinator, alias)
        await self._refresh_after_write()
        return collection

    async def set_draining(self, leaf: str, is_draining: bool) -> Leaf:
        """Have a leaf emptied, or take that back. See `placements.set_draining`."""
        marked = await placements.set_draining(self._coordinator, leaf, is_draining)
        await self._refresh_after_write()
        return marked

    async def remove_leaf(self, leaf: str, is_forced: bool) -> Removal:
        """Take a leaf out of the map. See `placements.remove_leaf`."""
        removal = await placements.remove_leaf(self._coordinator, leaf, is_forced)
        await self._refresh_after_write()
        return removal

    async def move_replica(self, shard: int, source: str, target: str) -> ShardConfig:
        """Want a replica on another leaf. See `placements.move_replica`."""
        moved = await placements.move_replica(self._coordinator, shard, source, target)
        await self._refresh_after_write()
        return moved

    async def move_primary(self, shard: int, target: str) -> ShardConfig:
        """Want another primary. See `placements.move_primary`."""
        moved = await placements.move_primary(self._coordinator, shard, target)
        await self._refresh_after_write()
        return moved

    async def request_splits(self, shards: Sequence[int] | None) -> dict[int, WantedSplit]:
        """Wish that shards (None: all) be split; see `splits.request_splits`."""
        wanted = await splits.request_splits(self._coordinator, shards)
        await self._refresh_after_write()
        return wanted

    async def finish_split(self, shard: int, epoch: int, wanted: WantedSplit, members: frozenset[str]) -> CasResult:
        """Write parent and child of a split, if the parent still is in this epoch; tried once. Shows in the map at once."""
        result = await splits.finish_split(self._coordinator, shard, epoch, wanted, members)
        if result.outcome is CasOutcome.SUCCEEDED:
            await self._refresh_after_write()
        return result

    async def _refresh_after_write(self) -> None:
        """Let the writer see its own write. The write is made: a read that fails now is the follower's business."""
        with contextlib.suppress(Unavailable):
            await self.refresh()

    async def _next_install(self) -> None:
        if self._is_closed:
            raise Unavailable("the map store is closed")
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _install(self, items: Sequence[KeyValue]) -> None:
        """Install the map in these keys if it is newer and valid."""
        version = version_of(items)
        if self._map is not None and version <= self._map.version:
            return
        try:
            new = assemble(items)
        except InvalidMap as error:
            log.error(
                "invalid cluster map refused", version=version, installed=self._map and self._map.version, error=str(error)
            )
            return
        if new is None:
            return
        self._map = new
        self._cluster_id = next(
            mapwriter.decode_meta(item.value).cluster_id for item in items if item.key == mapwriter.META_KEY
        )
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
        for callback in list(self._callbacks):
            try:
                callback(new)
            except Exception:
                log.exception("a subscriber to the cluster map failed", version=version)

    async def _serve_refreshers(self) -> None:
        while self._refreshers:
            await asyncio.sleep(max(0.0, self._last_read_at + REFRESH_INTERVAL_S - self._clock.monotonic()))
            self._last_read_at = self._clock.monotonic()
            # Whoever comes after this line needs a read that begins after it came.
            answers, self._refreshers = self._refreshers, []
            try:
                outcome = await self._read_once()
            except asyncio.CancelledError:
                _answer(answers, Unavailable("the map store is closed"))
                raise
            _answer(answers, outcome)

    async def _read_once(self) -> ClusterMap | Exception:
        try:
            self._install((await self._coordinator.get_prefix(mapwriter.PREFIX)).items)
            return self.current
        except CoordinatorUnavailable as error:
            return Unavailable(f"the cluster map cannot be read: {error}")
        except Exception as error:
            return error

    async def _follow(self) -> None:
        failures = 0
        while True:
            began_at = self._clock.monotonic()
            try:
                snapshot = await self._coordinator.get_prefix(mapwriter.PREFIX)
                self._install(snapshot.items)
                items = {item.key: item for item in snapshot.items}
                async for events in self._coordinator.watch(mapwriter.PREFIX, snapshot.revision):
                    failures = 0
                    _apply(items, events)
                    self._install(list(items.values()))
            except HistoryCompacted as error:
                log.info("map history compacted, reading the map anew", error=str(error))
            except CoordinatorUnavailable as error:
                log.warning("coordinator unavailable, following the map again", error=str(error), failures=failures)
            except Exception:
                # Whatever it was, a process that stopped following would route by an old map for ever.
                log.exception("following the cluster map failed", failures=failures)
            # A watch that lasted is no sign of trouble, even if it saw no change.
            failures = 1 if self._clock.monotonic() - began_at > BACKOFF_MAX_S else failures + 1
            await asyncio.sleep(self._backoff(failures))

    def _backoff(self, failures: int) -> float:
        longest: float = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(failures - 1, 10))
        return longest * (0.5 + 0.5 * self._rng.random())


def _apply(items: dict[str, KeyValue], events: Sequence[Event]) -> None:
    for event in events:
        if event.value is None:
            items.pop(event.key, None)
        else:
            items[event.key] = KeyValue(event.key, event.value, event.revision)


def _answer(answers: Sequence[asyncio.Future[ClusterMap]], outcome: ClusterMap | Exception) -> None:
    for answer in answers:
        if answer.done():
            continue  # its caller was cancelled
        if isinstance(outcome, ClusterMap):
            answer.set_result(outcome)
        else:
            answer.set_exception(outcome)
