"""A TCP proxy that makes the network between two processes bad: slow, silent, half dead or cut, in one direction or both.

It stands before a server and may know who dials it (`socket_owner.py`). So a fault can be meant for one pair of processes, and
from several such proxies a partition is made.

    delay    bytes come later, in their order
    stall    bytes stay where they are until the fault is over, as in a network that repeats what was lost
    drop     bytes vanish; a connection that lost some has a hole in its stream, so it is reset when the fault is over
    half-open  the server's end is closed, the dialler is told nothing: a machine that lost its power
    reset    both ends are reset; new connections are refused while the fault is on

A stall and a drop hold for connections made meanwhile too.
"""

import asyncio
import contextlib
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum

HELD_MAX_BYTES = 1024 * 1024
"""Of one direction of one connection; beyond it the sender is not read from any more, and feels it."""

DIAL_TIMEOUT_S = 5.0

ANYBODY = ""


class Mode(Enum):
    """What happens to bytes."""

    PASS = "pass"
    STALL = "stall"
    DROP = "drop"


class Direction(Enum):
    """Of bytes: to the server, or from it."""

    TO_SERVER = "to server"
    TO_DIALLER = "to dialler"


@dataclass(frozen=True)
class Fault:
    """What one direction suffers. delay_s: of each byte that passes."""

    mode: Mode = Mode.PASS
    delay_s: float = 0.0


FINE = Fault()


class FaultProxy:
    """One server's door. who(local_port, remote_port): names the process that owns the dialling socket, '' if it is unknown.

    A rule for a name goes before one for ANYBODY.
    """

    def __init__(self, who: Callable[[int, int], str] = lambda local, remote: ANYBODY) -> None:
        self.upstream: tuple[str, int] | None = None
        self._who = who
        self._rules: dict[tuple[str, Direction], Fault] = {}
        self._refused: set[str] = set()
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None
        self._dials: set[asyncio.Task[None]] = set()
        self.port = 0

    def __repr__(self) -> str:
        return f"FaultProxy({self.address} -> {self.upstream}, {len(self._links)} connections, {self._rules})"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def sources(self) -> list[str]:
        """Who is connected."""
        return sorted(link.source for link in self._links)

    async def start(self) -> "FaultProxy":
        """Listen on a port of its own, kept until the end."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Dialled(self), "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for task in self._dials:
            task.cancel()
        await asyncio.gather(*self._dials, return_exceptions=True)
        for link in list(self._links):
            link.reset()

    def set(self, fault: Fault, source: str = ANYBODY, directions: Iterable[Direction] = Direction) -> None:
        """From now on bytes of this source suffer that; what was held before is let go if they may pass now."""
        for direction in directions:
            self._rules[source, direction] = fault
        self._apply()

    def reset(self, source: str = ANYBODY) -> None:
        """Reset the connections there are, and refuse new ones until `heal`."""
        self._refused.add(source)
        for link in list(self._links):
            if source in (ANYBODY, link.source):
                link.reset()

    def half_open(self, source: str = ANYBODY) -> None:
        """Close the server's end of the connections there are; what their diallers send goes nowhere."""
        for link in self._links:
            if source in (ANYBODY, link.source):
                link.lose_server()

    def heal(self) -> None:
        """No fault any more. Connections that have a hole in their stream are reset."""
        self._rules.clear()
        self._refused.clear()
        for link in list(self._links):
            if link.has_lost_server:
                link.reset()
        self._apply()

    def fault_of(self, source: str, direction: Direction) -> Fault:
        found = self._rules.get((source, direction))
        return found or self._rules.get((ANYBODY, direction), FINE)

    def _apply(self) -> None:
        for link in list(self._links):
            link.apply()

    def dialled(self, transport: asyncio.Transport, protocol: "_Dialled") -> None:
        """Somebody has connected."""
        source = self._who(transport.get_extra_info("peername")[1], self.port)
        if self.upstream is None or not self._refused.isdisjoint((ANYBODY, source)):
            _reset(transport)
            return
        link = protocol.link = _Link(self, source, transport)
        self._links.add(link)
        task = asyncio.get_running_loop().create_task(self._dial(link))
        self._dials.add(task)
        task.add_done_callback(self._dials.discard)

    async def _dial(self, link: "_Link") -> None:
        assert self.upstream is not None
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(DIAL_TIMEOUT_S):
                transport, _ = await loop.create_connection(lambda: _Upstream(link), *self.upstream)
        except (OSError, TimeoutError):
            link.reset()
        else:
            link.connected(transport)

    def forget(self, link: "_Link") -> None:
        self._links.discard(link)


class _Link:
    """One connection through the proxy: a way to the server and one back."""

    def __init__(self, proxy: FaultProxy, source: str, dialler: asyncio.Transport) -> None:
        self.proxy = proxy
        self.source = source
        self.to_server = _Way(self, Direction.TO_SERVER, reader=dialler)
        self.to_dialler = _Way(self, Direction.TO_DIALLER, writer=dialler)
        self.has_lost_server = False
        self.is_over = False

    def connected(self, transport: asyncio.Transport) -> None:
        """The server has been reached."""
        if self.is_over:
            _reset(transport)
            return
        self.to_server.writer = transport
        self.to_dialler.reader = transport
        self.apply()

    def apply(self) -> None:
        """The rules have changed."""
        if self.has_lost_server:
            return
        for way in (self.to_server, self.to_dialler):
            way.fault = self.proxy.fault_of(self.source, way.direction)
        if any(way.has_hole and way.fault.mode is not Mode.DROP for way in (self.to_server, self.to_dialler)):
            self.reset()
            return
        self.to_server.flush()
        self.to_dialler.flush()

    def reset(self) -> None:
        """End both sides without a goodbye."""
        self._leave()
        for way in (self.to_server, self.to_dialler):
            way.close()
            if way.reader is not None:
                _reset(way.reader)

    def lose_server(self) -> None:
        """The server's side is gone, and nobody tells the dialler before `heal`."""
        self.has_lost_server = True
        self.to_server.fault = Fault(Mode.DROP)
        self.to_server.flush()
        if self.to_dialler.reader is not None:
            _reset(self.to_dialler.reader)

    def ended(self, way: "_Way") -> None:
        """One side has closed or broken. The other one learns of it, unless the way to it is cut."""
        if self.is_over or (way is self.to_dialler and self.has_lost_server):
            return
        if way.fault.mode is not Mode.PASS:
            way.has_hole = True  # The news cannot get through now: they come as a reset when it is healed.
            return
        if way.held:
            way.is_ending = True
            return
        self.finish(way)

    def finish(self, way: "_Way") -> None:
        """All bytes of a side that closed are over there: close the other one, in the usual manner."""
        self._leave()
        for each in (self.to_server, self.to_dialler):
            each.close()
        if way.writer is not None:
            way.writer.close()

    def _leave(self) -> None:
        self.is_over = True
        self.proxy.forget(self)


class _Way:
    """One direction of a connection. held: bytes that wait, with the instant from which they may go."""

    def __init__(
        self,
        link: _Link,
        direction: Direction,
        reader: asyncio.Transport | None = None,
        writer: asyncio.Transport | None = None,
    ) -> None:
        self.direction = direction
        self.reader = reader
        self.writer = writer
        self.fault = link.proxy.fault_of(link.source, direction)
        self.held: deque[tuple[float, bytes]] = deque()
        self.has_hole = False
        self.is_ending = False
        self._link = link
        self._held_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._is_writer_full = False

    def take(self, data: bytes) -> None:
        """Bytes have come."""
        if self.writer is not None and self.writer.is_closing():
            return  # Its end could not be told to this side, for a cut lies in between.
        if self.fault.mode is Mode.DROP:
            self.has_hole = True
            return
        if self.fault == FINE and not self.held and self.writer is not None:
            self.writer.write(data)
            return
        self.held.append((asyncio.get_running_loop().time() + self.fault.delay_s, data))
        self._held_bytes += len(data)
        self._regulate()
        self.flush()

    def set_full(self, is_full: bool) -> None:
        """The receiver is slow, or no longer."""
        self._is_writer_full = is_full
        self._regulate()

    def _regulate(self) -> None:
        if self.reader is None or self.reader.is_closing():
            return
        if self._is_writer_full or self._held_bytes > HELD_MAX_BYTES:
            self.reader.pause_reading()
        else:
            self.reader.resume_reading()

    def flush(self) -> None:
        """Let go what may go."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.fault.mode is Mode.DROP and self.held:
            self.has_hole = True
            self.held.clear()
            self._held_bytes = 0
        if self.writer is not None and self.writer.is_closing():
            self.held.clear()
            self._held_bytes = 0
        if self.fault.mode is not Mode.PASS or self.writer is None:
            return
        loop = asyncio.get_running_loop()
        while self.held:
            due, data = self.held[0]
            if due > loop.time() and self.fault.delay_s:
                self._timer = loop.call_at(due, self.flush)
                break
            self.held.popleft()
            self._held_bytes -= len(data)
            self.writer.write(data)
        self._regulate()
        if self.is_ending and not self.held:
            self._link.finish(self)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.held.clear()


class _Dialled(asyncio.Protocol):
    """The dialler's end."""

    def __init__(self, proxy: FaultProxy) -> None:
        self._proxy = proxy
        self.link: _Link | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._proxy.dialled(transport, self)

    def data_received(self, data: bytes) -> None:
        if self.link is not None:
            self.link.to_server.take(data)

    def pause_writing(self) -> None:
        if self.link is not None:
            self.link.to_dialler.set_full(True)

    def resume_writing(self) -> None:
        if self.link is not None:
            self.link.to_dialler.set_full(False)

    def connection_lost(self, error: Exception | None) -> None:
        if self.link is not None:
            self.link.ended(self.link.to_server)


class _Upstream(asyncio.Protocol):
    """The server's end."""

    def __init__(self, link: _Link) -> None:
        self._link = link

    def data_received(self, data: bytes) -> None:
        self._link.to_dialler.take(data)

    def pause_writing(self) -> None:
        self._link.to_server.set_full(True)

    def resume_writing(self) -> None:
        self._link.to_server.set_full(False)

    def connection_lost(self, error: Exception | None) -> None:
        self._link.ended(self._link.to_dialler)


def _reset(transport: asyncio.Transport) -> None:
    """End a connection with a reset, not with a goodbye."""
    sock = transport.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
