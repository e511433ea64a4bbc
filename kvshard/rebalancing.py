"""Where each shard is wanted, when leaves come, go, fill up or are drained: the decisions of the balancer.

`plan` says which shards get a new `desired` now; the primaries bring their shards there (`leaf/replication/membership.py`). It
decides from the cluster map and from which leaves are alive, every time anew, so that a balancer that takes over knows as much
as the one before it. In order of need:

1. A shard that is wanted where it cannot stay (the leaf is gone, draining, or of weight 0), in too few places or in too few
   zones, gets other places; the others stay as they are.
2. Only when a leaf is more than one replica, or one primary, beside its fair share, or holds nothing, shards move for the
   spread alone; then until the spread is even. What an operator moved by hand is not moved back at once.

Nothing moves for the spread while a leaf is missing that may come back. Few shards change at a time (CHANGING_MAX,
RECEIVING_MAX), the most endangered first. `desired` names leaves that are there, and never fewer than can be had; what is in
sync now is left only when everything wanted is in sync, which the primaries see to.

Pure: imports only the standard library and other pure files.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from math import ceil, floor

from kvshard.clustermap import ClusterMap, Leaf, ShardConfig
from kvshard.fair_shares import fair_shares
from kvshard.placement import PlacementProblem, PlacementSolution, solve
from kvshard.ring import RingLeaf

CHANGING_MAX = 4
"""Shards under change in the whole cluster: each costs its primary's leaf a scan of the shard and the network a copy of it, and
requests must not feel that."""

RECEIVING_MAX = 2
"""Copies that one leaf receives at a time: two keep its disk busy, more only make each of them take longer."""

CHANGE_PATIENCE_S = 600.0
"""A change that makes no step for so long (its receiver's disk is full, say) no longer keeps others from beginning. A copy of
a shard of tens of gigabytes takes less between two steps of its replica set."""

Desired = tuple[str, ...]
"""Leaves on which a shard is wanted, the wanted primary first."""


@dataclass(frozen=True, slots=True)
class Situation:
    """What there is to decide from.

    alive: leaves that say so. gone: those that are not waited for any more. stalled: shards whose change makes no progress.
    is_spreading: the spread was found uneven and is being evened out.
    """

    map: ClusterMap
    alive: frozenset[str]
    gone: frozenset[str] = frozenset()
    stalled: frozenset[int] = frozenset()
    is_spreading: bool = False

    def may_keep(self, leaf: str) -> bool:
        """What the leaf holds may stay there, also while it is missing for a moment."""
        known = self.map.leaves.get(leaf)
        return known is not None and known.may_hold and leaf not in self.gone


@dataclass(frozen=True, slots=True)
class Plan:
    """desired: what is to be written, by shard. is_spreading: for the next situation. waiting: changes held back for now."""

    desired: Mapping[int, Desired] = field(default_factory=dict)
    is_spreading: bool = False
    waiting: int = 0


def plan(situation: Situation) -> Plan:
    """The changes to begin now."""
    spots = {shard: _kept(situation, config) for shard, config in situation.map.shards.items() if _can_act(situation, config)}
    keepers = [leaf for leaf in situation.map.leaves if situation.may_keep(leaf)]
    takers = [leaf for leaf in keepers if leaf in situation.alive]
    if not takers or not spots:
        return Plan(is_spreading=situation.is_spreading)
    wanted = min(situation.map.replicas, len(keepers))
    zones = min(wanted, len({situation.map.leaves[leaf].zone for leaf in keepers}))
    forced = {shard for shard, kept in spots.items() if _is_forced(situation, shard, kept, wanted, zones)}
    is_missing_one = len(takers) < len(keepers)
    uneven = not is_missing_one and (situation.is_spreading or _is_uneven(situation, spots, takers, wanted))
    is_on_hold = situation.is_spreading and is_missing_one
    if not forced and not uneven:
        return Plan(is_spreading=is_on_hold)
    solution = _solve(situation, spots, takers, wanted)
    goal = {shard: _repaired(situation, spots[shard], solution.replicas[shard], wanted, zones) for shard in forced}
    if uneven or (not is_missing_one and _is_uneven(situation, {**spots, **goal}, takers, wanted)):
        uneven, goal = True, dict(solution.replicas)
    changes = {shard: new for shard, leaves in goal.items() if (new := _settled_on(situation, shard, leaves)) is not None}
    begun = _begin(situation, changes, forced)
    return Plan(begun, is_spreading=(uneven and bool(changes)) or is_on_hold, waiting=len(changes) - len(begun))


def _can_act(situation: Situation, config: ShardConfig) -> bool:
    """A shard of which no replica in sync is alive can only wait for one: nobody could move it."""
    return any(replica.leaf in situation.alive for replica in config.in_sync)


def _kept(situation: Situation, config: ShardConfig) -> Desired:
    """Where the shard is wanted and may stay; where that is too little, what it has elsewhere counts too. Primary first."""
    kept = [leaf for leaf in config.desired if situation.may_keep(leaf)]
    for replica in config.in_sync:
        if len(kept) < situation.map.replicas and replica.leaf not in kept and situation.may_keep(replica.leaf):
            kept.append(replica.leaf)
    if config.desired[:1] != tuple(kept[:1]) and config.primary in kept:
        kept.sort(key=lambda leaf: leaf != config.primary)
    return tuple(kept)


def _is_forced(situation: Situation, shard: int, kept: Desired, wanted: int, zones: int) -> bool:
    """Whether the shard must be wanted elsewhere. What is gone may stay wanted, unless it holds up somebody who is to leave."""
    config = situation.map.shards[shard]
    is_short = len(kept) < wanted or len(_zones(situation.map.leaves, kept)) < zones
    unkept = [leaf for leaf in config.desired if leaf not in kept]
    may_return = [leaf for leaf in unkept if situation.map.leaves[leaf].may_hold]
    is_leaving = any(replica.leaf not in kept and replica.leaf in situation.alive for replica in config.in_sync)
    return is_short or len(may_return) < len(unkept) or (bool(unkept) and is_leaving) or not set(kept) <= set(config.desired)


def _zones(leaves: Mapping[str, Leaf], some: Iterable[str]) -> set[str]:
    return {leaves[leaf].zone for leaf in some}


def _solve(situation: Situation, spots: Mapping[int, Desired], takers: Sequence[str], wanted: int) -> PlacementSolution:
    """The best placement on the leaves that may take something."""
    leaves = situation.map.leaves
    ring = tuple(RingLeaf(leaf, leaves[leaf].zone, leaves[leaf].weight) for leaf in takers)
    replicas = min(wanted, len(takers))
    return solve(PlacementProblem(ring, tuple(spots), replicas, situation.map.seed, spots))


def _repaired(situation: Situation, kept: Desired, best: Desired, wanted: int, zones: int) -> Desired:
    """The places of a shard that has to change: what may stay, completed from the best placement.

    If that reaches too few zones it is the best placement itself, unless a leaf is missing for the moment: it keeps its place.
    """
    leaves = situation.map.leaves
    chosen = list(kept)
    others = [leaf for leaf in best if leaf not in chosen]
    while len(chosen) < wanted and others:
        others.sort(key=lambda leaf: leaves[leaf].zone in _zones(leaves, chosen))
        chosen.append(others.pop(0))
    is_there = situation.alive.issuperset(chosen)
    return best if is_there and len(_zones(leaves, chosen)) < zones else tuple(chosen)


def _settled_on(situation: Situation, shard: int, leaves: Desired) -> Desired | None:
    """The new `desired` of a shard that is to live on these leaves; None where that is what it says.

    A leaf that is gone keeps its place as long as nobody can take it: should it come back, it has most of the data. Not if
    somebody is to leave, which he may only when everybody wanted is in sync.
    """
    config = situation.map.shards[shard]
    new = list(leaves)
    if all(replica.leaf in leaves or replica.leaf not in situation.alive for replica in config.in_sync):
        for leaf in config.desired:
            known = situation.map.leaves[leaf]
            if len(new) < situation.map.replicas and leaf in situation.gone and known.may_hold:
                new.append(leaf)
    is_same_primary = config.desired[:1] == tuple(new[:1]) or (config.desired[:1] and config.desired[0] in situation.gone)
    if set(new) == set(config.desired) and is_same_primary:
        return None
    return tuple(new)


# -- the spread ---------------------------------------------------------------------------------------------------------


def _is_uneven(situation: Situation, spots: Mapping[int, Desired], takers: Sequence[str], wanted: int) -> bool:
    """Whether a leaf is so far beside its fair share that data should move for it.

    One replica or primary more or fewer than the share, rounded either way, is no reason; to hold nothing of a share is.
    """
    held = Counter(leaf for leaves in spots.values() for leaf in leaves)
    leads = Counter(leaves[0] for leaves in spots.values() if leaves)
    leaves = situation.map.leaves
    weights = {leaf: leaves[leaf].weight for leaf in takers}
    zone_of = {leaf: leaves[leaf].zone for leaf in takers}
    fair = fair_shares(weights, zone_of, len(spots), min(wanted, len(takers)), held).fair
    return any(
        _is_beside(held[leaf], fair[leaf])
        or (held[leaf] == 0 and fair[leaf] >= 1)
        or _is_beside(leads[leaf], Fraction(held[leaf], wanted))
        for leaf in takers
    )


def _is_beside(count: int, share: Fraction) -> bool:
    return not floor(share) - 1 <= count <= ceil(share) + 1


# -- the throttle -------------------------------------------------------------------------------------------------------


def is_changing(situation: Situation, config: ShardConfig) -> bool:
    """Whether a shard is on its way to where it is wanted: something is copied, put out or handed over.

    What waits for a missing leaf moves nothing and does not count; nor does a shard of which nobody in sync is alive.
    """
    in_sync = {replica.leaf for replica in config.in_sync}
    if not _can_act(situation, config):
        return False
    is_copying = any(leaf not in in_sync and leaf in situation.alive for leaf in config.desired)
    has_surplus = any(leaf not in config.desired and leaf in situation.alive for leaf in in_sync)
    hands_over = config.desired[:1] != (config.primary,) and config.desired[:1] and config.desired[0] in in_sync
    return is_copying or has_surplus or bool(hands_over) or bool(config.learners)


def _receivers(situation: Situation, config: ShardConfig, desired: Desired) -> list[str]:
    in_sync = {replica.leaf for replica in config.in_sync}
    return [leaf for leaf in desired if leaf not in in_sync and leaf in situation.alive]


def _begin(situation: Situation, changes: Mapping[int, Desired], forced: Collection[int]) -> dict[int, Desired]:
    """As many of the changes as may be under way together, the shards with the fewest living replicas first."""
    shards = situation.map.shards
    changing = {shard for shard, config in shards.items() if shard not in situation.stalled and is_changing(situation, config)}
    receiving = Counter(leaf for shard in changing for leaf in _receivers(situation, shards[shard], shards[shard].desired))

    def need(shard: int) -> tuple[bool, int, int]:
        alive = sum(replica.leaf in situation.alive for replica in shards[shard].in_sync)
        return shard not in forced, alive, shard

    begun: dict[int, Desired] = {}
    for shard in sorted(changes, key=need):
        has_begun = shard in changing
        # One change after the other, unless a leaf that the shard was to go to cannot be waited for. What is being cut in two
        # would be copied as a whole for one part of it.
        is_busy = has_begun or shards[shard].split is not None
        if (is_busy and shard not in forced) or (not has_begun and len(changing) >= CHANGING_MAX):
            continue
        before = _receivers(situation, shards[shard], shards[shard].desired) if has_begun else []
        added = [leaf for leaf in _receivers(situation, shards[shard], changes[shard]) if leaf not in before]
        if any(receiving[leaf] >= RECEIVING_MAX for leaf in added):
            continue
        begun[shard] = changes[shard]
        changing.add(shard)
        receiving.update(added)
    return begun


class Rebalancer:
    """What a balancer remembers between its looks: since when leaves are missing, and which changes make no progress.

    One that has just begun knows of no absence before that: it heals later than another would have, never earlier.
    """

    def __init__(self, heal_after: float) -> None:
        self._heal_after = heal_after
        self._missing_since: dict[str, float] = {}
        self._progress: dict[int, tuple[ShardConfig, float]] = {}
        self._is_spreading = False

    def __repr__(self) -> str:
        return f"Rebalancer(missing={sorted(self._missing_since)}, spreading={self._is_spreading})"

    def decide(self, cluster_map: ClusterMap, alive: Iterable[str], now: float) -> Plan:
        """What to begin now. alive: leaves that say so. now: seconds on a monotonic clock."""
        here = frozenset(alive)
        missing = [leaf for leaf in cluster_map.leaves if leaf not in here]
        self._missing_since = {leaf: self._missing_since.get(leaf, now) for leaf in missing}
        gone = {leaf for leaf, since in self._missing_since.items() if now - since >= self._heal_after}
        gone |= {leaf.id for leaf in cluster_map.leaves.values() if leaf.is_removed}
        situation = Situation(cluster_map, here - gone, frozenset(gone), is_spreading=self._is_spreading)
        changing = [config for config in cluster_map.shards.values() if is_changing(situation, config)]
        self._note_progress(changing, now)
        stalled = frozenset(shard for shard, (_, since) in self._progress.items() if now - since > CHANGE_PATIENCE_S)
        found = plan(replace(situation, stalled=stalled))
        self._is_spreading = found.is_spreading
        return found

    def _note_progress(self, changing: Iterable[ShardConfig], now: float) -> None:
        before, self._progress = self._progress, {}
        for config in changing:
            known = before.get(config.id)
            self._progress[config.id] = known if known is not None and known[0] == config else (config, now)


def forgettable(cluster_map: ClusterMap) -> list[str]:
    """Leaves that were removed while they were dead, and that no shard names any more."""
    named = {replica.leaf for shard in cluster_map.shards.values() for replica in shard.replicas}
    named |= {leaf for shard in cluster_map.shards.values() for leaf in shard.desired}
    return [leaf.id for leaf in cluster_map.leaves.values() if leaf.is_removed and leaf.id not in named]
