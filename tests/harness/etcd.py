"""A real etcd server for tests: found or fetched, started on loopback, stopped by its pid."""

import base64
import contextlib
import functools
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import time
import urllib.request

import pytest

READY_TIMEOUT_S = 20.0
FETCH_TIMEOUT_S = 120.0
CACHE = pathlib.Path(__file__).resolve().parents[2] / ".cache" / "etcd"


@functools.cache
def etcd_binary() -> pathlib.Path | str:
    """The server's executable, or why there is none."""
    found = shutil.which("etcd")
    if found:
        return pathlib.Path(found)
    unpacked = CACHE / "unpacked" / "usr" / "bin" / "etcd"
    if not unpacked.exists():
        why = _fetch()
        if why:
            return why
    return unpacked


def _fetch() -> str:
    """Unpack Debian's package into the cache; needs neither root nor an installation. Returns why it failed, or ''."""
    if not shutil.which("apt-get") or not shutil.which("dpkg"):
        return "no etcd on PATH, and no apt-get and dpkg to fetch Debian's etcd-server with"
    CACHE.mkdir(parents=True, exist_ok=True)
    for attempt in ("download", "update", "download"):
        command = ["apt-get", "--quiet", attempt, *(["etcd-server"] if attempt == "download" else [])]
        try:
            ran = subprocess.run(command, cwd=CACHE, capture_output=True, text=True, timeout=FETCH_TIMEOUT_S, check=False)
        except subprocess.TimeoutExpired:
            return f"no etcd on PATH, and {' '.join(command)} took longer than {FETCH_TIMEOUT_S:g} s"
        packages = sorted(CACHE.glob("etcd-server_*.deb"))
        if packages:
            # Under another name first: a test run that is cut off must not leave half a server behind.
            partial = CACHE / f"unpacking-{os.getpid()}"
            subprocess.run(["dpkg", "-x", str(packages[-1]), str(partial)], check=True, timeout=FETCH_TIMEOUT_S)
            with contextlib.suppress(OSError):
                partial.rename(CACHE / "unpacked")
            shutil.rmtree(partial, ignore_errors=True)
            return ""
    return f"no etcd on PATH, and apt-get cannot download etcd-server: {ran.stderr.strip()[-300:]}"


def need_etcd() -> pathlib.Path:
    """The executable; skips the test when there is none."""
    binary = etcd_binary()
    if isinstance(binary, str):
        pytest.skip(binary)
    return binary


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


class EtcdServer:
    """A cluster of one member. May be stopped, killed, paused and started again on the same port and data."""

    def __init__(self, folder: pathlib.Path, *, flags: tuple[str, ...] = (), scheme: str = "http") -> None:
        self.binary = need_etcd()
        self.folder = folder
        self.flags = flags
        self.scheme = scheme
        port, self.peer_port = free_ports(2)
        self.endpoint = f"127.0.0.1:{port}"
        self.log = folder / "etcd.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "stopped" if self.process is None else f"pid {self.process.pid}, exit {self.process.poll()}"
        return f"EtcdServer({self.endpoint}, {state}, log={self.log.read_text()[-1500:] if self.log.exists() else ''!r})"

    def url(self, prefix: str = "", query: str = "") -> str:
        return f"etcd://{self.endpoint}/{prefix}{query}"

    def start(self) -> "EtcdServer":
        """Start it; returns when it answers."""
        self.start_without_probe()
        assert self.process is not None
        deadline = time.monotonic() + READY_TIMEOUT_S
        while not self._is_serving():
            assert self.process.poll() is None, f"etcd did not start: {self!r}"
            assert time.monotonic() < deadline, f"etcd is not ready: {self!r}"
            time.sleep(0.02)
        return self

    def start_without_probe(self) -> None:
        """Start it; it may need a login, so whether it answers is the test's business."""
        client, peer = f"{self.scheme}://{self.endpoint}", f"http://127.0.0.1:{self.peer_port}"
        command = [str(self.binary), "--name=one", f"--data-dir={self.folder / 'etcd'}", f"--listen-client-urls={client}"]
        command += [f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}"]
        # Short elections: after a start the store answers at once, and leases may last only a second.
        command += [f"--initial-cluster=one={peer}", "--heartbeat-interval=20", "--election-timeout=200", *self.flags]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "GOMAXPROCS": "1"})

    def _is_serving(self) -> bool:
        if self.scheme == "https":
            with contextlib.suppress(OSError), socket.create_connection(self.endpoint.split(":"), 1.0):
                return True
            return False
        with contextlib.suppress(OSError):
            return bool(self.call("kv/range", {"key": text("probe")})["header"])
        return False

    def call(self, method: str, body: dict[str, object], token: str = "") -> dict[str, dict[str, str]]:
        """Ask through the server's JSON gateway: what kvshard itself never does, such as compacting."""
        request = urllib.request.Request(f"http://{self.endpoint}/v3/{method}", json.dumps(body).encode())
        if token:
            request.add_header("Authorization", token)
        with urllib.request.urlopen(request, timeout=5.0) as answer:
            return json.load(answer)

    def revision(self) -> int:
        return int(self.call("kv/range", {"key": text("probe")})["header"]["revision"])

    def compact(self, through: int) -> None:
        self.call("kv/compaction", {"revision": str(through), "physical": True})

    def send(self, signal_number: int) -> None:
        assert self.process is not None
        self.process.send_signal(signal_number)

    def pause(self) -> None:
        """Stop it, until SIGCONT; returns when it stands still: it may answer a request after the signal was sent."""
        self.send(signal.SIGSTOP)
        assert self.process is not None
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def stop(self, signal_number: int = signal.SIGKILL) -> None:
        """End it; a later start continues its data."""
        if self.process is not None:
            self.process.send_signal(signal_number)
            self.process.wait(10.0)
            self.process = None


def text(value: str) -> str:
    """Bytes as the JSON gateway wants them."""
    return base64.b64encode(value.encode()).decode()
