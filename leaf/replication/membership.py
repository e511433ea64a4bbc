"""Which change of the replica set a primary asks for next; one at a time.

In order: put out who is silent (where too few would be left, only when the others have had time to take over), take in who has
caught up, add who is wanted, hand over to the wanted primary (or to anybody, when this leaf is about to stop), put out who is
about to stop, and who is not wanted any more (only when every wanted one is in sync). All are compare-and-set by epoch at the
coordinator.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from kvshard.clustermap import Replica, ShardConfig
from leaf.replication.core import Role
from leaf.replication.peer import WINDOW_ENTRIES, Peer

if TYPE_CHECKING:
    from leaf.replication.reign import Reign

PROMOTE_LAG: Final = WINDOW_ENTRIES
"""Entries that a learner may lack when it is taken in: its acknowledgements count from then on, so commits wait for them.

So many may be under way to it; under many writes it never lacks fewer.
"""


class Kind(Enum):
    """What a change is about."""

    EVICT = "evict"
    PROMOTE = "promote"
    ADD_LEARNER = "add learner"
    DROP_LEARNER = "drop learner"
    HAND_OVER = "hand over"


@dataclass(slots=True)
class Change:
    """A change asked for. leaving: leaves that it takes out of the set. retry_at: when it is repeated, its outcome unknown.

    is_open: an answer left open whether it was done, or will be. asked_at: when it was first asked for.
    """

    kind: Kind
    expected_epoch: int
    config: ShardConfig
    subject: str = ""
    leaving: frozenset[str] = frozenset()
    retry_at: float | None = None
    is_open: bool = False
    asked_at: float = 0.0


def next_change(reign: "Reign", now: float) -> Change | None:
    """The change to ask for now. May begin what precedes one: no leases for who is to leave, no writes before a handover."""
    return (
        _evict(reign, now)
        or _promote(reign, now)
        or _drop_learner(reign, now)
        or _add_learner(reign)
        or _hand_over(reign, now)
        or _put_out_surplus(reign, now)
    )


def _changed(
    reign: "Reign", kind: Kind, in_sync: Iterable[Replica], learners: Iterable[Replica], subject: str = "", primary: str = ""
) -> Change:
    config = reign.config
    wanted = replace(
        config,
        epoch=config.epoch + 1,
        primary=primary or config.primary,
        in_sync=tuple(in_sync),
        learners=tuple(learners),
    )
    leaving = frozenset(each.leaf for each in config.in_sync) - {each.leaf for each in wanted.in_sync}
    return Change(kind, config.epoch, wanted, subject, leaving)


def must_evict(reign: "Reign", peer: Peer, now: float) -> bool:
    """Whether a replica in sync is silent, and every lease it may hold has run out."""
    timings = reign.core.timings
    if peer.last_ack_at is None:
        # It may not have come up yet, if this process has not long been up either.
        waited = now - max(reign.began_at, peer.since)
        return waited >= timings.evict_after and now - reign.core.started_at >= timings.first_contact
    heard = max(peer.last_ack_at, reign.began_at)
    is_silent = now - heard >= timings.evict_after or reign.is_stalled(peer, now)
    return is_silent and lease_is_over(reign, peer, now)


def lease_is_over(reign: "Reign", peer: Peer, now: float) -> bool:
    """Whether no read lease of this replica can be left, not one of an earlier primary either."""
    return now - max(peer.granted_at, reign.began_at) >= reign.core.timings.evict_after


def staying(reign: "Reign", now: float) -> list[Replica]:
    """The replicas in sync without those that must be put out."""
    silent = {leaf for leaf, peer in reign.peers.items() if peer.is_in_sync and must_evict(reign, peer, now)}
    return [each for each in reign.config.in_sync if each.leaf not in silent]


def is_alone(reign: "Reign", now: float) -> bool:
    """Whether too few would be left to take writes: then it is this primary, more likely than all others, that is cut off."""
    stay = staying(reign, now)
    return len(stay) < min(reign.min_in_sync, len(reign.config.in_sync))


def _evict(reign: "Reign", now: float) -> Change | None:
    stay = staying(reign, now)
    if len(stay) == len(reign.config.in_sync):
        return None
    if reign.alone_since is not None and now - reign.alone_since < reign.core.timings.solitude:
        return None  # The others have the first go: together they take writes, this one could only refuse them.
    return _changed(reign, Kind.EVICT, stay, reign.config.learners)


def keeps_pace(reign: "Reign", peer: Peer, now: float) -> bool:
    """Whether a learner answers and is so little behind that it would be level in a moment if commits waited for it."""
    core = reign.core
    if core.role is not Role.PRIMARY:
        return False  # Before its barrier commits a primary does not know how far its predecessor had committed.
    is_heard = now - peer.beacon_acked_sent_at < core.timings.evict_after and peer.known_epoch == core.epoch
    is_near = (
        not peer.is_stopping and core.last - peer.acked <= PROMOTE_LAG and now - peer.level_as_of < core.timings.joining_limit
    )
    return is_heard and is_near and peer.sending is None and not peer.is_probing


def is_level(reign: "Reign", peer: Peer) -> bool:
    """Whether a learner holds everything committed, so that it may be taken in sync."""
    return peer.acked >= reign.core.committed


def _promote(reign: "Reign", now: float) -> Change | None:
    """Take in who is level. Commits wait first for one who is not quite, for a bounded time: under constant writes he never
    would be, since a primary with nobody in sync, or with nearer ones, commits before a learner's answer can be there."""
    config = reign.config
    if reign.core.is_dividing:
        return None  # It may have come by a snapshot, which lacks what has left.
    for leaf, peer in reign.peers.items():
        if peer.is_in_sync or leaf not in config.desired or not keeps_pace(reign, peer, now):
            continue
        if is_level(reign, peer):
            reign.joining = None
            learners = [each for each in config.learners if each.leaf != leaf]
            return _changed(reign, Kind.PROMOTE, (*config.in_sync, peer.replica), learners, subject=leaf)
        if reign.joining is None and now >= peer.join_not_before:
            reign.joining = (leaf, now)
    return None


def _drop_learner(reign: "Reign", now: float) -> Change | None:
    """One that is not wanted, or whose leaf has lost its data and asks anew."""
    config = reign.config
    for each in config.learners:
        if each.leaf not in config.desired or each.leaf in reign.joiners:
            rest = [other for other in config.learners if other != each]
            return _changed(reign, Kind.DROP_LEARNER, config.in_sync, rest)
    return None


def _add_learner(reign: "Reign") -> Change | None:
    if not reign.joiners:
        return None
    config = reign.config
    members = {each.leaf for each in config.replicas}
    for leaf, joiner in reign.joiners.items():
        if leaf in config.desired and leaf not in members:
            return _changed(reign, Kind.ADD_LEARNER, config.in_sync, (*config.learners, joiner))
    return None


def _hand_over(reign: "Reign", now: float) -> Change | None:
    config, core = reign.config, reign.core
    wanted = _wanted_primary(reign, now)
    peer = reign.peers.get(wanted)
    if wanted == config.primary or peer is None or not _is_fit(reign, peer, now) or now < reign.handover_not_before:
        reign.closing_since = None
        return None
    if reign.closing_since is None:
        reign.closing_since = now
    if now - reign.closing_since > core.timings.handover_limit:
        reign.closing_since = None
        reign.handover_not_before = now + core.timings.handover_pause
        return None
    if peer.acked < core.last or core.committed < core.last:
        return None
    reign.handover_not_before = now + core.timings.handover_pause
    return _changed(reign, Kind.HAND_OVER, config.in_sync, config.learners, primary=wanted)


def _wanted_primary(reign: "Reign", now: float) -> str:
    """Who is to lead. When this leaf is about to stop, or takes no writes for its disk is full: whoever would at once, in the
    order in which they are wanted. One with a full disk leads only if nobody else can; where all are full nothing changes."""
    config, core, peers = reign.config, reign.core, reign.peers
    if not (core.is_stopping or core.is_full):
        wanted = config.desired[0] if config.desired else config.primary
        return config.primary if wanted in peers and peers[wanted].is_full else wanted
    fit = [leaf for leaf in (*config.desired, *peers) if leaf in peers and _is_fit(reign, peers[leaf], now)]
    with_room = [leaf for leaf in fit if not peers[leaf].is_full]
    return next(iter(with_room or (fit if core.is_stopping else ())), config.primary)


def is_heir(reign: "Reign", peer: Peer, now: float) -> bool:
    """Whether a replica could take the shard over from a primary that is about to stop."""
    return peer.is_in_sync and not peer.is_stopping and now - peer.beacon_acked_sent_at < reign.core.timings.evict_after


def _is_fit(reign: "Reign", peer: Peer, now: float) -> bool:
    """Whether a replica would lead at once if it were handed the shard."""
    is_heard = now - peer.beacon_acked_sent_at < reign.core.timings.read_lease
    is_ready = peer.known_epoch == reign.core.epoch and not peer.is_probing and not peer.is_stopping
    return peer.is_in_sync and is_ready and is_heard


def _surplus(reign: "Reign") -> Peer | None:
    """Who is to leave: one whose leaf stops, if enough stay to take writes, or one not wanted, if all are in sync who are."""
    config = reign.config
    in_sync = [(leaf, peer) for leaf, peer in reign.peers.items() if peer.is_in_sync]
    if len(config.in_sync) > reign.min_in_sync and (stops := [peer for _, peer in in_sync if peer.is_stopping]):
        return stops[0]
    is_complete = config.desired and {each.leaf for each in config.in_sync}.issuperset(config.desired)
    return next((peer for leaf, peer in in_sync if leaf not in config.desired), None) if is_complete else None


def _put_out_surplus(reign: "Reign", now: float) -> Change | None:
    config = reign.config
    surplus = _surplus(reign)
    for peer in reign.peers.values():
        peer.is_leaving = peer is surplus  # No more leases; when the last one is over it goes.
    if surplus is None or not lease_is_over(reign, surplus, now):
        return None
    return _changed(reign, Kind.EVICT, [each for each in config.in_sync if each != surplus.replica], config.learners)
