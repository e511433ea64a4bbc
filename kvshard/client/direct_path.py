"""The way from a client to the leaves themselves: what a router does with a request, done in the client.

Here is what is put together, and which requests may take the way. What becomes of those that may not, or that failed, is
`direct`'s business.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from random import Random

from kvshard.client.direct_probe import ReachProbe
from kvshard.client.direct_reach import Reach, Setbacks
from kvshard.client.direct_status import Detour, DirectLeaf
from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, ShardConfig
from kvshard.errors import CollectionNotFound, Internal, KvShardError, Unavailable, Unimplemented
from kvshard.rpc.leaf_client import LeafClient
from kvshard.scatter.coverage import KnownCounts
from kvshard.scatter.key_frames import KeyFrames
from kvshard.scatter.kv import KeyValueOperations
from kvshard.scatter.lone_reads import LoneReads
from kvshard.scatter.routes import MapSource
from kvshard.scatter.scan import ScanOperation
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import TokenCodec
from kvshard.tail.defences_status import tail_status
from kvshard.tail.hedging import HedgeSettings
from kvshard.tail.status import TailStatus
from kvshard.telemetry import RouterMetrics

REPEATS_MAX = 8
"""Times that a leg takes the newest map and begins anew: with its pauses about a third of a second, in which a change of the
map comes through. What takes longer is for a router, which has the same patience and may reach more."""


class DirectPath:
    """One cluster's leaves as this client reaches them. Use it inside one event loop.

    leaves: asks them; closed together with this. settings: of reads that do not say how they are hedged. on_reached: called
    when a leaf has answered that had not before. frames, lone, scans: do the requests for which `detour` knows no reason
    against it.
    """

    def __init__(
        self,
        maps: MapSource,
        leaves: LeafClient,
        clock: Clock,
        settings: HedgeSettings,
        rng: Random,
        on_reached: Callable[[], None] = lambda: None,
    ) -> None:
        self._maps = maps
        self._leaves = leaves
        self._clock = clock
        self._scatter = Scatter(maps, clock, RouterMetrics(), leaves.ping, rng=rng, settings=settings, max_repeats=REPEATS_MAX)
        self._health = self._scatter.defences.health
        self._reach = Reach()
        self._setbacks = Setbacks()
        self._probe = ReachProbe(self._reach, self._setbacks, self._health, leaves.ping, clock, rng, on_reached)
        known = KnownCounts()
        operations = KeyValueOperations(maps, leaves, self._scatter, known, clock, rng)
        self.frames = KeyFrames(operations, clock)
        self.lone = LoneReads(maps, leaves, self._scatter)
        # A scan that has to be resumed begins anew behind its last key: no token of this process ever leaves it.
        self.scans = ScanOperation(maps, leaves, self._scatter, known, TokenCodec(""), clock)

    def __repr__(self) -> str:
        return f"DirectPath({self._reach!r}, {self._setbacks!r})"

    def start(self) -> None:
        """Look for the leaves from now on."""
        self.install(self._maps.current)
        self._probe.start()

    def install(self, cluster_map: ClusterMap) -> None:
        """There is another map."""
        holders = {replica.leaf for shard in cluster_map.shards.values() for replica in shard.in_sync}
        addresses = {leaf: cluster_map.leaf_address(leaf) or "" for leaf in sorted(holders)}
        self._reach.install(addresses, self._clock.monotonic())
        self._probe.wake()

    def learn(self, committed: Mapping[int, int]) -> None:
        """Shards had committed these seqnos before now."""
        for shard, seqno in committed.items():
            self._scatter.heard.committed.learn(shard, seqno)

    async def close(self) -> None:
        """Close the connections; requests under way fail with Unavailable."""
        await self._probe.close()
        await self._scatter.close()
        await self._leaves.close()

    @property
    def is_whole(self) -> bool:
        """Every shard can be read and written from here."""
        return self.detour(None, is_write=True) is None  # Whoever reaches the primary can read there, too.

    def detour(self, keys: Sequence[bytes] | None, *, is_write: bool) -> Detour | None:
        """Why a request for these keys (None: for all that there are) had better go through a router; None: no reason."""
        if self._reach.is_whole and self._setbacks.is_empty and not self._health.has_unreachable:
            return None
        if not self._reach.has_any:
            return Detour.STARTING
        now, cluster_map = self._clock.monotonic(), self._maps.current
        shards = cluster_map.shards if keys is None else set(map(cluster_map.shard_of_key, keys))
        for shard in shards:
            if self._setbacks.has(shard, now):
                return Detour.SETBACK
            if not any(self._may_ask(leaf, now) for leaf in _candidates(cluster_map.shards[shard], is_write)):
                return Detour.UNREACHED
        return None

    def _may_ask(self, leaf: str, now: float) -> bool:
        return self._reach.has(leaf) and not self._health.is_unreachable(leaf, now)

    def note_failures(self, errors: Sequence[KvShardError], keys: Sequence[bytes] | None) -> None:
        """A request for these keys has failed so: for a while its shards are a router's business."""
        if not errors:
            return
        named = {shard for error in errors for shard in error.details.shards}
        current = self._maps.current
        if not named:
            named = set(current.shards if keys is None else map(current.shard_of_key, keys))
        self._setbacks.note(named & current.shards.keys(), self._clock.monotonic())

    def leaves(self) -> tuple[DirectLeaf, ...]:
        """The leaves, and which of them can be asked now."""
        now, current = self._clock.monotonic(), self._maps.current
        return tuple(
            DirectLeaf(leaf, current.leaf_address(leaf) or "", self._may_ask(leaf, now)) for leaf in sorted(self._reach.leaves)
        )

    def setbacks(self) -> tuple[int, ...]:
        """The shards that are a router's business now."""
        return tuple(self._setbacks.now(self._clock.monotonic()))

    def tail(self) -> TailStatus:
        """What is done against slow leaves."""
        return tail_status(self._scatter.defences, self._clock.monotonic())


def is_for_a_router(error: KvShardError) -> bool:
    """Whether a router may have another answer than this error.

    It may reach what is out of reach here, and its map may be newer, also as to which collections there are. And it is of the
    version of its leaves, which this client need not be. What a leaf says of the request itself it would say to a router alike.
    """
    return isinstance(error, (Unavailable, CollectionNotFound, Unimplemented, Internal))


def _candidates(shard: ShardConfig, is_write: bool) -> Iterable[str]:
    return (shard.primary,) if is_write else (replica.leaf for replica in shard.in_sync)
