"""The caller's end of a lane: many requests at once over one stream, answers matched by id.

A `Lane` leads to one address. It connects on first use and again after a break, and it never queues for a process that is not
there: while the back-off runs, calls fail at once with Unavailable. The stream itself is a `LaneSession`; it runs over a plain
connection where the other end offers one that can be reached, else over gRPC.

A process that serves no lanes, as one of an older version, or that takes only frames of another form, is told from one that
cannot be reached: whoever knows another way to ask it must learn that this one will not open.
"""

import asyncio
import random
from collections.abc import Callable
from functools import partial

import grpc
import structlog

from kvshard.clock import Clock
from kvshard.errors import DeadlineExceeded, ErrorDetails, InvalidArgument, KvShardError, Unavailable, Unimplemented
from kvshard.rpc.channel import aio_channel
from kvshard.rpc.codec import LANE_MARK, LEAF_MARK, PAYLOAD_MAX_BYTES, decode_error
from kvshard.rpc.frames import Requests, ResponseFrame, Responses
from kvshard.rpc.grpc_stream import Call, CallerStream
from kvshard.rpc.keepalive import IMPATIENCE, PATIENCE
from kvshard.rpc.lane_listener import OFFER, read_offer
from kvshard.rpc.lane_session import LaneSession, LateAnswers, Outcome, Outlet, OutstandingCall
from kvshard.rpc.message_stream import MessageStream
from kvshard.rpc.socket_stream import dial
from kvshard.v1 import lane_pb2_grpc

CONNECT_TIMEOUT_S = 1.0
"""A process nearby that has not accepted by then is down or hangs; the next attempt makes a new connection."""

FIRST_BACKOFF_S = 0.05
LONGEST_BACKOFF_S = 1.0
"""Doubling from the first to the longest: who was restarted is found within a second, a dead one costs an attempt a second."""

NO_LANES_RETRY_S = 5.0
"""Between two attempts at a process that serves no lanes. One of a newer version takes its place in an upgrade, which lasts
minutes; until then an attempt costs a connection."""

_log = structlog.get_logger(__name__)


class Lane:
    """A lane to one address. peer: how error messages call the other end. late: counts answers that nobody waited for.

    is_internal: between a cluster's own processes, where one that is gone is noticed soon (see `channel.py`). no_lanes: the
    error for a process that serves no lanes. leaf_mark: what the other end must be marked with (see `codec.leaf_mark`); empty:
    whoever answers at the address is taken.
    """

    def __init__(
        self,
        address: str,
        clock: Clock,
        *,
        peer: str = "",
        rng: random.Random | None = None,
        late: LateAnswers | None = None,
        is_internal: bool = False,
        no_lanes: type[KvShardError] = Unimplemented,
        leaf_mark: str = "",
    ) -> None:
        self.address = address
        self._leaf_mark = leaf_mark
        self._is_internal = is_internal
        self._no_lanes = no_lanes
        self._peer = f"{peer} at {address}" if peer else address
        self._clock = clock
        self._rng = rng or random.Random()
        self.late = late or LateAnswers()
        self._session: LaneSession | None = None
        self._sessions: set[LaneSession] = set()
        self._connecting: asyncio.Task[None] | None = None
        self._failures = 0
        self._retry_at = 0.0
        self._last_error: KvShardError = Unavailable(f"the lane to {self._peer} has not been opened")
        self._is_closed = False

    @property
    def outstanding(self) -> int:
        """Requests without an answer."""
        return len(self._session.calls) if self._session is not None else 0

    @property
    def transport(self) -> str:
        """What it runs over; empty while it is not open."""
        return self._session.transport if self._session is not None else ""

    async def call(
        self, method: int, payload: bytes, deadline: float, *, is_write: bool = False, is_hedge: bool = False
    ) -> ResponseFrame:
        """The answer. Raises the other end's error, or Unavailable, DeadlineExceeded, ResourceExhausted, and what no_lanes is.

        details.maybe_applied is set when a write was sent and its fate is unknown. Cancelling the call cancels it there too.
        """
        if len(payload) > PAYLOAD_MAX_BYTES:
            text = f"the request has {len(payload)} bytes, more than one message carries"
            raise InvalidArgument(text, ErrorDetails(limit=PAYLOAD_MAX_BYTES))
        session = self._session
        if session is None:
            session = await self._connected(deadline)
        if not session.has_room(len(payload)):
            await session.wait_for_room(len(payload), deadline)
        if deadline <= self._clock.monotonic():
            raise DeadlineExceeded("the deadline passed before the request was sent")
        future: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        id = session.submit(OutstandingCall(method, payload, deadline, future, is_write, is_hedge))
        try:
            outcome = await future
        except BaseException:
            session.withdraw(id)
            raise
        if isinstance(outcome, KvShardError):
            raise outcome
        if outcome.is_error:
            raise decode_error(outcome.payload)
        return outcome

    def start(
        self, method: int, payload: bytes, deadline: float, outlet: Outlet, is_hedge: bool = False, is_last: bool = True
    ) -> Callable[[], object] | None:
        """Send a request that is no write without awaiting anything; the caller keeps to the deadline.

        is_last: see `LaneSession.submit`. Returns what takes it back. None: there is no open session, or no room on it; `call`
        waits for that.
        """
        session = self._session
        if session is None or len(payload) > PAYLOAD_MAX_BYTES or not session.has_room(len(payload)):
            return None
        call = OutstandingCall(method, payload, deadline, outlet, False, is_hedge)
        return partial(session.withdraw, session.submit(call, is_last=is_last))

    async def close(self) -> None:
        """Close the connection; outstanding calls fail with Unavailable."""
        self._is_closed = True
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            await asyncio.gather(connecting, return_exceptions=True)
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
            error = self._last_error
            raise type(error)(error.message, ErrorDetails(retry_after_ms=max(1, int(wait * 1000))))

    async def _connect(self) -> None:
        """Install a session, or note the failure and until when not to try again. Raises nothing."""
        channel = aio_channel(self.address, is_internal=self._is_internal)
        call = lane_pb2_grpc.LanesStub(channel).Lane()
        stream: MessageStream[Responses, Requests] | None = None
        found: dict[str, str] | KvShardError = Unavailable(f"cannot connect to {self._peer}: interrupted")
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                found = await self._metadata(call)
            if isinstance(found, dict):
                stream = await self._plain(found.get(OFFER, "")) or CallerStream(channel, call)
        except TimeoutError:
            found = Unavailable(f"cannot connect to {self._peer}: no answer within {CONNECT_TIMEOUT_S:g} s")
        finally:
            if not isinstance(stream, CallerStream):
                call.cancel()
                await channel.close()
        if stream is not None:
            self._session = session = LaneSession(stream, self._clock, self._peer, self._on_session_broken, self.late)
            self._sessions.add(session)  # Until all of it has ended, which is after it broke.
            session.when_gone(self._sessions.discard)
        elif isinstance(found, KvShardError):
            self._note_failure(found)

    async def _metadata(self, call: Call) -> dict[str, str] | KvShardError:
        """What the other end says of itself if it has taken the lane, else why it has not.

        Errors are not raised, for their traceback would hold the call, and that the connection.
        """
        name, form = LANE_MARK
        metadata = {key: str(value) for key, value in tuple(await call.initial_metadata() or ())}
        found = metadata.get(name)
        if found == form:
            is_who_it_must_be = self._leaf_mark in ("", metadata.get(LEAF_MARK))
            return (
                metadata if is_who_it_must_be else Unavailable(f"cannot connect to {self._peer}: another process answers there")
            )
        if found is not None:
            return self._no_lanes(f"cannot connect to {self._peer}: its lanes have the form {found!r}, those of here {form!r}")
        code, text = await call.code(), await call.details()
        cause = self._no_lanes if code is grpc.StatusCode.UNIMPLEMENTED else Unavailable
        return cause(f"cannot connect to {self._peer}: {text or code}")

    async def _plain(self, text: str) -> MessageStream[Responses, Requests] | None:
        """A plain connection to who made that offer; None where there is no way to it."""
        offer = read_offer(text)
        host = self.address.rpartition(":")[0].strip("[]")
        if offer is None or not host:
            return None
        keepalive = IMPATIENCE if self._is_internal else PATIENCE
        stream = await dial(host, offer.port, offer.ticket, keepalive, offer.local)
        if stream is None:
            _log.info("no plain connection, the lane stays with gRPC", peer=self._peer, port=offer.port)
        return stream

    def _note_failure(self, error: KvShardError) -> None:
        self._failures += 1
        backoff = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(self._failures - 1, 10))
        if isinstance(error, Unimplemented):
            backoff = NO_LANES_RETRY_S
        # Jitter between half and whole: callers that lost the same process must not come back in step.
        self._retry_at = self._clock.monotonic() + backoff * (0.5 + 0.5 * self._rng.random())
        self._last_error = error
        _log.info("lane unreachable", peer=self._peer, error=error.message, failures=self._failures)

    def _on_session_broken(self, session: LaneSession, reason: str) -> None:
        """One that never answered counts as a failure: a process that accepts and drops must not be dialled without end."""
        self._session = None
        if self._is_closed:
            return
        if session.has_answered:
            self._failures = 0
            _log.info("lane broke", peer=self._peer, reason=reason)
        else:
            self._note_failure(Unavailable(f"{self._peer} ended the lane: {reason}"))

    def __repr__(self) -> str:
        state = "closed" if self._is_closed else "open" if self._session else "idle"
        return f"Lane({self._peer}, {state}, outstanding={self.outstanding})"
