"""A real cluster for tests: `kvshard up` in a process of its own, with its leaves and its router below it."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 8.0
"""The supervisor promises 5 s; the rest is for a loaded machine."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def children_of(pid: int) -> dict[int, str]:
    """Pid -> command line of the living direct children."""
    found = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                if int(stat[1]) == pid and stat[0] != "Z":
                    found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def is_alive(pid: int) -> bool:
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, timeout_s: float, what: str) -> None:
    """Poll until the condition holds; real processes give no event to wait for."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"after {timeout_s:g} s still not: {what}"
        time.sleep(0.02)


class UpProcess:
    """A running `kvshard up`."""

    def __init__(self, data_dir: pathlib.Path, port: int | None = None, extra: tuple[str, ...] = ()) -> None:
        self.data_dir = data_dir
        self.port = port or free_port()
        self.address = f"127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "kvshard.cli", "up", "--data-dir", str(data_dir), "--port", str(self.port), *extra]
        self.errors = data_dir.parent / f"{data_dir.name}-up.err"
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)

    def __repr__(self) -> str:
        return f"UpProcess({self.address}, exit={self.process.poll()}, stderr={self.errors.read_text()[-2000:]!r})"

    def wait_ready(self) -> "UpProcess":
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("ready: "):
                assert line.split()[1] == self.address
                return self
        raise AssertionError(f"ended before it was ready: {self!r} exit {self.process.wait()}")

    def pids(self, module: str) -> dict[int, str]:
        """Pids of the children that run `python -m <module>`."""
        return {pid: command for pid, command in children_of(self.process.pid).items() if f"-m {module} " in command}

    def leaf_pids(self, leaf: str) -> set[int]:
        """The leaf's process; none while it is down, also for a moment in which it shows no command line yet."""
        return {pid for pid, command in self.pids("leaf").items() if f"--id {leaf} " in command}

    def leaf_pid(self, leaf: str) -> int:
        (pid,) = self.leaf_pids(leaf)
        return pid

    def stop(self, signal_number: int = signal.SIGTERM) -> int:
        """Stop it, wait for its end and give its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal_number)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            for pid in children_of(self.process.pid):
                os.kill(pid, signal.SIGKILL)
            self.process.kill()
            self.process.wait()
            raise
        finally:
            if self.process.stdout is not None:
                self.process.stdout.close()


@contextlib.contextmanager
def running_cluster(data_dir: pathlib.Path, extra: tuple[str, ...] = ()) -> Iterator[UpProcess]:
    """A cluster that serves; stopped at the end."""
    up = UpProcess(data_dir, extra=extra)
    try:
        yield up.wait_ready()
    finally:
        up.stop()
