"""One shard's replica as a state machine: PacificA writes, CRAQ reads.

`step` takes an event and gives back what the shell has to do, in order; it neither waits nor reads. Sources: Lin, Yang, Zhang,
Zhou, "PacificA: Replication in Log-Based Distributed Storage Systems" (Microsoft Research, 2008), for configurations by
compare-and-set, leases and reconciliation; Terrace, Freedman, "Object Storage on CRAQ" (USENIX ATC 2009), for reads at every
replica with dirty keys.

    IDLE --added--> LEARNER --taken in--> SECONDARY --take over, hand over--> CONFIRMING --barrier committed--> PRIMARY
    every state --newer configuration--> what it says         every state --Fail--> FAILED

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Hashable, Iterable
from dataclasses import replace
from typing import NamedTuple

from kvshard.clustermap import Replica, ShardConfig, with_identities
from leaf.replication import events as ev
from leaf.replication.actions import Action, CloseSnapshot, ReadConfig, Reason, Refuse
from leaf.replication.core import Core, ReadNow, Recovered, Role
from leaf.replication.events import Event, Outcome
from leaf.replication.follower import Follower, TakeOver, primary_of
from leaf.replication.membership import Change, Kind, is_heir
from leaf.replication.messages import (
    Beacon,
    BeaconAck,
    Commit,
    Join,
    Message,
    Outdated,
    Prepare,
    PrepareAck,
    PrepareNack,
    SnapshotAck,
    SnapshotChunk,
)
from leaf.replication.oplog import Retention
from leaf.replication.reign import Reign
from leaf.replication.timings import Timings

__all__ = ["CatchUp", "ReadNow", "Recovered", "ReplicationMachine", "Role"]


class CatchUp(NamedTuple):
    """How far a learner is. lag: entries that it lacks. snapshot: the one that it is sent, None without."""

    replica: Replica
    lag: int
    snapshot: int | None


class ReplicationMachine(Core):
    """One replica of one shard.

    me: with the incarnation of its data. boot: differs from that of every earlier run of the process. min_in_sync: writes of
    clients are taken only while so many replicas are in sync.
    """

    def __init__(
        self,
        shard: int,
        me: Replica,
        timings: Timings,
        *,
        boot: int,
        min_in_sync: int,
        recovered: Recovered,
        now: float,
        retention: Retention = Retention(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__(shard, me, timings, boot, recovered, retention, now)
        self.min_in_sync = min_in_sync
        self.follower = Follower(self, now)
        self.reign: Reign | None = None
        self._booted_epoch = recovered.epoch
        self._saving = recovered.epoch
        self._lead_from = float("-inf")
        self._confirm_at: float | None = None
        self._is_asking = False

    def __repr__(self) -> str:
        marks = f"committed={self.committed}, durable={self.durable}, last={self.last}"
        return f"ReplicationMachine(shard={self.shard}, {self.me.leaf}, {self.role.value}, epoch={self.epoch}, {marks})"

    def step(self, event: Event, now: float) -> list[Action]:
        """Take an event in, give back what is to be done. now: seconds on this process's monotonic clock."""
        if self.role is Role.FAILED:
            return self._refuse_failed(event)
        self.is_behind = False
        match event:
            case ev.Receive(sender, receiver, message):
                if receiver == self.me:
                    self._receive(sender, message, now)
            case ev.Durable(ticket):
                self._on_durable(ticket, now)
            case ev.Tick():
                self._on_tick(now)
            case ev.Write():
                self._on_write(event, now)
            case ev.Propose():
                assert self.reign is not None, f"{self!r} was given a write that it did not ask for"
                self.reign.on_propose(event, now)
            case ev.Conclude():
                assert self.reign is not None, f"{self!r} was given a write that it did not ask for"
                self.reign.on_conclude(event)
            case ev.Read(token, keys, is_strong):
                self._on_read(token, keys, is_strong, now)
            case _:
                self._step_rare(event, now)
        actions, self.out = self.out, []
        return actions

    def _step_rare(self, event: Event, now: float) -> None:
        match event:
            case ev.ConfigSeen(config):
                self._on_config(config, now)
            case ev.CasAnswer():
                self._on_cas(event, now)
            case ev.SnapshotRows(snapshot, rows, cursor):
                if self.reign is not None:
                    self.reign.on_rows(snapshot, rows, cursor, now)
                else:
                    self.out.append(CloseSnapshot(snapshot))
            case ev.Leave():
                self.is_stopping = True
                if self.reign is not None:
                    self.reign.handover_not_before = now
            case ev.Divided(child):
                self.divided_off = child
                self.follower.tell_divided(now)
            case ev.Cancel(token):
                self.cancel(token)
            case ev.Fail():
                self._fail()
            case _:
                raise AssertionError(f"unknown event {event!r}")

    def _refuse_failed(self, event: Event) -> list[Action]:
        if isinstance(event, ev.Write | ev.Read):
            return [Refuse(event.token, Reason.NOT_READY)]
        return []

    def _fail(self) -> None:
        self.abandon()
        self.refuse_readers()
        if self.reign is not None:
            self.reign.end()
            self.reign = None
        self.role = Role.FAILED

    # -- reads and writes -----------------------------------------------------------------------------------------------

    def try_read(self, keys: Iterable[Hashable] | None, is_strong: bool, now: float) -> ReadNow | Reason | None:
        """Whether keys (None: any) may be read now; None: not before a commit, which a Read event waits for."""
        role = self.role
        if role is Role.PRIMARY:
            assert self.reign is not None
            has_lease = self.reign.has_lease(now)
            if has_lease:
                return ReadNow(self.committed, 0.0)  # What is not committed has been acknowledged to nobody.
            if is_strong:
                return Reason.NO_LEASE
            return ReadNow(self.committed, max(0.0, now - self.reign.lease_until()))
        if is_strong:
            if role is not Role.SECONDARY:
                return Reason.NOT_READY
            if not self.follower.has_lease(now):
                return Reason.NO_LEASE
            return None if self.clean_after(keys) else ReadNow(self.committed, self.follower.age(now))
        if role is Role.FAILED or not self.is_readable:
            return Reason.NOT_READY
        return ReadNow(self.committed, self.follower.age(now))

    @property
    def is_readable(self) -> bool:
        """Whether there is a state: no snapshot is arriving, and none is being installed."""
        return self.is_whole and self.follower.staging is None and self.durable >= self.log.base_seqno

    def _on_read(self, token: int, keys: tuple[Hashable, ...] | None, is_strong: bool, now: float) -> None:
        allowed = self.try_read(keys, is_strong, now)
        if allowed is None:
            self.await_read(token, keys, is_strong, self.clean_after(keys))
        elif isinstance(allowed, Reason):
            self.out.append(Refuse(token, allowed))
        else:
            self.finish_read(token, is_strong, now)

    def _on_write(self, write: ev.Write, now: float) -> None:
        if self.reign is not None:
            self.reign.on_write(write, now)
            return
        is_confirming = self.role is Role.CONFIRMING
        self.out.append(Refuse(write.token, Reason.NOT_READY if is_confirming else Reason.NOT_PRIMARY))

    def may_stop(self, now: float) -> bool:
        """Whether the shard's writes would not wait for this replica if it were gone: after Leave, as soon as that can be."""
        config = self.config
        if config is None or self.role is Role.FAILED or self.me not in config.in_sync:
            return True
        if self.reign is not None:
            return not any(is_heir(self.reign, peer, now) for peer in self.reign.peers.values())
        return len(config.in_sync) <= self.min_in_sync  # Without it no writes are taken, so that it is not put out.

    def catching_up(self) -> list[CatchUp]:
        """The learners, as their primary sees them."""
        if self.reign is None:
            return []
        return [
            CatchUp(peer.replica, max(0, self.last - peer.acked), peer.sending.snapshot if peer.sending is not None else None)
            for peer in self.reign.peers.values()
            if not peer.is_in_sync
        ]

    # -- configurations -------------------------------------------------------------------------------------------------

    def _on_config(self, config: ShardConfig, now: float) -> None:
        if config.epoch < self.epoch or (self.reign is not None and self._is_adopting(config)):
            return
        if self.config is not None:
            # Told late, or by one who had not heard: an identity that was known is not unknown again.
            config = replace(config, in_sync=with_identities(config.in_sync, self.config.in_sync))
            if config.epoch == self.epoch:
                self._see(config, now)
                return
        if self.reign is not None and self.reign.adopting is not None and config.epoch == self.reign.adopting.epoch:
            self._compare_desired(self.reign.adopting, config, now)
        if config.epoch > self._saving:
            self._saving = config.epoch
            self.save_epoch(config.epoch)
        if self._continues(config):
            assert self.reign is not None
            # Until the disk knows the epoch this primary goes on in the old one: what commits there satisfies both.
            self.reign.adopting = config
        else:
            self._enter(config, now)

    def _is_adopting(self, config: ShardConfig) -> bool:
        assert self.reign is not None
        return self.reign.adopting is not None and config.epoch < self.reign.adopting.epoch

    def _continues(self, config: ShardConfig) -> bool:
        """Whether a newer configuration is what this primary itself asked for: nobody else has led in between."""
        if self.reign is None or self.reign.change is None or config.epoch != self.epoch + 1 or not self._leads(config):
            return False
        asked = self.reign.change.config
        return config.learners == asked.learners and config.in_sync == with_identities(asked.in_sync, config.in_sync)

    def _leads(self, config: ShardConfig) -> bool:
        return config.primary == self.me.leaf and self.me in config.in_sync

    def _see(self, config: ShardConfig, now: float) -> None:
        """The same epoch: identities may have been told, and what is desired may have changed."""
        assert self.config is not None
        self._compare_desired(self.config, config, now)
        if self.me not in self.config.replicas and self.me in config.replicas:
            self._enter(config, now)
            return
        self.config = config
        if self.reign is not None:
            self.reign.see(config, now)

    def _compare_desired(self, known: ShardConfig, config: ShardConfig, now: float) -> None:
        """Look once more when two of one epoch differ: nothing tells which is newer, and either may have been overtaken."""
        if config.desired != known.desired:
            self._confirm_at, self._is_asking = now + self.timings.coordinator_retry, False
        elif self._is_asking:
            self._confirm_at, self._is_asking = None, False

    def _enter(self, config: ShardConfig, now: float) -> None:
        """Take the place that a newer configuration gives this replica."""
        self.abandon()
        self.refuse_readers()
        if self.reign is not None:
            self.reign.end()
            self.reign = None
        before, self.config = self.config, config
        was_member = before is not None and self.me in before.replicas
        self._lead_from = self._earliest_lead(before, config)
        self.epoch = config.epoch
        self.follower.enter(now, has_same_primary=before is not None and primary_of(before) == primary_of(config))
        if self._leads(config):
            self.role = Role.CONFIRMING
            if self._has_acted_in(config.epoch):
                self.follower.request(replace(config, epoch=config.epoch + 1), now)
            else:
                self._begin(now)
        elif self.me in config.in_sync:
            self.role = Role.SECONDARY
        elif self.me in config.learners:
            self.role = Role.LEARNER
        else:
            self.role = Role.REMOVED if was_member else Role.IDLE

    def _earliest_lead(self, before: ShardConfig | None, config: ShardConfig) -> float:
        """When this replica may lead by a configuration: not while the lease of the primary before it may last.

        Who hands over has given up its lease. Who was taken over from has lost it, for grace went by before that was asked; but
        what an earlier run of this process asked for may be done only now, when this run, or one in between, has answered that
        primary again.
        """
        if before is not None and before.primary == self.me.leaf:
            return self._lead_from  # A restarted primary's next epoch rests on the one that it was named in.
        if before is not None and any(each.leaf == before.primary for each in config.in_sync):
            return float("-inf")
        # None of them answered before it had an epoch, nor one that led in this epoch: its barrier is in the log.
        may_have_answered = self._booted_epoch and self.log.last_epoch < config.epoch
        by_earlier_runs = self.started_at if may_have_answered else float("-inf")
        return max(self.follower.promised_at, by_earlier_runs) + self.timings.grace

    def _has_acted_in(self, epoch: int) -> bool:
        """Whether an earlier run may have led in this epoch: what it promised then is not known any more."""
        return epoch <= self._booted_epoch

    def _begin(self, now: float) -> None:
        """Lead, once the disk knows the epoch."""
        is_ready = self.saved_epoch >= self.epoch and self.is_whole and now >= self._lead_from
        if is_ready and self.reign is None and self.config is not None:
            self.reign = Reign(self, self.config, self.min_in_sync, now)
            self.reign.tick(now)
            self.reign.pump(now)

    def _on_cas(self, answer: ev.CasAnswer, now: float) -> None:
        change = self.reign.change if self.reign is not None else self.follower.take_over
        if answer.outcome is Outcome.SUCCEEDED and change is not None and change.expected_epoch == answer.expected_epoch:
            self._on_config(answer.config or change.config, now)
            return
        if answer.config is not None:
            self._on_config(answer.config, now)
        change = self.reign.change if self.reign is not None else self.follower.take_over
        is_pending = self.reign is None or self.reign.adopting is None
        if change is None or change.expected_epoch != answer.expected_epoch or not is_pending:
            return
        change.retry_at = now + self.timings.coordinator_retry
        change.is_open = change.is_open or answer.outcome is Outcome.UNKNOWN
        self.out.append(ReadConfig())
        if not change.is_open or (answer.outcome is Outcome.FAILED and self._is_harmless(change)):
            self._drop_change(change.retry_at)

    def _is_harmless(self, change: Change | TakeOver) -> bool:
        """Whether a change may still be done behind this primary's back: nothing rests on who learns."""
        return isinstance(change, Change) and change.kind in (Kind.ADD_LEARNER, Kind.DROP_LEARNER)

    def _drop_change(self, retry_at: float) -> None:
        """What was asked for was surely not done and will not be: go on as if it had not been asked, for a while."""
        if self.reign is not None:
            self.reign.change = None
            self.reign.change_not_before = retry_at
        elif self.role is Role.SECONDARY:
            self.follower.take_over = None
            self.follower.take_over_not_before = retry_at

    # -- time, the disk, messages ---------------------------------------------------------------------------------------

    def _on_tick(self, now: float) -> None:
        if self._confirm_at is not None and now >= self._confirm_at:
            self._confirm_at, self._is_asking = now + self.timings.failure_timeout, True
            self.out.append(ReadConfig())
        if self.reign is not None:
            self.reign.tick(now)
            return
        if self.role is Role.CONFIRMING:
            self.follower.retry_take_over(now)
            if not self.follower.is_taking_over():
                self._begin(now)
            return
        self.follower.tick(now)

    def _on_durable(self, ticket: int, now: float) -> None:
        self.note_durable(ticket)
        if self.reign is None:
            if self.role is Role.CONFIRMING and not self.follower.is_taking_over():
                self._begin(now)
            else:
                self.follower.after_durable(now)
            return
        adopting = self.reign.adopting
        if adopting is not None and self.saved_epoch >= adopting.epoch:
            self.config = adopting
            self.epoch = adopting.epoch
            self.reign.adopt(adopting, now)
        self.reign.commit(now)

    def _receive(self, sender: Replica, message: Message, now: float) -> None:
        if isinstance(message, Join):
            if self.reign is not None:
                self.reign.on_join(sender)
            elif message.epoch < self.epoch:
                self.send(sender, Outdated(self.epoch))
            return
        if message.epoch != self.epoch:
            self._on_other_epoch(sender, message, now)
            if message.epoch != self.epoch:
                return
        if isinstance(message, Outdated):
            return
        if self.reign is None:
            self._follow(sender, message, now)
            return
        peer = self.reign.peer_of(sender)
        if peer is None:
            return
        match message:
            case PrepareAck():
                self.reign.on_prepare_ack(peer, message, now)
            case BeaconAck():
                self.reign.on_beacon_ack(peer, message, now)
            case PrepareNack():
                self.reign.on_prepare_nack(peer, message, now)
            case SnapshotAck():
                self.reign.on_snapshot_ack(peer, message, now)

    def _follow(self, sender: Replica, message: Message, now: float) -> None:
        if not self.follower.follows(sender):
            return
        match message:
            case Prepare():
                self.follower.on_prepare(sender, message, now)
            case Beacon():
                self.follower.on_beacon(sender, message, now)
            case Commit():
                self.follower.on_commit(message, now)
            case SnapshotChunk():
                self.follower.on_chunk(sender, message, now)

    def _on_other_epoch(self, sender: Replica, message: Message, now: float) -> None:
        if message.epoch < self.epoch:
            if isinstance(message, Beacon):
                self.send(sender, Outdated(self.epoch))
            return
        if isinstance(message, Beacon) and message.config is not None:
            self._on_config(message.config, now)
        elif self.reign is None or self.reign.adopting is None or self.reign.adopting.epoch < message.epoch:
            self.follower.read_config(now)

    def check_invariants(self) -> None:
        """Raise AssertionError unless what the replica promises of itself holds."""
        super().check_invariants()
        assert self.role is not Role.PRIMARY or self.reign is not None, repr(self)
        if self.reign is not None:
            assert self.config is not None, repr(self)
            assert self.role in (Role.CONFIRMING, Role.PRIMARY), repr(self)
            assert self._leads(self.config), repr(self)
            assert self.saved_epoch >= self.epoch, repr(self)
            assert self.role is Role.CONFIRMING or self.committed >= self.reign.barrier, repr(self)
            for peer in self.reign.required():
                assert peer.replica.incarnation == "" or peer.acked <= self.last, repr(self)
                assert self.committed <= max(peer.acked, self.reign.barrier) or not peer.is_in_sync, repr(self)
        else:
            assert self.follower.verified <= max(self.last, self.committed), repr(self)
