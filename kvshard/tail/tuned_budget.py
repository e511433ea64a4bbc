"""A hedge budget with what tunes it: a look once a second at what its hedges and all leaves have done meanwhile.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterable

from kvshard.tail.budget import HedgeBudget
from kvshard.tail.cost_class import WRITE
from kvshard.tail.hedging import HedgeSettings
from kvshard.tail.latency import LatencyPool
from kvshard.tail.tuning import INTERVAL_S, BudgetTuner, Observed


class TunedBudget:
    """seen: since the last look. sheds: how often leaves had shed load by then."""

    __slots__ = ("budget", "next_look_at", "seen", "sheds", "tuner")

    def __init__(self, settings: HedgeSettings, sheds: int, now: float) -> None:
        self.tuner = BudgetTuner(settings)
        self.budget = HedgeBudget(self.tuner.fraction, reserve_per_s=0.0 if settings.budget == 0 else 1.0)
        self.seen = Observed()
        self.sheds = sheds
        self.next_look_at = now + INTERVAL_S

    def look(self, pools: Iterable[LatencyPool], sheds: int, now: float) -> None:
        """Let the budget be what it is to be from now on. pools: all kinds of legs. sheds: how often leaves have shed load."""
        self.next_look_at = now + INTERVAL_S
        seen, self.seen = self.seen, Observed()
        seen.shed, self.sheds = sheds - self.sheds, sheds
        reads = (pool for pool in pools if pool.name != WRITE)
        busiest = max(reads, key=lambda pool: pool.samples, default=None)
        if busiest is not None:
            seen.kind, seen.median = busiest.name, busiest.recent_median(now)
        self.budget.fraction = self.tuner.look(seen)
