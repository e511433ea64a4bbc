"""The serving end of lanes, in leaves and routers: frames in, handlers run, frames out.

One `LaneServicer` serves every lane of the process, whatever it runs over; each of them is a `LaneConnection`. Handlers know
nothing of frames: they get a payload and an absolute deadline. A handler whose caller gave up is cancelled; one that must not
stop half way shields itself.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping

import grpc

from kvshard.clock import Clock
from kvshard.errors import ErrorDetails, KvShardError, Unavailable
from kvshard.rpc.codec import LANE_MARK, LEAF_MARK
from kvshard.rpc.frames import RequestFrame, Requests, Responses
from kvshard.rpc.grpc_stream import Context, ServingStream
from kvshard.rpc.interference import Interference
from kvshard.rpc.lane_admission import LaneAdmission
from kvshard.rpc.lane_connection import LaneConnection
from kvshard.rpc.lane_handlers import BeginningHandler, Handler, HedgeGate, ImmediateHandler
from kvshard.rpc.lane_listener import OFFER, LaneListener
from kvshard.rpc.lane_port import LanePort
from kvshard.rpc.message_stream import MessageStream
from kvshard.v1 import lane_pb2, lane_pb2_grpc

_RETRY_AFTER_MS = 50


class LaneServicer(lane_pb2_grpc.LanesServicer):
    """Serves the Lanes service: `lane_pb2_grpc.add_LanesServicer_to_server(LaneServicer(...), server)`.

    handlers: by method number. immediate, beginning: short cuts of some of them. hedge_gate: asked about each hedge, beside the
    admission. on_withdrawn, on_refused: told of each request that its caller took back, or that is not taken. interference:
    what faults do to the lanes. name: what errors call this process.

    Stop with `drain`, then stop the gRPC server.
    """

    def __init__(
        self,
        handlers: Mapping[int, Handler],
        clock: Clock,
        *,
        immediate: Mapping[int, ImmediateHandler] | None = None,
        beginning: Mapping[int, BeginningHandler] | None = None,
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
        self.beginning = dict(beginning or {})
        self.interference = interference or Interference()
        self.clock = clock
        self.is_draining = False
        self.admission = admission or LaneAdmission(name=name)
        self.unhandled = 0
        self.ending = 0
        self.on_withdrawn = on_withdrawn
        self.on_refused = on_refused
        self.hedge_gate = hedge_gate
        self._connections: set[LaneConnection] = set()
        self._listener = LaneListener(self.serve)

    async def listen(self, address: str, where: LanePort) -> None:
        """Take plain connections too, at the host of that address. Raises FailedPrecondition when the port cannot be had.

        `close` ends that.
        """
        await self._listener.start(address.rpartition(":")[0], where)

    async def close(self) -> None:
        """Take no plain connections any more."""
        await self._listener.close()

    async def Lane(  # type: ignore[override]  # the reader-writer form of a servicer method returns nothing
        self, request_iterator: AsyncIterator[lane_pb2.LaneRequest], context: Context
    ) -> None:
        """One lane over gRPC, for as long as its caller keeps it."""
        if self.is_draining:  # else callers whose lane was just ended would come back and keep the server from stopping
            await context.abort(grpc.StatusCode.UNAVAILABLE, f"the {self.name} is stopping")
        await context.send_initial_metadata(self._metadata())
        stream = ServingStream(context)
        connection = self.serve(stream)
        try:
            await asyncio.shield(stream.gone)
        finally:
            stream.abort()
            await connection.ended.wait()

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        mark, offer = self._mark(), self._listener.offer
        others = ((LEAF_MARK, mark), (OFFER, str(offer) if offer else ""))
        return (LANE_MARK, *((name, value) for name, value in others if value))

    def serve(self, stream: MessageStream[Requests, Responses]) -> LaneConnection:
        """Serve the lane that runs over a stream, until either end closes it."""
        connection = LaneConnection(self, stream)
        self._connections.add(connection)
        stream.gone.add_done_callback(lambda _: self._connections.discard(connection))
        if self.is_draining:
            connection.stop()
        return connection

    @property
    def load(self) -> int:
        """Requests in work: those that a task serves, and those of the messages under way whose turn has not come.

        Not those that are answered and whose tasks are only ending (`ending`): legs of a search are answered in one pass, and
        the last of them would tell of as many as there were.
        """
        return self.admission.requests + self.unhandled - self.ending

    def refusal(self, frame: RequestFrame, size: int, of_lane: int) -> KvShardError | None:
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
