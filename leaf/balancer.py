"""The balancer's shell: says that this leaf is alive, and, while it holds the `balancer` key, writes where shards are wanted.

Every leaf runs one; the key lets one of them act. What to write is decided in `kvshard/rebalancing.py`; the primaries bring
their shards there. That two act for a moment does no harm: every write compares the shard as it was when it was planned.
"""

import asyncio
import contextlib
import math
import random
from collections.abc import Callable
from typing import Final, Protocol

import structlog

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap
from kvshard.coordination import placements
from kvshard.coordination.base import Coordinator, CoordinatorUnavailable
from kvshard.coordination.leases import BALANCER_KEY, LeasedKey, alive_key, read_alive
from kvshard.errors import Unavailable
from kvshard.rebalancing import Plan, Rebalancer, forgettable

LOOK_INTERVAL_S: Final = 1.0
"""Between two looks when the map does not change: who is alive is not watched, and healing waits for tens of seconds anyway."""

GATHER_S: Final = 0.05
"""After a change of the map, before the look: a failover or a start changes many shards in a row."""

RELEASE_TIMEOUT_S: Final = 0.5
"""A stop does not wait longer for the coordinator: the keys go with their leases."""

_log = structlog.get_logger(__name__)


class Maps(Protocol):
    """What the balancer wants of the map store."""

    @property
    def current(self) -> ClusterMap:
        """The newest map."""
        ...

    async def refresh(self) -> ClusterMap:
        """Read the map now."""
        ...

    def subscribe(self, callback: Callable[[ClusterMap], None], /) -> Callable[[], None]:
        """Call back with each map installed from now on."""
        ...


def lease_ttl_s(failure_timeout_s: float) -> float:
    """How long the keys outlive a leaf that died.

    Some failure timeouts, so that a pause which replication survives does not look like a death here; whole seconds, for etcd
    knows no others; and no less than it grants with its defaults.
    """
    return max(2.0, math.ceil(3 * failure_timeout_s))


class Balancer:
    """Of one leaf. boot: differs from that of every earlier run of its process."""

    def __init__(
        self,
        leaf: str,
        coordinator: Coordinator,
        maps: Maps,
        clock: Clock,
        boot: int,
        *,
        heal_after_s: float,
        failure_timeout_s: float,
        rng: random.Random | None = None,
    ) -> None:
        ttl_s = lease_ttl_s(failure_timeout_s)
        self._leaf = leaf
        self._coordinator = coordinator
        self._maps = maps
        self._clock = clock
        self._heal_after_s = heal_after_s
        self._rng = rng or random.Random()
        value = f"{leaf} {boot:x}".encode()
        self.alive = LeasedKey(coordinator, alive_key(leaf), value, ttl_s, clock, is_exclusive=False)
        self.office = LeasedKey(coordinator, BALANCER_KEY, value, ttl_s, clock, is_exclusive=True)
        self._rebalancer: Rebalancer | None = None
        self._has_changed = asyncio.Event()
        self._unsubscribe: Callable[[], None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    def __repr__(self) -> str:
        return f"Balancer({self._leaf!r}, {self.alive!r}, {self.office!r})"

    def start(self) -> None:
        """Say that the leaf is alive from now on, and begin to stand for balancer."""
        self._unsubscribe = self._maps.subscribe(lambda _: self._has_changed.set())
        self._tasks = [
            asyncio.create_task(self._keep(self.alive), name="alive"),
            asyncio.create_task(self._keep(self.office), name="balancer-key"),
            asyncio.create_task(self._act(), name="balancer"),
        ]

    async def close(self) -> None:
        """Stop to act and give both keys up, so that nobody has to wait for the end of their leases."""
        if self._unsubscribe is not None:
            self._unsubscribe()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                await asyncio.gather(self.alive.release(), self.office.release())

    async def _keep(self, key: LeasedKey) -> None:
        while True:
            try:
                await key.renew()
            except CoordinatorUnavailable as error:
                _log.warning("a lease could not be renewed", key=key.key, reason=str(error))
            except Exception:  # Without its key a leaf looks dead, so whatever it was, it goes on.
                _log.exception("renewing a lease failed", key=key.key)
            await asyncio.sleep(key.interval_s * self._rng.uniform(0.7, 1.0))

    async def _act(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL_S):
                    await self._has_changed.wait()
            await asyncio.sleep(GATHER_S)
            self._has_changed.clear()
            try:
                await self.look()
            except (CoordinatorUnavailable, Unavailable) as error:
                _log.warning("the balancer cannot see the cluster", reason=str(error))
            except Exception:  # One plan that cannot be made must not end healing for good.
                _log.exception("balancing failed")

    async def look(self) -> None:
        """Look at the cluster once and write what follows, if this leaf is the balancer."""
        if not self.office.is_held:
            self._rebalancer = None
            return
        if self._rebalancer is None:
            _log.info("this leaf is the balancer now", leaf=self._leaf)
            self._rebalancer = Rebalancer(self._heal_after_s)
        alive = await read_alive(self._coordinator)
        known = self._maps.current
        # On a thread: the placement of thousands of shards takes a good part of a second.
        plan = await asyncio.to_thread(self._rebalancer.decide, known, alive, self._clock.monotonic())
        if await self._write(known, plan):
            await self._maps.refresh()

    async def _write(self, known: ClusterMap, plan: Plan) -> bool:
        """Write a plan, one shard after the other. Returns whether anything was written."""
        has_written = False
        for shard, desired in plan.desired.items():
            if not self.office.is_held:
                return has_written
            before = known.shards[shard]
            if await placements.set_desired(self._coordinator, before, desired, [self.office.guard()]):
                has_written = True
                _log.info("shard wanted elsewhere", shard=shard, was=before.desired, desired=desired, waiting=plan.waiting)
        for leaf in forgettable(known):
            if await placements.forget_leaf(self._coordinator, leaf, [self.office.guard()]):
                has_written = True
                _log.info("removed leaf forgotten", leaf=leaf)
        return has_written
