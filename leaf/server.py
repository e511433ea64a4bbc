"""The leaf's process: storage, replicas, indexes and the lane server put together, its start and its graceful stop."""

import asyncio
import contextlib
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

import kvshard
from kvshard.clock import Clock, SystemClock
from kvshard.clustermap import ClusterMap
from kvshard.coordination.base import Coordinator
from kvshard.coordination.connect import connect
from kvshard.coordination.mapstore import MapStore
from kvshard.coordination.mapwriter import unknown_leaf
from kvshard.errors import ErrorDetails, FailedPrecondition, InvalidArgument
from kvshard.limits import (
    CACHE_MAX_MB,
    FAILURE_TIMEOUT_MAX_S,
    FAILURE_TIMEOUT_MIN_S,
    FAILURE_TIMEOUT_S,
    HEAL_AFTER_MAX_S,
    HEAL_AFTER_MIN_S,
    HEAL_AFTER_S,
    REFRESH_INTERVAL_MAX_S,
    REFRESH_INTERVAL_MIN_S,
    REFRESH_INTERVAL_S,
    check_length,
)
from kvshard.rpc.channel import aio_server, bind
from kvshard.rpc.codec import leaf_mark
from kvshard.rpc.lane_port import ANY_PORT, PORT_MAX, LanePort
from kvshard.rpc.lane_server import LaneServicer
from kvshard.rpc.peer_stream import PeerServicer
from kvshard.service_process import StopOrder
from kvshard.supervision import EXIT_DONE
from kvshard.telemetry import LeafMetrics, process_registry, start_metrics, stop_metrics
from kvshard.v1 import lane_pb2, lane_pb2_grpc, peer_pb2_grpc
from leaf import layout
from leaf.balancer import Balancer
from leaf.cache_metrics import cache_families
from leaf.disk_guard import DiskGuard, free_bytes_of
from leaf.driver import Driver
from leaf.engine import Engine, StorageError
from leaf.fault_injection import FaultInjector
from leaf.housekeeping import Housekeeper
from leaf.index_feed import IndexFeed
from leaf.indexer import Indexer
from leaf.key_cache import CACHE_BYTES, KeyCache
from leaf.peers import Peers
from leaf.reindexing import Reindexing
from leaf.replication.timings import Timings
from leaf.requests import Requests
from leaf.rocks_engine import RocksEngine
from leaf.service import LeafService, StatusReport
from leaf.shard_store import ShardStore

STOP_GRACE_S: Final = 2.0
"""What requests under way get at a stop; the supervisor promises that all is gone after 5 s."""

LAST_ANSWERS_S: Final = 0.2
"""For what gRPC still has to send when all lanes have ended. Stopped without a grace it cuts the connections at once."""

LEAVE_GRACE: Final = 2.0
"""Failure timeouts that a leaf takes to hand over what it holds before it stops: read leases that it has must run out (0.6 of
one) before it is put out; after one all others would have given it up in any case."""

SETTLE_TIMEOUT_S: Final = 10.0
"""A leaf says that it is ready when its replicas have their places: primaries take writes, secondaries follow. That needs the
other leaves; should they be gone, it is ready after this time all the same, and serves what it can."""

DISK_LOOK_INTERVAL_S: Final = 5.0
"""Between two walks over the data directory, for status and metrics."""

MIB: Final = 1024 * 1024
SERVICE: Final = lane_pb2.DESCRIPTOR.services_by_name["Lanes"].full_name

_LEAF_ID: Final = b"leaf-id"
_FORMAT: Final = b"format"
_CLUSTER: Final = b"cluster"

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class LeafOptions:
    """How a leaf runs. metrics_port None: no metrics are served. is_synced False: no fsync, for tests and benchmarks only.

    zone, weight None: as the map has them. is_joining: the leaf becomes part of the cluster if the map does not have it.
    advertise: host:port at which others reach it; empty: the address that it listens on. are_faults_allowed: faults may be
    injected into it. cache_bytes: what the cache of keys may take; 0: there is none. lane_port: for lanes without gRPC.
    refresh_interval_s: after so long at the latest a write is seen by searches, if the disk keeps up.
    """

    id: str
    data_dir: Path
    coordinator: str
    listen: str
    zone: str | None = None
    weight: float | None = None
    metrics_port: int | None = None
    is_synced: bool = True
    failure_timeout_s: float = FAILURE_TIMEOUT_S
    heal_after_s: float = HEAL_AFTER_S
    is_joining: bool = False
    advertise: str = ""
    are_faults_allowed: bool = False
    cache_bytes: int = CACHE_BYTES
    lane_port: LanePort = ANY_PORT
    refresh_interval_s: float = REFRESH_INTERVAL_S

    def check(self) -> None:
        """Raise InvalidArgument for what can be seen to be wrong before anything is touched."""
        check_length("failure-timeout", self.failure_timeout_s, FAILURE_TIMEOUT_MIN_S, FAILURE_TIMEOUT_MAX_S)
        check_length("heal-after", self.heal_after_s, HEAL_AFTER_MIN_S, HEAL_AFTER_MAX_S)
        self.lane_port.check()
        host, _, port = self.advertise.rpartition(":")
        if self.advertise and not (host and port.isascii() and port.isdecimal() and 1 <= int(port) <= PORT_MAX):
            raise InvalidArgument(f"--advertise must be HOST:PORT, not {self.advertise!r}", ErrorDetails(field="advertise"))
        check_length("refresh-interval", self.refresh_interval_s, REFRESH_INTERVAL_MIN_S, REFRESH_INTERVAL_MAX_S)
        if not 0 <= self.cache_bytes <= CACHE_MAX_MB * MIB:
            text = f"--cache-mb must be 0 to {CACHE_MAX_MB}, not {self.cache_bytes / MIB:g}"
            raise InvalidArgument(text, ErrorDetails(field="cache-mb", limit=CACHE_MAX_MB))


class LeafServer:
    """One leaf over an engine and a map store that are given to it. Closing does not close these."""

    def __init__(
        self,
        options: LeafOptions,
        engine: Engine,
        coordinator: Coordinator,
        maps: MapStore,
        clock: Clock,
        metrics: LeafMetrics,
    ) -> None:
        """Binds the port. Raises FailedPrecondition when it cannot be had."""
        self._options = options
        boot = secrets.randbits(48)
        self._maps = maps
        self._metrics = metrics
        store = ShardStore(engine, KeyCache(options.cache_bytes))
        metrics.scrape(lambda: cache_families(store.cache))
        feed = IndexFeed(store, clock)
        observe, wasted = metrics.index_refresh_seconds.observe, metrics.wasted_seconds.inc
        index_dir, interval_s = options.data_dir / "index", options.refresh_interval_s
        self.indexer = Indexer(index_dir, feed, clock, interval_s, on_refresh_seconds=observe, on_wasted_seconds=wasted)
        guard = DiskGuard(free_bytes_of(options.data_dir))
        self._peers = Peers(
            options.id,
            lambda: maps.cluster_id,
            lambda leaf: maps.current.leaf_address(leaf),
            store.rows,
            clock,
            lambda shard, sender, receiver, message: self.driver.receive(shard, sender, receiver, message),
        )
        self.driver = Driver(
            options.id,
            store,
            maps,
            self.indexer,
            guard,
            clock,
            lambda: secrets.token_hex(16),
            self._on_group,
            sender=self._peers,
            timings=Timings.of(options.failure_timeout_s),
            boot=boot,
        )
        self._balancer = Balancer(
            options.id,
            coordinator,
            maps,
            clock,
            boot,
            heal_after_s=options.heal_after_s,
            failure_timeout_s=options.failure_timeout_s,
        )
        self.was_removed = asyncio.Event()
        self._has_seen_itself = False
        self._unsubscribe: Callable[[], None] | None = None
        self._report = StatusReport(self.driver, lambda: disk_usage(options.data_dir), clock, kvshard.__version__)
        service = LeafService(Requests(self.driver, self.indexer), self._report, clock, metrics)
        self._faults = FaultInjector(options.id, service.handlers, clock, is_allowed=options.are_faults_allowed)
        self._lanes = _lanes_of(service, self._faults, clock, metrics, lambda: leaf_mark(maps.cluster_id, options.id))
        self._housekeeper = Housekeeper(self.driver, self._on_turn)
        self._reindexing = Reindexing(options.id, coordinator, maps, self.indexer, self._balancer.office)
        self._health = health.aio.HealthServicer()
        self._tasks: list[asyncio.Task[None]] = []
        self._server = aio_server()
        self.address = bind(self._server, options.listen)

    async def start(self) -> None:
        """Recover the replicas, then serve, then say so in the map."""
        lane_pb2_grpc.add_LanesServicer_to_server(self._lanes, self._server)
        peer_pb2_grpc.add_PeerServicer_to_server(
            PeerServicer(self._options.id, lambda: self._maps.cluster_id, self._peers.receive), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        self._balancer.start()  # First: to read its data may take a leaf longer than it would be missed without harm.
        self.driver.start()
        await self.driver.wait_open()
        await self._lanes.listen(self.address, replace(self._options.lane_port, is_fronted=bool(self._options.advertise)))
        await self._server.start()
        self._reindexing.start()
        self._tasks.append(asyncio.create_task(self._housekeeper.run(), name="housekeeping"))
        self._tasks.append(asyncio.create_task(self._look_at_disk(), name="disk-look"))
        options = self._options
        address = options.advertise or self.address
        await self._maps.register_leaf(options.id, address, options.zone, options.weight, may_join=options.is_joining)
        self._unsubscribe = self._maps.subscribe(self._look_for_itself)
        known = self._maps.current.leaves.get(options.id)
        self._has_seen_itself = known is not None and known.address == address
        await self._settle()
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    def _look_for_itself(self, cluster_map: ClusterMap) -> None:
        known = cluster_map.leaves.get(self._options.id)
        if known is None or known.is_removed:
            self.was_removed.set()
        elif known.address == (self._options.advertise or self.address):
            self._has_seen_itself = True
        elif self._has_seen_itself and not self.was_removed.is_set():
            # With a copy of this data it has the identity of each replica too: both would lead, and no epoch tells them apart.
            _log.error("another process serves as this leaf, stopping", leaf=self._options.id, other=known.address)
            self.was_removed.set()

    async def _settle(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_TIMEOUT_S):
                await self.driver.wait_settled()
                return
        _log.warning("not every replica has its place yet", replicas=[str(each) for each in self.driver.replicas.values()])

    async def leave(self) -> None:
        """Have other leaves take the place of this one, while it still serves."""
        await self.driver.leave(LEAVE_GRACE * self._options.failure_timeout_s)

    async def stop(self) -> None:
        """Refuse new requests, let those under way end within the grace, make everything durable."""
        await self._health.enter_graceful_shutdown()
        if self._unsubscribe is not None:
            self._unsubscribe()
        await self._reindexing.close()
        await self._balancer.close()
        self._faults.close()
        await self._lanes.drain(STOP_GRACE_S)
        await self._server.stop(LAST_ANSWERS_S)
        await self._lanes.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.driver.close()
        await self._peers.close()
        await self.indexer.close()

    async def _set_health(self, status: health_pb2.HealthCheckResponse.ServingStatus.ValueType) -> None:
        for name in ("", SERVICE):
            await self._health.set(name, status)

    def _on_group(self, entries: int, seconds: float) -> None:
        self._metrics.commit_batch_entries.observe(entries)
        self._metrics.fsync_seconds.observe(seconds)

    def _on_turn(self) -> None:
        store = self.driver.store
        documents = (
            counts.documents
            for shard in self.driver.replicas
            if store.has(shard)
            for counts in store.state(shard).counts.values()
        )
        self._metrics.documents.set(sum(documents))

    async def _look_at_disk(self) -> None:
        while True:
            self._metrics.disk_bytes.set(await asyncio.to_thread(self._report.measure_disk))
            await asyncio.sleep(DISK_LOOK_INTERVAL_S)


def _lanes_of(
    service: LeafService, faults: FaultInjector, clock: Clock, metrics: LeafMetrics, mark: Callable[[], str]
) -> LaneServicer:
    lanes = LaneServicer(
        dict([*service.handlers.items(), faults.handler]),
        clock,
        immediate=service.immediate,
        interference=faults.interference,
        hedge_gate=service.hedge_refusal,
        on_withdrawn=metrics.cancelled.inc,
        on_refused=service.note_refused,
        mark=mark,
    )
    metrics.queue_depth.set_function(lambda: lanes.load)
    return lanes


def disk_usage(folder: Path) -> int:
    """Bytes of the files below a folder; files that go meanwhile count as they may."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.stat(os.path.join(parent, name)).st_size
    return total


def open_engine(options: LeafOptions) -> Engine:
    """Open the leaf's data. Raises FailedPrecondition when it is in use, another leaf's, or of another format."""
    try:
        engine = RocksEngine(options.data_dir / "data", options.is_synced)
    except StorageError as error:
        in_use = " (is another leaf running on it?)" if "lock" in str(error).lower() else ""
        raise FailedPrecondition(f"{error}{in_use}") from error
    try:
        _claim_data(engine, options.id)
    except BaseException:
        engine.close()
        raise
    return engine


def _claim_data(engine: Engine, leaf: str) -> None:
    """Write into the data whose it is, or check it."""
    owner = engine.get(layout.meta_key(layout.LEAF_SHARD, _LEAF_ID))
    if owner is None:
        batch = engine.new_batch()
        batch.put(layout.meta_key(layout.LEAF_SHARD, _LEAF_ID), leaf.encode())
        batch.put(layout.meta_key(layout.LEAF_SHARD, _FORMAT), layout.FORMAT)
        engine.write(batch)
        engine.flush_wal()
        return
    if owner != leaf.encode():
        raise FailedPrecondition(f"this data directory is the one of leaf {owner.decode(errors='replace')!r}, not of {leaf!r}")
    found = engine.get(layout.meta_key(layout.LEAF_SHARD, _FORMAT))
    if found != layout.FORMAT:
        raise FailedPrecondition(f"the data has format {found!r}; this version reads {layout.FORMAT!r}")


def claim_for_cluster(engine: Engine, cluster_id: str) -> None:
    """Write into the data whose cluster it belongs to, or check it. Raises FailedPrecondition.

    A leaf that served another cluster's map would answer that keys are absent which it holds in other shards.
    """
    row = layout.meta_key(layout.LEAF_SHARD, _CLUSTER)
    held = engine.get(row)
    if held is None:
        batch = engine.new_batch()
        batch.put(row, cluster_id.encode())
        engine.write(batch)
        engine.flush_wal()
    elif held != cluster_id.encode():
        found = f"this data is of the cluster {held.decode(errors='replace')}, the coordinator's is {cluster_id}"
        raise FailedPrecondition(f"{found}: was the coordinator's store lost or exchanged?")


async def run(options: LeafOptions, stop: asyncio.Event, on_ready: Callable[[str], None]) -> int:
    """Run a leaf until `stop` is set, it was removed from the cluster, or another process serves under its id.

    on_ready gets host:port once it serves.

    Returns the exit code: EXIT_DONE when it was removed.

    Raises InvalidArgument for a wrong option, FailedPrecondition when a port or the data directory cannot be had.
    """
    options.check()
    clock = SystemClock()
    registry = process_registry()
    async with contextlib.AsyncExitStack() as stack:
        coordinator = connect(options.coordinator, clock)
        stack.push_async_callback(coordinator.close)
        engine = open_engine(options)
        stack.callback(engine.close)
        maps = MapStore(coordinator, clock)
        stack.push_async_callback(maps.close)
        server = LeafServer(options, engine, coordinator, maps, clock, LeafMetrics(registry))
        stack.push_async_callback(server.stop)
        if options.metrics_port is not None:
            try:
                stack.callback(stop_metrics, start_metrics(options.metrics_port, registry))
            except OSError as error:
                raise FailedPrecondition(f"cannot serve metrics on port {options.metrics_port}: {error.strerror}") from None
        if options.are_faults_allowed:
            _log.warning("faults may be injected into this leaf", leaf=options.id)
        if not options.is_synced:
            _log.warning("fsync is off: a machine that dies loses acknowledged writes", leaf=options.id)
        starting = asyncio.create_task(_start(options, server, maps, engine), name="leaf-start")
        stopping = asyncio.create_task(stop.wait(), name="leaf-stop-wait")
        removed = asyncio.create_task(server.was_removed.wait(), name="leaf-removed-wait")
        try:
            await asyncio.wait({starting, stopping, removed}, return_when=asyncio.FIRST_COMPLETED)
            if starting.done():
                starting.result()
                _log.info("leaf ready", leaf=options.id, address=server.address, map_version=maps.current.version)
                on_ready(server.address)
                await asyncio.wait({stopping, removed}, return_when=asyncio.FIRST_COMPLETED)
            _log.info("leaf stopping", leaf=options.id, address=server.address, was_removed=removed.done())
            if starting.done() and not (isinstance(stop, StopOrder) and stop.is_hasty):
                await server.leave()
        finally:
            for task in (starting, stopping, removed):
                task.cancel()
            await asyncio.gather(starting, stopping, removed, return_exceptions=True)
    return EXIT_DONE if server.was_removed.is_set() else 0


async def _start(options: LeafOptions, server: LeafServer, maps: MapStore, engine: Engine) -> None:
    await maps.start()
    if options.id not in maps.current.leaves and not options.is_joining:
        raise unknown_leaf(options.id)  # A slip of the pen must not become a leaf that the balancer then fills.
    claim_for_cluster(engine, maps.cluster_id)
    await server.start()
