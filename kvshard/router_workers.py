"""Starting the workers of a router: the port that they share, kept for them, and their command lines.

May live here: what `kvshard up --workers` and `python -m router --workers` have in common. Who keeps the processes alive is
`kvshard/supervisor.py`.
"""

import errno
import socket
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from kvshard.errors import ErrorDetails, FailedPrecondition, InvalidArgument, Unavailable
from kvshard.supervisor import ChildSpec
from kvshard.workers import check_workers, worker_name

PRIVATE_HOST = "127.0.0.1"
"""Workers of one port are on one machine, and what they ask each other is nobody else's business."""


class ReservedPort:
    """A port that nobody else can have while processes that share it come and go; port 0 takes a free one.

    A socket that is bound and does not listen: connections never reach it, and SO_REUSEPORT lets those of the same user listen
    beside it. Raises Unavailable when somebody listens there already, or has reserved it.
    """

    def __init__(self, host: str, port: int) -> None:
        if not hasattr(socket, "SO_REUSEPORT"):
            raise InvalidArgument("several workers cannot share a port on this system", ErrorDetails(field="workers"))
        try:
            family, kind, address = _first_address(host, port)
            if port:
                _check_free(family, kind, address)
            self._socket = socket.socket(family, kind)
            # Else connections of a predecessor that linger in TIME_WAIT would keep the port from us.
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            self._socket.bind(address)  # type: ignore[arg-type]  # as getaddrinfo gave it
        except OSError as error:
            self.close()
            why = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be used: {error.strerror}"
            raise Unavailable(f"port {port} on {host} {why}; choose another") from None
        # From now on it is in the way of everybody who looks whether the port is free, and of nobody who shares it.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        self.address = f"{host}:{self._socket.getsockname()[1]}"

    def __repr__(self) -> str:
        return f"ReservedPort({self.address})"

    def close(self) -> None:
        """Give the port up. A second close does nothing."""
        reserved = getattr(self, "_socket", None)
        if reserved is not None:
            reserved.close()


def _first_address(host: str, port: int) -> tuple[socket.AddressFamily, socket.SocketKind, object]:
    """What to bind to. Raises OSError."""
    found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, _, _, address = found[0]
    return family, kind, address


def _check_free(family: socket.AddressFamily, kind: socket.SocketKind, address: object) -> None:
    """Raise OSError when somebody listens there, or has it reserved: sharing a port would hide that."""
    with socket.socket(family, kind) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)  # type: ignore[arg-type]  # as getaddrinfo gave it
        probe.listen(1)  # Only who listens must have the port alone.


class RouterWorkers:
    """The ports of so many workers, reserved until `close`, and what to run on them.

    listen: host:port for the clients; port 0 takes a free one. address: the same with the real port. Raises InvalidArgument,
    FailedPrecondition for what is no address, Unavailable when the port is taken.
    """

    def __init__(self, listen: str, count: int) -> None:
        check_workers(count)
        host, separator, port = listen.rpartition(":")
        if not separator or not host or not port.isdecimal() or int(port) > 65_535:
            raise FailedPrecondition(f"not an address to listen on: {listen!r}, expected host:port")
        self._reserved: list[ReservedPort] = []
        try:
            self._reserve(host, int(port))
            for _ in range(count):
                self._reserve(PRIVATE_HOST, 0)
        except BaseException:
            self.close()
            raise
        self.address = self._reserved[0].address
        self.private = tuple(port.address for port in self._reserved[1:])

    def __repr__(self) -> str:
        return f"RouterWorkers({self.address}, {len(self.private)} workers)"

    def _reserve(self, host: str, port: int) -> None:
        self._reserved.append(ReservedPort(host, port))

    def specs(self, command: Sequence[str], metrics_port: int | None) -> list[ChildSpec]:
        """The workers. command: that of a router without its addresses. metrics_port: of the first; the others' follow it."""
        addresses, count = ",".join(self.private), len(self.private)
        specs = []
        for number in range(1, count + 1):
            place = ("--listen", self.address, "--worker", str(number), "--worker-addresses", addresses)
            metrics = () if metrics_port is None else ("--metrics-port", str(metrics_port + number - 1))
            specs.append(ChildSpec(worker_name(number, count), (*command, *place, *metrics), is_front=True))
        return specs

    def close(self) -> None:
        """Give the ports up. A second close does nothing."""
        for reserved in self._reserved:
            reserved.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()
