"""How the client's calls are made: deadlines, and the same call again where that is safe.

Whoever holds a `Connection` builds requests and reads responses. What a failure means lies in `retries`, which router is asked
in `routers`, and operations on keys go by `keys`.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import TYPE_CHECKING, Protocol, TypeVar
from weakref import WeakSet

import grpc

from kvshard.client.key_calls import KeyCalls
from kvshard.client.retries import RetryPolicy, retry_delay, told
from kvshard.client.router_lanes import LANES, RouterLanes
from kvshard.client.routers import Routers, RouterStubs, UnaryMethod
from kvshard.clock import Clock, SystemClock
from kvshard.errors import KvShardError

if TYPE_CHECKING:
    from kvshard.client.scan_source import ScanSource

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class Stream(Protocol):
    """A stream of a router that is not read to its end yet."""

    def cancel(self) -> object:
        """Give it up."""
        ...


class Connection:
    """Calls to one or several routers; one that a router cannot answer goes on at the next one.

    lanes: how many lanes to a router carry operations on keys. streams: those that are open. scan_source: where the chunks of
    scans come from; None: the routers.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        retries: RetryPolicy,
        clock: Clock | None = None,
        random: Random | None = None,
        *,
        lanes: int = LANES,
    ) -> None:
        self.clock = clock or SystemClock()
        self.random = random or Random()
        self.retries = retries
        self.routers = Routers(addresses)
        self.lanes = RouterLanes(self.routers, self.clock, self.random, lanes)
        self.keys = KeyCalls(self, self.lanes)
        self.streams: WeakSet[Stream] = WeakSet()
        self.scan_source: ScanSource | None = None

    def __repr__(self) -> str:
        return f"Connection({self.routers!r})"

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of the routers."""
        return self.routers.addresses

    @property
    def current(self) -> int:
        """Which router is asked at present."""
        return self.routers.current

    @property
    def stubs(self) -> RouterStubs:
        """The services of the router that is asked at present. Raises FailedPrecondition after the close."""
        return self.routers.stubs

    def deadline(self, timeout: float) -> float:
        """The instant at which a call that begins now is over."""
        return self.clock.monotonic() + timeout

    async def unary(
        self,
        method: Callable[[RouterStubs], UnaryMethod[RequestT, ResponseT]],
        request: RequestT,
        *,
        deadline: float,
        is_repeatable: bool,
    ) -> ResponseT:
        """Make a call and, where that is safe, make it again until the deadline. Raises a KvShardError."""

        def once() -> Awaitable[ResponseT]:
            left = deadline - self.clock.monotonic()
            return self.routers.call(method, request, timeout=left, is_write=not is_repeatable)

        return await self.repeated(once, deadline=deadline, is_repeatable=is_repeatable)

    async def repeated(self, once: Callable[[], Awaitable[ResponseT]], *, deadline: float, is_repeatable: bool) -> ResponseT:
        """The same for what `once` does, at the router that is current then."""
        attempts = 0
        error: KvShardError | None = None
        while True:
            attempts += 1
            router = self.current
            try:
                return await once()
            except KvShardError as raised:
                error = told(raised, error)
            await self.pause_or_raise(error, router, is_repeatable=is_repeatable, attempts=attempts, deadline=deadline)

    def delay_after(
        self, error: KvShardError, *, is_repeatable: bool, attempts: int, deadline: float = float("inf")
    ) -> float | None:
        """Seconds to wait before the call is made again; None when it may not be, or not before the deadline."""
        return retry_delay(
            self.retries,
            error,
            is_repeatable=is_repeatable,
            attempts=attempts,
            now=self.clock.monotonic(),
            deadline=deadline,
            share=self.random.random(),
        )

    async def pause_or_raise(
        self, error: KvShardError, router: int | None, *, is_repeatable: bool, attempts: int, deadline: float
    ) -> None:
        """Wait until the call may be made again, at another router than the one that failed; raise the error if it may not.

        router None: none did; what failed lies behind it.
        """
        delay = self.delay_after(error, is_repeatable=is_repeatable, attempts=attempts, deadline=deadline)
        if delay is None:
            raise error
        if router is not None:
            self.routers.turn_from(router)
        await asyncio.sleep(delay)

    def error_of_call(self, raised: grpc.aio.AioRpcError | asyncio.CancelledError, *, is_write: bool) -> KvShardError:
        """What a failed call of a stub means. A cancellation of the caller's own task is raised on."""
        return self.routers.error_of_call(raised, is_write=is_write)

    async def close(self) -> None:
        """Close everything; calls under way fail with Cancelled. A second close does nothing."""
        self.routers.is_closed = True
        # A stream that nobody reads just now keeps its connection open, and its router busy, whatever becomes of the channel.
        for stream in list(self.streams):
            stream.cancel()
        await self.keys.close()
        await self.routers.close()
