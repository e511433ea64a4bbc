"""How the client reaches a router: channels, deadlines, retries, and errors as kvshard's own.

Whoever holds a `Connection` builds requests and reads responses; nobody else in the client touches grpc.
"""

import asyncio
import os
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Protocol, TypeVar

import grpc

from kvshard.client.checks import parse_address
from kvshard.client.retries import RetryPolicy, retry_delay
from kvshard.clock import Clock, SystemClock
from kvshard.errors import Cancelled, ErrorDetails, FailedPrecondition, KvShardError, in_doubt
from kvshard.request_ids import WriteNames
from kvshard.rpc.channel import aio_channel
from kvshard.rpc.status import error_from_rpc
from kvshard.v1 import cluster_pb2_grpc, kv_pb2, kv_pb2_grpc, search_pb2_grpc, types_pb2

if TYPE_CHECKING:
    from kvshard.v1.cluster_pb2_grpc import ClusterAsyncStub
    from kvshard.v1.kv_pb2_grpc import KVAsyncStub
    from kvshard.v1.search_pb2_grpc import SearchAsyncStub

WATERMARKS_INTERVAL_S = 5.0
"""Between two looks at how far the shards have committed, which make a late repetition recognisable. A shard forgets clients
after a thousand others have written, so these are new enough; and a look costs 12 bytes a shard."""

_NEVER_LEFT = ("failed to connect to all addresses", "DNS resolution failed")

WriteT = TypeVar("WriteT", kv_pb2.PutRequest, kv_pb2.DeleteRequest, kv_pb2.BatchWriteRequest)
WrittenT = TypeVar("WrittenT", kv_pb2.PutResponse, kv_pb2.DeleteResponse, kv_pb2.BatchWriteResponse)
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


@dataclass(slots=True)
class WriteId:
    """The id of one write, over all its sendings. known: what was known of the shards before the first of them."""

    message: types_pb2.RequestId
    known: bytes
    attempts: int = 0

    def failed(self, error: KvShardError) -> KvShardError:
        """A sending has failed; the error, with what it means for the whole write."""
        if error.details.maybe_applied and not self.message.is_retry:
            self.message.is_retry, self.message.watermarks = True, self.known
        return in_doubt(error) if self.message.is_retry else error


class Connection:
    """Channels to one or several routers; a call that a router cannot answer goes on at the next one.

    Channels are opened at the first call, inside the event loop that makes it. Each write gets an id, by which the shards
    recognise its repetitions.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        retries: RetryPolicy,
        clock: Clock | None = None,
        random: Random | None = None,
    ) -> None:
        self.addresses = tuple(parse_address(address) for address in addresses)
        self.retries = retries
        self.clock = clock or SystemClock()
        self.random = random or Random()
        self._current = 0
        self._opened: dict[int, tuple[grpc.aio.Channel, RouterStubs]] = {}
        self._is_closed = False
        self._names: WriteNames | None = None
        self._names_pid = 0
        self._watermarks = b""
        self._watermarks_due_at = float("-inf")

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else f"at {self.addresses[self._current]}"
        return f"Connection({', '.join(self.addresses)}; {state})"

    @property
    def current(self) -> int:
        """Which router is asked at present."""
        return self._current

    @property
    def stubs(self) -> RouterStubs:
        """The services of the router that is asked at present."""
        if self._is_closed:
            raise FailedPrecondition("the client is closed")
        opened = self._opened.get(self._current)
        if opened is None:
            channel = aio_channel(self.addresses[self._current])
            stubs = RouterStubs(
                kv_pb2_grpc.KVStub(channel), search_pb2_grpc.SearchStub(channel), cluster_pb2_grpc.ClusterStub(channel)
            )
            opened = self._opened[self._current] = channel, stubs
        return opened[1]

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
        attempts = 0
        while True:
            attempts += 1
            router = self._current
            try:
                return await method(self.stubs)(request, timeout=max(0.0, deadline - self.clock.monotonic()))
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as raised:
                error = self.error_of_call(raised, is_write=not is_repeatable)
            await self.pause_or_raise(error, router, is_repeatable=is_repeatable, attempts=attempts, deadline=deadline)

    async def write(
        self,
        method: Callable[[RouterStubs], UnaryMethod[WriteT, WrittenT]],
        request: WriteT,
        *,
        deadline: float,
    ) -> WrittenT:
        """Make a write, and make it again under the same id until the deadline: it takes effect once. Raises a KvShardError.

        An error says details.maybe_applied when the write may have taken effect, in whichever of its sendings.
        """
        with self.write_id() as id:
            return await self.send_write(method, request, id, deadline=deadline)

    @contextmanager
    def write_id(self) -> Iterator[WriteId]:
        """The id of a write that begins; it is not sent any more when this is left."""
        names = self._own_names()
        name = names.take()
        message = types_pb2.RequestId(client=name.client, number=name.number, wants_watermarks=self._wants_watermarks())
        try:
            yield WriteId(message, self._watermarks)
        finally:
            names.give_back(name)

    async def send_write(
        self,
        method: Callable[[RouterStubs], UnaryMethod[WriteT, WrittenT]],
        request: WriteT,
        id: WriteId,
        *,
        deadline: float,
        positions: Sequence[int] = (),
        total: int = 0,
    ) -> WrittenT:
        """Make a write under this id; see `write`. positions, total: of a part of it, where it stands in a batch of so many."""
        while True:
            id.attempts += 1
            request.request_id.CopyFrom(id.message)
            request.request_id.positions.extend(positions)
            request.request_id.total = total
            router = self._current
            try:
                response = await method(self.stubs)(request, timeout=max(0.0, deadline - self.clock.monotonic()))
            except (grpc.aio.AioRpcError, asyncio.CancelledError) as raised:
                error = self.error_of_call(raised, is_write=True)
            except FailedPrecondition as closed:
                raise id.failed(closed) from None
            else:
                self._watermarks = response.watermarks or self._watermarks
                return response
            await self.pause_or_raise(id.failed(error), router, is_repeatable=True, attempts=id.attempts, deadline=deadline)

    def _own_names(self) -> WriteNames:
        """Names that nobody else gives: processes that are forked with a client, and with its random numbers, have others."""
        if self._names is None or self._names_pid != os.getpid():
            self._names, self._names_pid = WriteNames(secrets.token_hex(12)), os.getpid()
        return self._names

    def _wants_watermarks(self) -> bool:
        """Whether it is this write's turn to ask."""
        now = self.clock.monotonic()
        if now < self._watermarks_due_at:
            return False
        self._watermarks_due_at = now + WATERMARKS_INTERVAL_S
        return True

    async def pause_or_raise(
        self, error: KvShardError, router: int | None, *, is_repeatable: bool, attempts: int, deadline: float
    ) -> None:
        """Wait until the call may be made again, at another router than the one that failed; raise the error if it may not.

        router None: none did; what failed lies behind it.
        """
        delay = retry_delay(
            self.retries,
            error,
            is_repeatable=is_repeatable,
            attempts=attempts,
            now=self.clock.monotonic(),
            deadline=deadline,
            share=self.random.random(),
        )
        if delay is None:
            raise error
        if (
            router is not None and self._current == router
        ):  # Else others that failed there have turned away already; back would be no better.
            self._current = (router + 1) % len(self.addresses)
        await asyncio.sleep(delay)

    def error_of_call(self, raised: grpc.aio.AioRpcError | asyncio.CancelledError, *, is_write: bool) -> KvShardError:
        """What a failed call means. A cancellation of the caller's own task is raised on."""
        if isinstance(raised, asyncio.CancelledError):
            task = asyncio.current_task()
            # A channel that is closed cancels its calls without anybody having cancelled this task.
            if not self._is_closed or (task is not None and task.cancelling()):
                raise raised
            return Cancelled("the client was closed during the call", ErrorDetails(maybe_applied=is_write))
        return error_from_rpc(raised, is_write=is_write and not _never_left(raised))

    async def close(self) -> None:
        """Close the channels; calls under way fail with Cancelled. A second close does nothing."""
        self._is_closed = True
        opened, self._opened = self._opened, {}
        for channel, _ in opened.values():
            await channel.close()


def _never_left(error: grpc.aio.AioRpcError) -> bool:
    """Whether there was no connection to send on, so that even a write may be tried again while a router restarts.

    gRPC tells it only in words: these come from its choice of a connection, before anything is sent. Other words (a reset, a
    closed socket) leave the outcome open.
    """
    text = error.details() or ""
    return error.code() is grpc.StatusCode.UNAVAILABLE and text.startswith(_NEVER_LEFT)
