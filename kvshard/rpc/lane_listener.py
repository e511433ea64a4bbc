"""The sockets on which a process serves lanes without gRPC, and the offer that leads callers to them.

Who opens a lane over gRPC finds the offer in the stream's initial metadata. The ticket in it is drawn anew by each process:
only who was let in over gRPC has it, and behind an address that several processes share it leads to none but the one that
gave it.
"""

import asyncio
import secrets
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from kvshard.errors import FailedPrecondition
from kvshard.rpc.frames import Requests, Responses
from kvshard.rpc.keepalive import PATIENCE
from kvshard.rpc.lane_port import NO_PORT, PORT_MAX, LanePort
from kvshard.rpc.message_stream import TCP, UNIX, MessageStream
from kvshard.rpc.socket_stream import TICKET_BYTES, AcceptedStream, abstract

OFFER = "kvshard-lane-tcp"
"""Initial metadata of a lane over gRPC: `form:port:ticket:local` of the plain connections that its caller may dial instead.
Readers pass over further fields."""

FORM = "1"
"""Of the frames on a plain connection; a caller that knows another one only stays with gRPC."""

BACKLOG = 512
"""Connections that the kernel holds until they are accepted: after a restart every caller dials at once."""

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a caller needs for a plain connection. local: name of a socket for callers on this machine; empty: there is none."""

    port: int
    ticket: bytes
    local: str = ""

    def __str__(self) -> str:
        return f"{FORM}:{self.port}:{self.ticket.decode()}:{self.local}"


def read_offer(text: str) -> Offer | None:
    """The offer in a piece of metadata; None where it is of another form."""
    form, port, ticket, local, *_ = [*text.split(":"), "", "", ""]
    is_one = form == FORM and port.isascii() and port.isdecimal() and len(ticket) == TICKET_BYTES and ticket.isascii()
    return Offer(int(port), ticket.encode(), local) if is_one and 0 < int(port) <= PORT_MAX else None


class LaneListener:
    """Takes plain connections. serve: is handed each of them, once its caller has shown the ticket."""

    def __init__(self, serve: Callable[[MessageStream[Requests, Responses]], object]) -> None:
        self._serve = serve
        self._ticket = secrets.token_hex(TICKET_BYTES // 2).encode()
        self._streams: set[AcceptedStream] = set()
        self._servers: list[asyncio.Server] = []
        self.offer: Offer | None = None

    def __repr__(self) -> str:
        return f"LaneListener(port={self.offer.port if self.offer else None}, connections={len(self._streams)})"

    async def start(self, host: str, where: LanePort) -> None:
        """Listen. Raises FailedPrecondition when the port cannot be had."""
        if where.port == NO_PORT:
            return
        loop = asyncio.get_running_loop()
        try:
            server = await loop.create_server(lambda: self._accept(TCP), host.strip("[]"), where.port, backlog=BACKLOG)
        except OSError as error:
            raise FailedPrecondition(f"cannot serve lanes on port {where.port} of {host}: {error.strerror}") from None
        self._servers.append(server)
        port = server.sockets[0].getsockname()[1]
        local = "" if where.advertised or where.is_fronted else await self._listen_locally()
        self.offer = Offer(where.advertised or port, self._ticket, local)

    async def _listen_locally(self) -> str:
        """The name of a socket that only this machine reaches; empty where the system has none that leave no file behind."""
        if sys.platform != "linux":
            return ""
        name = f"kvshard-{secrets.token_hex(8)}"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)  # Made here: uvloop does not take such names everywhere.
        try:
            listener.bind(abstract(name))
            loop = asyncio.get_running_loop()
            server = await loop.create_unix_server(lambda: self._accept(UNIX), sock=listener, backlog=BACKLOG)
        except OSError as error:
            listener.close()
            _log.info("no local socket for lanes", reason=str(error))
            return ""
        self._servers.append(server)
        return name

    def _accept(self, transport: str) -> AcceptedStream:
        stream = AcceptedStream(transport, self._ticket, PATIENCE, self._serve)
        self._streams.add(stream)
        stream.gone.add_done_callback(lambda _: self._streams.discard(stream))
        return stream

    async def close(self) -> None:
        """Accept nothing further, and end what is left."""
        for server in self._servers:
            server.close()
        streams = list(self._streams)
        for stream in streams:
            stream.abort()
        if streams:
            await asyncio.wait([stream.gone for stream in streams], timeout=1.0)
