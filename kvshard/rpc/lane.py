"""The caller's end of a lane: many requests at once over one stream, answers matched by id.

A `Lane` leads to one address. It connects on first use and again after a break, and it never queues for a leaf that is not
there: while the back-off runs, calls fail at once with Unavailable. The stream itself is a `LaneSession`.
"""

import asyncio
import random

import structlog

from kvshard.clock import Clock
from kvshard.errors import DeadlineExceeded, ErrorDetails, InvalidArgument, KvShardError, Unavailable
from kvshard.rpc.channel import aio_channel
from kvshard.rpc.codec import LANE_MARK, PAYLOAD_MAX_BYTES, decode_error
from kvshard.rpc.lane_session import LaneSession, LateAnswers, OutstandingCall
from kvshard.v1 import lane_pb2, lane_pb2_grpc

CONNECT_TIMEOUT_S = 1.0
"""A leaf in the same cluster that has not accepted by then is down or hangs; the next attempt makes a new connection."""

FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 1.0
"""Doubling from the first to the longest: a restarted leaf is found within a second, a dead one costs one attempt a second."""


_log = structlog.get_logger(__name__)


class Lane:
    """A lane to one address. peer: how error messages call the other end. late: counts answers that nobody waited for."""

    def __init__(
        self,
        address: str,
        clock: Clock,
        *,
        peer: str = "",
        rng: random.Random | None = None,
        late: LateAnswers | None = None,
    ) -> None:
        self.address = address
        self._peer = f"{peer} at {address}" if peer else address
        self._clock = clock
        self._rng = rng or random.Random()
        self.late = late or LateAnswers()
        self._session: LaneSession | None = None
        self._sessions: set[LaneSession] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._last_error = ""
        self._is_closed = False

    @property
    def outstanding(self) -> int:
        """Requests without an answer."""
        return len(self._session.calls) if self._session is not None else 0

    async def call(
        self, method: int, payload: bytes, deadline: float, *, is_write: bool = False, is_hedge: bool = False
    ) -> lane_pb2.ResponseFrame:
        """The leaf's answer. Raises the leaf's error, or Unavailable, DeadlineExceeded, ResourceExhausted.

        details.maybe_applied is set when a write was sent and its fate is unknown. Cancelling the call cancels it at the leaf.
        """
        if len(payload) > PAYLOAD_MAX_BYTES:
            text = f"the request has {len(payload)} bytes, more than one message carries"
            raise InvalidArgument(text, ErrorDetails(limit=PAYLOAD_MAX_BYTES))
        session = self._session
        if session is None:
            session = await self._connected(deadline)
        if not session.has_room(len(payload)):
            await session.wait_for_room(len(payload), deadline)
        left = deadline - self._clock.monotonic()
        if left <= 0:
            raise DeadlineExceeded("the deadline passed before the request was sent")
        call = OutstandingCall(method, payload, deadline, is_write, is_hedge)
        id = session.submit(call)
        timer = asyncio.get_running_loop().call_later(left, session.expire, id)
        try:
            outcome = await call.future
        finally:
            timer.cancel()
            session.withdraw(id)  # of effect only when the caller was cancelled
        if isinstance(outcome, KvShardError):
            raise outcome
        if outcome.is_error:
            raise decode_error(outcome.payload)
        return outcome

    async def close(self) -> None:
        """Close the connection; outstanding calls fail with Unavailable."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
            await asyncio.gather(self._connecting, return_exceptions=True)
        await asyncio.gather(*(session.close() for session in self._sessions))

    async def _connected(self, deadline: float) -> LaneSession:
        """The open session, connecting if the back-off allows it. All who wait share one attempt."""
        while self._session is None:
            self._raise_if_unreachable()
            if not self._is_connecting:
                self._connecting = asyncio.create_task(self._connect())
            left = deadline - self._clock.monotonic()
            if left <= 0:
                raise DeadlineExceeded(f"the deadline passed while connecting to {self._peer}")
            if self._connecting is not None:
                await asyncio.wait((self._connecting,), timeout=left)
        return self._session

    @property
    def _is_connecting(self) -> bool:
        return self._connecting is not None and not self._connecting.done()

    def _raise_if_unreachable(self) -> None:
        if self._is_closed:
            raise Unavailable(f"the lane to {self._peer} is closed")
        wait = self._retry_at - self._clock.monotonic()
        if wait > 0 and not self._is_connecting:
            raise Unavailable(self._last_error, ErrorDetails(retry_after_ms=max(1, int(wait * 1000))))

    async def _connect(self) -> None:
        """Install a session, or note the failure and until when not to try again. Raises nothing."""
        channel = aio_channel(self.address, is_internal=True)
        stream = lane_pb2_grpc.LanesStub(channel).Lane()
        problem = "interrupted"
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                metadata = await stream.initial_metadata()
                is_lane = LANE_MARK in tuple(metadata or ())
                problem = "" if is_lane else str(await stream.details() or await stream.code())
        except TimeoutError:
            problem = f"no answer within {CONNECT_TIMEOUT_S:g} s"
        finally:
            if problem:
                stream.cancel()
                await channel.close()
        if problem:
            self._note_failure(f"cannot connect to {self._peer}: {problem}")
        else:
            self._session = session = LaneSession(channel, stream, self._clock, self._peer, self._on_session_broken, self.late)
            self._sessions.add(session)  # Until all of it has ended, which is after it broke.
            session.when_gone(self._sessions.discard)

    def _note_failure(self, text: str) -> None:
        self._failures += 1
        backoff = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._failures - 1, 10))
        # Jitter between half and whole: routers that lost the same leaf must not come back in step.
        self._retry_at = self._clock.monotonic() + backoff * (0.5 + 0.5 * self._rng.random())
        self._last_error = text
        _log.info("lane unreachable", peer=self._peer, error=text, failures=self._failures)

    def _on_session_broken(self, session: LaneSession, reason: str) -> None:
        """A session that never answered counts as a failure: a leaf that accepts and drops must not be dialled without end."""
        self._session = None
        if self._is_closed:
            return
        if session.has_answered:
            self._failures = 0
            _log.info("lane broke", peer=self._peer, reason=reason)
        else:
            self._note_failure(f"{self._peer} ended the lane: {reason}")

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._session else "idle"
        return f"Lane({self._peer}, {state}, outstanding={self.outstanding})"
