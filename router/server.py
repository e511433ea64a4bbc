"""The router's process: its services put together, its health, its start and its graceful stop."""

import asyncio
import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from kvshard.clock import Clock, SystemClock
from kvshard.coordination import mapwriter
from kvshard.coordination.base import Coordinator, CoordinatorUnavailable
from kvshard.coordination.connect import connect
from kvshard.coordination.mapstore import MapStore
from kvshard.errors import FailedPrecondition, KvShardError
from kvshard.model import LeafStatusRequest
from kvshard.rpc.channel import aio_server, bind
from kvshard.rpc.lane_client import LaneLeafClient
from kvshard.rpc.lane_port import ANY_PORT, LanePort
from kvshard.rpc.lane_server import LaneServicer
from kvshard.rpc.leaf_client import LeafClient
from kvshard.scatter.coverage import KnownCounts
from kvshard.scatter.key_frames import KeyFrames
from kvshard.scatter.kv import KeyValueOperations
from kvshard.scatter.lone_reads import LoneReads
from kvshard.scatter.scan import ScanOperation
from kvshard.scatter.scatter import Scatter
from kvshard.scatter.tokens import TokenCodec
from kvshard.tail.defences_status import tail_status
from kvshard.tail.hedging import HedgeSettings
from kvshard.telemetry import RouterMetrics, process_registry, resident_bytes, start_metrics, stop_metrics
from kvshard.v1 import (
    cluster_pb2,
    cluster_pb2_grpc,
    kv_pb2,
    kv_pb2_grpc,
    lane_pb2,
    lane_pb2_grpc,
    search_pb2,
    search_pb2_grpc,
)
from kvshard.workers import WorkerPlace, WorkerStatus
from router.arrival_probe import ArrivalProbe
from router.calls import Calls
from router.cluster import ClusterService, MapEditor
from router.lane_scans import LaneScans
from router.lane_searches import LaneSearches
from router.lane_service import LaneService
from router.like_documents import LikeDocuments
from router.ranking import Rankings
from router.reads import Reads
from router.search import SearchOperation
from router.search_answers import SearchAnswers
from router.service import KVService, SearchService
from router.several import SeveralSearch
from router.siblings import Siblings
from router.suggest import SuggestOperation
from router.tail_metrics import hedging_families, lane_families, wasted_families

PROBE_INTERVAL_S = 1.0
"""Between two looks at whether a leaf answers; a load balancer's own checks are not finer."""

PROBE_INTERVAL_STARTING_S = 0.05
"""The same while the router has not served yet: the start of a cluster waits for it."""

PROBE_TIMEOUT_S = 0.5
"""A leaf answers its status from memory."""

PROBE_LEAVES_MAX = 8
"""Leaves asked in one look before the answer is no."""

STOP_GRACE_S = 2.0
"""What calls under way get at a stop; the supervisor promises that all is gone after 5 s."""

DRAIN_S = 0.5
"""Of it, before callers are told to connect elsewhere. Once gRPC has told them it closes a connection behind its last
answer, with what they sent meanwhile unread, and the kernel throws away what it had not sent: of 200 calls answered at once 2
to 9 % were lost (n 8,000 each). What is answered before is not. But while one call lasts all others are refused: no longer."""

META_RETRY_S = 0.2
"""Between two tries to read the cluster's id while the coordinator does not answer."""

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in ((kv_pb2, "KV"), (search_pb2, "Search"), (cluster_pb2, "Cluster"), (lane_pb2, "Lanes"))
)

DEFAULT_HEDGING = HedgeSettings()
ALONE = WorkerPlace()

log = structlog.get_logger(__name__)


class RouterServer:
    """The gRPC server with all services over a map and leaf clients that are given to it."""

    def __init__(
        self,
        listen: str,
        maps: MapEditor,
        leaves: LeafClient,
        clock: Clock,
        metrics: RouterMetrics,
        hedging: HedgeSettings = DEFAULT_HEDGING,
        worker: WorkerPlace = ALONE,
        lane_port: LanePort = ANY_PORT,
    ) -> None:
        """Binds the port. Raises FailedPrecondition when it cannot be had. hedging: of reads that do not say it themselves.

        worker: which of the processes it is that share the port; each has a port of its own too. lane_port: for lanes without
        gRPC.
        """
        self._maps = maps
        self._leaves = leaves
        self._clock = clock
        self._metrics = metrics
        self._worker = worker
        self._lane_port = lane_port
        self._began = clock.monotonic()
        self._server = aio_server(has_shared_port=worker.is_shared)
        self.address = bind(self._server, listen)
        self._own_address = self.address if worker.address is None else bind(self._server, worker.address)
        self._health = health.aio.HealthServicer()
        self._calls = Calls(clock, metrics)
        self._reads = Reads(self._calls, clock, metrics)
        self._scatter = Scatter(maps, clock, metrics, leaves.ping, settings=hedging)
        defences = self._scatter.defences
        siblings = Siblings(worker, self._worker_status)
        self._cluster = ClusterService(self._calls, maps, leaves, clock, self._reads.slow, siblings)
        metrics.scrape(lambda: hedging_families(defences.counters))
        self._arrivals = self._arrival_probe(metrics)
        self._lanes: LaneServicer | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._serving = asyncio.Event()
        self._last_good_leaf = ""

    async def start(self, cluster_id: str) -> None:
        """Answer calls; healthy once a leaf answers."""
        self._cluster.cluster_id = cluster_id
        known, tokens = KnownCounts(), TokenCodec(cluster_id)
        maps, leaves, clock, scatter = self._maps, self._leaves, self._clock, self._scatter
        operations = KeyValueOperations(maps, leaves, scatter, known, clock)
        scans = ScanOperation(maps, leaves, scatter, known, tokens, clock)
        rankings = Rankings(leaves, scatter, clock, self._metrics)
        self._metrics.scrape(rankings.families)
        like = LikeDocuments(operations)
        searches = SearchOperation(maps, leaves, scatter, known, tokens, clock, like, rankings, self._metrics)
        lanes = LaneService(self._calls, self._reads, KeyFrames(operations, clock), LoneReads(maps, leaves, scatter))
        lanes.handlers |= LaneScans(self._calls, self._reads, scans).handlers
        answers = SearchAnswers(searches, SeveralSearch(maps, searches, tokens), clock)
        lanes.handlers |= LaneSearches(self._calls, self._reads, answers).handlers
        self._lanes = lanes.servicer(clock)
        lane_pb2_grpc.add_LanesServicer_to_server(self._lanes, self._server)
        kv_pb2_grpc.add_KVServicer_to_server(KVService(self._calls, self._reads, operations, scans), self._server)
        suggestions = SuggestOperation(maps, leaves, scatter, known, clock)
        search = SearchService(self._calls, self._reads, answers, suggestions)
        search_pb2_grpc.add_SearchServicer_to_server(search, self._server)
        cluster_pb2_grpc.add_ClusterServicer_to_server(self._cluster, self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection((*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)
        await self._set_health(is_serving=False)
        self._server.add_generic_rpc_handlers((self._arrivals.handler,))
        await self._lanes.listen(self.address, self._lane_port)
        await self._server.start()
        self._tasks.append(asyncio.create_task(self._probe_leaves(), name="health-probe"))
        self._tasks.append(asyncio.create_task(self._arrivals.run(), name="arrival-probe"))

    def _arrival_probe(self, metrics: RouterMetrics) -> ArrivalProbe:
        admission, seen = self._calls.admission, 0
        metrics.calls_in_flight.set_function(lambda: admission.calls)
        metrics.arrival_wait_seconds.set_function(lambda: admission.wait_s)
        metrics.refused_share.set_function(lambda: admission.share)

        def has_traffic() -> bool:
            nonlocal seen
            before, seen = seen, admission.arrived
            return seen != before or admission.share > 0.0  # Else the first calls after a silence would pay for the last ones.

        # By its own address: at the shared one a sibling may answer, which is late or not for reasons of its own.
        return ArrivalProbe(self._own_address, self._clock, has_traffic, admission.note_wait, self._scatter.defences.note_late)

    def _worker_status(self) -> WorkerStatus:
        admission, now = self._calls.admission, self._clock.monotonic()
        return WorkerStatus(
            worker=self._worker.name,
            address=self._worker.address or "",
            pid=os.getpid(),
            uptime_s=now - self._began,
            resident_bytes=resident_bytes(),
            metrics_port=self._worker.metrics_port or 0,
            calls_in_flight=admission.calls,
            calls_total=admission.arrived,
            refused_total=admission.refused,
            arrival_wait_ms=admission.wait_s * 1000,
            refused_share=admission.share,
            tail=tail_status(self._scatter.defences, now),
        )

    async def wait_serving(self) -> None:
        """Wait until the router has been healthy for the first time."""
        await self._serving.wait()

    async def stop(self) -> None:
        """Refuse new calls, let those under way end within the grace, then cut them. May be called more than once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._cluster.stop_watches()
        await self._health.enter_graceful_shutdown()
        began = self._clock.monotonic()
        draining = [self._calls.drain(STOP_GRACE_S)]
        if self._lanes is not None:
            draining.append(self._lanes.drain(STOP_GRACE_S))
        drained = asyncio.gather(*draining)
        await asyncio.wait({drained}, timeout=min(DRAIN_S, STOP_GRACE_S))
        # From here on both at once: a lane is a call to the server, which waits for it.
        await self._server.stop(max(0.0, STOP_GRACE_S - (self._clock.monotonic() - began)))
        await drained
        if self._lanes is not None:
            await self._lanes.close()
        await self._scatter.close()

    async def _probe_leaves(self) -> None:
        is_serving = False
        while True:
            try:
                is_good = await self._does_a_leaf_answer()
            except Exception:
                log.exception("health probe failed")
                is_good = False
            if is_good != is_serving:
                is_serving = is_good
                await self._set_health(is_serving)
                log.info("health changed", is_serving=is_serving, leaf=self._last_good_leaf)
            if is_serving:
                self._serving.set()
            await asyncio.sleep(PROBE_INTERVAL_S if self._serving.is_set() else PROBE_INTERVAL_STARTING_S)

    async def _does_a_leaf_answer(self) -> bool:
        """Ask leaves in turn, the one that answered last time first."""
        if not self._maps.has_map:
            return False
        leaves = [leaf.id for leaf in self._maps.current.leaves.values() if leaf.address]
        leaves.sort(key=lambda leaf: leaf != self._last_good_leaf)
        for leaf in leaves[:PROBE_LEAVES_MAX]:
            with contextlib.suppress(KvShardError, TimeoutError):
                async with asyncio.timeout(PROBE_TIMEOUT_S):
                    await self._leaves.status(leaf, LeafStatusRequest(), self._clock.monotonic() + PROBE_TIMEOUT_S)
                self._last_good_leaf = leaf
                return True
        return False

    async def _set_health(self, is_serving: bool) -> None:
        serving = health_pb2.HealthCheckResponse.SERVING if is_serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for name in ("", *SERVICES):
            await self._health.set(name, serving)


@dataclass(frozen=True, slots=True)
class RouterOptions:
    """How a router runs. metrics_port None: no metrics are served. hedging: of reads that do not say it themselves.

    worker: which of the processes it is that share the port. lane_port: for lanes without gRPC.
    """

    coordinator: str
    listen: str
    metrics_port: int | None = None
    hedging: HedgeSettings = DEFAULT_HEDGING
    worker: WorkerPlace = ALONE
    lane_port: LanePort = ANY_PORT


async def run(options: RouterOptions, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
    """Run a router until `stop` is set. on_ready gets host:port once it is healthy for the first time.

    Raises InvalidArgument for a wrong option, FailedPrecondition when a port cannot be had.
    """
    clock = SystemClock()
    registry = process_registry()
    async with contextlib.AsyncExitStack() as stack:
        coordinator = connect(options.coordinator, clock)
        stack.push_async_callback(coordinator.close)
        maps = MapStore(coordinator, clock)
        stack.push_async_callback(maps.close)
        leaves = LaneLeafClient(lambda leaf: maps.current.leaf_address(leaf), clock)
        stack.push_async_callback(leaves.close)
        metrics = RouterMetrics(registry)
        metrics.scrape(lambda: wasted_families(leaves.late))
        metrics.scrape(lambda: lane_families(leaves.lanes_by_transport()))
        server = RouterServer(options.listen, maps, leaves, clock, metrics, options.hedging, options.worker, options.lane_port)
        stack.push_async_callback(server.stop)
        if options.metrics_port is not None:
            try:
                stack.callback(stop_metrics, start_metrics(options.metrics_port, registry))
            except OSError as error:
                raise FailedPrecondition(f"cannot serve metrics on port {options.metrics_port}: {error.strerror}") from None
        starting = asyncio.create_task(_start(server, maps, coordinator), name="router-start")
        stopping = asyncio.create_task(stop.wait(), name="router-stop-wait")
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                starting.result()
                log.info("router ready", address=server.address, map_version=maps.current.version)
                on_ready(server.address)
                await stopping
            log.info("router stopping", address=server.address)
        finally:
            starting.cancel()
            stopping.cancel()
            await asyncio.gather(starting, stopping, return_exceptions=True)


async def _start(server: RouterServer, maps: MapStore, coordinator: Coordinator) -> None:
    await maps.start()
    await server.start(await _cluster_id(coordinator))
    await server.wait_serving()


async def _cluster_id(coordinator: Coordinator) -> str:
    """The random name that the cluster got at bootstrap."""
    while True:
        with contextlib.suppress(CoordinatorUnavailable):
            item = await coordinator.get(mapwriter.META_KEY)
            if item is not None:
                return mapwriter.decode_meta(item.value).cluster_id
        await asyncio.sleep(META_RETRY_S)
