"""One stream of a lane, at the caller's end: frames out, answers in, and what becomes of the requests when it breaks.

What was never handed to the stream is known not to have been done; of a write that was, only the answer tells.
A session is never used again after it broke.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Protocol, TypeAlias

from kvshard.clock import Clock
from kvshard.errors import DeadlineExceeded, ErrorDetails, KvShardError, ResourceExhausted, Unavailable
from kvshard.rpc.codec import CANCEL, MESSAGE_BYTES, MESSAGE_FRAMES
from kvshard.rpc.frames import RequestFrame, Requests, ResponseFrame, Responses
from kvshard.rpc.message_stream import MessageStream

MAX_OUTSTANDING = 4_096
"""Requests on one lane without an answer: those of five hundred reads of eight legs, should one leaf get them all. What finds
no room waits in a task of its own, which costs a router in need as much as ten answers."""

MAX_WAITING = 4_096
"""Callers that wait for one of those places. Each holds its request in memory; further ones are refused at once."""

MAX_WAITING_BYTES = 256 * 1024 * 1024
"""Of their requests: eight of the largest batches. As much again is held by the callers' own copies."""

REFUSED_RETRY_MS = 100
"""A lane that is so full moves only when its other end does."""

MAX_UNSENT_BYTES = 64 * 1024 * 1024
"""Requests not yet handed to the stream: two of the largest batches. Who does not read stops its callers here."""

Outcome: TypeAlias = ResponseFrame | KvShardError
"""What becomes of a call. Errors are results, not exceptions: a caller that has gone leaves no "never retrieved" behind."""

EXPIRY_SLACK_S = 0.001
"""Calls that expire within so long of a timer expire with it: the event loop counts whole milliseconds, and may be early."""


class LateAnswers:
    """What leaves did for callers who had taken their requests back: the price of hedges, and of giving up.

    count: answers that came all the same. service_s: the work that they had cost their leaves.
    """

    __slots__ = ("count", "service_s")

    def __init__(self) -> None:
        self.count = 0
        self.service_s = 0.0

    def __repr__(self) -> str:
        return f"LateAnswers({self.count}, {self.service_s:.3f} s)"

    def note(self, service_us: int) -> None:
        """One has come."""
        self.count += 1
        self.service_s += service_us * 1e-6


class Outlet(Protocol):
    """Where the outcome of a call goes: a future, or whoever wants to be told at once."""

    def done(self) -> bool:
        """Nothing is expected any more."""
        ...

    def set_result(self, outcome: Outcome, /) -> None:
        """The outcome. Called once."""
        ...


class OutstandingCall:
    """A request without an answer yet. is_sent: handed to the stream. outlet: gets its outcome."""

    __slots__ = ("deadline", "is_hedge", "is_sent", "is_write", "method", "outlet", "payload")

    def __init__(
        self, method: int, payload: bytes, deadline: float, outlet: Outlet, is_write: bool = False, is_hedge: bool = False
    ) -> None:
        self.method = method
        self.payload = payload
        self.deadline = deadline
        self.is_write = is_write
        self.is_hedge = is_hedge
        self.is_sent = False
        self.outlet = outlet


class LaneSession:
    """An open stream. `on_broken(session, reason)` is called once, after every outstanding call has got its error.

    `calls` holds every request without an answer; `_outbox` the ids of those not yet sent, in order, and (negated) the ids to
    cancel. An id that left `calls` before its turn came is passed over: it was never sent.
    """

    def __init__(
        self,
        stream: MessageStream[Responses, Requests],
        clock: Clock,
        peer: str,
        on_broken: "Callable[[LaneSession, str], None]",
        late: LateAnswers,
    ) -> None:
        self.calls: dict[int, OutstandingCall] = {}
        self.has_answered = False
        self.has_ended = False
        self.transport = stream.transport
        self._stream = stream
        self._clock = clock
        self._peer = peer
        self._on_broken = on_broken
        self._late = late
        self._last_id = 0
        self._outbox: deque[int] = deque()
        self._unsent_bytes = 0
        self._is_flush_due = False
        self._waiters: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._waiting_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = inf
        stream.begin(self)

    def has_room(self, size: int) -> bool:
        """True when a request of that size may be submitted at once."""
        return not self._waiters and self._fits(size)

    def submit(self, call: OutstandingCall, *, is_last: bool = False) -> int:
        """Send the request in the next message. Its future gets the outcome. Returns its id.

        is_last: whoever submits it has nothing more to send now. Where nobody else has either, as far as the lane shows, the
        message does not wait for the next pass of the event loop, which costs a lone call 8 us at each end.
        """
        self._last_id = id = self._last_id + 1
        self.calls[id] = call
        self._outbox.append(id)
        self._unsent_bytes += len(call.payload)
        if is_last and len(self.calls) <= len(self._outbox):
            self._flush()
        else:
            self._flush_soon()
        if call.deadline < self._timer_at:
            self._set_timer(call.deadline)
        return id

    def _set_timer(self, at: float) -> None:
        """One timer for all calls. It goes off at the earliest deadline, or before it, where the call of that has ended."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        left = max(0.0, at - self._clock.monotonic())
        self._timer = asyncio.get_running_loop().call_later(left, self._expire)

    def _expire(self) -> None:
        """Take back the calls whose deadline has passed, and tell their callers."""
        self._timer, self._timer_at = None, inf
        due = self._clock.monotonic() + EXPIRY_SLACK_S
        expired = [(call.deadline, id) for id, call in self.calls.items() if call.deadline <= due]
        for _, id in sorted(expired):  # Of several that one late timer finds, the first to end is told first.
            call = self.withdraw(id)
            if call is not None and not call.outlet.done():
                details = ErrorDetails(maybe_applied=call.is_write and call.is_sent)
                call.outlet.set_result(DeadlineExceeded(f"no answer from {self._peer} within the deadline", details))
        earliest = min((call.deadline for call in self.calls.values()), default=inf)
        if earliest < inf:
            self._set_timer(earliest)

    def withdraw(self, id: int) -> OutstandingCall | None:
        """Take a call back, at the other end too if it was sent. None when it is no longer outstanding."""
        call = self.calls.pop(id, None)
        if call is None:
            return None
        if call.is_sent:
            self._outbox.append(-id)
            self._flush_soon()
        else:
            self._unsent_bytes -= len(call.payload)
        self._wake_waiter()
        return call

    async def wait_for_room(self, size: int, deadline: float) -> None:
        """Wait for a place, first come first served. Raises ResourceExhausted when there is none by the deadline."""
        if len(self._waiters) >= MAX_WAITING or self._waiting_bytes + size > MAX_WAITING_BYTES:
            text = f"{len(self._waiters)} callers with {self._waiting_bytes} bytes wait for the lane to {self._peer}"
            raise ResourceExhausted(text, ErrorDetails(limit=MAX_WAITING, retry_after_ms=REFUSED_RETRY_MS))
        place = (size, asyncio.get_running_loop().create_future())
        self._waiters.append(place)
        self._waiting_bytes += size
        try:
            async with asyncio.timeout(max(0.0, deadline - self._clock.monotonic())):
                await place[1]
        except TimeoutError:
            text = f"{len(self.calls)} requests to {self._peer} are outstanding"
            raise ResourceExhausted(text, ErrorDetails(limit=MAX_OUTSTANDING)) from None
        finally:
            # Woken or gone, it keeps its place until now, so that no newcomer overtakes it. The next one's turn comes after
            # this caller has submitted, which it does without awaiting.
            self._waiters.remove(place)
            self._waiting_bytes -= size
            asyncio.get_running_loop().call_soon(self._wake_waiter)
        if self.has_ended:
            raise Unavailable(f"the lane to {self._peer} broke before the request was sent")

    def when_gone(self, tell: "Callable[[LaneSession], None]") -> None:
        """Call it when the stream has ended and nothing of it is left."""
        self._stream.gone.add_done_callback(lambda _: tell(self))

    async def close(self) -> None:
        """End the stream and wait until all of it is gone. Outstanding calls fail with Unavailable."""
        self._stream.abort()
        await asyncio.wait((self._stream.gone,))

    def _fits(self, size: int) -> bool:
        has_bytes = self._unsent_bytes == 0 or self._unsent_bytes + size <= MAX_UNSENT_BYTES
        return len(self.calls) < MAX_OUTSTANDING and has_bytes

    def _wake_waiter(self) -> None:
        if self._waiters:
            size, waiter = self._waiters[0]
            if not waiter.done() and (self.has_ended or self._fits(size)):
                waiter.set_result(None)

    def on_end(self, reason: str) -> None:
        """The stream has ended."""
        self.has_ended = True
        if self._timer is not None:
            self._timer.cancel()
        text = f"the lane to {self._peer} broke: {reason}"
        for call in self.calls.values():
            if not call.outlet.done():
                call.outlet.set_result(Unavailable(text, ErrorDetails(maybe_applied=call.is_write and call.is_sent)))
        self.calls.clear()
        self._wake_waiter()
        self._on_broken(self, reason)

    def on_message(self, message: Responses) -> None:
        """Hand the answers out."""
        self.has_answered = True
        calls = self.calls
        for frame in message.frames:
            call = calls.pop(frame.id, None)
            if call is None:
                self._late.note(frame.service_us)
            elif not call.outlet.done():
                call.outlet.set_result(frame)
        if self._waiters:
            self._wake_waiter()

    def on_writable(self) -> None:
        """The stream takes messages again."""
        self._flush()

    def _flush_soon(self) -> None:
        """In the next pass of the event loop, together with what else this one produces."""
        if not self._is_flush_due:
            self._is_flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        """Send what is in the outbox."""
        self._is_flush_due = False
        stream = self._stream
        while self._outbox and stream.is_writable and not self.has_ended:
            message = self._next_message()
            if message is not None:
                stream.write(message)

    def _next_message(self) -> Requests | None:
        """The next frames; None when all of them were taken back."""
        outbox, calls = self._outbox, self.calls
        frames: list[RequestFrame] = []
        now = self._clock.monotonic()
        size = 0
        while outbox and len(frames) < MESSAGE_FRAMES:
            id = outbox[0]
            call = calls.get(id)
            if call is not None:
                length = len(call.payload)
                if size and size + length > MESSAGE_BYTES:
                    break
                size += length
                call.is_sent = True
                timeout_us = max(0, int((call.deadline - now) * 1e6))
                frames.append(RequestFrame(id, call.method, timeout_us, call.payload, call.is_hedge))
            elif id < 0:
                frames.append(RequestFrame(-id, CANCEL, 0, b""))
            outbox.popleft()
        self._unsent_bytes -= size
        if self._waiters:
            self._wake_waiter()
        return Requests(frames, int(now * 1e6)) if frames else None

    def __repr__(self) -> str:
        state = "ended" if self.has_ended else "open"
        return f"LaneSession({self._peer}, {state}, outstanding={len(self.calls)}, unsent={len(self._outbox)})"
