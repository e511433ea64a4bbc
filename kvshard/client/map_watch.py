"""The cluster map as a client follows it: by `Cluster.WatchMap` of a router, and read anew by `Cluster.GetMap` on demand.

One task follows. It survives whatever may happen to routers: a stream that ends, a router that is gone (the next one is asked),
a map that contradicts itself (the one before it stays). What is installed only gets newer, unless a router speaks of another
cluster (one that was made anew at the same address): then what was known is worth nothing, and the new one begins.
"""

import asyncio
from collections.abc import Callable, Sequence
from random import Random

import grpc
import grpc.aio
import structlog

from kvshard.clock import Clock
from kvshard.clustermap import ClusterMap, InvalidMap
from kvshard.errors import KvShardError, Unavailable
from kvshard.rpc.channel import aio_channel
from kvshard.rpc.convert import cluster_map_from_proto
from kvshard.rpc.status import error_from_rpc
from kvshard.v1 import cluster_pb2, cluster_pb2_grpc

REFRESH_INTERVAL_S = 0.05
"""Least time between the starts of two reads. A map may have half a megabyte, and after the loss of a leaf many clients ask for
it over and over: what they wait for comes by the watch as soon as there is any."""

REFRESH_TIMEOUT_S = 0.5
"""A router answers from memory; one that takes longer hangs, and the next one is asked."""

BACKOFF_S = 0.05
BACKOFF_MAX_S = 2.0
"""Pause of the follower after a failure, doubled with each further one: a thousand clients do not keep a router down that is
just coming back, and each of them is late by at most the maximum."""

log = structlog.get_logger(__name__)


class MapWatch:
    """The newest valid map; implements `kvshard.scatter.routes.MapSource`. For the tasks of one event loop.

    addresses: of routers; one is asked, and when it fails the next one. cluster_id: name of the cluster; empty before the first
    map, and where its routers are too old to tell.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        clock: Clock,
        rng: Random | None = None,
    ) -> None:
        assert addresses, "a map is asked of somebody"
        self.cluster_id = ""
        self._addresses = tuple(addresses)
        self._clock = clock
        self._rng = rng or Random()
        self._subscribers: list[Callable[[ClusterMap], None]] = []
        self._map: ClusterMap | None = None
        self._change: asyncio.Future[None] | None = None
        self._channels: dict[int, grpc.aio.Channel] = {}
        self._router = 0
        self._follower: asyncio.Task[None] | None = None
        self._upcoming: asyncio.Task[ClusterMap | KvShardError] | None = None
        self._reads: set[asyncio.Task[ClusterMap | KvShardError]] = set()
        self._one_reads = asyncio.Lock()
        self._last_read_at = float("-inf")
        self._is_closed = False

    def __repr__(self) -> str:
        version = None if self._map is None else self._map.version
        return f"MapWatch(version={version}, router={self._addresses[self._router]}, closed={self._is_closed})"

    def start(self) -> None:
        """Follow the map from now on."""
        if self._follower is None and not self._is_closed:
            self._follower = asyncio.create_task(self._follow(), name="map-watch")

    async def close(self) -> None:
        """Stop following; those who wait get what is known, or Unavailable."""
        self._is_closed = True
        tasks = [*self._reads, *(() if self._follower is None else (self._follower,))]
        self._follower = None  # Its cancellation's traceback holds the stream, and this one.
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._note_change()
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            await channel.close()

    @property
    def has_map(self) -> bool:
        """A map is installed."""
        return self._map is not None

    @property
    def current(self) -> ClusterMap:
        """The newest map. Raises Unavailable before the first one."""
        if self._map is None:
            raise Unavailable("the cluster map is not known yet")
        return self._map

    def subscribe(self, subscriber: Callable[[ClusterMap], None]) -> None:
        """Have it called with each map that is installed from now on, on the event loop. It must not raise."""
        self._subscribers.append(subscriber)

    async def wait_newer(self, version: int, timeout: float) -> ClusterMap:
        """The map as soon as it is newer than version; after the timeout, or at the close, whatever it is then."""
        deadline = self._clock.monotonic() + timeout
        while not self._is_closed and (self._map is None or self._map.version <= version):
            left = deadline - self._clock.monotonic()
            if left <= 0:
                break
            await asyncio.wait((self._next_change(),), timeout=left)
        return self.current

    async def refresh(self) -> ClusterMap:
        """A map that a router has from now on: one that is read after this call began, or that the watch brings meanwhile.

        Callers share reads. Raises Unavailable when no router answers; what is installed stays.
        """
        if self._is_closed:
            raise Unavailable("the client is closed")
        if self._upcoming is None:
            self._upcoming = asyncio.create_task(self._read_map(), name="map-refresh")
            self._reads.add(self._upcoming)
            self._upcoming.add_done_callback(self._reads.discard)
        reading = self._upcoming
        # Whoever gives up does not take the read from the others.
        await asyncio.wait((reading, self._next_change()), return_when=asyncio.FIRST_COMPLETED)
        if not reading.done():
            return self.current
        outcome = Unavailable("the client was closed during the call") if reading.cancelled() else reading.result()
        if isinstance(outcome, KvShardError):
            raise outcome
        return outcome

    async def _read_map(self) -> ClusterMap | KvShardError:
        async with self._one_reads:
            await asyncio.sleep(max(0.0, self._last_read_at + REFRESH_INTERVAL_S - self._clock.monotonic()))
            self._last_read_at = self._clock.monotonic()
            self._upcoming = None  # Whoever comes from here on needs a read that begins after it came.
            error: KvShardError = Unavailable("no router was asked")
            for _ in self._addresses:
                router = self._router
                try:
                    request = cluster_pb2.GetMapRequest()
                    response = await self._stub(router).GetMap(request, timeout=REFRESH_TIMEOUT_S)
                except grpc.aio.AioRpcError as raised:
                    error = Unavailable(f"the cluster map cannot be read: {error_from_rpc(raised).message}")
                    self._turn(router)
                else:
                    self._install(response.map, response.cluster_id)
                    return self._map or Unavailable("the router has an invalid cluster map")
            return error

    async def _follow(self) -> None:
        failures = 0
        while True:
            router, began_at = self._router, self._clock.monotonic()
            try:
                # From the first version on: behind the one that is known, a router of another cluster might never say anything.
                await self._watch(router)
            except grpc.aio.AioRpcError as error:
                log.info("the watch of the cluster map ended", router=self._addresses[router], error=error.details())
            except Exception:
                # Whatever it was, a client that stopped following would route by an old map for ever.
                log.exception("following the cluster map failed", router=self._addresses[router])
            self._turn(router)
            # A watch that lasted is no sign of trouble.
            failures = 1 if self._clock.monotonic() - began_at > BACKOFF_MAX_S else failures + 1
            await asyncio.sleep(self._backoff(failures))

    async def _watch(self, router: int) -> None:
        """Install what one router sends, until it ends."""
        stream = self._stub(router).WatchMap(cluster_pb2.WatchMapRequest())
        try:
            while True:
                message = await stream.read()
                if not isinstance(message, cluster_pb2.WatchMapResponse):
                    return
                self._install(message.map, message.cluster_id)
        finally:
            stream.cancel()

    def _backoff(self, failures: int) -> float:
        longest: float = min(BACKOFF_MAX_S, BACKOFF_S * 2 ** min(failures - 1, 10))
        return longest * (0.5 + 0.5 * self._rng.random())

    def _stub(self, router: int) -> "cluster_pb2_grpc.ClusterAsyncStub":
        channel = self._channels.get(router)
        if channel is None:
            channel = self._channels[router] = aio_channel(self._addresses[router])
        return cluster_pb2_grpc.ClusterStub(channel)

    def _turn(self, router: int) -> None:
        """Ask the next router from now on, if that one is still asked."""
        if self._router == router:
            self._router = (router + 1) % len(self._addresses)

    def _install(self, message: cluster_pb2.ClusterMap, cluster_id: str) -> None:
        """Install a map if it is valid and newer, or another cluster's."""
        known = self._map
        is_other = bool(cluster_id) and cluster_id != self.cluster_id
        if known is not None and message.version <= known.version and not is_other:
            return
        try:
            seen = cluster_map_from_proto(message)
        except InvalidMap as error:
            log.error("invalid cluster map refused", version=message.version, error=str(error))
            return
        if is_other and self.cluster_id:
            log.warning("the routers speak of another cluster", before=self.cluster_id, now=cluster_id)
        self._map = seen
        self.cluster_id = cluster_id or self.cluster_id
        self._note_change()
        for subscriber in self._subscribers:
            subscriber(seen)

    def _next_change(self) -> "asyncio.Future[None]":
        """Done when another map is installed, or when this is closed."""
        if self._change is None or self._change.done():
            self._change = asyncio.get_running_loop().create_future()
        return self._change

    def _note_change(self) -> None:
        if self._change is not None and not self._change.done():
            self._change.set_result(None)
