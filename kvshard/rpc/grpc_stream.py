"""Lanes over gRPC streams: for a process to which no plain connection leads, and for older ones.

Either end has a task that reads and one that writes, for gRPC takes and gives one message at a time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import grpc
import grpc.aio
import structlog

from kvshard.rpc.frames import RequestFrame, Requests, ResponseFrame, Responses
from kvshard.rpc.message_stream import GRPC, InT, MessageStream, OutT, Receiver
from kvshard.v1 import lane_pb2

Call: TypeAlias = "grpc.aio.StreamStreamCall[lane_pb2.LaneRequest, lane_pb2.LaneResponse]"
Context: TypeAlias = "grpc.aio.ServicerContext[lane_pb2.LaneRequest, lane_pb2.LaneResponse]"

_log = structlog.get_logger(__name__)


class _GrpcStream(MessageStream[InT, OutT]):
    """What both ends have in common. read: the next message, None at the end. write: send one, return when it was taken."""

    transport = GRPC

    def __init__(self, read: Callable[[], Awaitable[InT | None]], write: Callable[[OutT], Awaitable[None]]) -> None:
        super().__init__()
        self._next: Callable[[], Awaitable[InT | None]] = read
        self._send: Callable[[OutT], Awaitable[None]] = write
        self._waiting: OutT | None = None
        self._has_waiting = asyncio.Event()
        self._may_read = asyncio.Event()
        self._may_read.set()
        self._closing = asyncio.Event()
        self._aborting = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def begin(self, receiver: Receiver[InT]) -> None:
        """Start both tasks."""
        self._task = asyncio.create_task(self._run(receiver))

    def write(self, message: OutT) -> None:
        """Send it next; until it is taken the stream is not writable."""
        assert self._waiting is None or self._closing.is_set()
        self._waiting = message
        self.is_writable = False
        self._has_waiting.set()

    def pause_reading(self) -> None:
        """The message that is being read still comes."""
        self._may_read.clear()

    def resume_reading(self) -> None:
        """Go on."""
        self._may_read.set()

    def close(self) -> None:
        """End it when the message that waits was taken; who cannot wait for that aborts it."""
        self._closing.set()

    def abort(self) -> None:
        """End it now.

        The task is told and not cancelled: it may be ending already, and must come to its end.
        """
        self._aborting.set()

    async def _run(self, receiver: Receiver[InT]) -> None:
        reader = asyncio.create_task(self._read(receiver))
        writer = asyncio.create_task(self._write(receiver))
        closing = asyncio.create_task(self._closing.wait())
        aborting = asyncio.create_task(self._aborting.wait())
        tasks = (reader, writer, closing, aborting)
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if closing.done() and self._waiting is not None:
                await asyncio.wait((writer, aborting), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.is_writable = False
            reason = _reason(reader, writer, closing.done() or aborting.done())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            receiver.on_end(reason)
            await self._clean_up()
            self.gone.set_result(None)

    async def _clean_up(self) -> None:
        """Give back what the stream held."""

    async def _read(self, receiver: Receiver[InT]) -> None:
        while True:
            await self._may_read.wait()
            message = await self._next()
            if message is None:
                return
            receiver.on_message(message)

    async def _write(self, receiver: Receiver[InT]) -> None:
        while True:
            await self._has_waiting.wait()
            message, self._waiting = self._waiting, None
            self._has_waiting.clear()
            if message is not None:
                await self._send(message)
            if self._closing.is_set() and self._waiting is None:
                return
            self.is_writable = True
            receiver.on_writable()


def _reason(reader: "asyncio.Task[None]", writer: "asyncio.Task[None]", is_closed: bool) -> str:
    """Why a stream ended; logs what is a defect of ours."""
    for task in (reader, writer):
        error = task.exception() if task.done() and not task.cancelled() else None
        if isinstance(error, grpc.aio.AioRpcError):
            return error.details() or error.code().name
        if error is not None and not isinstance(error, grpc.aio.BaseError):
            _log.error("lane failed", exc_info=error)
            return f"a defect: {type(error).__name__}"
    return "closed" if is_closed or not reader.done() else "its other end ended the stream"


class CallerStream(_GrpcStream[Responses, Requests]):
    """The end of who calls. Its channel is closed with it."""

    def __init__(self, channel: grpc.aio.Channel, call: Call) -> None:
        super().__init__(self._read_call, self._write_call)
        self._channel = channel
        self._call = call

    def __repr__(self) -> str:
        return f"CallerStream(is_writable={self.is_writable})"

    async def _read_call(self) -> Responses | None:
        message = await self._call.read()
        if not isinstance(message, lane_pb2.LaneResponse):
            return None
        return Responses(
            [
                ResponseFrame(each.id, each.is_error, each.queue_us, each.service_us, each.payload, each.in_flight)
                for each in message.frames
            ]
        )

    async def _write_call(self, message: Requests) -> None:
        request = lane_pb2.LaneRequest(sent_us=message.sent_us)
        add = request.frames.add
        for each in message.frames:
            method = lane_pb2.LaneMethod.ValueType(each.method)
            add(id=each.id, method=method, timeout_us=each.timeout_us, payload=each.payload, is_hedge=each.is_hedge)
        await self._call.write(request)

    async def _clean_up(self) -> None:
        self._call.cancel()
        await self._channel.close()
        # The traceback of a call's error holds this stream, for as long as somebody keeps the error or nobody collects it.
        # That must not keep the connection.
        del self._call, self._channel


class ServingStream(_GrpcStream[Requests, Responses]):
    """The end of who serves. The servicer's method must last until it is gone, and cancels it when it is cancelled."""

    def __init__(self, context: Context) -> None:
        super().__init__(self._read_context, self._write_context)
        self._context = context

    def __repr__(self) -> str:
        return f"ServingStream(is_writable={self.is_writable})"

    async def _read_context(self) -> Requests | None:
        message = await self._context.read()
        if not isinstance(message, lane_pb2.LaneRequest):
            return None
        frames = [RequestFrame(each.id, each.method, each.timeout_us, each.payload, each.is_hedge) for each in message.frames]
        return Requests(frames, message.sent_us)

    async def _write_context(self, message: Responses) -> None:
        response = lane_pb2.LaneResponse()
        add = response.frames.add
        for each in message.frames:
            add(
                id=each.id,
                is_error=each.is_error,
                queue_us=each.queue_us,
                service_us=each.service_us,
                payload=each.payload,
                in_flight=each.in_flight,
            )
        await self._context.write(response)
