"""The leaf's lane methods: payloads in, payloads out, counted. The lane server has admitted them.

Reads and scans are answered at once, inside the lane's reader, since they come from memory or a bounded look at the disk;
writes and searches wait in tasks of their own.
"""

import os
from collections.abc import Awaitable, Callable
from typing import TypeVar

from kvshard.clock import Clock
from kvshard.errors import DeadlineExceeded, KvShardError
from kvshard.model import (
    LeafStatusReply,
    LeafStatusRequest,
    ShardRead,
    ShardReadReply,
    ShardScan,
    ShardScanReply,
    ShardSearch,
    ShardTerms,
    ShardWrite,
)
from kvshard.rpc.codec import decode, encode
from kvshard.rpc.lane_handlers import Handler, ImmediateHandler
from kvshard.telemetry import LeafMetrics, resident_bytes
from kvshard.v1 import lane_pb2
from leaf.driver import Driver
from leaf.requests import Requests

T = TypeVar("T")
Status = Callable[[], Awaitable[LeafStatusReply]]
ServeNow = Callable[[bytes, float, float], ShardReadReply | ShardScanReply | None]
"""(payload, now, absolute deadline) -> the reply; None: it cannot be given without awaiting. Raises KvShardError."""

_READ = int(lane_pb2.LANE_METHOD_READ)
_WRITE = int(lane_pb2.LANE_METHOD_WRITE)
_SCAN = int(lane_pb2.LANE_METHOD_SCAN)
_SEARCH = int(lane_pb2.LANE_METHOD_SEARCH)
_TERM_STATS = int(lane_pb2.LANE_METHOD_TERM_STATS)
_STATUS = int(lane_pb2.LANE_METHOD_STATUS)
_PING = int(lane_pb2.LANE_METHOD_PING)

_NAMES = {_READ: "read", _WRITE: "write", _SCAN: "scan", _SEARCH: "search", _TERM_STATS: "term_stats", _STATUS: "status"}


class LeafService:
    """Handlers for a LaneServicer: `handlers` by method, `immediate` their short cuts."""

    def __init__(self, requests: Requests, status: Status, clock: Clock, metrics: LeafMetrics) -> None:
        self._requests = requests
        self._status = status
        self._clock = clock
        self._metrics = metrics
        self._seconds = {method: metrics.request_seconds.labels(name) for method, name in _NAMES.items()}
        self._ok = {method: metrics.requests.labels(name, "OK") for method, name in _NAMES.items()}
        self.handlers: dict[int, Handler] = {
            _READ: self._handler(_READ, self._read),
            _WRITE: self._handler(_WRITE, self._write),
            _SCAN: self._handler(_SCAN, self._scan),
            _SEARCH: self._handler(_SEARCH, self._search),
            _TERM_STATS: self._handler(_TERM_STATS, self._term_statistics),
            _STATUS: self._handler(_STATUS, self._report),
            _PING: _answer_ping,
        }
        self.immediate: dict[int, ImmediateHandler] = {
            _READ: self._immediate(_READ, self._read_now),
            _SCAN: self._immediate(_SCAN, self._scan_now),
            _PING: lambda payload, deadline: b"",
        }

    def note_refused(self, method: int, error: KvShardError) -> None:
        """The lane server has not taken a request."""
        self._metrics.requests.labels(_NAMES.get(method, "other"), error.reason).count += 1

    def hedge_refusal(self, method: int) -> KvShardError | None:
        """Why a hedge of this method cannot be taken now; None when it can."""
        return self._requests.search_refusal() if method in {_SEARCH, _TERM_STATS} else None

    def _handler(self, method: int, serve: Handler) -> Handler:
        async def handle(payload: bytes, deadline: float) -> bytes:
            started = self._clock.monotonic()
            code = "CANCELLED"
            try:
                reply = await serve(payload, deadline)
                code = "OK"
                return reply
            except KvShardError as error:
                code = error.reason
                raise
            except Exception:
                code = "INTERNAL"
                raise
            finally:
                self._count(method, code, started)

        return handle

    def _immediate(self, method: int, serve: ServeNow) -> ImmediateHandler:
        monotonic, ok, seconds = self._clock.monotonic, self._ok[method], self._seconds[method]

        def handle(payload: bytes, deadline: float) -> bytes | None:
            started = monotonic()
            try:
                reply = serve(payload, started, deadline)
            except KvShardError as error:
                self._count(method, error.reason, started)
                if isinstance(error, DeadlineExceeded):
                    self._metrics.wasted_seconds.inc(monotonic() - started)
                raise
            if reply is None:
                return None
            answer = encode(reply)
            ok.count += 1
            seconds.observe(monotonic() - started)
            return answer

        return handle

    def _count(self, method: int, code: str, started: float) -> None:
        self._metrics.requests.labels(_NAMES[method], code).count += 1
        self._seconds[method].observe(self._clock.monotonic() - started)

    def _read_now(self, payload: bytes, started: float, deadline: float) -> ShardReadReply | None:
        return self._requests.read_now(decode(ShardRead, payload), started, deadline)

    def _scan_now(self, payload: bytes, started: float, deadline: float) -> ShardScanReply | None:
        return self._requests.scan_now(decode(ShardScan, payload), started)

    async def _read(self, payload: bytes, deadline: float) -> bytes:
        request = decode(ShardRead, payload)
        await self._requests.prepare(request)
        return encode(await self._requests.read_later(request, deadline))

    async def _scan(self, payload: bytes, deadline: float) -> bytes:
        request = decode(ShardScan, payload)
        await self._requests.prepare(request)
        return encode(await self._requests.scan_later(request, deadline))

    async def _write(self, payload: bytes, deadline: float) -> bytes:
        return encode(await self._requests.write(decode(ShardWrite, payload), deadline))

    async def _search(self, payload: bytes, deadline: float) -> bytes:
        return encode(await self._requests.search(decode(ShardSearch, payload), deadline))

    async def _term_statistics(self, payload: bytes, deadline: float) -> bytes:
        return encode(await self._requests.term_statistics(decode(ShardTerms, payload), deadline))

    async def _report(self, payload: bytes, deadline: float) -> bytes:
        decode(LeafStatusRequest, payload)
        return encode(await self._status())


async def _answer_ping(payload: bytes, deadline: float) -> bytes:
    return b""


class StatusReport:
    """Puts together what a leaf says of itself. disk_bytes is looked at by `measure_disk`, off the event loop."""

    def __init__(self, driver: Driver, disk_bytes: Callable[[], int], clock: Clock, software_version: str) -> None:
        self._driver = driver
        self._disk_bytes = disk_bytes
        self._clock = clock
        self._software_version = software_version
        self._started = clock.monotonic()
        self.disk_bytes = 0

    def measure_disk(self) -> int:
        """Look at the disk now. Blocks."""
        self.disk_bytes = self._disk_bytes()
        return self.disk_bytes

    async def __call__(self) -> LeafStatusReply:
        """The state of the leaf now; the bytes on disk as of the last look."""
        return LeafStatusReply(
            self._driver.leaf,
            self._driver.status(),
            os.getpid(),
            self._clock.monotonic() - self._started,
            resident_bytes(),
            self.disk_bytes,
            self._software_version,
        )
