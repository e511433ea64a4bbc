"""Lanes over plain connections: what a lone request costs most over gRPC is gRPC.

How a connection comes about: who serves lanes over gRPC offers a local socket, a port and a ticket with each stream
(`lane_listener.py`). The caller dials them in turn and shows the ticket; the answer proves that the same process listens there.
The local socket is found on the same machine only, and spares it the way through TCP. Whoever can reach neither goes on with
the gRPC stream that made the offer.

The dialler asks for a sign of life when nothing was heard for a while, so that an end that is gone without a word, or hangs,
is noticed as soon as with gRPC's keepalive. The serving end leaves that to the kernel: a caller may be busy for long.
"""

import asyncio
import contextlib
import hmac
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any, Final, cast

import structlog

from kvshard.rpc.frames import PING, PONG, FrameError, MessageReader, Requests, Responses, encode_message
from kvshard.rpc.keepalive import Keepalive
from kvshard.rpc.message_stream import TCP, UNIX, InT, MessageStream, OutT, Receiver

GREETING: Final = b"kvshard-lane/1 "
WELCOME: Final = b"kvshard-lane/1 ok\n"
TICKET_BYTES: Final = 32
GREETING_BYTES: Final = len(GREETING) + TICKET_BYTES

DIAL_TIMEOUT_S: Final = 0.5
"""The process was reached a moment ago over gRPC; a port that does not answer by then is behind a firewall."""

GREETING_TIMEOUT_S: Final = 5.0
"""For whoever connects and says nothing."""

LARGE_BYTES: Final = 64 * 1024
"""Of a body: a larger one is handed over apart from its head, which costs less than a copy."""

UNWRITTEN_MAX_BYTES: Final = 256 * 1024
"""In the buffer of a connection, beyond the kernel's: from there on frames wait in their lane, where they can still be taken
back. One message may be larger."""

STALL_S: Final = 0.25
"""A timer that is so late tells that this process itself stood still: what was sent to it meanwhile lies unread."""

_log = structlog.get_logger(__name__)


class SocketStream(MessageStream[InT, OutT], asyncio.Protocol):
    """One connection, of either end. Before the first message each end expects certain bytes of the other one."""

    def __init__(self, transport: str, kind: type[InT], expected: Callable[[bytes], bool], expected_bytes: int) -> None:
        super().__init__()
        self.transport = transport
        self.has_greeted = False
        self._reader: MessageReader[InT] = MessageReader(kind)
        self._expected = expected
        self._expected_bytes = expected_bytes
        self._greeting = b""
        self._connection: asyncio.Transport | None = None
        self._receiver: Receiver[InT] | None = None
        self._reason = ""
        self._is_reading = True
        self._has_heard = False

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._reader!r}, is_writable={self.is_writable})"

    # -- MessageStream --------------------------------------------------------------------------------------------------

    def begin(self, receiver: Receiver[InT]) -> None:
        """Tell it what comes."""
        self._receiver = receiver
        if self.gone.done():
            receiver.on_end(self._reason)

    def write(self, message: OutT) -> None:
        """Hand it to the connection."""
        transport = self._connection
        if transport is None or transport.is_closing():
            return
        head, body = encode_message(message)
        if len(body) < LARGE_BYTES:
            transport.write(head + body)
        else:
            transport.writelines((head, body))

    def pause_reading(self) -> None:
        """Leave what comes in the kernel."""
        if self._is_reading and self._connection is not None and not self._connection.is_closing():
            self._is_reading = False
            self._connection.pause_reading()

    def resume_reading(self) -> None:
        """Go on."""
        if not self._is_reading and self._connection is not None and not self._connection.is_closing():
            self._is_reading = True
            self._connection.resume_reading()

    def close(self) -> None:
        """End it when what was written is on its way."""
        self._reason = self._reason or "closed"
        if self._connection is not None:
            self._connection.close()

    def abort(self) -> None:
        """End it now."""
        self._reason = self._reason or "closed"
        if self._connection is not None:
            self._connection.abort()

    # -- asyncio.Protocol -----------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Set the connection up."""
        self._connection = cast(asyncio.Transport, transport)  # uvloop's has all its methods, and another ancestor.
        self._connection.set_write_buffer_limits(UNWRITTEN_MAX_BYTES)

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        self._has_heard = True
        if not self.has_greeted:
            data = self._take_greeting(data)
            if not data:
                return
        try:
            for message in self._reader.feed(data):
                assert self._receiver is not None
                self._receiver.on_message(message)
        except FrameError as error:
            _log.warning("damaged lane", reason=str(error))
            self._fail(str(error))
        except Exception as error:
            _log.exception("lane failed")
            self._fail(f"a defect: {type(error).__name__}")
        if self._reader.pings:
            self._reader.pings = 0
            self._write_raw(PONG)

    def pause_writing(self) -> None:
        """The other end is slow to read."""
        self.is_writable = False

    def resume_writing(self) -> None:
        """No longer."""
        self.is_writable = True
        if self._receiver is not None:
            self._receiver.on_writable()

    def connection_lost(self, error: Exception | None) -> None:
        """It is over."""
        self.is_writable = False
        self._reason = self._reason or (str(error) if error else "its other end closed the connection")
        self.gone.set_result(None)
        self.on_lost()
        if self._receiver is not None:
            self._receiver.on_end(self._reason)

    # -- for the two ends -----------------------------------------------------------------------------------------------

    def on_greeted(self) -> None:
        """The other end has said what it must."""

    def on_lost(self) -> None:
        """Give back what the end held."""

    def _take_greeting(self, data: bytes) -> bytes:
        """What follows after the greeting; nothing as long as that is not whole."""
        self._greeting += data
        if len(self._greeting) < self._expected_bytes:
            return b""
        greeting, rest = self._greeting[: self._expected_bytes], self._greeting[self._expected_bytes :]
        self._greeting = b""
        if not self._expected(greeting):
            self._fail("it is not who was meant")
            return b""
        self.has_greeted = True
        self.on_greeted()
        return rest

    def _write_raw(self, data: bytes) -> None:
        if self._connection is not None and not self._connection.is_closing():
            self._connection.write(data)

    def _fail(self, reason: str) -> None:
        self._reason = self._reason or reason
        self.abort()


class DialledStream(SocketStream[Responses, Requests]):
    """The caller's end."""

    def __init__(self, transport: str, ticket: bytes, keepalive: Keepalive) -> None:
        super().__init__(transport, Responses, WELCOME.__eq__, len(WELCOME))
        self.welcomed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._ticket = ticket
        self._keepalive = keepalive
        self._has_asked = False
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Show the ticket."""
        super().connection_made(transport)
        notice_loss(transport, self._keepalive)
        self._write_raw(GREETING + self._ticket)

    def on_greeted(self) -> None:
        """It is who was meant."""
        if not self.welcomed.done():
            self.welcomed.set_result(None)
        self._look_after(self._keepalive.idle_s)

    def on_lost(self) -> None:
        """No more looking."""
        if self._timer is not None:
            self._timer.cancel()
        if not self.welcomed.done():
            self.welcomed.set_result(None)

    def _look_after(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(seconds, self._look, loop.time() + seconds)

    def _look(self, due: float) -> None:
        """Ask for a sign of life, or give up for want of one."""
        keepalive = self._keepalive
        is_late = asyncio.get_running_loop().time() - due > STALL_S
        if self._has_heard:
            self._has_heard = self._has_asked = False
            self._look_after(keepalive.idle_s)
        elif not self._has_asked or is_late:
            self._has_asked = True
            self._write_raw(PING)
            self._look_after(keepalive.timeout_s)
        else:
            self._fail(f"nothing was heard of it for {keepalive.total_s:g} s")


class AcceptedStream(SocketStream[Requests, Responses]):
    """The serving end. on_caller: told when the caller has shown the ticket."""

    def __init__(
        self, transport: str, ticket: bytes, keepalive: Keepalive, on_caller: "Callable[[AcceptedStream], object]"
    ) -> None:
        super().__init__(transport, Requests, lambda greeting: hmac.compare_digest(greeting, GREETING + ticket), GREETING_BYTES)
        self._keepalive = keepalive
        self._on_caller = on_caller
        self._timer: asyncio.TimerHandle | None = None
        self._is_ending = False

    def write(self, message: Responses) -> None:
        """Hand it to the connection."""
        if not self._is_ending:
            super().write(message)

    def close(self) -> None:
        """End it when what was written has come: what the caller sends meanwhile is read and dropped, until it closes its end.

        A connection that is closed while something lies unread is reset, and the kernel throws away what it has not sent.
        A caller that does not close its end is for whoever called this to `abort`.
        """
        self._reason = self._reason or "closed"
        connection = self._connection
        if connection is not None and not connection.is_closing() and not self._is_ending:
            self._is_ending = True
            self.resume_reading()
            connection.write_eof()

    def data_received(self, data: bytes) -> None:
        """Bytes have come."""
        if not self._is_ending:
            super().data_received(data)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Wait for the ticket."""
        super().connection_made(transport)
        notice_loss(transport, self._keepalive)
        self._timer = asyncio.get_running_loop().call_later(GREETING_TIMEOUT_S, self.abort)

    def on_greeted(self) -> None:
        """Serve."""
        self._stop_timer()
        self._write_raw(WELCOME)
        self._on_caller(self)

    def on_lost(self) -> None:
        """Nothing is awaited any more."""
        self._stop_timer()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def abstract(name: str) -> str:
    """The path of a local socket that is no file, so that none is left behind (Linux, unix(7))."""
    return f"\0{name}"


async def dial(host: str, port: int, ticket: bytes, keepalive: Keepalive, local: str = "") -> DialledStream | None:
    """A connection to the process that gave the ticket out; None when there is no way to it.

    local: name of its socket for this machine. Another machine, or another network of this one, knows none of that name.
    """
    loop = asyncio.get_running_loop()
    if local and sys.platform == "linux":
        found = await _dialled(DialledStream(UNIX, ticket, keepalive), lambda stream: _connect_locally(stream, local))
        if found is not None:
            return found
    return await _dialled(
        DialledStream(TCP, ticket, keepalive), lambda stream: loop.create_connection(lambda: stream, host, port)
    )


async def _connect_locally(stream: DialledStream, name: str) -> None:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(abstract(name))  # Such a socket takes a connection at once, or refuses it where too many wait.
        await asyncio.get_running_loop().create_unix_connection(lambda: stream, sock=sock)
    except BaseException:
        sock.close()
        raise


async def _dialled(
    stream: DialledStream, connect: Callable[[DialledStream], Coroutine[Any, Any, object]]
) -> DialledStream | None:
    """The stream when it is connected and the other end has proved to be who was meant; None when that did not come about."""
    try:
        async with asyncio.timeout(DIAL_TIMEOUT_S):
            await connect(stream)
            await stream.welcomed
    except (OSError, TimeoutError):
        stream.abort()
        return None
    except BaseException:
        stream.abort()
        raise
    return stream if stream.has_greeted and not stream.gone.done() else None


def notice_loss(transport: asyncio.BaseTransport, keepalive: Keepalive) -> None:
    """Have the kernel end the connection when the other machine is gone."""
    sock = transport.get_extra_info("socket")
    wanted = (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", max(1, int(keepalive.idle_s))),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", max(1, int(keepalive.timeout_s))),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 1),
        (socket.IPPROTO_TCP, "TCP_USER_TIMEOUT", int(keepalive.total_s * 1000)),
    )
    for level, name, value in wanted:
        option = getattr(socket, name, None)
        if sock is not None and option is not None:  # Not every system knows all of them.
            with contextlib.suppress(OSError):
                sock.setsockopt(level, option, value)
