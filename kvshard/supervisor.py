"""Keeps a set of child processes running, and leaves none behind.

May live here: starting, watching, restarting and stopping children, and what becomes of their output. Which children there are
and with which arguments is decided by the caller (`kvshard/local_cluster.py`); how long to wait before a restart by
`kvshard/restart_policy.py`; how a child notices its supervisor's death is `kvshard/supervision.py`.
"""

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from kvshard.clock import Clock
from kvshard.restart_policy import RestartPolicy
from kvshard.supervision import EXIT_DONE, SUPERVISOR_FD_VARIABLE, SUPERVISOR_PID_VARIABLE

Echo: TypeAlias = Callable[[str, str], None]
"""Gets a child's name and a line of its output."""

START_ATTEMPTS = 3
"""Starts of a child before its first `ready:`, after which the whole start fails: enough for a predecessor killed a moment ago
to let go of its files and port, few enough to tell the user of a lasting fault within seconds."""

START_TIMEOUT_S = 60.0
"""A leaf that recovers a long log takes seconds; beyond a minute something hangs."""

FRONT_STOP_S = 1.0
"""Head start of the front children (router) over the others: it answers what is under way while the leaves still serve."""

STOP_S = 4.0
"""From the order to stop until SIGKILL: `up` promises that all is gone within 5 s, and a kill takes a while to be reaped."""

LOG_MAX_BYTES = 8 * 1024 * 1024
"""A child's log file is moved aside at this size and one older file is kept: 16 MB a child at most."""

TAIL_LINES = 20
"""Last lines of output kept to explain a child that does not start."""

_READ_BYTES = 64 * 1024
_DRAIN_S = 0.5


class StartFailed(Exception):
    """A child did not become ready. tail: the last lines it wrote."""

    def __init__(self, name: str, why: str, tail: Sequence[str]) -> None:
        super().__init__(f"{name} {why}")
        self.name = name
        self.tail = tuple(tail)


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """A child to run. It must print one line `ready: host:port` on stdout once it serves.

    is_front: stopped before the others. stop_signal: what it is sent when all are stopped. keeps_address: a restart listens
    where the first start did: the address that was announced takes the place of the value of `--listen`.
    """

    name: str
    command: tuple[str, ...]
    is_front: bool = False
    stop_signal: signal.Signals = signal.SIGTERM
    keeps_address: bool = False

    def command_at(self, address: str | None) -> tuple[str, ...]:
        """The command of a start after the child had announced this address (None: it never has)."""
        if address is None or not self.keeps_address:
            return self.command
        at = self.command.index("--listen") + 1
        return (*self.command[:at], address, *self.command[at + 1 :])


class ChildLog:
    """A child's output: a file of bounded size (None: no file), and the last lines in memory."""

    def __init__(self, path: Path | None, max_bytes: int = LOG_MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._file = None if path is None else path.open("ab")
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    def write(self, line: bytes) -> None:
        """Append one line; a full disk costs lines of the log, never the cluster."""
        self.tail.append(line.decode("utf-8", "replace").rstrip())
        if self._file is None or self._path is None:
            return
        with contextlib.suppress(OSError):
            if self._file.tell() + len(line) > self._max_bytes:
                self._file.close()
                self._path.replace(self._path.with_suffix(".log.1"))
                self._file = self._path.open("ab")
            self._file.write(line if line.endswith(b"\n") else line + b"\n")
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


@dataclass(eq=False, slots=True)
class _Child:
    spec: ChildSpec
    log: ChildLog
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    process: asyncio.subprocess.Process | None = None
    address: str | None = None
    is_up: asyncio.Event = field(default_factory=asyncio.Event)
    starts: int = 0
    failure: StartFailed | None = None


class Supervisor:
    """Starts children, restarts those that crash, stops all.

    log_dir: where each child's output goes; None: only to echo. report gets one line of text per crash and restart. echo, if
    given, gets every line of the children's output. Start it from the main thread (see `supervision`).
    """

    def __init__(
        self,
        specs: Sequence[ChildSpec],
        log_dir: Path | None,
        clock: Clock,
        report: Callable[[str], None],
        echo: Echo | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        if log_dir is not None:
            log_dir.mkdir(parents=True, exist_ok=True)
        paths = (None if log_dir is None else log_dir / f"{spec.name}.log" for spec in specs)
        self._children = [_Child(spec, ChildLog(path)) for spec, path in zip(specs, paths, strict=True)]
        self._clock = clock
        self._report = report
        self._echo = echo
        self._environment = dict(os.environ if environment is None else environment)
        # Children inherit the read end; this process alone holds the write end, so that its death is their end of file.
        self._read_fd, self._write_fd = os.pipe()
        self._tasks: list[asyncio.Task[None]] = []
        self._is_stopping = False
        self._changed = asyncio.Event()

    async def start(self, timeout: float | None = START_TIMEOUT_S) -> dict[str, str]:
        """Start all at once; returns each child's address when every one is ready. Raises StartFailed; then call stop.

        timeout None: wait for as long as it takes, for children that wait for something themselves.
        """
        self._tasks = [asyncio.create_task(self._keep_running(child), name=child.spec.name) for child in self._children]
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while not all(child.is_up.is_set() for child in self._children):
                    self._changed.clear()
                    for child in self._children:
                        if child.failure is not None:
                            raise child.failure
                    await self._changed.wait()
        for child in self._children:
            if timeout is not None and not child.is_up.is_set():
                raise StartFailed(child.spec.name, f"was not ready within {timeout:g} s", child.log.tail)
        return self.addresses

    @property
    def addresses(self) -> dict[str, str]:
        """Where each child that ever was ready said it serves."""
        return {child.spec.name: child.address for child in self._children if child.address is not None}

    @property
    def pids(self) -> dict[str, int]:
        """The running children."""
        return {
            child.spec.name: child.process.pid
            for child in self._children
            if child.process is not None and child.process.returncode is None
        }

    async def stop(self) -> None:
        """Stop every child: front first, SIGTERM, and SIGKILL for what is left after STOP_S. No child is left afterwards."""
        self._is_stopping = True
        began = self._clock.monotonic()
        await self._terminate([child for child in self._children if child.spec.is_front], FRONT_STOP_S)
        await self._terminate(self._children, STOP_S - (self._clock.monotonic() - began))
        self.kill()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for child in self._children:
            child.log.close()
        for fd in (self._read_fd, self._write_fd):
            with contextlib.suppress(OSError):
                os.close(fd)
        self._read_fd = self._write_fd = -1  # The numbers may be other people's by the time of a second stop.

    def kill(self) -> None:
        """SIGKILL every child now; stop still has to be awaited."""
        for child in self._children:
            _signal(child, signal.SIGKILL)

    async def _terminate(self, children: Sequence[_Child], timeout: float) -> None:
        running = [child.process for child in children if child.process is not None and child.process.returncode is None]
        for child in children:
            _signal(child, child.spec.stop_signal)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, timeout)):
                for process in running:
                    await process.wait()

    async def _keep_running(self, child: _Child) -> None:
        """Start the child, wait for its end, start it again, until told to stop."""
        try:
            while not self._is_stopping:
                why = await self._run_once(child)
                if self._is_stopping:
                    return
                if child.process is not None and child.process.returncode == EXIT_DONE and child.address is not None:
                    self._report(f"{child.spec.name} has left the cluster")
                    return
                delay = child.policy.exited(self._clock.monotonic())
                if child.address is None and child.starts >= START_ATTEMPTS:
                    child.failure = StartFailed(child.spec.name, why, child.log.tail)
                    return
                self._report(f"{child.spec.name} {why}; starting it again in {delay:g} s")
                await asyncio.sleep(delay)
        finally:
            self._changed.set()

    async def _run_once(self, child: _Child) -> str:
        """One life of the child; returns how it ended."""
        child.starts += 1
        child.policy.started(self._clock.monotonic())
        try:
            process = await self._spawn(child)
        except OSError as error:
            return f"could not be started: {error}"
        child.process = process
        assert process.stdout is not None
        assert process.stderr is not None
        readers = [
            asyncio.create_task(self._read_stdout(child, process.stdout)),
            asyncio.create_task(self._read_stderr(child, process.stderr)),
        ]
        try:
            code = await process.wait()
            # Bounded: something the child started may still hold its pipes open.
            await asyncio.wait(readers, timeout=_DRAIN_S)
        finally:
            # Cancelled in the midst of it: the process must not outlive this task.
            await _end(child, process)
            for reader in readers:
                reader.cancel()
            await asyncio.gather(*readers, return_exceptions=True)
            child.is_up.clear()
        return _describe(code)

    async def _spawn(self, child: _Child) -> asyncio.subprocess.Process:
        # A session of its own: Ctrl-C in the terminal reaches the supervisor alone, which then stops the children in order.
        return await asyncio.create_subprocess_exec(
            *child.spec.command_at(child.address),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            pass_fds=(self._read_fd,),
            env=self._environment | {SUPERVISOR_FD_VARIABLE: str(self._read_fd), SUPERVISOR_PID_VARIABLE: str(os.getpid())},
        )

    async def _read_stdout(self, child: _Child, stream: asyncio.StreamReader) -> None:
        async for line in _lines(stream):
            if line.startswith(b"ready: "):
                child.address = line.removeprefix(b"ready: ").strip().decode("ascii", "replace")
                if child.starts > 1:
                    self._report(f"{child.spec.name} is ready again")
                child.is_up.set()
                self._changed.set()
            else:
                self._record(child, line)

    async def _read_stderr(self, child: _Child, stream: asyncio.StreamReader) -> None:
        async for line in _lines(stream):
            self._record(child, line)

    def _record(self, child: _Child, line: bytes) -> None:
        child.log.write(line)
        if self._echo is not None:
            self._echo(child.spec.name, line.decode("utf-8", "replace").rstrip())


async def _lines(stream: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines of a stream. One longer than _READ_BYTES comes in pieces: readline would raise, and lose it."""
    rest = b""
    while chunk := await stream.read(_READ_BYTES):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
        if len(rest) > _READ_BYTES:
            yield rest
            rest = b""
    if rest:
        yield rest


def _signal(child: _Child, number: signal.Signals) -> None:
    if child.process is not None and child.process.returncode is None:
        # The child leads a process group of its own name; whatever it started goes with it.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.process.pid, number)


async def _end(child: _Child, process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        _signal(child, signal.SIGKILL)
        await process.wait()


def _describe(code: int) -> str:
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
