"""The stream that carries one leaf's replication messages to another: the gRPC ends of it, and nothing of what is said."""

import asyncio
from collections.abc import AsyncIterator, Callable

import grpc
import grpc.aio
import structlog

from kvshard.errors import Unavailable
from kvshard.rpc.channel import aio_channel
from kvshard.v1 import peer_pb2, peer_pb2_grpc

_log = structlog.get_logger(__name__)

_Context = grpc.aio.ServicerContext


class PeerStream:
    """The sender's end: one connection, one stream. Not used again after it broke."""

    def __init__(self, address: str, cluster: str, sender: str, receiver: str) -> None:
        self.address = address
        self._channel = aio_channel(address, is_internal=True)
        self._call = peer_pb2_grpc.PeerStub(self._channel).Replicate()
        self._hello = {"cluster": cluster, "sender": sender, "receiver": receiver}

    def __repr__(self) -> str:
        return f"PeerStream({self.address})"

    def on_end(self, callback: Callable[[], None]) -> None:
        """Call back when the other end is gone, also while nothing is sent."""
        self._call.add_done_callback(lambda call: callback())

    @property
    def has_ended(self) -> bool:
        """Whether the other end is gone."""
        return self._call.done()

    async def write(self, payload: bytes) -> None:
        """Hand over a batch; waits while the other end does not read. Raises Unavailable when the stream is broken."""
        hello, self._hello = self._hello, {}
        try:
            await self._call.write(peer_pb2.ReplicateRequest(payload=payload, **hello))
        except (grpc.aio.AioRpcError, grpc.aio.UsageError, asyncio.InvalidStateError) as error:
            details = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            raise Unavailable(f"{self.address}: {details}") from error

    async def close(self) -> None:
        """Give the stream up; what was not sent is lost."""
        self._call.cancel()
        await self._channel.close()


class PeerServicer(peer_pb2_grpc.PeerServicer):
    """The receiver's end, for all who dial. on_payload(sender, payload) raises ValueError for what it cannot read."""

    def __init__(self, leaf: str, cluster: Callable[[], str], on_payload: Callable[[str, bytes], None]) -> None:
        self._leaf = leaf
        self._cluster = cluster
        self._on_payload = on_payload

    async def Replicate(
        self,
        request_iterator: AsyncIterator[peer_pb2.ReplicateRequest],
        context: "_Context[peer_pb2.ReplicateRequest, peer_pb2.ReplicateResponse]",
    ) -> peer_pb2.ReplicateResponse:
        """One leaf's messages, for as long as it keeps the stream."""
        sender = ""
        async for batch in request_iterator:
            if not sender:
                sender = await self._greet(batch, context)
            try:
                self._on_payload(sender, batch.payload)
            except ValueError as error:
                _log.warning("damaged replication message", sender=sender, reason=str(error))
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"damaged message: {error}")
        return peer_pb2.ReplicateResponse()

    async def _greet(
        self, batch: peer_pb2.ReplicateRequest, context: "_Context[peer_pb2.ReplicateRequest, peer_pb2.ReplicateResponse]"
    ) -> str:
        """Who speaks; refuses whoever has the wrong address or is of another cluster."""
        if batch.cluster != self._cluster():
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this leaf is not of the cluster {batch.cluster}")
        if batch.receiver != self._leaf or not batch.sender:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, f"this is leaf {self._leaf}, not {batch.receiver}")
        return batch.sender
