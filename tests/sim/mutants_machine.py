"""Planted bugs in the machine itself: one small method replaced each."""

import contextlib
import dataclasses
from collections.abc import Hashable
from unittest import mock

from sim.leaf_model import Leaf
from sim.planting import Plant, replace, replacing

from kvshard.clustermap import Replica, ShardConfig
from leaf.replication import membership
from leaf.replication.core import Core, Role
from leaf.replication.events import CasAnswer, Outcome
from leaf.replication.follower import Follower
from leaf.replication.machine import ReplicationMachine
from leaf.replication.membership import Kind
from leaf.replication.messages import Entry, Message, Prepare
from leaf.replication.peer import Peer
from leaf.replication.reign import Reign

# Commits


def majority(self: Reign) -> int:
    """The slowest of those whose acknowledgement is needed is not waited for."""
    acked = sorted([self.core.durable, *(peer.acked for peer in self.required())])
    return acked[1] if len(acked) > 1 else acked[0]


def committed_without_joining(self: Reign) -> int:
    """Commits do not wait for a learner whose taking in is under way."""
    through = min([self.core.durable, *(peer.acked for peer in self.peers.values() if peer.is_in_sync)])
    return through if len(self.config.in_sync) >= self.min_in_sync else min(through, self.barrier)


def without_joining(stack: contextlib.ExitStack) -> None:
    """Neither commits nor the lease wait for a learner whose taking in is under way."""
    replace(stack, Reign, "required", lambda self: [peer for peer in self.peers.values() if peer.is_in_sync])


def no_lease_of_joining(self: Reign, now: float) -> bool:
    """The lease is held without a learner whose taking in is under way."""
    is_going = self.change is not None and self.change.kind is Kind.HAND_OVER
    return not is_going and all(now < self._lease_end(peer) for peer in self.peers.values() if peer.is_in_sync)


def sole_without_lease_of_joining(stack: contextlib.ExitStack) -> None:
    """A primary that is alone needs no lease, though a learner may just have been taken in."""
    original = Reign.has_lease

    def has_lease(self: Reign, now: float) -> bool:
        return original(self, now) if any(peer.is_in_sync for peer in self.peers.values()) else True

    replace(stack, Reign, "has_lease", has_lease)


def without_leaving(stack: contextlib.ExitStack) -> None:
    """One whose eviction was asked for is not waited for any more."""
    original = Reign.required

    def required(self: Reign) -> list[Peer]:
        leaving = self.change.leaving if self.change is not None else frozenset()
        return [peer for peer in original(self) if peer.replica.leaf not in leaving]

    replace(stack, Reign, "required", required)


# Leases of the primary and of secondaries


def granted_while_leaving(self: Reign, peer: Peer, now: float) -> bool:
    """One whose eviction is under way is granted leases, once it acks again."""
    is_known = peer.is_in_sync and peer.known_epoch == self.core.epoch and not peer.is_leaving
    return is_known and self.core.role is Role.PRIMARY and self.has_lease(now)


def granted_without_own(stack: contextlib.ExitStack) -> None:
    """A primary grants leases that has none."""

    def grants_lease(self: Reign, peer: Peer, now: float) -> bool:
        is_going = peer.is_leaving or (self.change is not None and peer.replica.leaf in self.change.leaving)
        return peer.is_in_sync and peer.known_epoch == self.core.epoch and not is_going

    replace(stack, Reign, "grants_lease", grants_lease)
    replace(stack, Reign, "vouches", lambda self, now: True)


def granted_to_stalled(stack: contextlib.ExitStack) -> None:
    """One that acks beacons but no entries goes on being granted leases, and is evicted."""
    original = Reign.grants_lease

    def grants_lease(self: Reign, peer: Peer, now: float) -> bool:
        kept, peer.unacked_since = peer.unacked_since, None
        try:
            return original(self, peer, now)
        finally:
            peer.unacked_since = kept

    replace(stack, Reign, "grants_lease", grants_lease)
    replace(stack, membership, "lease_is_over", lambda reign, peer, now: True)


def no_primary_lease(self: Reign, now: float) -> bool:
    """A primary never asks whether somebody may have taken over."""
    return True


def lease_while_handing_over(self: Reign, now: float) -> bool:
    """A primary serves on while its handover may have been done."""
    return all(now < self._lease_end(peer) for peer in self.required())


# Taking over


def no_grace_after_restart(stack: contextlib.ExitStack) -> None:
    """A replica that restarts has heard nothing for long, so it need wait neither to ask nor to lead."""
    original = Follower.enter

    def enter(self: Follower, now: float, *, has_same_primary: bool) -> None:
        is_first = self.heard_at == self.core.started_at
        original(self, now, has_same_primary=has_same_primary)
        if is_first:
            self.heard_at = now - 100.0

    replace(stack, Follower, "enter", enter)
    replace(stack, ReplicationMachine, "_earliest_lead", lambda self, before, config: float("-inf"))


def short_grace(stack: contextlib.ExitStack) -> None:
    """Takes over, and leads, before the old primary's lease has ended."""

    def grace_is_over(self: Follower, config: ShardConfig, now: float) -> bool:
        return now - self.heard_at >= 0.4 * self.core.timings.grace

    replace(stack, Follower, "grace_is_over", grace_is_over)
    replace(stack, ReplicationMachine, "_earliest_lead", lambda self, before, config: float("-inf"))


def no_grace_with_new_epoch(stack: contextlib.ExitStack) -> None:
    """What was heard of the primary before counts in a newer epoch."""
    original = Follower.enter

    def enter(self: Follower, now: float, *, has_same_primary: bool) -> None:
        heard_at = self.heard_at
        original(self, now, has_same_primary=has_same_primary)
        self.heard_at = heard_at

    replace(stack, Follower, "enter", enter)


def without_barrier(stack: contextlib.ExitStack) -> None:
    """A new primary serves at once, with what it knows to be committed."""
    original = ReplicationMachine._begin

    def begin(self: ReplicationMachine, now: float) -> None:
        had_reign = self.reign is not None
        with mock.patch.object(self, "append"):
            original(self, now)
        if self.reign is not None and not had_reign:
            self.reign.barrier = self.committed
            self.role = Role.PRIMARY

    replace(stack, ReplicationMachine, "_begin", begin)


def serves_before_barrier(stack: contextlib.ExitStack) -> None:
    """A new primary appends its barrier, and serves before that is committed."""
    original = ReplicationMachine._begin

    def begin(self: ReplicationMachine, now: float) -> None:
        original(self, now)
        if self.reign is not None:
            self.role = Role.PRIMARY

    replace(stack, ReplicationMachine, "_begin", begin)


def acts_before_epoch_is_saved(stack: contextlib.ExitStack) -> None:
    """An epoch counts as persisted when its writing has begun."""
    original = Core.save_epoch

    def save_epoch(self: Core, epoch: int) -> None:
        original(self, epoch)
        self.saved_epoch = epoch

    replace(stack, Core, "save_epoch", save_epoch)


def evicts_at_once(stack: contextlib.ExitStack) -> None:
    """A new primary puts out whoever it has not heard, though an earlier one may have granted a lease."""
    replace(stack, membership, "lease_is_over", lambda reign, peer, now: True)
    original = membership.must_evict

    def must_evict(reign: Reign, peer: Peer, now: float) -> bool:
        return original(reign, peer, now) or (peer.last_ack_at is None and now - reign.began_at > 0.1)

    replace(stack, membership, "must_evict", must_evict)


# The log


def tail_taken_back(stack: contextlib.ExitStack) -> None:
    """With a newer epoch what is not known to be committed is thrown away."""
    original = Follower.enter

    def enter(self: Follower, now: float, *, has_same_primary: bool) -> None:
        original(self, now, has_same_primary=has_same_primary)
        if self.core.log.last > self.core.committed:
            self.core.truncate(self.core.committed)

    replace(stack, Follower, "enter", enter)


def truncated_below_committed(self: Follower, after: int) -> None:
    """One entry too many is taken back, committed or not."""
    core = self.core
    after = max(after - 1, core.log.base_seqno)
    core.committed = min(core.committed, after)
    core.truncate(after)
    self.verified = min(self.verified, after)


def acked_undurable(self: Follower) -> int:
    """What is not durable is acknowledged."""
    return 0 if self.staging is not None or not self.core.is_whole else self.verified


def acked_unverified(self: Follower) -> int:
    """What may differ from the primary's log is acknowledged."""
    return 0 if self.staging is not None or not self.core.is_whole else self.core.durable


def applies_unverified(stack: contextlib.ExitStack) -> None:
    """A commit is applied to entries that may be others than the primary's."""
    original = Follower._apply_committed

    def apply_committed(self: Follower, now: float) -> None:
        kept, self.verified = self.verified, self.core.last
        original(self, now)
        self.verified = max(kept, self.core.committed)

    replace(stack, Follower, "_apply_committed", apply_committed)


def applies_uncommitted(stack: contextlib.ExitStack) -> None:
    """A secondary applies what it has, committed or not."""
    original = Follower._learn_commit
    replace(stack, Follower, "_learn_commit", lambda self, committed, now: original(self, self.core.last, now))


def mismatch_overlooked(stack: contextlib.ExitStack) -> None:
    """Entries are appended without a look at what stands before them."""
    original = Follower.on_prepare

    def on_prepare(self: Follower, sender: Replica, message: Prepare, now: float) -> None:
        known = self.core.log.epoch_at(message.prev_seqno) if message.prev_seqno >= self.core.log.base_seqno else None
        original(self, sender, message if known is None else dataclasses.replace(message, prev_epoch=known), now)

    replace(stack, Follower, "on_prepare", on_prepare)


# Members, requests, the coordinator


def ambiguous_is_failed(stack: contextlib.ExitStack) -> None:
    """A request of unknown outcome is forgotten."""
    original = ReplicationMachine._on_cas

    def on_cas(self: ReplicationMachine, answer: CasAnswer, now: float) -> None:
        original(self, answer, now)
        if answer.outcome is Outcome.UNKNOWN:
            self.follower.take_over = None
            if self.reign is not None:
                self.reign.change = None

    replace(stack, ReplicationMachine, "_on_cas", on_cas)


def incarnation_overlooked(stack: contextlib.ExitStack) -> None:
    """Leaves are taken for replicas: new data answers in the name of what was lost."""
    original = Leaf.receive

    def receive(self: Leaf, shard: int, sender: Replica, receiver: Replica, message: Message) -> None:
        host = self.hosts.get(shard)
        if host is not None:
            original(self, shard, sender, host.machine.me, message)

    replace(stack, Leaf, "receive", receive)
    replace(stack, Reign, "peer_of", lambda self, sender: self.peers.get(sender.leaf))
    follows = Follower.follows

    def follows_any(self: Follower, sender: Replica) -> bool:
        config = self.core.config
        if config is None or self.core.me.leaf not in [each.leaf for each in config.replicas]:
            return False
        self.core.role = Role.SECONDARY
        return follows(self, next(each for each in config.in_sync if each.leaf == config.primary))

    replace(stack, Follower, "follows", follows_any)


def taken_in_while_confirming(reign: Reign, peer: Peer, now: float) -> bool:
    """A new primary takes a learner in before it knows how far its predecessor had committed."""
    return peer.sending is None and not peer.is_probing


def latest_write_of_key_only(self: Core, key: Hashable, **_: bool) -> int | None:
    """A pending entry that writes every key is not seen when a condition is looked at."""
    return self._dirty.get(key)


def in_flight_forgotten(stack: contextlib.ExitStack) -> None:
    """A request whose entry is not committed yet is not recognised."""
    original = Core._note

    def note(self: Core, entry: Entry) -> None:
        original(self, entry)
        self.in_flight.clear()

    replace(stack, Core, "_note", note)


def restarted_primary_goes_on(self: ReplicationMachine, epoch: int) -> bool:
    """A primary that restarts acts in the epoch it had."""
    return False


def handed_over_early(stack: contextlib.ExitStack) -> None:
    """The handover config puts the old primary out without waiting for its lease to end."""
    original = membership._changed

    def changed(reign: Reign, kind: Kind, *args: object, **named: object) -> membership.Change:
        change = original(reign, kind, *args, **named)  # type: ignore[arg-type]
        if kind is Kind.HAND_OVER and len(change.config.in_sync) > 1:
            stay = tuple(each for each in change.config.in_sync if each != reign.core.me)
            change.config = dataclasses.replace(change.config, in_sync=stay)
        return change

    replace(stack, membership, "_changed", changed)
    replace(stack, Reign, "has_lease", lease_while_handing_over)


MUTANTS: dict[str, Plant] = {
    "reply before all acks": replacing(Reign, "committable", majority),
    "learner taken in before its acks count": replacing(Reign, "committable", committed_without_joining),
    "learner whose adding is under way ignored": without_joining,
    "no lease asked of a learner whose adding is under way": replacing(Reign, "has_lease", no_lease_of_joining),
    "no lease asked of a learner whose adding is under way by a sole primary": sole_without_lease_of_joining,
    "commit before the eviction is confirmed": without_leaving,
    "read lease granted while the eviction is under way": replacing(Reign, "grants_lease", granted_while_leaving),
    "read lease granted by a primary that has none": granted_without_own,
    "read lease granted to a stalled secondary": granted_to_stalled,
    "no primary lease": replacing(Reign, "has_lease", no_primary_lease),
    "reads served while handing over": handed_over_early,
    "no new grace after a restart": no_grace_after_restart,
    "no new grace with a newer epoch": no_grace_with_new_epoch,
    "takeover of an earlier run acted on at once": replacing(ReplicationMachine, "_earliest_lead", lambda *_: float("-inf")),
    "serves before the grace is over": short_grace,
    "takeover without barrier": without_barrier,
    "serves before the barrier is committed": serves_before_barrier,
    "acts before the epoch is saved": acts_before_epoch_is_saved,
    "evicts at once after taking over": evicts_at_once,
    "learner taken in before it is level": replacing(membership, "is_level", lambda *_: True),
    "learner taken in by a primary that is confirming": replacing(membership, "keeps_pace", taken_in_while_confirming),
    "uncommitted tail thrown away with a newer epoch": tail_taken_back,
    "truncates below committed": replacing(Follower, "_take_back", truncated_below_committed),
    "acks what is not durable": replacing(Follower, "acked", acked_undurable),
    "acks what may differ": replacing(Follower, "acked", acked_unverified),
    "applies what may differ": applies_unverified,
    "applied before committed": applies_uncommitted,
    "mismatch of logs overlooked": mismatch_overlooked,
    "ambiguous compare-and-set taken as failed": ambiguous_is_failed,
    "incarnation overlooked": incarnation_overlooked,
    "pending write of every key not seen": replacing(Core, "latest_write", latest_write_of_key_only),
    "request in flight not recognised": in_flight_forgotten,
    "restarted primary goes on in its epoch": replacing(ReplicationMachine, "_has_acted_in", restarted_primary_goes_on),
}
