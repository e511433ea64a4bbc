"""Calls to an etcd cluster: endpoints with failover, deadlines, login, and which failures are safe to send again.

May live here: channels, tokens and the mapping of gRPC's failures. What the calls mean is `etcd.py`.

A call is sent only over a connection that is up, so a dead endpoint is passed over before anything is sent. What fails after it
was sent is sent again only if the caller says that twice is as good as once; a transaction is not, and its failure always
means: unknown.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar, cast

import grpc
import grpc.aio
from google.protobuf.message import Message

from kvshard.clock import Clock
from kvshard.coordination.base import CoordinatorUnavailable
from kvshard.coordination.etcd_url import EtcdOptions
from kvshard.coordination.v1 import etcd_pb2 as pb
from kvshard.rpc.channel import aio_channel

CALL_TIMEOUT_S = 5.0
"""A call as a whole, failover included. An election of etcd takes 1 to 2 s by default; whoever waits longer should know."""

ATTEMPT_TIMEOUT_S = 2.0
"""One attempt of a call that may be repeated: a member that hangs leaves time for another."""

CONNECT_TIMEOUT_S = 1.0
"""For an endpoint that does not even refuse (a dead host): several of them are passed over within a call."""

ATTEMPTS_MAX = 8
"""Attempts of one call. Its deadline ends a slow series; this ends a quick one, such as tokens refused again and again."""

PENDING_MAX = 1_000
"""Calls under way: beyond that etcd is slower than its callers, and an error is better than a longer queue."""

_REFUSALS = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE)
"""Codes by which a member that is well answers a request that is not: no other endpoint would say anything else."""

_STALE_TOKEN = ("invalid auth token", "revision of auth store is old")
"""How a member refuses a token before it looks at the request."""

_CLOSED = "the coordinator handle is closed"
_LEADER_NEEDED = ("hasleader", "true")
"""With a stream: a member that has lost its cluster ends it, instead of being silent on it for ever."""


class _Answer(Protocol):
    @property
    def header(self) -> pb.ResponseHeader: ...

    @classmethod
    def FromString(cls, s: bytes, /) -> Self: ...


Answer = TypeVar("Answer", bound=_Answer)


class EtcdRefused(CoordinatorUnavailable):
    """A member answered that the request cannot be done. Nothing was changed."""

    def __init__(self, endpoint: str, error: grpc.aio.AioRpcError) -> None:
        super().__init__(f"etcd: {endpoint}: {_text(error)}")
        self.code = error.code()
        self.text = error.details() or ""


class EtcdStream(Generic[Answer]):
    """An open stream. Read by one task."""

    def __init__(self, connection: "EtcdConnection", endpoint: str, call: grpc.aio.StreamStreamCall[Message, Answer]) -> None:
        self._connection = connection
        self._endpoint = endpoint
        self._call = call

    async def read(self) -> Answer:
        """The next answer. Raises CoordinatorUnavailable when the stream has ended."""
        with self._connection.interruptible():
            answer = await self._call.read()
        if answer is grpc.aio.EOF:
            raise CoordinatorUnavailable(f"etcd: {self._endpoint}: the stream ended")
        message = cast(Answer, answer)
        self._connection.check_cluster(message.header, self._endpoint)
        return message


class EtcdConnection:
    """Channels to the endpoints of one cluster, one of them in use. For the tasks of one event loop.

    Invariant: answers of only one cluster get through; endpoints of two clusters in one list would mix two maps.
    """

    def __init__(self, options: EtcdOptions, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._current = 0
        self._token = ""
        self._cluster_id = 0
        self._waiting: set[asyncio.Task[object]] = set()
        self._closed = asyncio.Event()

    def __repr__(self) -> str:
        return f"EtcdConnection({self.endpoint} of {','.join(self._options.endpoints)}{', closed' if self.is_closed else ''})"

    @property
    def endpoint(self) -> str:
        """The endpoint in use."""
        return self._options.endpoints[self._current]

    @property
    def is_closed(self) -> bool:
        """Every call fails from now on."""
        return self._closed.is_set()

    async def unary(self, path: str, request: Message, answer: type[Answer], *, is_repeatable: bool) -> Answer:
        """Call a method. Raises EtcdRefused, or CoordinatorUnavailable when nobody was reached or the outcome is unknown."""
        deadline = self._clock.monotonic() + CALL_TIMEOUT_S
        failures: list[str] = []
        with self.interruptible():
            while True:
                channel, endpoint = await self._connect(deadline, failures)
                left = deadline - self._clock.monotonic()
                method = channel.unary_unary(path, _encode, answer.FromString)
                try:
                    metadata = await self._token_metadata(channel, left)
                    timeout = min(left, ATTEMPT_TIMEOUT_S) if is_repeatable else left
                    reply = await method(request, timeout=max(timeout, 0.001), metadata=metadata)
                except grpc.aio.AioRpcError as error:
                    was_not_done = self._examine(error, endpoint)
                    failures.append(f"{endpoint}: {_text(error)}")
                    if not (is_repeatable or was_not_done) or len(failures) >= ATTEMPTS_MAX:
                        raise CoordinatorUnavailable(f"etcd: {'; '.join(failures)}") from error
                else:
                    self.check_cluster(reply.header, endpoint)
                    return reply

    @contextlib.asynccontextmanager
    async def stream(self, path: str, request: Message, answer: type[Answer]) -> AsyncIterator[EtcdStream[Answer]]:
        """Open a stream and send its one request. The block raises CoordinatorUnavailable when the stream breaks."""
        deadline = self._clock.monotonic() + CALL_TIMEOUT_S
        with self.interruptible():
            channel, endpoint = await self._connect(deadline, [])
        try:
            with self.interruptible():
                metadata = await self._token_metadata(channel, deadline - self._clock.monotonic())
            call = channel.stream_stream(path, _encode, answer.FromString)(metadata=(*metadata, _LEADER_NEEDED))
            try:
                with self.interruptible():
                    async with asyncio.timeout(CALL_TIMEOUT_S):
                        await call.write(request)
                yield EtcdStream(self, endpoint, call)
            finally:
                call.cancel()
        except grpc.aio.AioRpcError as error:
            self._examine(error, endpoint)
            raise CoordinatorUnavailable(f"etcd: {endpoint}: {_text(error)}") from error
        except (TimeoutError, asyncio.InvalidStateError) as error:
            self._leave(endpoint)
            raise CoordinatorUnavailable(f"etcd: {endpoint}: no answer in time") from error

    async def pause(self, seconds: float) -> None:
        """Wait; returns early when the connection is closed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._closed.wait()

    async def close(self) -> None:
        """Close every channel; calls that are under way raise CoordinatorUnavailable."""
        self._closed.set()
        waiting, self._waiting = self._waiting, set()
        for task in waiting:
            task.cancel()
        channels, self._channels = list(self._channels.values()), {}
        for channel in channels:
            await channel.close()

    def check_cluster(self, header: pb.ResponseHeader, endpoint: str) -> None:
        """Raise CoordinatorUnavailable when another cluster than before answered."""
        if self._cluster_id not in (0, header.cluster_id):
            message = f"{endpoint} belongs to etcd cluster {header.cluster_id:x}, the endpoint before to {self._cluster_id:x}"
            self._leave(endpoint)
            raise CoordinatorUnavailable(f"etcd: {message}")
        self._cluster_id = header.cluster_id

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Around what awaits a member: close() ends it with CoordinatorUnavailable.

        Closing a channel under its calls does not do: some of them would look as if their caller had been cancelled, others
        would hang until their time is over.
        """
        if self.is_closed:
            raise CoordinatorUnavailable(_CLOSED)
        if len(self._waiting) >= PENDING_MAX:
            raise CoordinatorUnavailable(f"{PENDING_MAX} calls wait already")
        task = asyncio.current_task()
        assert task is not None
        self._waiting.add(task)
        try:
            yield
        except asyncio.CancelledError:
            if not self.is_closed or task in self._waiting or task.uncancel() > 0:
                raise
            raise CoordinatorUnavailable(_CLOSED) from None
        finally:
            self._waiting.discard(task)

    async def _connect(self, deadline: float, failures: list[str]) -> tuple[grpc.aio.Channel, str]:
        """A channel that is up, and its endpoint. Raises CoordinatorUnavailable when there is none."""
        for _ in self._options.endpoints:
            endpoint = self.endpoint
            channel = self._channel(endpoint)
            left = deadline - self._clock.monotonic()
            if left <= 0:
                failures.append("out of time")
                break
            if await _is_up(channel, min(left, CONNECT_TIMEOUT_S)):
                return channel, endpoint
            failures.append(f"{endpoint}: no connection")
            self._leave(endpoint)
        raise CoordinatorUnavailable(f"etcd: {'; '.join(failures)}")

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        if self.is_closed:
            raise CoordinatorUnavailable(_CLOSED)
        if endpoint not in self._channels:
            self._channels[endpoint] = aio_channel(endpoint, _credentials(self._options))
        return self._channels[endpoint]

    def _leave(self, endpoint: str) -> None:
        """Use the next endpoint, unless another call has moved on already."""
        if endpoint == self.endpoint:
            self._current = (self._current + 1) % len(self._options.endpoints)

    def _examine(self, error: grpc.aio.AioRpcError, endpoint: str) -> bool:
        """Learn from a failure; True: the request was not looked at. Raises EtcdRefused when that was the answer."""
        text = error.details() or ""
        if any(each in text for each in _STALE_TOKEN):
            self._token = ""
            return True
        if error.code() in _REFUSALS:
            raise EtcdRefused(endpoint, error) from error
        self._leave(endpoint)
        return False

    async def _token_metadata(self, channel: grpc.aio.Channel, timeout: float) -> tuple[tuple[str, str], ...]:
        if not self._options.user:
            return ()
        if not self._token:
            request = pb.AuthenticateRequest(name=self._options.user, password=_password(self._options))
            login = channel.unary_unary("/etcdserverpb.Auth/Authenticate", _encode, pb.AuthenticateResponse.FromString)
            self._token = (await login(request, timeout=min(max(timeout, 0.001), ATTEMPT_TIMEOUT_S))).token
        return (("token", self._token),)


async def _is_up(channel: grpc.aio.Channel, timeout: float) -> bool:
    """Whether the channel is connected, within so many seconds; one that was refused a moment ago is not."""
    try:
        async with asyncio.timeout(timeout):
            state = channel.get_state(try_to_connect=True)
            while state in (grpc.ChannelConnectivity.IDLE, grpc.ChannelConnectivity.CONNECTING):
                await channel.wait_for_state_change(state)
                state = channel.get_state(try_to_connect=True)
    except TimeoutError:
        return False
    return state is grpc.ChannelConnectivity.READY


def _credentials(options: EtcdOptions) -> grpc.ChannelCredentials | None:
    if not options.is_encrypted:
        return None
    root, key, cert = (_read(name) if name else None for name in (options.cacert, options.key, options.cert))
    return grpc.ssl_channel_credentials(root, key, cert)


def _password(options: EtcdOptions) -> str:
    return _read(options.password_file).decode().rstrip("\r\n") if options.password_file else options.password


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise CoordinatorUnavailable(f"etcd: {path} cannot be read: {error.strerror}") from error


def _encode(message: Message) -> bytes:
    return message.SerializeToString()


def _text(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name.lower()}: {error.details()}"
