"""What a router does against slow leaves, read off its defences for people.

Pure: imports only the standard library and other pure files.
"""

from kvshard.tail.cost_class import WRITE
from kvshard.tail.defences import Defences
from kvshard.tail.hedging import policy_text
from kvshard.tail.latency import LatencyPool
from kvshard.tail.status import LeafHealthStatus, LegKindStatus, TailStatus


def tail_status(defences: Defences, now: float) -> TailStatus:
    """The state of the defences now. Budget, counts and delays are those of requests and collections that say nothing."""
    settings, counters, budget = defences.settings, defences.counters, defences.budget_now(now)
    first_attempts, hedges = budget.counts(now)
    return TailStatus(
        policy=policy_text(settings.policy),
        budget_max=settings.budget_most,
        budget=budget.fraction,
        max_attempts=settings.max_attempts,
        first_attempts=first_attempts,
        hedges=hedges,
        hedges_total=counters.hedges_sent,
        hedges_won_total=counters.hedges_won,
        refused_total={reason.value: count for reason, count in counters.refused.items() if count},
        kinds=tuple(
            _kind(pool, budget.fraction, now)
            for pool in sorted(defences.pools, key=lambda each: each.name)
            if pool.name != WRITE  # It is never hedged: a delay would say otherwise.
        ),
        leaves=tuple(
            LeafHealthStatus(
                leaf=leaf.name,
                state=leaf.state(now).name.lower(),
                outstanding=leaf.waiting,
                in_flight=leaf.in_flight,
                slowness=leaf.slowness,
                first_attempts=leaf.first_attempts,
            )
            for leaf in sorted(defences.health.leaves(), key=lambda each: each.name)
        ),
    )


def _kind(pool: LatencyPool, budget: float, now: float) -> LegKindStatus:
    delay = pool.delay(1 - budget, now)
    if pool.median is None:
        return LegKindStatus(pool.name, pool.samples, delay_ms=delay * 1e3)
    return LegKindStatus(pool.name, pool.samples, pool.quantile(0.5, now) * 1e3, pool.quantile(0.99, now) * 1e3, delay * 1e3)
