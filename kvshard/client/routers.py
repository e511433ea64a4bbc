"""The routers that a client may ask: channels to them, which of them is asked at present, and their errors as kvshard's own.

Nobody else in the client touches grpc, except the scan, which reads a stream.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc

from kvshard.client.checks import parse_address
from kvshard.errors import Cancelled, ErrorDetails, FailedPrecondition, KvShardError
from kvshard.rpc.channel import aio_channel
from kvshard.rpc.status import error_from_rpc
from kvshard.v1 import cluster_pb2_grpc, kv_pb2_grpc, search_pb2_grpc

if TYPE_CHECKING:
    from kvshard.v1.cluster_pb2_grpc import ClusterAsyncStub
    from kvshard.v1.kv_pb2_grpc import KVAsyncStub
    from kvshard.v1.search_pb2_grpc import SearchAsyncStub

_NEVER_LEFT = ("failed to connect to all addresses", "DNS resolution failed")

RequestT = TypeVar("RequestT", contravariant=True)
ResponseT = TypeVar("ResponseT", covariant=True)


class UnaryMethod(Protocol[RequestT, ResponseT]):
    """A method of a stub that takes one message and answers with one."""

    def __call__(self, request: RequestT, *, timeout: float | None = None) -> Awaitable[ResponseT]:
        """Call it."""
        ...


@dataclass(frozen=True, slots=True)
class RouterStubs:
    """The services of one router."""

    kv: "KVAsyncStub"
    search: "SearchAsyncStub"
    cluster: "ClusterAsyncStub"


class Routers:
    """One or several routers, of which one is the current one. Channels are opened at the first call.

    addresses: "host:port" each; InvalidArgument otherwise.
    """

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = tuple(parse_address(address) for address in addresses)
        self.current = 0
        self.is_closed = False
        self._opened: dict[int, tuple[grpc.aio.Channel, RouterStubs]] = {}

    def __repr__(self) -> str:
        state = "closed" if self.is_closed else f"at {self.addresses[self.current]}"
        return f"Routers({', '.join(self.addresses)}; {state})"

    @property
    def stubs(self) -> RouterStubs:
        """The services of the current router. Raises FailedPrecondition after the close."""
        self.check_open()
        opened = self._opened.get(self.current)
        if opened is None:
            channel = aio_channel(self.addresses[self.current])
            stubs = RouterStubs(
                kv_pb2_grpc.KVStub(channel), search_pb2_grpc.SearchStub(channel), cluster_pb2_grpc.ClusterStub(channel)
            )
            opened = self._opened[self.current] = channel, stubs
        return opened[1]

    def check_open(self) -> None:
        """Raise FailedPrecondition after the close."""
        if self.is_closed:
            raise FailedPrecondition("the client is closed")

    def turn_from(self, router: int) -> None:
        """This one has failed: the next one is asked, unless others that failed there have turned away already."""
        if self.current == router:
            self.current = (router + 1) % len(self.addresses)

    async def call(
        self,
        method: Callable[[RouterStubs], UnaryMethod[RequestT, ResponseT]],
        request: RequestT,
        *,
        timeout: float,
        is_write: bool,
    ) -> ResponseT:
        """Call a method of the current router, once. Raises a KvShardError."""
        try:
            return await method(self.stubs)(request, timeout=max(0.0, timeout))
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as raised:
            error = self.error_of_call(raised, is_write=is_write)
        raise error

    def error_of_call(self, raised: grpc.aio.AioRpcError | asyncio.CancelledError, *, is_write: bool) -> KvShardError:
        """What a failed call means. A cancellation of the caller's own task is raised on."""
        if isinstance(raised, asyncio.CancelledError):
            task = asyncio.current_task()
            # A channel that is closed cancels its calls without anybody having cancelled this task.
            if not self.is_closed or (task is not None and task.cancelling()):
                raise raised
            return closed_during_call(maybe_applied=is_write)
        return error_from_rpc(raised, is_write=is_write and not _never_left(raised))

    async def close(self) -> None:
        """Close the channels; calls under way fail with Cancelled. A second close does nothing."""
        self.is_closed = True
        opened, self._opened = self._opened, {}
        for channel, _ in opened.values():
            await channel.close()


def closed_during_call(*, maybe_applied: bool) -> Cancelled:
    """The error of a call that was under way when the client was closed."""
    return Cancelled("the client was closed during the call", ErrorDetails(maybe_applied=maybe_applied))


def _never_left(error: grpc.aio.AioRpcError) -> bool:
    """Whether there was no connection to send on, so that even a write may be tried again while a router restarts.

    gRPC tells it only in words: these come from its choice of a connection, before anything is sent. Other words (a reset, a
    closed socket) leave the outcome open.
    """
    text = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and text.startswith(_NEVER_LEFT)
