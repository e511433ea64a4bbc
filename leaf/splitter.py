"""Brings the splits of a leaf's shards forward: copies, proposes, writes the map, cleans up.

What is due says `splitting.next_task`; this performs it, a piece at a time, one shard after the other. It is one task, which
gives most of the event loop to the requests, and for each split that is at its end one that talks to the coordinator.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Final, Protocol

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import ShardConfig, WantedSplit
from kvshard.coordination.base import CoordinatorUnavailable
from kvshard.coordination.replica_sets import CasOutcome
from kvshard.errors import KvShardError
from leaf.committer import Committer
from leaf.engine import StorageError
from leaf.hosting import Index, Maps
from leaf.layout import Changes
from leaf.operations import Names, Split
from leaf.pending import is_splitting
from leaf.replica import Replica
from leaf.replication.machine import Role
from leaf.shard_store import ShardStore
from leaf.split_rows import SplitState
from leaf.splitting import Part, Situation, Task, next_task

IDLE_S: Final = 0.25
"""Between two looks while nothing is due; news wake it at once."""

SHARE: Final = 3
CLEAN_SHARE: Final = 7
"""After a piece of work the loop is left to others for so many times its length: a split takes a quarter of a leaf at most, and
cleaning up, which nobody waits for, an eighth."""

FINISH_RETRY_S: Final = 0.05
"""Pause before the coordinator is asked again to write the end of a split; the part that leaves is not served meanwhile."""

CHILD_LOOK_S: Final = 0.01
CHILD_LOOKS: Final = 100
"""A replica that has applied a split looks for the child in the map so often, for a second, then leaves it to the watch."""

_MEMBERS: Final = (Role.PRIMARY, Role.CONFIRMING, Role.SECONDARY, Role.LEARNER)

_log = structlog.get_logger(__name__)


class SplitHost(Protocol):
    """The driver, as the splitter sees it."""

    leaf: str
    store: ShardStore
    maps: Maps
    index: Index
    clock: Clock
    committer: Committer
    replicas: dict[int, Replica]

    def propose(self, shard: int, payload: object, keys: Names | None, size: int) -> None:
        """Put an operation into a shard's log, if its replica takes writes now."""
        ...

    def note_divided(self, replica: Replica, child: int | None) -> None:
        """The child's data, of a split that the replica has applied, is whole on the disk; None: the map knows the child."""
        ...

    def look_at_places(self) -> None:
        """What hosting waits for may have come."""
        ...


class Splitter:
    """The splits of one leaf. Methods are called on its event loop."""

    def __init__(self, host: SplitHost) -> None:
        self._host = host
        self._wake = asyncio.Event()
        self._begun_at: dict[int, float] = {}
        self._ready_since: dict[int, float] = {}
        self._divided_since: dict[int, float] = {}
        self._tasks: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._worker: asyncio.Task[None] | None = None
        self._unsubscribe: Callable[[], None] | None = None

    def __repr__(self) -> str:
        return f"Splitter({self._host.leaf!r}, {sorted(self._tasks)})"

    def start(self) -> None:
        """Begin."""
        self._unsubscribe = self._host.maps.subscribe(lambda _: self._wake.set())
        self._worker = asyncio.create_task(self._run(), name="splitter")

    async def close(self) -> None:
        """Stop; what is under way goes on after the next start."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        tasks = [*self._tasks.values(), *([self._worker] if self._worker is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """There may be something to do."""
        self._wake.set()

    def on_split(self, replica: Replica) -> None:
        """A replica has applied a split."""
        _log.info("shard split", shard=replica.shard, seqno=replica.applied, is_primary=replica.is_primary)
        self.note_dividing(replica)
        self._wake.set()
        if not replica.is_primary:
            self._spawn("look", replica.shard, self._look_for_child(replica.shard))

    def note_dividing(self, replica: Replica) -> None:
        """Tell the machine whether a part of its state is in a split that the map does not show yet."""
        machine = replica.machine
        if machine is None or not self._host.store.has(replica.shard):
            return
        config = self._host.maps.current.shards.get(replica.shard)
        cuts = self._host.store.state(replica.shard).splits.cuts
        machine.is_dividing = is_splitting(machine) or (config is not None and cuts > config.cuts)

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            began = self._host.clock.monotonic()
            is_busy = False
            try:
                is_busy = await self.turn()
            except StorageError as error:
                self._host.committer.fail(str(error))
            except Exception:
                _log.exception("splitting failed")
            if is_busy:
                continue
            pause = IDLE_S - (self._host.clock.monotonic() - began)
            try:
                async with asyncio.timeout(max(0.0, pause)):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def turn(self) -> bool:
        """Do the next piece for every replica. Returns whether there was any. Raises StorageError."""
        is_busy = False
        for shard in list(self._host.replicas):
            replica = self._host.replicas.get(shard)
            if replica is None or replica.machine is None or replica.error is not None or self._host.committer.is_full:
                continue
            began = self._host.clock.monotonic()
            done = await self._advance(replica)
            if done is not None:
                is_busy = True
                share = CLEAN_SHARE if done is Task.CLEAN else SHARE
                await asyncio.sleep(share * (self._host.clock.monotonic() - began))
        return is_busy

    async def _advance(self, replica: Replica) -> Task | None:
        """Do the next piece for one replica. Returns what was done, if that may go on at once."""
        host, shard = self._host, replica.shard
        config = host.maps.current.shards.get(shard)
        if config is None or host.store.state(shard).is_staging:
            return None
        splits = host.store.state(shard).splits
        self._look_whether_divided(replica, splits)
        if config.split is None and splits.shadow is None and not splits.departed:
            self._note_ready(replica, splits)
            return None
        task = next_task(self._situation(replica, config, splits))
        match task:
            case None:
                pass
            case Task.BEGIN:
                assert config.split is not None
                part = Part(config.split.child, config.split.at_slot, config.last_slot)
                _log.info("copying what is to leave the shard", shard=shard, child=part.child, at_slot=part.at_slot)
                host.store.splits.begin(shard, splits, part)
                self._begun_at[shard] = host.clock.monotonic()
            case Task.COPY:
                self._copy(replica, splits)
            case Task.DISCARD:
                host.store.splits.discard(shard, splits)
                host.look_at_places()
            case Task.PROPOSE:
                self._propose(replica, splits)
                return None
            case Task.FINISH:
                assert config.split is not None
                self._spawn("finish", shard, self._finish(shard, config.split))
                return None
            case Task.CLEAN:
                await self._clean(shard, splits)
        self._note_ready(replica, splits)
        return task

    def _situation(self, replica: Replica, config: ShardConfig, splits: SplitState) -> Situation:
        machine, shadow, known = replica.machine, splits.shadow, self._host.maps.current.shards
        assert machine is not None
        is_behind = splits.cuts < config.cuts
        wanted = None if is_behind or machine.role not in _MEMBERS else config.split
        child = wanted.child if wanted is not None else None
        now = self._host.clock.monotonic()
        since = self._ready_since.get(replica.shard, now)
        return Situation(
            wanted=wanted,
            is_applied=wanted is not None and splits.cuts > config.cuts,
            shadow=shadow,
            departed=splits.departed,
            is_primary=replica.is_primary,
            is_in_flight=is_splitting(machine),
            may_begin=child is not None and child not in self._host.replicas and self._host.store.splits.may_begin(child),
            are_others_ready=child is not None and machine.reign is not None and machine.reign.are_ready_for(child),
            waited_s=now - since,
            took_s=since - self._begun_at.get(replica.shard, since),
            divided_s=self._divided_s(replica, child),
            have_others_divided=machine.reign is not None and self._members(replica, child) >= _in_sync(machine.reign.config),
            known=known,
        )

    def _divided_s(self, replica: Replica, child: int | None) -> float | None:
        """How long the child's data has been whole on this disk; None: it is not, or the map knows the child."""
        assert replica.machine is not None
        if child is None or replica.machine.divided_off != child:
            return None
        now = self._host.clock.monotonic()
        return now - self._divided_since.setdefault(replica.shard, now)

    @staticmethod
    def _members(replica: Replica, child: int | None) -> frozenset[str]:
        """The leaves that have the child's data, as far as this primary knows."""
        machine = replica.machine
        assert machine is not None
        return machine.reign.have_divided_off(child) if machine.reign is not None and child is not None else frozenset()

    def _look_whether_divided(self, replica: Replica, splits: SplitState) -> None:
        """Tell the machine when the data of a child that the map does not know yet is whole on the disk, and when it does."""
        machine, known = replica.machine, self._host.maps.current.shards
        assert machine is not None
        whole = [each.part.child for each in splits.departed if each.is_copied and each.part.child not in known]
        child = whole[-1] if whole else None
        if machine.divided_off == child:
            return
        if child is None:
            self._divided_since.pop(replica.shard, None)
            self._host.note_divided(replica, None)
        else:
            self._spawn("divide", replica.shard, self._divide(replica, child))

    async def _divide(self, replica: Replica, child: int) -> None:
        try:
            await self._host.committer.make_durable(Changes())  # The rows were written before; after a flush they are there.
        except StorageError as error:
            self._host.committer.fail(str(error))
            return
        if self._host.replicas.get(replica.shard) is replica and replica.machine is not None:
            self._host.note_divided(replica, child)

    def _note_ready(self, replica: Replica, splits: SplitState) -> None:
        """Tell the primary, with the next answer to a beacon, that this replica's shadow is complete."""
        assert replica.machine is not None
        is_ready = splits.shadow is not None and splits.shadow.is_complete
        replica.machine.ready_for = splits.shadow.part.child if is_ready and splits.shadow is not None else None
        if is_ready:
            self._ready_since.setdefault(replica.shard, self._host.clock.monotonic())
        else:
            self._ready_since.pop(replica.shard, None)
            if splits.shadow is None:
                self._begun_at.pop(replica.shard, None)

    def _copy(self, replica: Replica, splits: SplitState) -> None:
        late = len(splits.late)
        self._host.store.copy_chunk(replica.shard)
        if len(splits.late) < late:
            self._host.look_at_places()

    def _propose(self, replica: Replica, splits: SplitState) -> None:
        assert splits.shadow is not None
        assert replica.machine is not None
        part = splits.shadow.part
        # Before the entry is in the log: what is asked for behind it must know.
        replica.machine.is_dividing = True
        self._host.propose(replica.shard, Split(part.child, part.at_slot, part.last_slot), None, 0)
        self.note_dividing(replica)

    async def _clean(self, shard: int, splits: SplitState) -> None:
        host = self._host
        known = host.maps.current.shards
        child = next(each.part.child for each in splits.departed if each.part.child in known)
        if not host.store.clean_chunk(shard, child):
            return
        config = known[child]
        is_placed = host.leaf in config.desired or any(each.leaf == host.leaf for each in config.replicas)
        if not is_placed and child not in host.replicas:
            _log.info("the split's child is placed elsewhere", shard=shard, child=child)
            host.index.remove_shard(child)
            await host.committer.make_durable(host.store.wipe(child))

    # -- the map --------------------------------------------------------------------------------------------------------

    def _spawn(self, kind: str, shard: int, work: Coroutine[None, None, None]) -> None:
        if (kind, shard) in self._tasks:
            work.close()
            return
        task = asyncio.create_task(work, name=f"split-{kind}-{shard}")
        self._tasks[kind, shard] = task

        def ended(_: asyncio.Task[None]) -> None:
            self._tasks.pop((kind, shard), None)
            self._wake.set()

        task.add_done_callback(ended)

    async def _finish(self, shard: int, wanted: WantedSplit) -> None:
        """Write the end of a split into the map, as the primary that acts in the present epoch."""
        replica = self._host.replicas.get(shard)
        if replica is None or not replica.is_primary:
            return
        try:
            members = self._members(replica, wanted.child)
            result = await self._host.maps.finish_split(shard, replica.epoch, wanted, members)
        except (KvShardError, CoordinatorUnavailable) as error:
            _log.warning("the end of a split may not be written", shard=shard, reason=str(error))
        except Exception:
            _log.exception("writing the end of a split failed", shard=shard)
        else:
            if result.outcome is CasOutcome.SUCCEEDED:
                _log.info("split written into the map", shard=shard, child=wanted.child)
                return
        await asyncio.sleep(FINISH_RETRY_S)

    async def _look_for_child(self, shard: int) -> None:
        """See the child in the map soon, so that its replica here opens when its primary needs it."""
        for _ in range(CHILD_LOOKS):
            replica = self._host.replicas.get(shard)
            if replica is None or replica.machine is None or not replica.machine.is_dividing:
                return
            try:
                await self._host.maps.refresh()
            except KvShardError:
                return  # The watch will bring it.
            await asyncio.sleep(CHILD_LOOK_S)


def _in_sync(config: ShardConfig) -> set[str]:
    return {each.leaf for each in config.in_sync}
