"""What a primary does: brings entries to the others, commits them, holds its lease, grants read leases.

A commit needs every replica in sync, and whoever may already have become one: a learner whose taking in was asked for, or is
about to be, so that it may become level while there are writes. So does the lease, which rests on the send time of beacons:
each of the others promises by its answer not to take over for a grace that is longer than the lease, and begins to count later.

Pure: imports only the standard library and other pure files.
"""

from kvshard.clustermap import Replica, ShardConfig
from leaf.replication.actions import CompareAndSet, Evaluate, Reason, Refuse
from leaf.replication.core import Core, Role
from leaf.replication.dedup import Expired
from leaf.replication.events import Conclude, Propose, Write
from leaf.replication.membership import Change, Kind, is_alone, next_change
from leaf.replication.messages import (
    Beacon,
    BeaconAck,
    Commit,
    Entry,
    PrepareAck,
    PrepareNack,
    RequestId,
    SnapshotAck,
)
from leaf.replication.peer import Peer

IN_FLIGHT_MAX_BYTES = 64 * 1024 * 1024
"""Keys and values of entries not yet applied: two of the largest batches, so that one is prepared while one is flushed."""

IN_FLIGHT_MAX_ENTRIES = 8_192
"""More small entries than one group commit ever holds; beyond it waiting writers only add memory."""


class Reign:
    """The time in which this replica leads, over several epochs if all of them were its own.

    alone_since: since when so few are heard that the shard cannot take writes under this primary.
    """

    def __init__(self, core: Core, config: ShardConfig, min_in_sync: int, now: float) -> None:
        self.core = core
        self.config = config
        self.min_in_sync = min_in_sync
        self.began_at = now
        self.peers: dict[str, Peer] = {}
        self.joiners: dict[str, Replica] = {}
        self.change: Change | None = None
        self.adopting: ShardConfig | None = None
        self.joining: tuple[str, float] | None = None
        self.closing_since: float | None = None
        self.alone_since: float | None = None
        self.change_not_before = now
        self.handover_not_before = now
        self._next_beacon_at = now
        self._meet(config, now)
        core.append((Entry(config.epoch, core.last + 1, None),))
        self.barrier = core.last

    def _meet(self, config: ShardConfig, now: float) -> None:
        """Have exactly the members of a configuration as peers."""
        core = self.core
        members = {each.leaf: each for each in config.replicas if each.leaf != core.me.leaf}
        for leaf in [leaf for leaf, peer in self.peers.items() if members.get(leaf) != peer.replica]:
            peer = self.peers[leaf]
            known = members.get(leaf)
            if known is not None and not peer.replica.incarnation:
                peer.replica = known  # It has come up and told its identity.
                continue
            peer.stop_sending(core)
            del self.peers[leaf]
        in_sync = {each.leaf for each in config.in_sync}
        for leaf, replica in members.items():
            if leaf not in self.peers:
                self.peers[leaf] = Peer(replica, leaf in in_sync, core.last, now)
            self.peers[leaf].is_in_sync = leaf in in_sync
        self.joiners = {leaf: each for leaf, each in self.joiners.items() if members.get(leaf) != each}
        self._pin()

    def see(self, config: ShardConfig, now: float) -> None:
        """The same epoch, with what may change in it: identities that were told, and what is desired."""
        self.config = config
        self._meet(config, now)

    def adopt(self, config: ShardConfig, now: float) -> None:
        """A newer epoch of this primary's own is on its disk: act in it."""
        self.config = config
        self.adopting = None
        self.change = None
        self.joining = None
        self.closing_since = None
        self._meet(config, now)
        for peer in self.peers.values():
            peer.restart(self.core)
            peer.is_leaving = False
        self._send_beacons(now)
        self.pump(now)
        self.commit(now)

    def end(self) -> None:
        """Another one leads, or nobody: free what was under way."""
        for peer in self.peers.values():
            peer.stop_sending(self.core)
        self.core.pinned = None

    # -- what safety rests on -------------------------------------------------------------------------------------------

    def required(self) -> list[Peer]:
        """Whose acknowledgement a commit and the lease need."""
        if self.change is None and self.joining is None:
            return [peer for peer in self.peers.values() if peer.is_in_sync]
        asked = self.change.subject if self.change is not None and self.change.kind is Kind.PROMOTE else None
        joining = self.joining[0] if self.joining is not None else None
        return [peer for leaf, peer in self.peers.items() if peer.is_in_sync or leaf in (asked, joining)]

    def has_lease(self, now: float) -> bool:
        """Whether nobody can have taken over: only then strong reads are served, writes acknowledged, leases granted."""
        if self.change is not None and self.change.kind is Kind.HAND_OVER:
            return False  # It may have been done.
        for peer in self.required():  # noqa: SIM110 (every read asks: a loop takes half the time of `all` over a generator)
            if now >= self._lease_end(peer):
                return False
        return True

    def lease_until(self) -> float:
        """When the lease ends, or ended; infinity where none is needed. Of a lease that is being given up: before now."""
        if self.change is not None and self.change.kind is Kind.HAND_OVER:
            return self.change.asked_at
        return min((self._lease_end(peer) for peer in self.required()), default=float("inf"))

    def _lease_end(self, peer: Peer) -> float:
        return peer.beacon_acked_sent_at + self.core.timings.primary_lease

    def grants_lease(self, peer: Peer, now: float) -> bool:
        """Whether a secondary may serve strong reads for some time after its echo."""
        is_going = peer.is_leaving or (self.change is not None and peer.replica.leaf in self.change.leaving)
        is_known = peer.is_in_sync and peer.known_epoch == self.core.epoch and self.adopting is None
        is_fine = is_known and not is_going and not self.is_stalled(peer, now)
        return is_fine and self.core.role is Role.PRIMARY and self.has_lease(now)

    def is_stalled(self, peer: Peer, now: float) -> bool:
        """It may answer beacons, but leaves entries unacknowledged: it counts as silent."""
        return peer.unacked_since is not None and now - peer.unacked_since >= self.core.timings.evict_after

    def committable(self) -> int:
        """The seqno through which entries are durable wherever they must be."""
        through = min([self.core.durable, *(peer.acked for peer in self.required())])
        if len(self.config.in_sync) < self.min_in_sync:
            through = min(through, self.barrier)  # What came before it may have been acknowledged; nothing new may be.
        return through

    def commit(self, now: float) -> None:
        """Commit what may be."""
        core = self.core
        through = self.committable()
        if through <= core.committed or not self.has_lease(now):
            return
        core.advance(through, now)
        if core.role is Role.CONFIRMING and core.committed >= self.barrier:
            core.role = Role.PRIMARY
        for peer in self.peers.values():
            if not peer.pump(core, now) and peer.is_in_sync:
                core.send(peer.replica, Commit(core.epoch, core.committed))
        self._pin()

    def _pin(self) -> None:
        """Keep the log that learners still need."""
        wanted = [
            peer.sending.seqno if peer.sending is not None else peer.acked
            for peer in self.peers.values()
            if not peer.is_in_sync and (peer.sending is not None or peer.acked)
        ]
        self.core.pinned = min(wanted, default=None)

    # -- writes ---------------------------------------------------------------------------------------------------------

    def on_write(self, write: Write, now: float) -> None:
        """A caller wants to write."""
        core = self.core
        reason = self._refusal_before(now)
        if reason is None and write.request is not None and self._is_known(write.token, write.request):
            return
        reason = reason or self._refusal(write.size)
        core.out.append(Evaluate(write.token) if reason is None else Refuse(write.token, reason))

    def _is_known(self, token: int, request: RequestId) -> bool:
        """Whether a request was done, is being done, or may have been: then it is answered here and not done again."""
        core = self.core
        seqno = core.in_flight.get((request.client, request.number))
        if seqno is not None:
            core.await_commit(token, seqno, seqno, core.log.entry(seqno).result)
            return True
        found = core.dedup.find(request)
        if isinstance(found, Expired):
            core.out.append(Refuse(token, Reason.EXPIRED, core.committed))
        elif found is not None:
            core.await_commit(token, found.seqno, found.seqno, found.result)
        return found is not None

    def _refusal_before(self, now: float) -> Reason | None:
        if self.core.role is not Role.PRIMARY:
            return Reason.NOT_READY
        return None if self.has_lease(now) else Reason.NO_LEASE

    def _refusal(self, size: int) -> Reason | None:
        core = self.core
        if self.closing_since is not None:
            return Reason.NOT_READY
        if len(self.config.in_sync) < self.min_in_sync:
            return Reason.TOO_FEW_IN_SYNC
        is_full = core.in_flight_bytes > 0 and core.in_flight_bytes + size > IN_FLIGHT_MAX_BYTES
        return Reason.BUSY if is_full or core.in_flight_entries >= IN_FLIGHT_MAX_ENTRIES else None

    def on_propose(self, propose: Propose, now: float) -> None:
        """The evaluated write."""
        core = self.core
        seqno = core.last + 1
        entry = Entry(core.epoch, seqno, propose.payload, propose.keys, propose.size, propose.request, propose.result)
        core.append((entry,))
        core.await_commit(propose.token, seqno, seqno, propose.result)
        self.pump(now)

    def on_conclude(self, conclude: Conclude) -> None:
        """The evaluated write changes nothing; what it saw must be committed before it may be told."""
        self.core.await_commit(conclude.token, conclude.depends_on, 0, conclude.result)

    def are_ready_for(self, shard: int) -> bool:
        """Whether all other replicas in sync have said that they are ready to divide off that shard."""
        return all(peer.ready_for == shard for peer in self.peers.values() if peer.is_in_sync)

    def have_divided_off(self, shard: int) -> frozenset[str]:
        """The leaves whose replicas in sync have that shard's data whole on their disks."""
        others = {leaf for leaf, peer in self.peers.items() if peer.is_in_sync and peer.divided_off == shard}
        return frozenset(others | ({self.core.me.leaf} if self.core.divided_off == shard else set()))

    # -- messages -------------------------------------------------------------------------------------------------------

    def peer_of(self, sender: Replica) -> Peer | None:
        """The peer that speaks, if it is one: data of another identity is somebody else."""
        peer = self.peers.get(sender.leaf)
        return peer if peer is not None and peer.replica == sender else None

    def on_join(self, sender: Replica) -> None:
        """A leaf that is wanted here has made its data. The newest of each leaf is remembered, so there are few."""
        if sender.leaf in self.config.desired and sender not in self.config.replicas:
            self.joiners[sender.leaf] = sender

    def on_beacon_ack(self, peer: Peer, ack: BeaconAck, now: float) -> None:
        """A peer has heard this primary."""
        peer.last_ack_at = now
        peer.is_stopping = ack.is_stopping
        peer.is_full = ack.is_full
        peer.known_epoch = ack.epoch
        peer.ready_for, peer.divided_off = ack.ready_for, ack.divided_off
        if ack.sent_at > peer.beacon_acked_sent_at:
            peer.beacon_acked_sent_at = ack.sent_at
            peer.echo, peer.echo_came_at = ack.clock, now
        peer.on_ack(self.core, ack.acked, now, is_answer=False)
        self._after(peer, now)

    def on_prepare_ack(self, peer: Peer, ack: PrepareAck, now: float) -> None:
        """A peer has more of the log. One heard for the first time gets a beacon at once: the lease waits for its answer."""
        if peer.last_ack_at is None and not peer.is_greeted:
            peer.is_greeted = True
            self._send_beacons(now)
        peer.on_ack(self.core, ack.acked, now, is_answer=True)
        self._after(peer, now)

    def on_prepare_nack(self, peer: Peer, nack: PrepareNack, now: float) -> None:
        """A peer's log differs, or lacks what was sent."""
        peer.on_nack(self.core, nack.prev_seqno, nack.hint, nack.needs_snapshot, now)
        peer.pump(self.core, now)

    def on_snapshot_ack(self, peer: Peer, ack: SnapshotAck, now: float) -> None:
        """A piece of a snapshot has arrived."""
        peer.on_chunk_ack(self.core, ack, now)
        self._after(peer, now)

    def on_rows(self, snapshot: int, rows: object, cursor: object, now: float) -> None:
        """A piece of a snapshot was read."""
        for peer in self.peers.values():
            if peer.sending is not None and peer.sending.snapshot == snapshot and peer.sending.is_reading:
                peer.on_rows(self.core, rows, cursor, now)

    def _after(self, peer: Peer, now: float) -> None:
        self.commit(now)
        peer.pump(self.core, now)

    def pump(self, now: float) -> None:
        """Send each peer what may be sent."""
        for peer in self.peers.values():
            peer.pump(self.core, now)

    # -- time -----------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> None:
        """Time has passed."""
        self._note_alone(now)
        if self.alone_since is None:
            if now >= self._next_beacon_at:
                self._send_beacons(now)
            for peer in self.peers.values():
                peer.resend(self.core, now)
                peer.note_level(self.core.committed, now)
        self._end_joining(now)
        self.commit(now)
        if self.change is None and self.adopting is None:
            change = next_change(self, now) if now >= self.change_not_before else None
            if change is not None:
                change.asked_at = now
                self._ask(change)
        elif self.change is not None and self.change.retry_at is not None and now >= self.change.retry_at:
            # Of unknown outcome: it may have been done, or may still be, until the epoch has moved.
            self._ask(self.change)

    def _end_joining(self, now: float) -> None:
        """Wait no longer for a learner that does not become level: it must not hold up the shard."""
        if self.joining is None:
            return
        leaf, since = self.joining
        peer = self.peers.get(leaf)
        if peer is None or peer.is_in_sync:
            self.joining = None
        elif now - since >= self.core.timings.joining_limit:
            self.joining = None
            peer.join_not_before = now + self.core.timings.join_interval

    def _note_alone(self, now: float) -> None:
        """Fall silent when nobody is heard: the others may hear this primary still, and would wait for it for ever."""
        if not is_alone(self, now):
            self.alone_since = None
        elif self.alone_since is None:
            self.alone_since = now

    def _ask(self, change: Change) -> None:
        change.retry_at = None
        self.change = change
        self.core.out.append(CompareAndSet(change.expected_epoch, change.config))

    def _send_beacons(self, now: float) -> None:
        core = self.core
        self._next_beacon_at = now + core.timings.beacon_interval
        vouches = self.vouches(now)
        for peer in self.peers.values():
            grants = self.grants_lease(peer, now)
            if grants and peer.echo is not None:
                peer.granted_at = max(peer.granted_at, peer.echo_came_at)
            config = self.config if peer.known_epoch != core.epoch else None
            core.send(peer.replica, Beacon(core.epoch, now, core.committed, peer.echo if vouches else None, grants, config))

    def vouches(self, now: float) -> bool:
        """Whether `committed` covers every write acknowledged so far, by an earlier primary or a later one too."""
        return self.core.role is Role.PRIMARY and self.has_lease(now)
