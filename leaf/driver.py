"""Runs the replicas of a leaf: feeds their state machines with events and performs the actions these give back.

The decisions are elsewhere: who orders writes, what is committed and who may read in `leaf/replication/`, what an entry changes
in `operations.py`, what a request asks for in `requests.py`, which replicas there are in `hosting.py`. A step happens in the
turn of whoever brings the event; the clock's tick is a task, and what takes time runs in those of `errands.py`.
"""

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Final, Protocol

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import Collection, ShardConfig
from kvshard.clustermap import Replica as Member
from kvshard.errors import DeadlineExceeded, ErrorDetails, Internal, KvShardError, NotReady, Unavailable
from kvshard.model import ReplicaStatusRecord
from leaf.committer import Committer
from leaf.disk_guard import DiskGuard
from leaf.engine import StorageError
from leaf.errands import Errands
from leaf.hosting import Hosting, Index, Maps
from leaf.operations import Names, Split
from leaf.refusals import RETRY_AFTER_MS, storage_failed
from leaf.replica import Caller, Evaluate, OpenSnapshot, Outcome, Replica, Served, Written
from leaf.replica_status import status_of
from leaf.replication import actions as act
from leaf.replication import events as ev
from leaf.replication.actions import Action
from leaf.replication.dedup import DedupTable
from leaf.replication.events import Event
from leaf.replication.machine import Role
from leaf.replication.messages import Entry, Message, Prepare, RequestId, SnapshotChunk
from leaf.replication.timings import Timings
from leaf.shard_store import ShardStore
from leaf.splitter import Splitter

OPEN_RETRY_S: Final = 0.1
"""Pause after a coordinator that did not answer when replicas were to be opened, doubled up to a maximum."""

IN_SYNC: Final = (Role.PRIMARY, Role.SECONDARY)
"""What a replica is while it answers searches."""

_OPERATION = attrgetter("payload")

_log = structlog.get_logger(__name__)


class Sender(Protocol):
    """Carries messages to other leaves (`peers.py`). May lose them, never waits."""

    def send(self, leaf: str, shard: int, sender: Member, receiver: Member, message: Message) -> None:
        """Hand over a message."""
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
        *,
        sender: Sender | None = None,
        timings: Timings | None = None,
        boot: int = 1,
        open_retry_s: float = OPEN_RETRY_S,
    ) -> None:
        """boot: differs from that of every earlier run of this leaf's process. sender None: there are no other leaves."""
        self.leaf = leaf
        self.store = store
        self.maps = maps
        self.index = index
        self.guard = guard
        self.clock = clock
        self.boot = boot
        self.timings = timings or Timings.of()
        self.committer = Committer(store.engine, clock, self._on_durable, self._on_storage_failed, on_group)
        self.replicas: dict[int, Replica] = {}
        self._sender = sender
        self._hosting = Hosting(self, new_incarnation, open_retry_s)
        self.splitter = Splitter(self)
        self._by_number: dict[int, Replica] = {}
        self._tokens = itertools.count(1)
        self._errands = Errands(maps, clock, self.committer, self._step, self._stop)
        self._ticker: asyncio.Task[None] | None = None
        self._is_closing = False
        self._stepped = asyncio.Event()
        self._behind: deque[Replica] = deque()
        self._going_on: asyncio.Handle | None = None

    def __repr__(self) -> str:
        return f"Driver({self.leaf!r}, {list(self.replicas.values())})"

    def start(self) -> None:
        """Begin to open the replicas that the map places here."""
        self.store.splits.set_seed(self.maps.current.seed)
        self.committer.start()
        self._hosting.start()
        self.splitter.start()
        self._ticker = asyncio.create_task(self._tick(), name="replication-tick")

    async def wait_open(self) -> None:
        """Return when every replica that the map placed here has been opened, or has failed to."""
        await self._hosting.wait_open()

    def is_settled(self) -> bool:
        """Whether every shard whose primary this leaf is takes writes (or has failed), and every other replica has a place."""
        return all(
            replica.error is not None or replica.role in ("primary", "secondary", "learner")
            for replica in self.replicas.values()
        )

    async def wait_settled(self) -> None:
        """Return when `is_settled`."""
        while not self.is_settled():
            self._stepped.clear()
            await self._stepped.wait()

    async def leave(self, grace_s: float) -> None:
        """Have others take the place of this leaf's replicas, as far as there are others; no longer than grace_s seconds.

        A leaf that just went would stop the writes of every shard that it has in sync, until it is put out or taken over from.
        """
        for replica in self._serving():
            self._step(replica, ev.Leave())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                while not all(replica.may_stop(self.clock.monotonic()) for replica in self._serving()):
                    self._stepped.clear()
                    await self._stepped.wait()
                return
        left = [replica.shard for replica in self._serving() if not replica.may_stop(self.clock.monotonic())]
        _log.warning("stopping though others wait for it", shards=left, grace_s=grace_s)

    def _serving(self) -> list[Replica]:
        return [each for each in self.replicas.values() if each.machine is not None and each.error is None]

    async def close(self) -> None:
        """Commit what is in flight, then stop. The engine stays open."""
        self._is_closing = True
        await self._hosting.close()
        await self.splitter.close()
        await self._errands.close()
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)
        await self.committer.close()
        while self._behind:
            self._go_on()
        for replica in list(self.replicas.values()):
            details = ErrorDetails(maybe_applied=True, shards=(replica.shard,))
            replica.abandon(Unavailable("the leaf stops", details))
            replica.close_snapshots()

    # -- requests -------------------------------------------------------------------------------------------------------

    def propose(self, shard: int, payload: object, keys: Names | None, size: int) -> None:
        """Put an operation of the leaf's own into the shard's log, if its replica takes writes now."""
        token = next(self._tokens)
        replica = self.replicas[shard]
        replica.evaluations[token] = lambda of: ev.Propose(of, None, payload, keys, size, b"")
        self._step(replica, ev.Write(token, None, size))
        replica.evaluations.pop(token, None)

    async def write(self, shard: int, request: RequestId | None, size: int, evaluate: Evaluate, deadline: float) -> Written:
        """Have a write evaluated at once and wait until it is committed and applied.

        Raises what `evaluate` raises, or why the replica refuses it; DeadlineExceeded (maybe_applied) after the deadline.
        """
        replica = self.replicas[shard]
        token, caller = self._call(replica)
        replica.evaluations[token] = evaluate
        try:
            self._step(replica, ev.Write(token, request, size))
        finally:
            replica.evaluations.pop(token, None)
        outcome = await self._await(replica, token, caller, deadline)
        if outcome is None:
            details = ErrorDetails(maybe_applied=True, shards=(shard,))
            raise DeadlineExceeded(f"the deadline passed before shard {shard} had committed the write", details)
        assert isinstance(outcome, Written)
        return outcome

    async def wait_readable(
        self, shard: int, keys: tuple[tuple[int, bytes], ...] | None, is_strong: bool, deadline: float
    ) -> Served:
        """Wait until keys (None: any) may be read at this replica. Raises NotReady when that takes too long."""
        replica = self.replicas[shard]
        token, caller = self._call(replica)
        self._step(replica, ev.Read(token, keys, is_strong))
        outcome = await self._await(replica, token, caller, deadline)
        if outcome is None:
            details = ErrorDetails(shards=(shard,), retry_after_ms=RETRY_AFTER_MS)
            raise NotReady(f"writes of shard {shard} that the read depends on are not committed yet", details)
        assert isinstance(outcome, Served)
        return outcome

    def receive(self, shard: int, sender: Member, receiver: Member, message: Message) -> None:
        """A message of another leaf has come. What a disk that is far behind cannot take is left to be sent again."""
        replica = self.replicas.get(shard)
        is_load = isinstance(message, SnapshotChunk) or (isinstance(message, Prepare) and bool(message.entries))
        if replica is not None and not (is_load and self.committer.is_full):
            self._step(replica, ev.Receive(sender, receiver, message))
            if replica.is_primary and replica.machine is not None and replica.machine.is_dividing:
                self.splitter.wake()  # Another replica may have told that it has divided off what leaves.

    def _call(self, replica: Replica) -> tuple[int, Caller]:
        """A new call. Raises why the replica takes none: it would never be answered."""
        replica.opened()
        if replica.error is not None:
            raise replica.error
        token = next(self._tokens)
        caller: Caller = asyncio.get_running_loop().create_future()
        replica.callers[token] = caller
        return token, caller

    async def _await(self, replica: Replica, token: int, caller: Caller, deadline: float) -> Outcome | None:
        """The outcome; None when the deadline passes first."""
        loop = asyncio.get_running_loop()
        # As `asyncio.timeout` does, in a third of the time: nothing here has to cancel a task.
        timer = loop.call_later(max(0.0, deadline - self.clock.monotonic()), _expire, caller)
        try:
            return await caller
        finally:
            timer.cancel()
            if replica.callers.pop(token, None) is not None and not self._is_closing:
                self._step(replica, ev.Cancel(token))

    def collection(self, collection_id: int) -> Collection | None:
        """The collection of that number, as far as this leaf knows."""
        return self.maps.current.collection_by_id(collection_id)

    def status(self) -> list[ReplicaStatusRecord]:
        """The state of every replica, by shard."""
        now, known = self.clock.monotonic(), self.maps.current
        return [status_of(self.replicas[shard], self.store, self.index, known, now) for shard in sorted(self.replicas)]

    # -- what hosting does ----------------------------------------------------------------------------------------------

    def adopt(self, replica: Replica) -> None:
        """A replica has its machine: begin to act for it."""
        self._by_number[replica.number] = replica

    def discard(self, replica: Replica, error: KvShardError) -> None:
        """A replica has no place here any more: its callers get the error."""
        if self.replicas.get(replica.shard) is replica:
            del self.replicas[replica.shard]
        self._by_number.pop(replica.number, None)
        replica.abandon(error)
        replica.close_snapshots()
        replica.machine = None

    def fail(self, replica: Replica, error: KvShardError) -> None:
        """Stop one replica for good."""
        if replica.error is not None:
            return
        replica.fail(error)
        if replica.machine is not None:
            self._step(replica, ev.Fail(error.message))
        replica.abandon(error)

    def observe(self, replica: Replica, config: ShardConfig) -> None:
        """The map says this of the replica's shard."""
        self.splitter.note_dividing(replica)
        self._step(replica, ev.ConfigSeen(config))

    def note_divided(self, replica: Replica, child: int | None) -> None:
        """The child's data, of a split that the replica has applied, is whole on the disk; None: the map knows the child."""
        self._step(replica, ev.Divided(child))
        self.splitter.wake()

    def note_disk(self) -> None:
        """The disk was looked at. Where it has no room replicas do not lead if others can: they would only refuse writes."""
        for replica in self.replicas.values():
            if replica.machine is not None:
                replica.machine.is_full = self.guard.is_low

    def look_at_places(self) -> None:
        """What hosting waits for may have come."""
        self._hosting.look()

    # -- the interpreter ------------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            for replica in list(self.replicas.values()):
                if replica.machine is not None and replica.error is None:
                    self._step(replica, ev.Tick())
            self._stepped.set()
            await asyncio.sleep(self.timings.tick)

    def _step(self, replica: Replica, event: Event) -> None:
        """Take an event to a replica and perform what it wants. One that has stopped hears no more."""
        machine = replica.machine
        if machine is None or (replica.error is not None and not isinstance(event, ev.Fail)):
            return
        was_in_sync = machine.role in IN_SYNC
        try:
            actions = deque(machine.step(event, self.clock.monotonic()))
            while actions:
                following = self._perform(replica, actions.popleft())
                if following is not None:
                    actions.extend(machine.step(following, self.clock.monotonic()))
            if machine.role in IN_SYNC and not was_in_sync:
                self.index.require(replica.shard, machine.applied)
            if machine.is_behind and replica not in self._behind:
                self._behind.append(replica)
                self._go_on_soon()
        except StorageError as error:
            self.committer.fail(str(error))
        except Exception as defect:
            self._stop(replica, type(event).__name__, defect)

    def _go_on_soon(self) -> None:
        if self._behind and self._going_on is None and not self._is_closing:
            self._going_on = asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Have one replica apply more of what is committed: they take turns, with each other and with all else in the loop."""
        self._going_on = None
        if self._behind:
            self._step(self._behind.popleft(), ev.Tick())
        self._go_on_soon()

    def _stop(self, replica: Replica, step: str, defect: Exception) -> None:
        """Whatever it is, this replica must not go on as if the step had been taken; the others may."""
        _log.error("replica failed", shard=replica.shard, step=step, exc_info=defect)
        text = f"shard {replica.shard} stopped: {type(defect).__name__}: {defect}"
        replica.error = error = Internal(text, ErrorDetails(shards=(replica.shard,), maybe_applied=True))
        self._by_number.pop(replica.number, None)
        replica.abandon(error)
        replica.close_snapshots()

    def _perform(self, replica: Replica, action: Action) -> Event | None:
        shard = replica.shard
        match action:
            case act.Send(receiver, message):
                if self._sender is not None and replica.machine is not None:
                    self._sender.send(receiver.leaf, shard, replica.machine.me, receiver, message)
            case act.Append(ticket, entries):
                changes = self.store.append(shard, entries)
                self.guard.note_written(changes.bytes)
                self.committer.append(replica.number, ticket, changes, len(entries))
            case act.Apply(entries, table):
                self._apply(replica, entries, table)
            case act.Evaluate(token):
                return self._evaluate(replica, token)
            case act.Answer(token, seqno, result):
                replica.answer(token, Written(seqno, result))
            case act.Refuse(token, reason, committed):
                replica.refuse(token, reason, committed)
            case act.ServeRead(token, seqno, age_s):
                replica.answer(token, Served(seqno, age_s))
            case _:
                self._perform_rare(replica, action)
        return None

    def _perform_rare(self, replica: Replica, action: Action) -> None:
        shard = replica.shard
        match action:
            case act.SaveEpoch(ticket, epoch):
                self.committer.append(replica.number, ticket, self.store.epoch_changes(shard, epoch))
            case act.Truncate(ticket, after):
                self.committer.append(replica.number, ticket, self.store.truncate(shard, after))
            case act.TrimLog(through):
                self.store.state(shard).trim_through = through
            case act.CompareAndSet(expected_epoch, config):
                self._errands.compare_and_set(replica, expected_epoch, config)
            case act.ReadConfig():
                self._errands.read_config(replica)
            case act.OpenSnapshot(number):
                replica.snapshots[number] = OpenSnapshot(self.store.open_snapshot(shard), self.clock.monotonic())
            case act.ReadSnapshot(number, cursor):
                self._errands.read_snapshot(replica, number, cursor)
            case act.CloseSnapshot(number):
                replica.close_snapshot(number)
            case act.StageRows(number, index, rows):
                self._stage(replica, number, index, rows)
            case act.InstallSnapshot():
                self._install(replica, action)
            case _:
                raise AssertionError(f"unknown action {action!r}")

    def _evaluate(self, replica: Replica, token: int) -> Event:
        """The evaluated write. One that cannot be evaluated concerns nobody but its caller: it has changed nothing yet."""
        evaluate = replica.evaluations.pop(token)
        try:
            return evaluate(token)
        except Exception as error:
            caller = replica.callers.pop(token, None)
            if caller is not None and not caller.done():
                caller.set_exception(error)
            return ev.Cancel(token)

    def _apply(self, replica: Replica, entries: Sequence[Entry], table: DedupTable | None) -> None:
        assert replica.machine is not None
        self.store.apply(replica.shard, entries, table or replica.machine.dedup)
        self.index.notify(replica.shard, entries[-1].seqno, map(_OPERATION, entries))
        split = entries[-1].payload
        if isinstance(split, Split):
            self.index.split(replica.shard, split.child, split.at_slot, split.last_slot, entries[-1].seqno)
            self.splitter.on_split(replica)
            self._hosting.look()
        elif replica.machine.is_dividing:
            self.splitter.wake()  # It may be the barrier of a new primary, who ends what its predecessor began.

    # -- snapshots ------------------------------------------------------------------------------------------------------

    def _stage(self, replica: Replica, number: int, index: int, rows: object) -> None:
        if index == 0:
            self.index.close_shard(replica.shard)
            replica.staged = self.store.stage_snapshot(replica.shard)
        assert replica.staged is not None, f"rows of snapshot {number} without a begin"
        replica.staged.add(rows)
        if replica.staged.wants_sync():
            self.committer.sync_soon()

    def _install(self, replica: Replica, action: act.InstallSnapshot) -> None:
        assert replica.staged is not None
        changes = replica.staged.install(action.seqno, action.seqno_epoch, action.dedup, action.forgotten_through)
        replica.staged = None
        self.committer.append(replica.number, action.ticket, changes)
        self.index.open_shard(replica.shard, list(self.maps.current.collections.values()))
        self.splitter.note_dividing(replica)
        self._hosting.look()  # A split whose child was waited for may be part of it.

    # -- the disk -------------------------------------------------------------------------------------------------------

    def _on_durable(self, through: dict[int, int]) -> None:
        for number, ticket in through.items():
            replica = self._by_number.get(number)
            if replica is not None and replica.error is None:
                self._step(replica, ev.Durable(ticket))

    def _on_storage_failed(self, reason: str) -> None:
        # One engine holds all shards: after it refused once nothing is known of any of them.
        for shard, replica in self.replicas.items():
            replica.abandon(storage_failed(shard, reason, maybe_applied=True))
            self.fail(replica, storage_failed(shard, reason))
        self._hosting.give_up()


def _expire(caller: Caller) -> None:
    if not caller.done():
        caller.set_result(None)
