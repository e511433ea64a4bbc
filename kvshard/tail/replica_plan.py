"""Which replicas of a shard a request may ask, and in which order.

    write          the primary
    strong read    every replica in sync, since each may answer it
    stale read     the same, and after them those that are catching up

Who is first among those in sync: by what is known of the leaves (`adaptive`, see `replica_health`), by chance (`random`), or
the primary. A leaf that cannot be reached comes last in any case, but it comes: it may be all there is.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from random import Random

from kvshard.clustermap import ShardConfig
from kvshard.tail.hedging import ReplicaChoice
from kvshard.tail.leg_events import (
    Candidate,
)
from kvshard.tail.replica_health import ReplicaHealth


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """Whom one kind of request may ask by one configuration of its shard: made once, used by every request until it changes.

    equals: among whom is chosen; leaves: their names; by_leaf: the same by name. others: asked after them, in this order.
    has_failover: waiting for another replica makes sense, since the shard has several, or is meant to. has_spares: somebody
    else may be asked than who is first.
    """

    config: ShardConfig
    equals: tuple[Candidate, ...]
    leaves: tuple[str, ...]
    others: tuple[Candidate, ...]
    has_failover: bool
    candidates: tuple[Candidate, ...] = field(init=False)
    by_leaf: Mapping[str, Candidate] = field(init=False)
    has_spares: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", self.equals + self.others)
        object.__setattr__(self, "by_leaf", {each.leaf: each for each in self.equals})
        object.__setattr__(self, "has_spares", len(self.candidates) > 1)

    def order(self, choice: ReplicaChoice, health: ReplicaHealth, rng: Random, now: float) -> tuple[Candidate, ...]:
        """Whom to ask, in the order of asking."""
        return self.behind(self.first(choice, health, rng, now), choice, health, now)

    def first(self, choice: ReplicaChoice, health: ReplicaHealth, rng: Random, now: float) -> Candidate:
        """The first of them. Who would follow is of interest only when that one does not answer."""
        equals = self.equals
        if len(equals) == 1:
            return equals[0]
        if choice is ReplicaChoice.ADAPTIVE:
            return equals[health.first(self.leaves, now)]
        place = int(rng.random() * len(equals)) if choice is ReplicaChoice.RANDOM else 0
        if not health.has_unreachable:
            return equals[place]
        return min(equals[place:] + equals[:place], key=lambda each: health.is_unreachable(each.leaf, now))

    def behind(self, first: Candidate, choice: ReplicaChoice, health: ReplicaHealth, now: float) -> tuple[Candidate, ...]:
        """Whom to ask, in the order of asking, when `first`, one of `equals`, is asked first or was, whatever came of it."""
        equals = self.equals
        if len(equals) == 1:
            return equals + self.others
        place = equals.index(first)
        if choice is ReplicaChoice.ADAPTIVE:
            return tuple(map(equals.__getitem__, health.after(self.leaves, place, now))) + self.others
        rest = equals[place + 1 :] + equals[:place]
        if health.has_unreachable:
            rest = tuple(sorted(rest, key=lambda each: health.is_unreachable(each.leaf, now)))
        return (first, *rest, *self.others)


def plan_write(config: ShardConfig) -> ReplicaPlan:
    """Whom a write may ask."""
    primary = Candidate(config.primary, config.epoch)
    return ReplicaPlan(config, (primary,), (primary.leaf,), (), _has_failover(config))


def plan_read(config: ShardConfig, is_stale: bool) -> ReplicaPlan:
    """Whom a read may ask; the primary is the first of the equals."""
    in_sync = sorted((replica.leaf for replica in config.in_sync), key=lambda leaf: leaf != config.primary)
    catching_up = [replica.leaf for replica in config.learners] if is_stale else []
    equals, others = (tuple(Candidate(leaf, config.epoch) for leaf in leaves) for leaves in (in_sync, catching_up))
    return ReplicaPlan(config, equals, tuple(in_sync), others, _has_failover(config))


def _has_failover(config: ShardConfig) -> bool:
    return len(config.in_sync) > 1 or len(config.desired) > 1
