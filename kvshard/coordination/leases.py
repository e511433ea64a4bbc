"""Keys that last as long as the process that holds them: who is alive, and who is the balancer.

Both are hints. That a leaf's key is gone says that it is worth looking at, not that it is dead; two may take themselves for the
balancer for a moment, so whatever one writes compares what it replaces.
"""

import contextlib

import structlog

from kvshard.clock import Clock
from kvshard.coordination.base import ABSENT, Compare, Coordinator, CoordinatorUnavailable, LeaseExpired, Put

ALIVE_PREFIX = "alive/"
"""Outside map/: that a leaf comes and goes is no change of the map."""

BALANCER_KEY = "balancer"

RENEWALS_PER_TTL = 3
"""A key is renewed so often within its lease: two answers of the coordinator may be lost before it goes."""

log = structlog.get_logger(__name__)


def alive_key(leaf: str) -> str:
    """The key that a leaf keeps while it is alive."""
    return f"{ALIVE_PREFIX}{leaf}"


async def read_alive(coordinator: Coordinator) -> frozenset[str]:
    """The leaves that say they are alive. Raises CoordinatorUnavailable."""
    items = (await coordinator.get_prefix(ALIVE_PREFIX)).items
    return frozenset(item.key.removeprefix(ALIVE_PREFIX) for item in items)


class LeasedKey:
    """A key under a lease. Call `renew` RENEWALS_PER_TTL times within ttl_s; its name and value are the holder's own.

    is_exclusive: taken only while nobody has it; else another process's is replaced (it is an earlier life of this one).
    value: unlike that of every other holder, so that an own write is known whose answer was lost.
    """

    def __init__(
        self, coordinator: Coordinator, key: str, value: bytes, ttl_s: float, clock: Clock, *, is_exclusive: bool
    ) -> None:
        self.key = key
        self.ttl_s = ttl_s
        self._coordinator = coordinator
        self._value = value
        self._clock = clock
        self._is_exclusive = is_exclusive
        self._lease: int | None = None
        self._revision = ABSENT
        self._held_until = float("-inf")

    def __repr__(self) -> str:
        return f"LeasedKey({self.key!r}, {'held' if self.is_held else 'not held'})"

    @property
    def is_held(self) -> bool:
        """Whether the key is this holder's, as far as its own clock can tell: its lease counts from when it was asked for."""
        return self._revision != ABSENT and self._clock.monotonic() < self._held_until

    @property
    def interval_s(self) -> float:
        """Pause between two renewals."""
        return self.ttl_s / RENEWALS_PER_TTL

    def guard(self) -> Compare:
        """Holds in a transaction only while this holder has the key."""
        return Compare(self.key, self._revision)

    async def renew(self) -> bool:
        """Take the key, or keep it. Returns whether it is held. Raises CoordinatorUnavailable; then nothing is known."""
        if self._revision != ABSENT and self._lease is not None:
            began = self._clock.monotonic()
            try:
                await self._coordinator.keep_alive(self._lease)
            except LeaseExpired:
                log.warning("a lease ended before it was renewed", key=self.key)
                self._forget()
            else:
                self._held_until = began + self.ttl_s
                return True
        return await self._take()

    async def _take(self) -> bool:
        item = await self._coordinator.get(self.key)
        is_own = item is not None and item.value == self._value and self._lease is not None
        if self._is_exclusive and item is not None and not is_own:
            return False
        began = self._clock.monotonic()
        if self._lease is None:
            self._lease = await self._coordinator.grant_lease(self.ttl_s)
        try:
            # Again where the own write's answer was lost: it is harmless, and its revision is then known.
            compare = Compare(self.key, item.revision if item is not None else ABSENT)
            result = await self._coordinator.txn([compare], [Put(self.key, self._value, self._lease)])
        except LeaseExpired:
            self._forget()
            return False
        if not result.has_succeeded:
            return False
        self._revision, self._held_until = result.revision, began + self.ttl_s
        return True

    def _forget(self) -> None:
        self._lease, self._revision, self._held_until = None, ABSENT, float("-inf")

    async def release(self) -> None:
        """Give the key up now. Where the coordinator does not answer it goes with the end of its lease."""
        lease = self._lease
        self._forget()
        if lease is not None:
            with contextlib.suppress(CoordinatorUnavailable):
                await self._coordinator.revoke_lease(lease)
