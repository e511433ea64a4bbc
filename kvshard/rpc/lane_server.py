"""The serving end of lanes, in leaves and routers: frames in, handlers run, frames out.

One `LaneServicer` serves every lane of the process. A lane has a reader, a writer and one task for each request that has to
await something; all are cancelled and awaited before the lane's stream ends. Handlers know nothing of frames: they get a
payload and an absolute deadline. A handler whose caller gave up is cancelled; one that must not stop half way shields itself.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

import grpc
import grpc.aio
import structlog

from kvshard.clock import Clock
from kvshard.errors import (
    DeadlineExceeded,
    ErrorDetails,
    Internal,
    InvalidArgument,
    KvShardError,
    ResourceExhausted,
    Unavailable,
    Unimplemented,
)
from kvshard.rpc.codec import CANCEL, LANE_MARK, LEAF_MARK, MESSAGE_BYTES, MESSAGE_FRAMES, PAYLOAD_MAX_BYTES, PING, encode_error
from kvshard.rpc.interference import Interference, LeaveUnanswered
from kvshard.rpc.lane_admission import LaneAdmission, MessageWait
from kvshard.rpc.request_times import waited_s
from kvshard.v1 import lane_pb2, lane_pb2_grpc

Handler = Callable[[bytes, float], Awaitable[bytes]]
"""Serves a method: (payload, absolute deadline) -> reply payload. Raises KvShardError."""

ImmediateHandler = Callable[[bytes, float], bytes | None]
"""The short cut of a method: answers without awaiting, or returns None to leave the request to the method's Handler.

It runs inside the lane's reader, so it must be quick.
"""

HedgeGate = Callable[[int], KvShardError | None]
"""Why a hedge of a method cannot be taken now; None when it can."""

MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""Replies waiting for a caller that reads slowly. Beyond it the lane reads no further requests."""

MAX_UNSENT_FRAMES = 8_192
"""The same in frames: refusals are small, but they are many."""

HOLD_AFTER_S = 0.01
"""A message that lay so long came behind others, after a pause of this process most often. It may be answered elsewhere by now,
and the frame that takes it back lies a few messages behind it."""

HOLD_S = 0.001
"""Such messages are held this long, so that those behind them are read: gRPC hands over one in each pass of the event loop,
which takes 50 us. What waited 10 ms waits 11."""

_RETRY_AFTER_MS = 50
_log = structlog.get_logger(__name__)

_Reply: TypeAlias = tuple[int, bool, int, int, bytes, int]
"""id, is_error, queue_us, service_us, payload, in_flight."""

_Context: TypeAlias = "grpc.aio.ServicerContext[lane_pb2.LaneRequest, lane_pb2.LaneResponse]"


class LaneServicer(lane_pb2_grpc.LanesServicer):
    """Serves the Lanes service: `lane_pb2_grpc.add_LanesServicer_to_server(LaneServicer(...), server)`.

    handlers: by method number. immediate: short cuts of some of them. hedge_gate: asked about each hedge, beside the admission.
    on_withdrawn, on_refused: told of each request that its caller took back, or that is not taken. interference: what faults
    do to the lanes. name: what errors call this process.

    Stop with `drain`, then stop the gRPC server.
    """

    def __init__(
        self,
        handlers: Mapping[int, Handler],
        clock: Clock,
        *,
        immediate: Mapping[int, ImmediateHandler] | None = None,
        interference: Interference | None = None,
        admission: LaneAdmission | None = None,
        hedge_gate: HedgeGate = lambda method: None,
        on_withdrawn: Callable[[], object] = lambda: None,
        on_refused: Callable[[int, KvShardError], object] = lambda method, error: None,
        name: str = "leaf",
        mark: Callable[[], str] = lambda: "",
    ) -> None:
        self.name = name
        self._mark = mark
        self.handlers = dict(handlers)
        self.immediate = dict(immediate or {})
        self.interference = interference or Interference()
        self.clock = clock
        self.is_draining = False
        self.admission = admission or LaneAdmission(name=name)
        self.unhandled = 0
        self.on_withdrawn = on_withdrawn
        self.on_refused = on_refused
        self.hedge_gate = hedge_gate
        self._connections: set[_Connection] = set()

    async def Lane(  # type: ignore[override]  # the reader-writer form of a servicer method returns nothing
        self, request_iterator: AsyncIterator[lane_pb2.LaneRequest], context: _Context
    ) -> None:
        """One lane, for as long as its caller keeps it."""
        if self.is_draining:  # else callers whose lane was just ended would come back and keep the server from stopping
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the {self.name} is stopping")
        mark = self._mark()
        await context.send_initial_metadata((LANE_MARK, (LEAF_MARK, mark)) if mark else (LANE_MARK,))
        connection = _Connection(self, context)
        self._connections.add(connection)
        try:
            await connection.run()
        finally:
            self._connections.discard(connection)

    @property
    def load(self) -> int:
        """Requests in work: those that a task serves, and those of the messages under way whose turn has not come."""
        return self.admission.requests + self.unhandled

    def refusal(self, frame: lane_pb2.RequestFrame, size: int, of_lane: int) -> KvShardError | None:
        """Why a new request cannot be taken now; None when it can. of_lane: requests in work that came by the same lane."""
        if self.is_draining:
            return Unavailable(f"the {self.name} is stopping", ErrorDetails(retry_after_ms=_RETRY_AFTER_MS))
        refusal = self.admission.refusal(size, of_lane)
        if refusal is None and frame.is_hedge:
            refusal = self.hedge_gate(frame.method) or self.admission.hedge_refusal(self.clock.monotonic())
        return refusal

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests, let those in flight end within the grace, then end every lane."""
        self.is_draining = True
        connections = list(self._connections)
        for connection in connections:
            connection.drain()
        ended = [asyncio.ensure_future(connection.ended.wait()) for connection in connections]
        if not ended:
            return
        try:
            await asyncio.wait(ended, timeout=grace_s)
            for connection in connections:
                connection.stop()
            await asyncio.wait(ended)
        finally:
            for waiter in ended:
                waiter.cancel()
            await asyncio.gather(*ended, return_exceptions=True)

    def __repr__(self) -> str:
        state = ", draining" if self.is_draining else ""
        return f"LaneServicer(lanes={len(self._connections)}, in_flight={self.admission.requests}{state})"


class _Connection:
    """One lane. Handler tasks are kept by request id, which is unique among a caller's outstanding requests."""

    def __init__(self, servicer: LaneServicer, context: _Context) -> None:
        self.ended = asyncio.Event()
        self._servicer = servicer
        self._context = context
        self._clock = servicer.clock
        self._wait = MessageWait()
        self._held: list[tuple[Sequence[lane_pb2.RequestFrame], float]] = []
        self._release: asyncio.TimerHandle | None = None
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._interference = servicer.interference
        self._orders: set[int] = set()
        self._outbox: deque[_Reply] = deque()
        self._order_outbox: deque[_Reply] = deque()
        self._unsent_bytes = 0
        self._has_output = asyncio.Event()
        self._has_room = asyncio.Event()
        self._is_draining = False
        self._is_flushing = False
        self._stop = asyncio.Event()

    async def run(self) -> None:
        """Serve until the caller ends the stream, or it breaks, or `stop` was called."""
        reader = asyncio.create_task(self._read())
        writer = asyncio.create_task(self._write())
        stopped = asyncio.create_task(self._stop.wait())
        unsubscribe = self._interference.subscribe(self._has_output.set)
        try:
            await asyncio.wait((reader, writer, stopped), return_when=asyncio.FIRST_COMPLETED)
            if self._stop.is_set():
                reader.cancel()
                self._is_flushing = True
                self._has_output.set()
                await asyncio.wait((writer,), timeout=1.0)  # a caller that does not read cannot hold up the shutdown
        finally:
            unsubscribe()
            if self._release is not None:
                self._release.cancel()
            handlers = list(self._tasks.values())
            for task in (reader, writer, stopped, *handlers):
                task.cancel()
            outcomes = await asyncio.gather(reader, writer, stopped, *handlers, return_exceptions=True)
            self.ended.set()
            for outcome in outcomes:
                # gRPC's own errors tell that the caller has gone, which is no news; anything else is a defect of ours.
                if isinstance(outcome, Exception) and not isinstance(outcome, grpc.aio.BaseError):
                    _log.error("lane failed", exc_info=outcome)

    def drain(self) -> None:
        """End the lane as soon as no handler runs."""
        self._is_draining = True
        if not self._tasks:
            self.stop()

    def stop(self) -> None:
        """End the lane now: what is answered is sent, handlers that still run are cancelled."""
        self._stop.set()

    async def _read(self) -> None:
        while True:
            message = await self._context.read()
            if not isinstance(message, lane_pb2.LaneRequest):
                return  # the caller has ended the stream
            frames: Sequence[lane_pb2.RequestFrame] = message.frames
            if self._interference.is_stopped:
                frames = await self._wait_running(frames)
            self._on_message(frames, message.sent_us, self._clock.monotonic())
            while len(self._outbox) >= MAX_UNSENT_FRAMES or self._unsent_bytes >= MAX_UNSENT_BYTES:
                self._has_room.clear()
                await self._has_room.wait()

    async def _wait_running(self, frames: Sequence[lane_pb2.RequestFrame]) -> Sequence[lane_pb2.RequestFrame]:
        """Carry out the orders among the frames, and give the others back when nothing stops the lanes any more.

        Nothing further is read until then, as from a process that is stopped: the caller's window fills up.
        """
        orders = self._interference.orders
        for frame in frames:
            if frame.method in orders:
                self._on_frame(frame, self._clock.monotonic())
        await self._interference.wait_running()
        return [frame for frame in frames if frame.method not in orders]

    def _on_message(self, frames: Sequence[lane_pb2.RequestFrame], sent_us: int, now: float) -> None:
        """Begin what a message brings, unless it lay so long that what takes it back may be right behind it."""
        waited_s = self._wait.of(sent_us * 1e-6, now) if sent_us else 0.0
        self._servicer.admission.standing.note(waited_s, now)
        self._held.append((frames, now - waited_s))
        if waited_s < HOLD_AFTER_S:
            self._begin_held()
        elif self._release is None:
            self._release = asyncio.get_running_loop().call_later(HOLD_S, self._begin_held)

    def _begin_held(self) -> None:
        """Begin what was read, in order; but not what was taken back meanwhile."""
        if self._release is not None:
            self._release.cancel()
            self._release = None
        messages, self._held = self._held, []
        servicer = self._servicer
        left = sum(len(frames) for frames, _ in messages)
        withdrawn = {frame.id for frames, _ in messages for frame in frames if frame.method == CANCEL} if left > 1 else ()
        servicer.unhandled += left
        try:
            for frames, received in messages:
                for frame in frames:
                    if not withdrawn or frame.id not in withdrawn or frame.id in self._tasks:
                        self._on_frame(frame, received)
                    elif frame.method == CANCEL:
                        servicer.on_withdrawn()
                    left -= 1
                    servicer.unhandled -= 1
        finally:
            servicer.unhandled -= left

    def _on_frame(self, frame: lane_pb2.RequestFrame, received: float) -> None:
        method = frame.method
        if method == CANCEL:
            task = self._tasks.get(frame.id)
            if task is not None:
                task.cancel()
                self._servicer.on_withdrawn()
            return
        servicer = self._servicer
        handler = servicer.handlers.get(method)
        if handler is None:
            self._reply_error(frame.id, Unimplemented(f"the {servicer.name} knows no lane method {method}"))
            return
        payload = frame.payload
        refusal = servicer.refusal(frame, len(payload), len(self._tasks)) if method != PING else None
        if method in self._interference.orders:
            self._orders.add(frame.id)
            if isinstance(refusal, ResourceExhausted):
                refusal = None  # A process may be full because of what the order is to end.
        if frame.id in self._tasks:
            refusal = InvalidArgument(f"request {frame.id} is outstanding already")
        if refusal is not None:
            servicer.on_refused(method, refusal)
            self._reply_error(frame.id, refusal)
            return
        deadline = received + frame.timeout_us * 1e-6
        shortcut = servicer.immediate.get(method)
        if self._interference.detour is not None and (detour := self._interference.detour(method)) is not None:
            handler, shortcut = detour, None
        if shortcut is not None and self._serve_at_once(frame.id, shortcut, payload, received, deadline):
            return
        servicer.admission.enter(len(payload))
        if frame.is_hedge:
            handler = self._gated(method, handler)
        task = asyncio.create_task(self._serve(frame.id, handler, payload, received, deadline))
        self._tasks[frame.id] = task
        task.add_done_callback(partial(self._on_served, frame.id, len(payload), received))

    def _gated(self, method: int, handler: Handler) -> Handler:
        """The handler of a hedge: the gate is asked again at its turn, when those before it in its message are in work."""

        async def handle(payload: bytes, deadline: float) -> bytes:
            refusal = self._servicer.hedge_gate(method)
            if refusal is not None:
                self._servicer.on_refused(method, refusal)
                raise refusal
            return await handler(payload, deadline)

        return handle

    def _serve_at_once(self, id: int, shortcut: ImmediateHandler, payload: bytes, received: float, deadline: float) -> bool:
        started = self._clock.monotonic()
        queue_us = int((started - received) * 1e6)
        try:
            if started >= deadline:
                raise DeadlineExceeded(f"the deadline passed before the {self._servicer.name} began")
            reply = shortcut(payload, deadline)
        except KvShardError as error:
            self._reply_error(id, error, queue_us, int((self._clock.monotonic() - started) * 1e6))
            return True
        except Exception as error:
            self._reply_defect(id, error)
            return True
        if reply is None:
            return False
        self._reply(id, reply, queue_us, int((self._clock.monotonic() - started) * 1e6))
        return True

    async def _serve(self, id: int, handler: Handler, payload: bytes, received: float, deadline: float) -> None:
        started = self._clock.monotonic()
        try:
            if started >= deadline:
                raise DeadlineExceeded(f"the deadline passed before the {self._servicer.name} began")
            reply = await handler(payload, deadline)
        except KvShardError as error:
            self._reply_error(id, error, *self._times(received, started))
        except LeaveUnanswered:
            return
        except Exception as error:
            self._reply_defect(id, error)
        else:
            self._reply(id, reply, *self._times(received, started))

    def _times(self, received: float, started: float) -> tuple[int, int]:
        """Queue and service time, in microseconds, of the request that this task serves: its handler may have waited too."""
        waited = waited_s()
        return int((started - received + waited) * 1e6), max(0, int((self._clock.monotonic() - started - waited) * 1e6))

    def _on_served(self, id: int, size: int, received: float, _: asyncio.Task[None]) -> None:
        """Runs also for a task that was cancelled before its first step."""
        del self._tasks[id]
        self._orders.discard(id)
        self._servicer.admission.leave(size, self._clock.monotonic() - received)
        if self._is_draining and not self._tasks:
            self.stop()

    def _reply_defect(self, id: int, error: Exception) -> None:
        _log.error("lane handler failed", exc_info=error)
        self._reply_error(id, Internal(f"the {self._servicer.name} failed: {type(error).__name__}"))

    def _reply_error(self, id: int, error: KvShardError, queue_us: int = 0, service_us: int = 0) -> None:
        self._send((id, True, queue_us, service_us, encode_error(error), self._servicer.load))

    def _reply(self, id: int, payload: bytes, queue_us: int, service_us: int) -> None:
        if len(payload) > PAYLOAD_MAX_BYTES:
            text = f"the answer has {len(payload)} bytes, more than one message carries; ask for less at once"
            self._reply_error(id, ResourceExhausted(text, ErrorDetails(limit=PAYLOAD_MAX_BYTES)), queue_us, service_us)
        else:
            self._send((id, False, queue_us, service_us, payload, self._servicer.load))

    def _send(self, reply: _Reply) -> None:
        is_order = reply[0] in self._orders
        if is_order:
            self._orders.remove(reply[0])
        (self._order_outbox if is_order else self._outbox).append(reply)
        self._unsent_bytes += len(reply[4])
        self._has_output.set()

    async def _write(self) -> None:
        """Sends what is in the outbox when its turn comes: everything that the last pass of the event loop produced."""
        while True:
            outbox = self._outbox
            if self._order_outbox or self._interference.is_stopped:
                outbox = self._order_outbox
            if not outbox:
                if self._is_flushing:
                    return
                self._has_output.clear()
                await self._has_output.wait()
                continue
            await self._context.write(self._next_message(outbox))
            self._has_room.set()

    def _next_message(self, outbox: deque[_Reply]) -> lane_pb2.LaneResponse:
        message = lane_pb2.LaneResponse()
        add = message.frames.add
        size = 0
        for _ in range(min(len(outbox), MESSAGE_FRAMES)):
            id, is_error, queue_us, service_us, payload, in_flight = outbox[0]
            if size and size + len(payload) > MESSAGE_BYTES:
                break
            outbox.popleft()
            size += len(payload)
            add(
                id=id,
                is_error=is_error,
                queue_us=queue_us,
                service_us=service_us,
                payload=payload,
                in_flight=in_flight,
            )
        self._unsent_bytes -= size
        return message
