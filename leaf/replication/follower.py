"""A replica that another one leads: it keeps its log equal to the primary's, holds a read lease, and takes over when it must.

Leases, by its own clock only: a grant speaks of a clock reading that this replica itself had sent (the echo), so the network's
delay can only shorten it. Grace, too: whoever takes over has heard nothing for T since, whatever the primary's clock says.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass, replace

from kvshard.clustermap import Replica, ShardConfig
from leaf.replication.actions import CompareAndSet, InstallSnapshot, ReadConfig, Reason, StageRows
from leaf.replication.core import Core, Role
from leaf.replication.messages import (
    Beacon,
    BeaconAck,
    Commit,
    Echo,
    Join,
    Prepare,
    PrepareAck,
    PrepareNack,
    SnapshotAck,
    SnapshotChunk,
)


@dataclass(slots=True)
class _Staging:
    """A snapshot that is arriving. received: chunks staged. is_installed: the last one was; its ack waits for the disk."""

    snapshot: int
    received: int = 0
    is_installed: bool = False


@dataclass(slots=True)
class TakeOver:
    """A request to become the primary. retry_at: when it is repeated, None while it is under way.

    is_open: an answer left open whether it was done, or will be.
    """

    expected_epoch: int
    config: ShardConfig
    retry_at: float | None = None
    is_open: bool = False


class Follower:
    """What a replica keeps while it does not lead."""

    def __init__(self, core: Core, now: float) -> None:
        self.core = core
        self.heard_at = now
        self.lease_until = float("-inf")
        self.verified = core.committed
        self.told_committed = 0
        self.take_over: TakeOver | None = None
        self.take_over_not_before = now
        self.promised_at = float("-inf")
        self.staging: _Staging | None = None
        self._fresh: tuple[int, float] | None = None
        self._fresh_as_of: float | None = None
        self._acked_sent = -1
        self._pending_ack: BeaconAck | None = None
        self._last_ack: BeaconAck | None = None
        self._join_at = now
        self._asked_at = float("-inf")

    def enter(self, now: float, *, has_same_primary: bool) -> None:
        """A newer epoch has begun: nothing that was granted or verified in an older one counts, and the grace starts anew.

        A snapshot that is arriving goes on if the primary is the same one.
        """
        self.heard_at = now
        self.lease_until = float("-inf")
        self.verified = self.core.committed
        self.told_committed = self.core.committed
        self.take_over = None
        self._pending_ack = None
        self._acked_sent = -1
        self._join_at = now
        if self.staging is None or (has_same_primary and not self.staging.is_installed):
            return
        if not self.staging.is_installed:
            self.core.is_whole = False  # Half of a snapshot lies over what was there.
        self.staging = None

    # -- reads ----------------------------------------------------------------------------------------------------------

    def has_lease(self, now: float) -> bool:
        """Whether strong reads may be served here."""
        return self.core.role is Role.SECONDARY and now < self.lease_until

    def age(self, now: float) -> float | None:
        """The state holds every write acknowledged before that long ago; None: not known."""
        return None if self._fresh_as_of is None else max(0.0, now - self._fresh_as_of)

    def _note_fresh(self) -> None:
        if self._fresh is not None and self._fresh[0] <= self.core.committed:
            self._fresh_as_of = self._fresh[1]
            self._fresh = None

    # -- messages of the primary ----------------------------------------------------------------------------------------

    def follows(self, sender: Replica) -> bool:
        """Whether the sender is the primary that this replica follows, and may be answered."""
        core = self.core
        if core.role not in (Role.SECONDARY, Role.LEARNER) or core.config is None:
            return False
        return sender.leaf == core.config.primary and sender in core.config.in_sync and not self.is_taking_over()

    def is_taking_over(self) -> bool:
        """Whether a request to become primary is under way: it may have been granted, so the old primary gets no answer."""
        return self.take_over is not None

    def on_beacon(self, sender: Replica, beacon: Beacon, now: float) -> None:
        """The primary is there."""
        core = self.core
        self.heard_at = now
        if beacon.echo is not None and beacon.echo.boot == core.boot:
            if beacon.grants_lease and core.role is Role.SECONDARY:
                self.lease_until = max(self.lease_until, self._lease_end(beacon.echo, now))
            if self._fresh is None:  # Else what it waits for must come first, or none ever did under constant writes.
                self._fresh = (beacon.committed, beacon.echo.clock)
        self._learn_commit(beacon.committed, now)
        self._note_fresh()
        clock = Echo(core.boot, now)
        marks = (core.is_stopping, core.ready_for, core.divided_off, core.is_full)
        ack = BeaconAck(core.epoch, beacon.sent_at, clock, self.acked(), *marks)
        if core.saved_epoch >= core.epoch:
            self._answer(sender, ack, now)
        else:
            self._pending_ack = ack  # An epoch is acted on only when the disk knows it.

    def _answer(self, primary: Replica, ack: BeaconAck, now: float) -> None:
        """Promise not to take over before a grace has gone by."""
        self.promised_at = now
        self._last_ack = ack
        self.core.send(primary, ack)

    def tell_divided(self, now: float) -> None:
        """Do not let the primary wait for the next beacon: what leaves is served by nobody until it has told the map."""
        core, ack = self.core, self._last_ack
        if core.config is None or ack is None or ack.epoch != core.epoch or not self.follows(primary_of(core.config)):
            return
        told = replace(ack, acked=self.acked(), is_stopping=core.is_stopping, ready_for=core.ready_for)
        self._answer(primary_of(core.config), replace(told, divided_off=core.divided_off), now)

    def _lease_end(self, echo: Echo, now: float) -> float:
        return echo.clock + self.core.timings.read_lease

    def on_commit(self, message: Commit, now: float) -> None:
        """More entries are committed."""
        self._learn_commit(message.committed, now)

    def on_prepare(self, sender: Replica, message: Prepare, now: float) -> None:
        """Entries to add to the log."""
        core = self.core
        if not core.is_whole or (self.staging is not None and not self.staging.is_installed):
            # A primary that is sending a snapshot takes no notice; one that is not has to begin anew.
            core.send(sender, PrepareNack(core.epoch, message.prev_seqno, 0, needs_snapshot=True))
            return
        self.heard_at = now
        end = message.prev_seqno + len(message.entries)
        if message.prev_seqno > core.committed:
            known = core.log.epoch_at(message.prev_seqno)
            if known != message.prev_epoch:
                hint = core.last if known is None else max(core.committed, core.log.conflict_hint(message.prev_seqno))
                core.send(sender, PrepareNack(core.epoch, message.prev_seqno, hint))
                return
        elif end < core.committed:
            end = core.committed  # All of it is committed here: it is what the primary has.
        self._take(message)
        self.verified = max(self.verified, end)
        self._learn_commit(message.committed, now)
        if self.acked() >= end:
            self._ack(sender)  # Else the disk's answer will.

    def _take(self, message: Prepare) -> None:
        """Add what the log lacks; take back what differs."""
        core = self.core
        first = message.prev_seqno + 1
        skip = max(0, core.committed - message.prev_seqno)
        for index in range(skip, len(message.entries)):
            known = core.log.epoch_at(first + index)
            if known is None:
                core.append(message.entries[index:])
                return
            if known != message.entries[index].epoch:
                self._take_back(first + index - 1)
                core.append(message.entries[index:])
                return

    def _take_back(self, after: int) -> None:
        self.core.truncate(after)
        self.verified = min(self.verified, after)

    def acked(self) -> int:
        """The log is equal to the primary's, and durable, through this seqno."""
        is_staged = self.staging is not None and not self.staging.is_installed
        return 0 if is_staged or not self.core.is_whole else min(self.verified, self.core.durable)

    def _ack(self, sender: Replica) -> None:
        core = self.core
        acked = self.acked()
        if core.saved_epoch >= core.epoch:
            self._acked_sent = acked
            core.send(sender, PrepareAck(core.epoch, acked))

    def _learn_commit(self, committed: int, now: float) -> None:
        self.told_committed = max(self.told_committed, committed)
        self._apply_committed(now)

    def _apply_committed(self, now: float) -> None:
        # Only what is known to be the primary's: the rest of this log may be from an epoch that lost.
        through = min(self.told_committed, self.verified)
        if through > self.core.committed and self.staging is None:
            self.core.advance(through, now)
            self._note_fresh()

    # -- snapshots ------------------------------------------------------------------------------------------------------

    def on_chunk(self, sender: Replica, chunk: SnapshotChunk, now: float) -> None:
        """A piece of the state, for a learner whose log is too far behind."""
        core = self.core
        if core.role is not Role.LEARNER:
            return
        self.heard_at = now
        staging = self.staging
        if self._is_past(chunk) or (staging is not None and staging.is_installed):
            # A late copy: to install it again would take back what was acknowledged. The ack of the next beacon tells.
            return
        if staging is None or staging.snapshot != chunk.snapshot:
            if chunk.index != 0:
                core.send(sender, SnapshotAck(core.epoch, chunk.snapshot, -1))
                return
            staging = self.staging = _Staging(chunk.snapshot)
        if chunk.index > staging.received:
            return
        if chunk.index == staging.received:
            core.out.append(StageRows(chunk.snapshot, chunk.index, chunk.rows))
            staging.received += 1
            if chunk.is_last:
                self._install(chunk)
                return
        core.send(sender, SnapshotAck(core.epoch, chunk.snapshot, chunk.index))

    def _is_past(self, chunk: SnapshotChunk) -> bool:
        """Whether this replica has what the snapshot holds, and perhaps acknowledged more."""
        return self.core.is_whole and self.staging is None and chunk.seqno <= self.verified

    def _install(self, chunk: SnapshotChunk) -> None:
        core = self.core
        assert self.staging is not None
        self.staging.is_installed = True
        ticket = core.snapshot_ticket(chunk.seqno)
        core.dedup.restore(chunk.dedup, chunk.forgotten_through)
        core.replace_state(chunk.seqno, chunk.seqno_epoch)
        self.verified = chunk.seqno
        core.out.append(
            InstallSnapshot(ticket, chunk.snapshot, chunk.seqno, chunk.seqno_epoch, chunk.dedup, chunk.forgotten_through)
        )

    # -- time and the disk ----------------------------------------------------------------------------------------------

    def after_durable(self, now: float) -> None:
        """The disk holds more than before: say so."""
        core = self.core
        if core.config is None or core.role not in (Role.SECONDARY, Role.LEARNER):
            return
        primary = primary_of(core.config)
        if self.is_taking_over():
            return
        if self.staging is not None and self.staging.is_installed and core.durable >= core.log.base_seqno:
            core.send(primary, SnapshotAck(core.epoch, self.staging.snapshot, self.staging.received - 1))
            self.staging = None
        self._apply_committed(now)
        if self._pending_ack is not None and core.saved_epoch >= core.epoch:
            self._answer(primary, replace(self._pending_ack, acked=self.acked()), now)
            self._pending_ack = None
        if self.acked() > self._acked_sent:
            self._ack(primary)

    def tick(self, now: float) -> None:
        """Time has passed: take over from a primary that is gone, or ask to join."""
        core = self.core
        config = core.config
        if config is None:
            return
        if core.role in (Role.SECONDARY, Role.LEARNER) and not self.is_taking_over():
            self._apply_committed(now)
        if core.role is Role.SECONDARY:
            if core.has_readers and not self.has_lease(now):
                core.refuse_readers(Reason.NO_LEASE)
            self._consider_take_over(config, now)
        elif core.role in (Role.IDLE, Role.LEARNER, Role.REMOVED):
            self._ask_to_join(config, now)

    def _consider_take_over(self, config: ShardConfig, now: float) -> None:
        if self.take_over is not None:
            self.retry_take_over(now)
        elif self.grace_is_over(config, now) and self._may_take_over() and now >= self.take_over_not_before:
            self.request(take_over_config(config, self.core.me), now)

    def grace_is_over(self, config: ShardConfig, now: float) -> bool:
        """Whether the old primary's lease has surely ended, and it is this replica's turn.

        One that never was up gets longer: leaves start one after the other.
        """
        timings = self.core.timings
        grace = timings.grace if primary_of(config).incarnation else timings.first_contact
        if now - self.heard_at < grace:
            return False
        others = [each.leaf for each in config.in_sync if each.leaf != config.primary]
        return now - self.heard_at >= grace + others.index(self.core.me.leaf) * timings.stagger

    def _may_take_over(self) -> bool:
        return self.core.is_whole and self.core.saved_epoch >= self.core.epoch and not self.core.is_stopping

    def request(self, config: ShardConfig, now: float) -> None:
        """Ask to become the primary by this configuration."""
        assert self.core.config is not None
        self.take_over = TakeOver(self.core.config.epoch, config)
        self.core.out.append(CompareAndSet(self.core.config.epoch, config))

    def retry_take_over(self, now: float) -> None:
        """Repeat a request of unknown outcome: it may have been done, or may still be, until the epoch has moved."""
        request = self.take_over
        if request is not None and request.retry_at is not None and now >= request.retry_at:
            request.retry_at = None
            self.core.out.append(CompareAndSet(request.expected_epoch, request.config))

    def _ask_to_join(self, config: ShardConfig, now: float) -> None:
        core = self.core
        if now < self._join_at or (core.role is Role.LEARNER and now - self.heard_at < core.timings.grace):
            return
        self._join_at = now + core.timings.join_interval
        if core.role is Role.LEARNER:
            self.read_config(now)
            return
        if core.me.leaf not in config.desired or core.is_stopping:
            return
        if config.primary != core.me.leaf:
            core.send(primary_of(config), Join(core.epoch))

    def read_config(self, now: float) -> None:
        """Look at the coordinator, not too often."""
        if now - self._asked_at >= self.core.timings.coordinator_retry:
            self._asked_at = now
            self.core.out.append(ReadConfig())


def primary_of(config: ShardConfig) -> Replica:
    """The replica that leads."""
    return next(each for each in config.in_sync if each.leaf == config.primary)


def take_over_config(config: ShardConfig, me: Replica) -> ShardConfig:
    """The replica set without the primary that is gone, led by this replica."""
    in_sync = tuple(each for each in config.in_sync if each.leaf != config.primary)
    return replace(config, epoch=config.epoch + 1, primary=me.leaf, in_sync=in_sync)
