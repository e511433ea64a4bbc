"""The ports that a router's workers share, and their command lines. Starts no process."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from kvshard.errors import FailedPrecondition, InvalidArgument, Unavailable
from kvshard.router_workers import ReservedPort, RouterWorkers


@contextmanager
def listening(port: int, *, shares: bool) -> Iterator[socket.socket]:
    """As a router listens: alone, or beside others."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        listener.bind(("127.0.0.1", port))
        listener.listen()
        listener.settimeout(5)
        yield listener


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def test_those_who_share_a_reserved_port_get_its_connections():
    reserved = ReservedPort("127.0.0.1", 0)
    try:
        port = port_of(reserved.address)
        for _ in range(2):  # The second time as after a restart.
            with listening(port, shares=True) as listener, socket.create_connection(("127.0.0.1", port), timeout=5):
                listener.accept()[0].close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=5)
    finally:
        reserved.close()


def test_nobody_else_can_have_a_reserved_port():
    reserved = ReservedPort("127.0.0.1", 0)
    port = port_of(reserved.address)
    with pytest.raises(OSError, match="in use"), listening(port, shares=False):
        pass
    with pytest.raises(Unavailable, match=f"port {port} on 127.0.0.1 is in use"):
        ReservedPort("127.0.0.1", port)
    with listening(port, shares=True), pytest.raises(Unavailable, match="is in use"):
        ReservedPort("127.0.0.1", port)
    reserved.close()
    reserved.close()
    ReservedPort("127.0.0.1", port).close()


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_somebody_listens_on_cannot_be_reserved(shares: bool):
    with listening(0, shares=shares) as listener, pytest.raises(Unavailable, match="is in use"):
        ReservedPort("127.0.0.1", listener.getsockname()[1])


def test_a_port_is_reserved_beside_connections_of_its_predecessor():
    """They linger in TIME_WAIT at the side that closed first."""
    with listening(0, shares=False) as listener:
        port = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            accepted, _ = listener.accept()
            accepted.close()
            assert client.recv(1) == b""
    ReservedPort("127.0.0.1", port).close()


def test_addresses_that_cannot_be():
    with pytest.raises(Unavailable, match="cannot be used"):
        ReservedPort("192.0.2.1", 4711)
    for listen in ("7700", ":7700", "127.0.0.1:", "127.0.0.1:port", "127.0.0.1:65536"):
        with pytest.raises(FailedPrecondition, match="not an address to listen on"):
            RouterWorkers(listen, 2)
    with pytest.raises(InvalidArgument, match="--workers"):
        RouterWorkers("127.0.0.1:0", 0)


def test_what_is_run_on_the_ports():
    with RouterWorkers("127.0.0.1:0", 2) as workers:
        assert len({workers.address, *workers.private}) == 3
        first, second = workers.specs(("python", "-m", "router", "--coordinator", "x"), 9100)
        assert (first.name, second.name) == ("router-1", "router-2")
        assert first.is_front
        assert second.is_front
        for number, spec in enumerate((first, second), start=1):
            place = ("--listen", workers.address, "--worker", str(number), "--worker-addresses", ",".join(workers.private))
            assert spec.command == (
                *("python", "-m", "router", "--coordinator", "x"),
                *place,
                *("--metrics-port", str(9099 + number)),
            )
            assert spec.command_at("127.0.0.1:1") == spec.command, "a restart takes the same places"
        assert not any("metrics" in each for spec in workers.specs(("router",), None) for each in spec.command)


def test_ports_are_given_up_when_one_of_them_cannot_be_had():
    with listening(0, shares=False) as listener, pytest.raises(Unavailable):
        RouterWorkers(f"127.0.0.1:{listener.getsockname()[1]}", 2)
    with RouterWorkers("127.0.0.1:0", 2) as workers:
        held = workers.private
    for address in held:
        ReservedPort("127.0.0.1", port_of(address)).close()
