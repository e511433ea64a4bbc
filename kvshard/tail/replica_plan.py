"""Which replicas of a shard a request may ask, and in which order.

    write          the primary
    strong read    every replica in sync, since each may answer it; a random one first, so that they share the load
    stale read     the same, and after them those that are catching up

Leaves that gave trouble a moment ago come last, but they come: they may be all there is.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Container
from dataclasses import dataclass
from random import Random

from kvshard.clustermap import ShardConfig
from kvshard.tail.attempts import Candidate
from kvshard.tail.hedging import ReplicaChoice


@dataclass(frozen=True, slots=True)
class ReplicaPlan:
    """Whom one kind of request may ask by one configuration of its shard: made once, used by every request until it changes.

    orders: the orders of asking among which chance decides, one for each replica that may be first. has_failover: waiting for
    another replica makes sense, since the shard has several, or is meant to.
    """

    config: ShardConfig
    orders: tuple[tuple[Candidate, ...], ...]
    has_failover: bool

    def candidates(self, rng: Random, troubled: Container[str] = ()) -> tuple[Candidate, ...]:
        """Whom to ask, in the order of asking."""
        orders = self.orders
        order = orders[0] if len(orders) == 1 else orders[int(rng.random() * len(orders))]
        if troubled and len(order) > 1:
            return tuple(sorted(order, key=lambda candidate: candidate.leaf in troubled))
        return order


def plan_write(config: ShardConfig) -> ReplicaPlan:
    """Whom a write may ask."""
    return ReplicaPlan(config, ((Candidate(config.primary, config.epoch),),), _has_failover(config))


def plan_read(config: ShardConfig, choice: ReplicaChoice, is_stale: bool) -> ReplicaPlan:
    """Whom a read may ask."""
    leaves = [replica.leaf for replica in config.in_sync]
    catching_up = [replica.leaf for replica in config.learners] if is_stale else []
    firsts = [leaves.index(config.primary)] if choice is ReplicaChoice.PRIMARY else range(len(leaves))
    orders = (leaves[first:] + leaves[:first] + catching_up for first in firsts)
    made = tuple(tuple(Candidate(leaf, config.epoch) for leaf in order) for order in orders)
    return ReplicaPlan(config, made, _has_failover(config))


def _has_failover(config: ShardConfig) -> bool:
    return len(config.in_sync) > 1 or len(config.desired) > 1
