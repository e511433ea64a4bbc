"""The processes a benchmark measures: a whole cluster, and a bare gRPC echo as the physical limit."""

import contextlib
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

START_TIMEOUT_S = 30.0
"""Far beyond any start that is still worth measuring."""


@dataclass(frozen=True, slots=True)
class RunningCluster:
    """A cluster of its own processes. start_s: from the start of the process to its `ready` line."""

    address: str
    start_s: float
    data_dir: pathlib.Path


@dataclass(frozen=True, slots=True)
class RunningEcho:
    """A bare server in a process of its own."""

    address: str
    pid: int


def free_port() -> int:
    """A TCP port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def tied(command: Sequence[str]) -> list[str]:
    """The command such that the kernel ends its process when this one ends, however that happens (Linux with setpriv)."""
    return ["setpriv", "--pdeathsig", "KILL", *command] if shutil.which("setpriv") else list(command)


def _await_ready(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("ready: "):
            return line.removeprefix("ready: ").strip()
    raise RuntimeError(f"{process.args!r} ended before it was ready (exit {process.wait()})")


@contextlib.contextmanager
def _process(command: list[str]) -> Iterator[tuple[str, float, int]]:
    started = time.perf_counter()
    process = subprocess.Popen(tied(command), stdout=subprocess.PIPE, text=True)
    try:
        address = _await_ready(process)
        yield address, time.perf_counter() - started, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(START_TIMEOUT_S)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@contextlib.contextmanager
def cluster(leaves: int = 3, shards: int = 8) -> Iterator[RunningCluster]:
    """A fresh cluster in a temporary data directory; stopped and removed at the end."""
    with tempfile.TemporaryDirectory(prefix="kvshard-bench-") as folder:
        command = [sys.executable, "-m", "kvshard.cli", "up", "--data-dir", folder, "--port", str(free_port())]
        with _process([*command, "--leaves", str(leaves), "--shards", str(shards)]) as (address, start_s, _):
            yield RunningCluster(address, start_s, pathlib.Path(folder))


@contextlib.contextmanager
def echo() -> Iterator[RunningEcho]:
    """A bare `grpc.aio` server that does nothing with what it gets."""
    with _process([sys.executable, "-m", "benchmarks.echo_server"]) as (address, _, pid):
        yield RunningEcho(address, pid)
