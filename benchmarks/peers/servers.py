"""The peers' servers: started on loopback, on ports that are free, in folders of their own, and stopped at the end."""

import contextlib
import os
import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from benchmarks.measured import Absent
from benchmarks.peers.executables import Executable, find
from benchmarks.processes import free_port, tied

READY_TIMEOUT_S = 20.0
"""Far beyond a start on a loaded machine."""

STOP_TIMEOUT_S = 10.0
POLL_S = 0.02

PROXIED_SERVERS = 2
"""As many as kvshard has leaves here."""

PROXY_CONNECTIONS = (1, 4)
"""Of twemproxies to each of their servers. One, the default, takes the least processor time; with more of them a server need
not wait for one client's answer before it sees the next one's request. Larger buffers than the default change nothing."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that answers. pids: of its own process."""

    name: str
    port: int
    pids: tuple[int, ...]
    version: str = ""

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"


@dataclass(frozen=True, slots=True)
class Proxy(Server):
    """Twemproxy, in front of some servers. connections: to each of them."""

    behind: tuple[Server, ...] = ()
    connections: int = 1


@dataclass(frozen=True, slots=True)
class Peers:
    """Everybody there is beside kvshard; each may be absent. twemproxies: in front of the same servers, set up differently."""

    redis: Server | Absent
    twemproxies: tuple[Proxy, ...] | Absent
    etcd: Server | Absent
    redis_benchmark: Executable | Absent

    @property
    def versions(self) -> dict[str, str]:
        """What each of them says of itself, or why it is absent."""
        twemproxy = self.twemproxies if isinstance(self.twemproxies, Absent) else self.twemproxies[0]
        servers = {"redis-server": self.redis, "twemproxy": twemproxy, "etcd": self.etcd}
        return {name: each.why if isinstance(each, Absent) else each.version for name, each in servers.items()}


@contextmanager
def _served(executable: Executable, arguments: Sequence[str], port: int, folder: pathlib.Path) -> Iterator[Server]:
    """Start a server and wait until it accepts connections. Raises RuntimeError when it does not."""
    log = folder / f"{executable.name}-{port}.log"
    environment = {**os.environ, **executable.environment}
    with log.open("ab") as out:
        command = tied([str(executable.path), *arguments])
        process = subprocess.Popen(command, cwd=folder, stdout=out, stderr=out, env=environment)
    try:
        _accepts(process, port, log)
        yield Server(executable.name, port, (process.pid,), executable.version)
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _accepts(process: "subprocess.Popen[bytes]", port: int, log: pathlib.Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", port), 1.0).close()
            return
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"{process.args!r} does not serve: {log.read_text(errors='replace')[-1000:]}")
        time.sleep(POLL_S)


def _redis(stack: ExitStack, executable: Executable, folder: pathlib.Path) -> Server:
    """As a cache: it writes nothing to disk, which is its fastest way."""
    port = free_port()
    arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    return stack.enter_context(_served(executable, arguments, port, folder))


def proxy_settings(port: int, servers: Sequence[Server], connections: int) -> str:
    """The configuration of a twemproxy in front of these servers, as YAML."""
    lines = [
        "bench:",
        f"  listen: 127.0.0.1:{port}",
        "  hash: murmur",
        "  distribution: ketama",
        "  redis: true",
        f"  server_connections: {connections}",
        "  servers:",
        *(f"   - {server.address}:1 server-{number}" for number, server in enumerate(servers, 1)),
    ]
    return "\n".join(lines) + "\n"


def _twemproxy(
    stack: ExitStack, executable: Executable, folder: pathlib.Path, behind: Sequence[Server], connections: int
) -> Proxy:
    port, status_port = free_port(), free_port()
    settings = folder / f"nutcracker-{port}.yml"
    settings.write_text(proxy_settings(port, behind, connections))
    # Without a log of its own Debian's build insists on one in /var/log.
    arguments = ["-c", str(settings), "-o", "/dev/stderr"]
    arguments += ["-a", "127.0.0.1", "-s", str(status_port)]
    server = stack.enter_context(_served(executable, arguments, port, folder))
    return Proxy(server.name, server.port, server.pids, server.version, tuple(behind), connections)


def _etcd(stack: ExitStack, executable: Executable, folder: pathlib.Path) -> Server:
    """One member, which syncs every write, as it does by default."""
    port, peer_port = free_port(), free_port()
    client, peer = f"http://127.0.0.1:{port}", f"http://127.0.0.1:{peer_port}"
    arguments = ["--name=one", f"--data-dir={folder / 'etcd'}", f"--listen-client-urls={client}", "--logger=zap"]
    arguments += [f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
    arguments += [f"--initial-cluster=one={peer}", "--quota-backend-bytes=4294967296"]
    return stack.enter_context(_served(executable, arguments, port, folder))


@contextmanager
def peers(folder: pathlib.Path) -> Iterator[Peers]:
    """Start every peer whose program can be found."""
    redis, nutcracker, etcd = map(find, ("redis-server", "nutcracker", "etcd"))
    with ExitStack() as stack:
        alone: Server | Absent = redis if isinstance(redis, Absent) else _redis(stack, redis, folder)
        proxies: tuple[Proxy, ...] | Absent
        if isinstance(redis, Absent) or isinstance(nutcracker, Absent):
            proxies = Absent("twemproxy", "; ".join(each.why for each in (redis, nutcracker) if isinstance(each, Absent)))
        else:
            behind = [_redis(stack, redis, folder) for _ in range(PROXIED_SERVERS)]
            proxies = tuple(_twemproxy(stack, nutcracker, folder, behind, each) for each in PROXY_CONNECTIONS)
        store: Server | Absent = etcd if isinstance(etcd, Absent) else _etcd(stack, etcd, folder)
        yield Peers(alone, proxies, store, find("redis-benchmark"))
