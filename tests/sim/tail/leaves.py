"""Leaves as a router meets them: fast, slow, paused, dead, deaf, shedding, without a lease. Virtual time, seeded chance."""

from random import Random

from kvshard.errors import ErrorDetails, KvShardError, NotReady, ResourceExhausted, StaleEpoch, Unavailable

ONE_WAY_S = 0.0002
SERVICE_LOG_MEDIAN, SERVICE_SPREAD = -5.8, 0.5
"""Of the service time: 3 ms in the median, and the 99th percentile at three times that."""


class ModelLeaf:
    """One leaf. Every "until" is an instant; in_work: attempts that it has received and neither answered nor been spared."""

    def __init__(self, name: str, rng: Random) -> None:
        self.name = name
        self.factor = 1.0
        self.paused_until = 0.0
        self.dead_until = 0.0
        self.deaf_until = 0.0
        self.sheds_until = 0.0
        self.no_lease_until = 0.0
        self.stale_until = 0.0
        self.in_work: set[object] = set()
        self._rng = rng

    def heal(self) -> None:
        """As on the first day."""
        self.factor = 1.0
        self.paused_until = self.dead_until = self.deaf_until = 0.0
        self.sheds_until = self.no_lease_until = self.stale_until = 0.0

    def answer(self, now: float) -> tuple[float, KvShardError | None] | None:
        """When the router has the answer to what it sends now, and what it is (None: a good one). None: there is none."""
        if now < self.dead_until:
            return now + ONE_WAY_S, Unavailable("connection refused")
        if now < self.deaf_until:
            return None
        refusal = self._refusal(now)
        service = 0.0001 if refusal else self.factor * self._rng.lognormvariate(SERVICE_LOG_MEDIAN, SERVICE_SPREAD)
        return max(now + ONE_WAY_S, self.paused_until) + service + ONE_WAY_S, refusal

    def _refusal(self, now: float) -> KvShardError | None:
        if now < self.sheds_until:
            return ResourceExhausted("busy", ErrorDetails(retry_after_ms=self._rng.randrange(5, 200), shards=(1,)))
        if now < self.no_lease_until:
            return NotReady("no lease", ErrorDetails(shards=(1,)))
        if now < self.stale_until:
            return StaleEpoch("the map is old", ErrorDetails(shards=(1,)))
        return None
