"""The scans of a direct client: their chunks come from the leaves, or through a router while that is better."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress

from kvshard.client.direct import Direct
from kvshard.client.direct_path import DirectPath, is_for_a_router
from kvshard.client.direct_status import Detour
from kvshard.client.scan_source import ScanChunk, ScanSource, ScanStream
from kvshard.client.wire import coverage_of, state_of, timing_of
from kvshard.clock import Clock
from kvshard.errors import Cancelled, KvShardError, Unavailable
from kvshard.rpc.key_convert import coverage_to_proto, policy_of, state_to_proto, timing_to_proto
from kvshard.scatter.ledger import ScanTimes
from kvshard.scatter.requests import DEFAULT_READ_POLICY, ReadPolicy, key_range
from kvshard.scatter.scan import ScanPage, ScanRequest
from kvshard.v1 import kv_pb2

GIVEN_UP = "the scan was given up"


class DirectScans(ScanSource):
    """Opens streams at the leaves; at `routers` what `direct` would rather have done there, or what began there.

    on_open: is told of every stream at the leaves, so that a client that is closed can give it up.
    """

    def __init__(
        self,
        direct: Direct,
        routers: ScanSource,
        clock: Clock,
        on_open: Callable[[ScanStream], object] = lambda stream: None,
    ) -> None:
        self._direct = direct
        self._routers = routers
        self._clock = clock
        self._on_open = on_open

    def __repr__(self) -> str:
        return f"DirectScans({self._direct!r})"

    def open(self, request: kv_pb2.ScanRequest, timeout: float) -> ScanStream:
        """Begin a request. Raises a KvShardError."""
        if request.token:
            self._direct.note_detour(Detour.TOKEN)
            return self._routers.open(request, timeout)
        path = self._direct.path_for(None, is_write=False)
        if path is None:
            return self._routers.open(request, timeout)
        stream = _DirectStream(self._direct, path, self._routers, request, self._clock, timeout)
        self._on_open(stream)
        return stream


class _DirectStream(ScanStream):
    """One request. What fails before its first chunk is begun again at a router; after it, whoever reads it opens another."""

    def __init__(
        self,
        direct: Direct,
        path: DirectPath,
        routers: ScanSource,
        request: kv_pb2.ScanRequest,
        clock: Clock,
        timeout: float,
    ) -> None:
        policy = policy_of(request.options) if request.HasField("options") else DEFAULT_READ_POLICY
        self._direct = direct
        self._path = path
        self._routers = routers
        self._request = request
        self._clock = clock
        self._deadline = clock.monotonic() + timeout
        self._policy = policy
        self._times = ScanTimes(clock.monotonic()) if policy.is_timing_wanted else None
        self._pages = self._begin(policy)
        self._detour: ScanStream | None = None
        self._has_begun = False
        self._given_at: float | None = None
        self._reading: asyncio.Timeout | None = None
        self._closing: asyncio.Task[None] | None = None
        self._is_over = False
        self._broken: KvShardError | None = None

    def _begin(self, policy: ReadPolicy) -> AsyncGenerator[ScanPage, None]:
        request = self._request
        scan = ScanRequest(
            range=key_range(request.prefix, request.start, request.end),
            range_fields=(request.prefix, request.start, request.end),
            limit=request.limit,
            is_keys_only=request.keys_only,
            token=b"",
        )
        return self._path.scans.scan(request.collection, scan, policy, self._deadline, self._times)

    @property
    def router(self) -> int | None:
        """Which of the client's routers is asked; None: the leaves are."""
        return None if self._detour is None else self._detour.router

    async def read(self) -> ScanChunk | None:
        """The next chunk; None behind the last one. Raises a KvShardError."""
        if self._detour is not None:
            return await self._detour.read()
        if self._broken is not None:
            raise self._broken
        if self._is_over:
            return None
        try:
            return await self._next()
        except KvShardError as error:
            self._broken = error
            if not is_for_a_router(error):
                raise
            self._direct.note_failed(self._path, (error,), None)
            if self._has_begun:
                raise
        self._detour = self._routers.open(self._request, max(0.0, self._deadline - self._clock.monotonic()))
        return await self._detour.read()

    async def _next(self) -> ScanChunk | None:
        if self._times is not None and self._given_at is not None:
            self._times.paused_s += self._clock.monotonic() - self._given_at
        try:
            # Has no end of its own; it is what `cancel` interrupts a reader by.
            async with asyncio.timeout(None) as self._reading:
                page = await anext(self._pages, None)
                if page is None or page.coverage is not None:
                    self._is_over = True
                    await self._pages.aclose()
        except TimeoutError:
            raise Cancelled(GIVEN_UP) from None
        except BaseException:
            # A generator that was interrupted is at its end: read again, it would seem to be complete.
            self._broken = Unavailable("the scan was interrupted")
            raise
        finally:
            self._reading = None
        if page is None:
            return None
        if not self._has_begun:
            self._has_begun = True
            self._direct.note_direct()
        return self._chunk(page)

    def _chunk(self, page: ScanPage) -> ScanChunk:
        now = self._given_at = self._clock.monotonic()
        if self._times is not None:
            self._times.answered_at = self._times.answered_at or now
        values = () if self._request.keys_only else page.values
        columns = (page.keys, values, page.versions, page.expires_at_ms)
        if page.coverage is None:
            return ScanChunk(*columns, is_end=not page.token, is_incomplete=page.is_incomplete)
        timing = None if self._times is None else timing_to_proto(self._times.timing(now))
        return ScanChunk(
            *columns,
            is_end=not page.token,
            is_incomplete=page.is_incomplete,
            coverage=coverage_of(coverage_to_proto(page.coverage)),
            states=tuple(state_of(state_to_proto(state)) for state in page.states) if self._policy.is_stale else (),
            timing=timing_of(kv_pb2.ScanResponse(timing=timing)),
        )

    def cancel(self) -> None:
        """Give up what has not been read. May be called at any time, also again."""
        if self._detour is not None:
            self._detour.cancel()
            return
        if self._is_over or self._broken is not None:
            return
        self._broken = Cancelled(GIVEN_UP)
        if self._reading is not None:
            self._reading.reschedule(-1.0)  # Its time is up: the reader is interrupted, and with it what it waits for.
        else:
            self._closing = asyncio.create_task(self._close(), name="direct-scan-close")

    async def _close(self) -> None:
        with suppress(KvShardError):
            await self._pages.aclose()
