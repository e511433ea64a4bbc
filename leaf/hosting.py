"""Which replicas a leaf has: follows the map, opens what is placed here, closes and wipes what is placed elsewhere.

One task does it, replica after replica, so that a shard that comes back is opened only when what was there has been wiped. What
a newer map says of open replicas is told to them at once, in the map's own callback.
"""

import asyncio
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection, ShardConfig, WantedSplit
from kvshard.clustermap import Replica as Member
from kvshard.coordination.base import CoordinatorUnavailable
from kvshard.coordination.replica_sets import CasResult
from kvshard.errors import ErrorDetails, KvShardError, StaleEpoch, Unavailable
from kvshard.splitting import origin_of
from leaf.committer import Committer
from leaf.engine import StorageError
from leaf.index_report import IndexReport
from leaf.left_overs import left_over
from leaf.recovery import Identity, identify
from leaf.refusals import storage_failed
from leaf.replica import Replica
from leaf.replication.machine import Recovered, ReplicationMachine
from leaf.replication.oplog import ReplicatedLog
from leaf.replication.timings import Timings
from leaf.shard_store import ShardStore

OPEN_RETRY_MAX_S: Final = 2.0
"""Longest pause after a coordinator that did not answer, with jitter: leaves start together."""

_log = structlog.get_logger(__name__)


class Maps(Protocol):
    """What a leaf wants of the map store."""

    @property
    def current(self) -> ClusterMap:
        """The newest map."""
        ...

    async def refresh(self) -> ClusterMap:
        """Read the map now."""
        ...

    def subscribe(self, callback: Callable[[ClusterMap], None], /) -> Callable[[], None]:
        """Call back with each map installed from now on."""
        ...

    async def claim_incarnations(self, leaf: str, incarnations: dict[int, str]) -> dict[int, ShardConfig]:
        """Record the identities of replicas' data."""
        ...

    async def compare_and_set(self, config: ShardConfig, expected_epoch: int) -> CasResult:
        """Write a replica set if the shard is still at the epoch."""
        ...

    async def read_shard(self, shard: int) -> ShardConfig:
        """Read a shard now."""
        ...

    async def finish_split(self, shard: int, epoch: int, wanted: WantedSplit, members: frozenset[str]) -> CasResult:
        """Write parent and child of a split if the parent is still in the epoch. members: leaves that have the child's data."""
        ...


class Index(Protocol):
    """What the driver tells the search indexes (`indexer.py`)."""

    def open_shard(self, shard: int, collections: Iterable[Collection]) -> None:
        """Start to keep the shard's indexes."""
        ...

    def close_shard(self, shard: int) -> None:
        """Stop to keep the shard's indexes; their files stay."""
        ...

    def set_collections(self, shards: Iterable[int], collections: Sequence[Collection]) -> None:
        """The map's collections now."""
        ...

    def require(self, shard: int, seqno: int) -> None:
        """Answer no search of the shard before its index holds the entries through a seqno."""
        ...

    def split(self, shard: int, child: int, first_slot: int, last_slot: int, seqno: int) -> None:
        """These slots have left the shard for the child with this entry."""
        ...

    def remove_shard(self, shard: int) -> None:
        """Remove what is kept for a shard that is not open."""
        ...

    def notify(self, shard: int, applied_seqno: int, operations: Iterable[object] = ()) -> None:
        """The shard has applied entries, with these operations, through this seqno."""
        ...

    def indexed_through(self, shard: int, collection_id: int) -> int:
        """The seqno through which every index of the collection is durable."""
        ...

    def report(self, shard: int, collection_id: int) -> IndexReport:
        """How the indexes of the collection are."""
        ...


class Host(Protocol):
    """The driver, as hosting sees it."""

    leaf: str
    store: ShardStore
    maps: Maps
    index: Index
    clock: Clock
    committer: Committer
    timings: Timings
    boot: int
    replicas: dict[int, Replica]

    def adopt(self, replica: Replica) -> None:
        """A replica has its machine: begin to act for it."""
        ...

    def discard(self, replica: Replica, error: KvShardError) -> None:
        """A replica has no place here any more: its callers get the error."""
        ...

    def fail(self, replica: Replica, error: KvShardError) -> None:
        """Stop a replica for good."""
        ...

    def observe(self, replica: Replica, config: ShardConfig) -> None:
        """The map says this of the replica's shard."""
        ...


class Hosting:
    """Opens and closes the replicas of a driver."""

    def __init__(self, host: Host, new_incarnation: Callable[[], str], open_retry_s: float) -> None:
        self._host = host
        self._new_incarnation = new_incarnation
        self._open_retry_s = open_retry_s
        self._map_changed = asyncio.Event()
        self._opened = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._jitter = random.Random()
        self._next_number = 1
        self._has_looked_back = False

    def __repr__(self) -> str:
        return f"Hosting({self._host.leaf!r})"

    def start(self) -> None:
        """Begin to open the replicas that the map places here."""
        self._unsubscribe = self._host.maps.subscribe(self._on_map)
        self._map_changed.set()
        self._follower = asyncio.create_task(self._follow_map(), name="hosting")

    async def wait_open(self) -> None:
        """Return when every replica that the map placed here has been opened, or has failed to."""
        await self._opened.wait()

    def look(self) -> None:
        """What was waited for may have come."""
        self._map_changed.set()

    def give_up(self) -> None:
        """The storage failed: nothing more will be opened."""
        self._opened.set()

    async def close(self) -> None:
        """Stop to follow the map."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)

    def _on_map(self, cluster_map: ClusterMap) -> None:
        """Tell open replicas at once what a newer map says of them; leave opening and closing to the task."""
        for shard, replica in list(self._host.replicas.items()):
            config = cluster_map.shards.get(shard)
            if config is not None and replica.machine is not None:
                self._host.observe(replica, config)
        self._host.index.set_collections(self._open_shards(), list(cluster_map.collections.values()))
        self._map_changed.set()

    def _open_shards(self) -> list[int]:
        return [shard for shard, replica in self._host.replicas.items() if replica.machine is not None]

    async def _follow_map(self) -> None:
        pause = self._open_retry_s
        while True:
            await self._map_changed.wait()
            self._map_changed.clear()
            try:
                await self._wipe_left_over()
                await self._close_misplaced()
                await self._open_missing()
            except (Unavailable, CoordinatorUnavailable) as error:
                _log.warning("cannot open replicas yet", reason=str(error))
            except StorageError as error:
                self._host.committer.fail(str(error))
            except Exception:  # A leaf that stopped to try would wait for its start for ever, without a word.
                _log.exception("opening replicas failed")
            else:
                self._opened.set()
                pause = self._open_retry_s
                continue
            self._map_changed.set()
            await asyncio.sleep(pause * self._jitter.uniform(0.5, 1.0))
            pause = min(2 * pause, OPEN_RETRY_MAX_S)

    def _is_placed_here(self, config: ShardConfig) -> bool:
        leaf = self._host.leaf
        return leaf in config.desired or any(replica.leaf == leaf for replica in config.replicas)

    async def _close_misplaced(self) -> None:
        """Close the replicas that the map places elsewhere, and free their space."""
        host = self._host
        for shard, replica in list(host.replicas.items()):
            config = host.maps.current.shards.get(shard)
            # A map older than what the replica knows says nothing: it may just have been added.
            if config is None or self._is_placed_here(config) or config.epoch < replica.epoch:
                continue
            if host.store.splits.has_uncopied(shard):
                continue  # The child of a split is still being made of its rows.
            _log.info("replica is placed elsewhere now", shard=shard)
            details = ErrorDetails(maybe_applied=True, shards=(shard,))
            was_failed = replica.error is not None
            host.discard(replica, StaleEpoch(f"shard {shard} has moved to other leaves", details))
            if not was_failed:  # What could not be opened is kept: a person may want to look at it.
                await self._wipe(shard)

    async def _wipe_left_over(self) -> None:
        """Once, at the start: free what shards take that went elsewhere while this leaf was away."""
        if self._has_looked_back:
            return
        host = self._host
        for shard in left_over(host.store.engine, host.leaf, host.maps.current):
            if host.store.splits.parent_of_shadow(shard) is not None:
                continue  # It is being made of the rows of another shard, and goes with these.
            try:
                await self._rescue(shard)
            except KvShardError as error:  # A damaged log, say: a person may want to look at it.
                _log.error("what a split still needs cannot be copied", shard=shard, reason=error.message)
                continue
            _log.info("replica was placed elsewhere meanwhile", shard=shard)
            host.index.remove_shard(shard)
            await host.committer.make_durable(host.store.wipe(shard))
        self._has_looked_back = True

    async def _rescue(self, shard: int) -> None:
        """Finish the child of a split that is still being made of the rows of a shard which is not opened any more."""
        store = self._host.store
        if not store.splits.has_uncopied(shard):
            return
        store.load(shard)
        while store.state(shard).splits.late:
            store.copy_chunk(shard)
            await asyncio.sleep(0)

    async def _wipe(self, shard: int) -> None:
        self._host.index.set_collections([shard], [])
        self._host.index.close_shard(shard)
        await self._host.committer.make_durable(self._host.store.wipe(shard))

    async def _open_missing(self) -> None:
        host = self._host
        wanted = [config for config in host.maps.current.shards.values() if self._is_placed_here(config)]
        missing = [config for config in wanted if self._is_missing(config.id)]
        found: dict[int, tuple[Replica, str]] = {}
        claims: dict[int, str] = {}
        for config in missing:
            replica = host.replicas.setdefault(config.id, self._new_replica(config.id))
            if self._is_being_made(config):
                continue
            try:
                incarnation, is_claimed = await self._prepare(config)
            except KvShardError as error:
                if isinstance(error, Unavailable):
                    raise
                _log.error("replica cannot be opened", shard=config.id, reason=error.message)
                host.fail(replica, error)
                continue
            except StorageError as error:
                host.committer.fail(str(error))
                host.fail(replica, storage_failed(config.id, str(error)))
                continue
            if not is_claimed:
                claims[config.id] = incarnation
            found[config.id] = (replica, incarnation)
            await asyncio.sleep(0)  # Other shards' requests are served between two of them.
        if claims:
            await host.maps.claim_incarnations(host.leaf, claims)
            await host.maps.refresh()
        if host.committer.failure is not None:
            for shard, (replica, _) in found.items():
                host.fail(replica, storage_failed(shard, host.committer.failure))
            return
        for shard, (replica, incarnation) in found.items():
            try:
                self._open(shard, replica, incarnation)
            except KvShardError as error:
                _log.error("replica cannot be opened", shard=shard, reason=error.message)
                host.fail(replica, error)
            await asyncio.sleep(0)  # To read the end of one log takes a while.

    def _is_being_made(self, config: ShardConfig) -> bool:
        """Whether the shard's data here is still to come out of a split that its parent's replica here has not done yet."""
        store = self._host.store
        if store.splits.parent_of_shadow(config.id) is not None:
            return True
        expected = next((each.incarnation for each in config.in_sync if each.leaf == self._host.leaf), "")
        origin = origin_of(expected)
        if origin is None or store.held(config.id).incarnation:
            return False
        return any(
            store.held(shard).incarnation == origin and store.splits.range_of(shard)[0] >= config.first_slot
            for shard in self._host.replicas
            if shard != config.id
        )

    def _is_missing(self, shard: int) -> bool:
        replica = self._host.replicas.get(shard)
        return replica is None or (replica.machine is None and replica.error is None)

    def _new_replica(self, shard: int) -> Replica:
        replica = Replica(shard, self._next_number)
        self._next_number += 1
        return replica

    async def _prepare(self, config: ShardConfig) -> tuple[str, bool]:
        """Bring the disk into the state that the replica is opened from. Returns (incarnation, whether the map has it)."""
        host = self._host
        held = host.store.held(config.id)
        identity = identify(config, host.leaf, held)
        if identity in (Identity.KEEP, Identity.CLAIM):
            return held.incarnation, identity is Identity.KEEP
        if held.incarnation:
            _log.warning("replica's data is of no use, it is made anew", shard=config.id, held=held.incarnation)
            await self._wipe(config.id)
        incarnation = self._new_incarnation()
        # Durable before it is claimed: a claim without data behind it would look like lost data after a crash.
        await host.committer.persist(*host.store.incarnation_row(config.id, incarnation))
        return incarnation, identity is Identity.CREATE

    def _open(self, shard: int, replica: Replica, incarnation: str) -> None:
        host = self._host
        config = host.maps.current.shards.get(shard)
        if host.replicas.get(shard) is not replica or config is None:
            return
        loaded = host.store.load(shard)
        log = ReplicatedLog(loaded.base_seqno, loaded.base_epoch, loaded.entries)
        recovered = Recovered(loaded.epoch, log, loaded.applied, loaded.dedup)
        now = host.clock.monotonic()
        me = Member(host.leaf, incarnation)
        # Of what every shard shall have, not of what this one happens to have: a shard that lost leaves must not lower its bar.
        min_in_sync = max(1, host.maps.current.replicas - 1)
        replica.machine = ReplicationMachine(
            shard, me, host.timings, boot=host.boot, min_in_sync=min_in_sync, recovered=recovered, now=now
        )
        host.index.open_shard(shard, list(host.maps.current.collections.values()))
        host.adopt(replica)
        _log.info("replica opened", shard=shard, applied=loaded.applied, last=log.last, incarnation=incarnation)
        host.observe(replica, config)
