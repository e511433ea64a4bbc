"""Runs the replicas of a leaf: feeds their state machines with events and performs the actions these give back.

The decisions are elsewhere: when an entry is committed in `replica.py`, what it changes in `operations.py`, what a request asks
for in `requests.py`. Opening replicas and following the map is a task here; everything else happens in the caller's turn.
"""

import asyncio
import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, Collection, ShardConfig
from kvshard.coordination.base import CoordinatorUnavailable
from kvshard.errors import ErrorDetails, FailedPrecondition, KvShardError, StaleEpoch, Unavailable
from kvshard.model import CollectionCountRecord, ReplicaStatusRecord
from leaf import layout
from leaf.committer import Committer
from leaf.disk_guard import DiskGuard
from leaf.engine import StorageError
from leaf.entry_codec import encode_entry
from leaf.operations import Entry, Operation
from leaf.recovery import Maps, recover
from leaf.replica import (
    Abandon,
    Acknowledge,
    Action,
    Append,
    Applied,
    Apply,
    Event,
    Fail,
    Persisted,
    Propose,
    Replica,
    Role,
    TakeEpoch,
    storage_failed,
)
from leaf.shard_store import ShardStore

OPEN_RETRY_S: Final = 0.1
OPEN_RETRY_MAX_S: Final = 2.0
"""Pause after a coordinator that did not answer, doubled up to the maximum, with jitter: leaves start together."""

_log = structlog.get_logger(__name__)


class Index(Protocol):
    """What the driver tells the search indexes (`indexer.py`)."""

    def open_shard(self, shard: int, collections: Iterable[Collection]) -> None:
        """Start to keep the shard's indexes."""
        ...

    def set_collections(self, shards: Iterable[int], collections: Sequence[Collection]) -> None:
        """The map's collections now."""
        ...

    def notify(self, shard: int, applied_seqno: int) -> None:
        """The shard has applied entries through this seqno."""
        ...

    def indexed_through(self, shard: int, collection_id: int) -> int:
        """The seqno through which the index is durable."""
        ...


class Driver:
    """The replicas of one leaf. Methods are called on its event loop."""

    def __init__(
        self,
        leaf: str,
        store: ShardStore,
        maps: Maps,
        index: Index,
        guard: DiskGuard,
        clock: Clock,
        new_incarnation: Callable[[], str],
        on_group: Callable[[int, float], None] = lambda entries, seconds: None,
        open_retry_s: float = OPEN_RETRY_S,
    ) -> None:
        self.leaf = leaf
        self.store = store
        self.maps = maps
        self.index = index
        self.guard = guard
        self.clock = clock
        self.committer = Committer(store.engine, clock, self._on_durable, self._on_storage_failed, on_group)
        self.replicas: dict[int, Replica] = {}
        self._new_incarnation = new_incarnation
        self._open_retry_s = open_retry_s
        self._waiters: dict[int, deque[tuple[int, asyncio.Future[None]]]] = {}
        self._map_changed = asyncio.Event()
        self._opened = asyncio.Event()
        self._follower: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None
        self._jitter = random.Random()

    def __repr__(self) -> str:
        return f"Driver({self.leaf!r}, {list(self.replicas.values())})"

    def start(self) -> None:
        """Begin to open the replicas that the map places here."""
        self.committer.start()
        self._unsubscribe = self.maps.subscribe(self._on_map)
        self._map_changed.set()
        self._follower = asyncio.create_task(self._follow_map(), name="driver-open")

    async def wait_open(self) -> None:
        """Return when every replica that the map placed here has been opened, or has failed to."""
        await self._opened.wait()

    async def close(self) -> None:
        """Commit what is in flight, then stop. The engine stays open."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.gather(self._follower, return_exceptions=True)
        await self.committer.close()
        for shard in list(self._waiters):
            self._answer(shard, Unavailable("the leaf stops", ErrorDetails(maybe_applied=True, shards=(shard,))))

    def propose(self, shard: int, operation: Operation, size: int) -> int:
        """Put an operation into the shard's log and return its seqno. Legal only while the replica's `refusal` gives None."""
        self._step(shard, Propose(operation, size))
        return self.replicas[shard].last

    async def wait_applied(self, shard: int, seqno: int) -> None:
        """Return once the entries through a seqno are durable and applied. Raises what stopped the replica."""
        if self.replicas[shard].applied >= seqno:
            return
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(shard, deque()).append((seqno, waiter))
        await waiter

    def collection(self, collection_id: int) -> Collection | None:
        """The collection of that number, as far as this leaf knows."""
        return self.maps.current.collection_by_id(collection_id)

    def status(self) -> list[ReplicaStatusRecord]:
        """The state of every replica, by shard."""
        return [self._status_of(self.replicas[shard]) for shard in sorted(self.replicas)]

    def _status_of(self, replica: Replica) -> ReplicaStatusRecord:
        counts = self.store.state(replica.shard).counts if self.store.has(replica.shard) else {}
        known = self.maps.current
        records = []
        for collection_id, (documents, size) in sorted(counts.items()):
            collection = known.collection_by_id(collection_id)
            indexed = self.index.indexed_through(replica.shard, collection_id) if collection and collection.schema else 0
            records.append(CollectionCountRecord(collection_id, documents, size, indexed))
        error = replica.error.message if replica.error else ""
        return ReplicaStatusRecord(
            replica.shard, replica.epoch, replica.role.value, replica.committed, replica.applied, records, error
        )

    # -- the interpreter ------------------------------------------------------------------------------------------------

    def _step(self, shard: int, event: Event) -> None:
        """Take an event to a replica, perform what it wants, and take the events that follow from that too."""
        replica = self.replicas[shard]
        actions = deque(replica.step(event, self.clock.monotonic()))
        while actions:
            following = self._perform(replica, actions.popleft())
            if following is not None:
                actions.extend(replica.step(following, self.clock.monotonic()))

    def _perform(self, replica: Replica, action: Action) -> Event | None:
        match action:
            case Append(entry):
                self._append(replica.shard, entry)
            case Apply(entries):
                self.store.apply(replica.shard, entries)
                self.index.notify(replica.shard, entries[-1].seqno)
                return Applied(entries[-1].seqno)
            case Acknowledge(through):
                self._acknowledge(replica.shard, through)
            case Abandon(error):
                self._answer(replica.shard, error)
        return None

    def _append(self, shard: int, entry: Entry) -> None:
        row = encode_entry(entry)
        self.store.state(shard).window.append(entry.seqno, len(row))
        self.guard.note_written(len(row))
        self.committer.append(shard, entry.seqno, layout.log_key(shard, entry.seqno), row)

    def _acknowledge(self, shard: int, through: int) -> None:
        waiters = self._waiters.get(shard)
        while waiters and waiters[0][0] <= through:
            _, waiter = waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)

    def _answer(self, shard: int, error: KvShardError) -> None:
        for _, waiter in self._waiters.pop(shard, ()):
            if not waiter.done():
                waiter.set_exception(error)

    def _on_durable(self, through: dict[int, int]) -> None:
        for shard, seqno in through.items():
            if shard in self.replicas:
                self._step(shard, Persisted(seqno))

    def _on_storage_failed(self, reason: str) -> None:
        # One engine holds all shards: after it refused once nothing is known of any of them.
        for shard, replica in self.replicas.items():
            self._answer(shard, storage_failed(shard, reason, maybe_applied=True))
            if replica.role is not Role.FAILED:
                self._step(shard, Fail(storage_failed(shard, reason)))
        self._opened.set()

    # -- following the map ----------------------------------------------------------------------------------------------

    def _on_map(self, cluster_map: ClusterMap) -> None:
        """Adopt at once what a newer map says of open replicas; leave the opening of others to the task."""
        configs = {config.id: config for config in cluster_map.shards_on(self.leaf)}
        for shard in [shard for shard in self.replicas if shard not in configs]:
            _log.warning("replica is placed elsewhere now", shard=shard)
            self._answer(shard, StaleEpoch(f"shard {shard} has moved", ErrorDetails(maybe_applied=True, shards=(shard,))))
            del self.replicas[shard]
        for shard, replica in self.replicas.items():
            config = configs[shard]
            is_open = replica.role in (Role.PRIMARY, Role.CONFIRMING)
            if is_open and config.epoch > replica.epoch and config.primary == self.leaf:
                self._step(shard, TakeEpoch(config.epoch))
        self.index.set_collections(self._open_shards(), list(cluster_map.collections.values()))
        self._map_changed.set()

    def _open_shards(self) -> list[int]:
        return [shard for shard, replica in self.replicas.items() if replica.epoch > 0]

    async def _follow_map(self) -> None:
        pause = self._open_retry_s
        while True:
            await self._map_changed.wait()
            self._map_changed.clear()
            try:
                await self._open_missing()
            except (Unavailable, CoordinatorUnavailable) as error:
                _log.warning("cannot open replicas yet", reason=str(error))
            except Exception:  # A leaf that stopped to try would wait for its start for ever, without a word.
                _log.exception("opening replicas failed")
            else:
                self._opened.set()
                pause = self._open_retry_s
                continue
            self._map_changed.set()
            await asyncio.sleep(pause * self._jitter.uniform(0.5, 1.0))
            pause = min(2 * pause, OPEN_RETRY_MAX_S)

    async def _open_missing(self) -> None:
        """Recover the replicas placed here that are not open yet, and take a new epoch for them, all in one transaction."""
        wanted = [config for config in self.maps.current.shards_on(self.leaf) if self._is_missing(config.id)]
        for config in wanted:
            self.replicas.setdefault(config.id, Replica(config.id, 0))
        recovered = [config.id for config in wanted if await self._recover(config)]
        if not recovered:
            return
        epochs = await self.maps.new_epoch(recovered, self.leaf)
        if self.committer.failure is not None:
            return  # Meanwhile; the replicas have been failed, and a new one would wait for its barrier for ever.
        collections = list(self.maps.current.collections.values())
        for shard in recovered:
            if shard not in self.replicas:
                continue  # Placed elsewhere meanwhile.
            if shard in epochs:
                self.replicas[shard] = Replica(shard, self.store.state(shard).applied)
                self.index.open_shard(shard, collections)
                self._step(shard, TakeEpoch(epochs[shard]))
            else:
                text = f"another leaf is the primary of shard {shard}"
                self._step(shard, Fail(FailedPrecondition(text, ErrorDetails(shards=(shard,)))))
        last = {shard: self.replicas[shard].last for shard in recovered if shard in self.replicas}
        for shard, seqno in last.items():
            if self.replicas[shard].role is Role.CONFIRMING:
                await self.wait_applied(shard, seqno)

    def _is_missing(self, shard: int) -> bool:
        replica = self.replicas.get(shard)
        return replica is None or replica.role is Role.RECOVERING

    async def _recover(self, config: ShardConfig) -> bool:
        """Whether the shard's data is loaded; a replica that cannot be is failed, and says why."""
        try:
            await recover(config, self.leaf, self.store, self.committer, self.maps, self._new_incarnation)
        except (Unavailable, CoordinatorUnavailable):
            raise
        except KvShardError as error:
            _log.error("replica cannot be opened", shard=config.id, reason=error.message)
            if config.id in self.replicas:
                self._step(config.id, Fail(error))
            return False
        except StorageError as error:
            self.committer.fail(str(error))
            if config.id in self.replicas:  # One that came after the committer had failed has not been told.
                self._step(config.id, Fail(storage_failed(config.id, str(error))))
            return False
        return True
