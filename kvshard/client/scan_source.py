"""Where the chunks of a scan come from: an interface, and the streams of a router behind it.

A direct client brings a source of its own. Whoever reads a scan sees no difference: a stream that breaks is opened again behind
the last key given, at whatever source answers then.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import grpc

from kvshard.client.connection import Connection
from kvshard.client.results import Coverage, ReadState, Timing
from kvshard.client.wire import coverage_of, state_of, timing_of
from kvshard.errors import Cancelled, Unavailable
from kvshard.lane_messages import KeysScan, KeysScanReply
from kvshard.scatter.scan_chunks import SHORT_SCAN_KEYS
from kvshard.v1 import kv_pb2

if TYPE_CHECKING:
    _Call = grpc.aio.UnaryStreamCall[kv_pb2.ScanRequest, kv_pb2.ScanResponse]


@dataclass(frozen=True, slots=True)
class ScanChunk:
    """Some keys of a scan in columns, ascending. values: empty when only keys were asked for.

    expires_at_ms: empty when none expires. is_end: nothing lies behind the last key. is_incomplete: a shard is missing from
    this chunk, or from one before it in the same stream. coverage: set on the last chunk of a stream, beside it states and
    timing where they were asked for.
    """

    keys: Sequence[bytes]
    values: Sequence[bytes]
    versions: Sequence[int]
    expires_at_ms: Sequence[int]
    is_end: bool
    is_incomplete: bool = False
    coverage: Coverage | None = None
    states: tuple[ReadState, ...] = ()
    timing: Timing | None = None


class ScanStream(Protocol):
    """The chunks of one request, in order. Flow control: what is not read is not fetched, beyond a bounded part."""

    @property
    def router(self) -> int | None:
        """Which of the client's routers is asked; None: none is."""
        ...

    async def read(self) -> ScanChunk | None:
        """The next chunk; None behind the last one. Raises a KvShardError, after which the stream is of no use."""
        ...

    def cancel(self) -> None:
        """Give up what has not been read. May be called at any time, also again."""
        ...


class ScanSource(Protocol):
    """Opens streams."""

    def open(self, request: kv_pb2.ScanRequest, timeout: float) -> ScanStream:
        """Begin a request; timeout: seconds for the whole stream. Raises a KvShardError.

        A request with a token came from a router, and must go to one.
        """
        ...


class RouterScans(ScanSource):
    """Scans through the router that is asked at present: short ones over its lanes, the others as streams of their own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __repr__(self) -> str:
        return f"RouterScans({self._connection!r})"

    def open(self, request: kv_pb2.ScanRequest, timeout: float) -> ScanStream:
        """Begin a request."""
        self._connection.routers.check_open()
        if 0 < request.limit <= SHORT_SCAN_KEYS and not request.token:
            return _PageThenStream(self._connection, request, timeout)
        return _RouterStream(self._connection, request, timeout)


class _RouterStream(ScanStream):
    def __init__(self, connection: Connection, request: kv_pb2.ScanRequest, timeout: float) -> None:
        self._connection = connection
        self._router = connection.current
        self._call: _Call = connection.stubs.kv.Scan(request, timeout=timeout)
        connection.streams.add(self)

    @property
    def router(self) -> int | None:
        """Which of the client's routers is asked."""
        return self._router

    async def read(self) -> ScanChunk | None:
        """The next chunk; None behind the last one."""
        try:
            found = await self._call.read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as raised:
            error = self._connection.error_of_call(raised, is_write=False)
        else:
            return chunk_of(found) if isinstance(found, kv_pb2.ScanResponse) else None
        if isinstance(error, Cancelled) and not self._connection.routers.is_closed:
            # Nobody here has cancelled it: a router that stops cuts the streams that outlast its grace.
            error = Unavailable("the router gave the stream up")
        raise error

    def cancel(self) -> None:
        """Give the stream up."""
        self._call.cancel()


class _PageThenStream(ScanStream):
    """The first page over a lane, and only what that leaves over as a stream: a stream costs as much as dozens of frames."""

    def __init__(self, connection: Connection, request: kv_pb2.ScanRequest, timeout: float) -> None:
        self._connection = connection
        self._router = connection.current
        self._deadline = connection.deadline(timeout)
        self._request = request
        self._is_asked = False
        self._rest: _RouterStream | None = None

    @property
    def router(self) -> int | None:
        """Which of the client's routers is asked."""
        return self._router if self._rest is None else self._rest.router

    async def read(self) -> ScanChunk | None:
        """The next chunk; None behind the last one."""
        if not self._is_asked:
            self._is_asked = True
            encoded, limit = KeysScan(self._request.SerializeToString()), self._request.limit
            page = await self._connection.lanes.scan(encoded, limit, self._deadline)
            if page is not None:
                return self._first(page)
            self._rest = self._stream()
        return None if self._rest is None else await self._rest.read()

    def _first(self, page: KeysScanReply) -> ScanChunk:
        rest = kv_pb2.ScanResponse.FromString(page.rest)
        if not rest.HasField("coverage"):
            self._request.token = rest.token
            self._request.limit -= len(page.keys)
            self._rest = self._stream()
        return _chunk(rest, page.keys, page.values, page.versions, page.expires_at_ms, page.is_end)

    def _stream(self) -> _RouterStream:
        left = self._deadline - self._connection.clock.monotonic()
        return _RouterStream(self._connection, self._request, max(0.0, left))

    def cancel(self) -> None:
        """Give up what has not been read; a page that is waited for is given up by its reader."""
        if self._rest is not None:
            self._rest.cancel()


def chunk_of(message: kv_pb2.ScanResponse) -> ScanChunk:
    """A message of a router's stream."""
    columns = list(message.keys), list(message.values), list(message.versions), list(message.expires_at_ms)
    return _chunk(message, *columns, not message.token)


def _chunk(
    rest: kv_pb2.ScanResponse,
    keys: Sequence[bytes],
    values: Sequence[bytes],
    versions: Sequence[int],
    expires_at_ms: Sequence[int],
    is_end: bool,
) -> ScanChunk:
    has_coverage = rest.HasField("coverage")
    return ScanChunk(
        keys,
        values,
        versions,
        expires_at_ms,
        is_end,
        rest.is_incomplete,
        coverage_of(rest.coverage) if has_coverage else None,
        tuple(map(state_of, rest.states)) if has_coverage else (),
        timing_of(rest) if has_coverage else None,
    )
