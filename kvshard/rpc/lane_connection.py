"""One lane at the end that serves it: requests come in, handlers run, answers go out.

A lane has a task for each request that has to await something, unless its handler has only begun it and tells the outcome. All
are cancelled when the stream ends, and the lane has ended when the last of them has. What is answered in one go leaves in one
message, unless that takes long.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import structlog

from kvshard.errors import (
    DeadlineExceeded,
    ErrorDetails,
    Internal,
    InvalidArgument,
    KvShardError,
    ResourceExhausted,
    Unimplemented,
)
from kvshard.rpc.codec import CANCEL, MESSAGE_BYTES, MESSAGE_FRAMES, PAYLOAD_MAX_BYTES, PING, encode_error
from kvshard.rpc.frames import RequestFrame, Requests, ResponseFrame, Responses
from kvshard.rpc.interference import LeaveUnanswered
from kvshard.rpc.lane_admission import MessageWait
from kvshard.rpc.lane_handlers import BeginningHandler, Handler, ImmediateHandler
from kvshard.rpc.message_stream import MessageStream
from kvshard.rpc.request_times import waited_s

if TYPE_CHECKING:
    from kvshard.rpc.lane_server import LaneServicer

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

PART_AFTER_S = 0.0001
"""Of work on one message: what is answered by then leaves ahead of the rest. Callers whose answers always came together would
send their next requests together, and for ever one end would stand still while the other works. A message of its own costs both
ends about 20 us."""

STOPPED_MESSAGES_MAX = 64
"""Messages that are read and kept while a fault stops the lanes; then no more is read, as by a process that is stopped."""

FLUSH_TIMEOUT_S = 1.0
"""For the last answers of a lane that is ended: a caller that does not read cannot hold up the shutdown."""

_log = structlog.get_logger(__name__)


class _Begun:
    """A request that was begun, in the place of a task. give_up: what takes it back. ended: what is done then."""

    __slots__ = ("_ended", "_give_up")

    def __init__(self, give_up: Callable[[], object], ended: Callable[[], None]) -> None:
        self._give_up = give_up
        self._ended = ended

    def cancel(self) -> None:
        """Give it up; unlike a task, it has ended when this returns."""
        self._give_up()
        self._ended()


class LaneConnection:
    """One lane. What serves a request is kept by its id, which is unique among a caller's outstanding requests."""

    def __init__(self, servicer: "LaneServicer", stream: MessageStream[Requests, Responses]) -> None:
        self.ended = asyncio.Event()
        self._servicer = servicer
        self._stream = stream
        self._clock = servicer.clock
        self._wait = MessageWait()
        self._held: list[tuple[Sequence[RequestFrame], float]] = []
        self._release: asyncio.TimerHandle | None = None
        self._work: dict[int, asyncio.Task[None] | _Begun] = {}
        self._interference = servicer.interference
        self._stopped: deque[Requests] = deque()
        self._orders: set[int] = set()
        self._ending: set[int] = set()
        self._outbox: deque[ResponseFrame] = deque()
        self._order_outbox: deque[ResponseFrame] = deque()
        self._unsent_bytes = 0
        self._is_flush_due = False
        self._part_since = 0.0
        self._is_paused = False
        self._is_draining = False
        self._is_stopping = False
        self._is_over = False
        self._cut: asyncio.TimerHandle | None = None
        self._unsubscribe = self._interference.subscribe(self._on_resumed)
        stream.begin(self)

    def __repr__(self) -> str:
        return f"LaneConnection({self._stream!r}, in_flight={len(self._work)}, unsent={len(self._outbox)})"

    def drain(self) -> None:
        """End the lane as soon as no handler runs."""
        self._is_draining = True
        if not self._work:
            self.stop()

    def stop(self) -> None:
        """End the lane now: what is answered is sent, handlers that still run are cancelled."""
        if self._is_stopping or self._is_over:
            return
        self._is_stopping = True
        self._cut = asyncio.get_running_loop().call_later(FLUSH_TIMEOUT_S, self._stream.abort)
        self._flush()

    # -- what the stream tells ------------------------------------------------------------------------------------------

    def on_message(self, message: Requests) -> None:
        """Begin what it brings."""
        if self._is_stopping:
            return
        self._is_flush_due = True  # It follows below, for all that is answered at once.
        try:
            if self._stopped or self._interference.is_stopped:
                self._keep_stopped(message)
            else:
                self._on_message(message.frames, message.sent_us, self._clock.monotonic())
        finally:
            self._flush()

    def on_writable(self) -> None:
        """Send what waits."""
        self._flush()

    def on_end(self, reason: str) -> None:
        """The caller has gone, or the lane was ended here: nobody waits for an answer."""
        self._is_over = True
        self._unsubscribe()
        for timer in (self._release, self._cut):
            if timer is not None:
                timer.cancel()
        for work in list(self._work.values()):
            work.cancel()
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._is_over and not self._work:
            self.ended.set()

    # -- while a fault stops the lanes ----------------------------------------------------------------------------------

    def _keep_stopped(self, message: Requests) -> None:
        """Carry out the orders among the frames, and keep the others until nothing stops the lanes any more."""
        orders = self._interference.orders
        for frame in message.frames:
            if frame.method in orders:
                self._on_frame(frame, self._clock.monotonic())
        rest = [frame for frame in message.frames if frame.method not in orders]
        if rest:
            self._stopped.append(Requests(rest, message.sent_us))

    def _on_resumed(self) -> None:
        asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        """Begin what was kept, in order, unless everything was stopped again meanwhile."""
        if self._is_over or self._is_stopping:
            return
        self._is_flush_due = True  # As in `on_message`.
        try:
            while self._stopped and not self._interference.is_stopped:
                message = self._stopped.popleft()
                self._on_message(message.frames, message.sent_us, self._clock.monotonic())
        finally:
            self._flush()

    # -- requests -------------------------------------------------------------------------------------------------------

    def _on_message(self, frames: Sequence[RequestFrame], sent_us: int, now: float) -> None:
        """Begin what a message brings, unless it lay so long that what takes it back may be right behind it."""
        waited_s = self._wait.of(sent_us * 1e-6, now) if sent_us else 0.0
        self._servicer.admission.standing.note(waited_s, now)
        self._held.append((frames, now - waited_s))
        if waited_s < HOLD_AFTER_S:
            self._begin_held()
        elif self._release is None:
            self._release = asyncio.get_running_loop().call_later(HOLD_S, self._release_held)

    def _release_held(self) -> None:
        self._is_flush_due = True  # As in `on_message`.
        try:
            self._begin_held()
        finally:
            self._flush()

    def _begin_held(self) -> None:
        """Begin what was read, in order; but not what was taken back meanwhile."""
        if self._release is not None:
            self._release.cancel()
            self._release = None
        messages, self._held = self._held, []
        servicer = self._servicer
        left = sum(len(frames) for frames, _ in messages)
        self._part_since = self._clock.monotonic()
        withdrawn = {frame.id for frames, _ in messages for frame in frames if frame.method == CANCEL} if left > 1 else ()
        servicer.unhandled += left
        try:
            for frames, received in messages:
                for frame in frames:
                    left -= 1
                    servicer.unhandled -= 1
                    if not withdrawn or frame.id not in withdrawn or frame.id in self._work:
                        self._on_frame(frame, received)
                    elif frame.method == CANCEL:
                        servicer.on_withdrawn()
        finally:
            servicer.unhandled -= left

    def _on_frame(self, frame: RequestFrame, received: float) -> None:
        method = frame.method
        if method == CANCEL:
            work = self._work.get(frame.id)
            if work is not None:
                work.cancel()
                self._servicer.on_withdrawn()
            return
        servicer = self._servicer
        handler = servicer.handlers.get(method)
        if handler is None:
            self._reply_error(frame.id, Unimplemented(f"the {servicer.name} knows no lane method {method}"))
            return
        payload = frame.payload
        refusal = servicer.refusal(frame, len(payload), len(self._work)) if method != PING else None
        if method in self._interference.orders:
            self._orders.add(frame.id)
            if isinstance(refusal, ResourceExhausted):
                refusal = None  # A process may be full because of what the order is to end.
        if frame.id in self._work:
            refusal = InvalidArgument(f"request {frame.id} is outstanding already")
        if refusal is not None:
            servicer.on_refused(method, refusal)
            self._reply_error(frame.id, refusal)
            return
        deadline = received + frame.timeout_us * 1e-6
        shortcut, beginning = servicer.immediate.get(method), servicer.beginning.get(method)
        if self._interference.detour is not None and (detour := self._interference.detour(method)) is not None:
            handler, shortcut, beginning = detour, None, None
        if shortcut is not None and self._serve_at_once(frame.id, shortcut, payload, received, deadline):
            return
        if beginning is not None and self._begin(frame.id, beginning, handler, payload, received, deadline):
            return
        servicer.admission.enter(len(payload))
        if frame.is_hedge:
            handler = self._gated(method, handler)
        self._start_task(frame.id, handler, payload, received, deadline)

    def _start_task(self, id: int, handler: Handler, payload: bytes, received: float, deadline: float) -> None:
        self._work[id] = task = asyncio.create_task(self._serve(id, handler, payload, received, deadline))
        task.add_done_callback(lambda _: self._on_served(id, len(payload), received))

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
        ended = self._clock.monotonic()
        self._reply(id, reply, queue_us, int((ended - started) * 1e6))
        if ended - self._part_since >= PART_AFTER_S:
            self._send_part(ended)
        return True

    def _begin(
        self, id: int, beginning: BeginningHandler, handler: Handler, payload: bytes, received: float, deadline: float
    ) -> bool:
        """Serve a request without a task. False: it needs one."""
        started = self._clock.monotonic()
        if started >= deadline:
            return False

        def answer(outcome: bytes | KvShardError | None) -> None:
            if outcome is None:
                self._start_task(id, handler, payload, received, deadline)
                return
            self._note_ending(id)
            times = self._times(received, started)
            if isinstance(outcome, KvShardError):
                self._reply_error(id, outcome, *times)
            else:
                self._reply(id, outcome, *times)
            self._on_served(id, len(payload), received)

        try:
            give_up = beginning(payload, deadline, answer)
        except KvShardError as error:
            self._reply_error(id, error, *self._times(received, started))
            return True
        except Exception as error:
            self._reply_defect(id, error)
            return True
        if give_up is None:
            return False
        self._servicer.admission.enter(len(payload))
        self._work[id] = _Begun(give_up, lambda: self._on_served(id, len(payload), received))
        return True

    async def _serve(self, id: int, handler: Handler, payload: bytes, received: float, deadline: float) -> None:
        started = self._clock.monotonic()
        try:
            if started >= deadline:
                raise DeadlineExceeded(f"the deadline passed before the {self._servicer.name} began")
            reply = await handler(payload, deadline)
        except KvShardError as error:
            self._note_ending(id)
            self._reply_error(id, error, *self._times(received, started))
        except LeaveUnanswered:
            return
        except Exception as error:
            self._note_ending(id)
            self._reply_defect(id, error)
        else:
            self._note_ending(id)
            self._reply(id, reply, *self._times(received, started))

    def _note_ending(self, id: int) -> None:
        """A task has come to its answer, which tells how many others there are."""
        self._ending.add(id)
        self._servicer.ending += 1

    def _times(self, received: float, started: float) -> tuple[int, int]:
        """Queue and service time, in microseconds, of the request that this task serves: its handler may have waited too."""
        waited = waited_s()
        return int((started - received + waited) * 1e6), max(0, int((self._clock.monotonic() - started - waited) * 1e6))

    def _on_served(self, id: int, size: int, received: float) -> None:
        """Runs also for a task that was cancelled before its first step."""
        del self._work[id]
        self._orders.discard(id)
        if id in self._ending:
            self._ending.remove(id)
            self._servicer.ending -= 1
        self._servicer.admission.leave(size, self._clock.monotonic() - received)
        if self._is_draining and not self._work:
            self.stop()
        self._end_if_done()

    def _reply_defect(self, id: int, error: Exception) -> None:
        _log.error("lane handler failed", exc_info=error)
        self._reply_error(id, Internal(f"the {self._servicer.name} failed: {type(error).__name__}"))

    def _reply_error(self, id: int, error: KvShardError, queue_us: int = 0, service_us: int = 0) -> None:
        self._send(ResponseFrame(id, True, queue_us, service_us, encode_error(error), self._servicer.load))

    def _reply(self, id: int, payload: bytes, queue_us: int, service_us: int) -> None:
        if len(payload) > PAYLOAD_MAX_BYTES:
            text = f"the answer has {len(payload)} bytes, more than one message carries; ask for less at once"
            self._reply_error(id, ResourceExhausted(text, ErrorDetails(limit=PAYLOAD_MAX_BYTES)), queue_us, service_us)
        else:
            self._send(ResponseFrame(id, False, queue_us, service_us, payload, self._servicer.load))

    # -- answers --------------------------------------------------------------------------------------------------------

    def _send(self, reply: ResponseFrame) -> None:
        is_order = bool(self._orders) and reply.id in self._orders
        if is_order:
            self._orders.remove(reply.id)
        (self._order_outbox if is_order else self._outbox).append(reply)
        self._unsent_bytes += len(reply.payload)
        if self._is_flush_due:
            return
        if len(self._work) == 1:
            self._flush()  # It is the answer to the only request in work: nothing else could leave with it.
        else:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _send_part(self, now: float) -> None:
        """Send what is answered ahead of the rest of its message."""
        is_due, self._part_since = self._is_flush_due, now
        self._flush()
        self._is_flush_due = is_due  # What flushes at the end is still to come.

    def _flush(self) -> None:
        """Send what is answered, and read on or not according to what could not be sent."""
        self._is_flush_due = False
        if self._is_over:
            return
        stream = self._stream
        while stream.is_writable and (outbox := self._sendable()):
            stream.write(self._next_message(outbox))
        is_full = len(self._outbox) >= MAX_UNSENT_FRAMES or self._unsent_bytes >= MAX_UNSENT_BYTES
        should_pause = is_full or len(self._stopped) >= STOPPED_MESSAGES_MAX
        if should_pause != self._is_paused:
            self._is_paused = should_pause
            (stream.pause_reading if should_pause else stream.resume_reading)()
        if self._is_stopping and not self._sendable():
            stream.close()

    def _sendable(self) -> deque[ResponseFrame]:
        """What may be sent now: everything, or nothing but the answers to orders."""
        return self._order_outbox if self._order_outbox or self._interference.is_stopped else self._outbox

    def _next_message(self, outbox: deque[ResponseFrame]) -> Responses:
        frames: list[ResponseFrame] = []
        size = 0
        while outbox and len(frames) < MESSAGE_FRAMES:
            length = len(outbox[0].payload)
            if size and size + length > MESSAGE_BYTES:
                break
            size += length
            frames.append(outbox.popleft())
        self._unsent_bytes -= size
        return Responses(frames)
