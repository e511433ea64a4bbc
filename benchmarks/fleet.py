"""Leaves and a router as processes that nobody supervises: what is killed stays dead until it is started again.

For benchmarks and tests that break a cluster on purpose. Every process dies with the one that started it.
"""

import asyncio
import os
import pathlib
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from kvshard.clock import SystemClock
from kvshard.clustermap import ClusterMap, Leaf
from kvshard.coordination.base import Coordinator
from kvshard.coordination.connect import connect
from kvshard.coordination.mapstore import BootstrapPlan, assemble, bootstrap
from kvshard.coordination.mapwriter import PREFIX
from kvshard.supervision import SUPERVISOR_FD_VARIABLE, SUPERVISOR_PID_VARIABLE

READY_TIMEOUT_S = 40.0
"""Far beyond a start on a loaded machine."""

STOP_TIMEOUT_S = 10.0
"""A graceful stop is promised within 5 s."""

POLL_S = 0.02
"""Between two looks at what gives no event."""

ROUTER = "router"


class ServiceProcess:
    """`python -m leaf` or `python -m router`. May be started again after its end. log: gets its stderr."""

    def __init__(self, module: str, arguments: Sequence[str], log: pathlib.Path, prefix: Sequence[str] = ()) -> None:
        """prefix: a command that executes the one behind it in its own place."""
        self.name = f"{module} {' '.join(arguments[:2])}"
        self.command = [*prefix, sys.executable, "-m", module, *arguments]
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None
        self._address = ""
        self._lifeline: int | None = None

    def __repr__(self) -> str:
        state = "down" if self.process is None else f"pid {self.process.pid}, exit {self.process.poll()}"
        log = self.log.read_text(errors="replace")[-1500:] if self.log.exists() else ""
        return f"ServiceProcess({self.name}, {state}, log={log!r})"

    @property
    def pid(self) -> int:
        """Of the running process. Raises RuntimeError when it is down."""
        if self.process is None:
            raise RuntimeError(f"{self!r} is not running")
        return self.process.pid

    @property
    def is_running(self) -> bool:
        """Whether there is a process; a paused one is."""
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        """Start it. From the main thread: the kernel ties the child's life to the thread that made it."""
        self.stop(signal.SIGKILL)
        self._address = ""
        read_end, self._lifeline = os.pipe()
        environment = {**os.environ, SUPERVISOR_FD_VARIABLE: str(read_end), SUPERVISOR_PID_VARIABLE: str(os.getpid())}
        try:
            with self.log.open("ab") as log:
                self.process = subprocess.Popen(
                    self.command, stdout=subprocess.PIPE, stderr=log, env=environment, pass_fds=(read_end,)
                )
        finally:
            os.close(read_end)

    async def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> str:
        """Its address, once it serves. Raises RuntimeError when it ends before, or takes too long."""
        if self._address:
            return self._address
        assert self.process is not None
        assert self.process.stdout is not None
        out, deadline = self.process.stdout, time.monotonic() + timeout_s
        while not select.select([out], [], [], 0)[0]:
            if time.monotonic() > deadline:
                raise RuntimeError(f"not ready after {timeout_s:g} s: {self!r}")
            await asyncio.sleep(POLL_S)
        line = out.readline().decode()
        if not line.startswith("ready: "):
            raise RuntimeError(f"ended before it was ready: {self!r}")
        self._address = line.removeprefix("ready: ").strip()
        return self._address

    def send(self, signal_number: int) -> None:
        """Send a signal: SIGSTOP pauses it, SIGCONT lets it go on."""
        os.kill(self.pid, signal_number)

    def kill(self) -> None:
        """kill -9."""
        self.stop(signal.SIGKILL)

    def stop(self, signal_number: int = signal.SIGTERM) -> None:
        """End it and wait for that; does nothing when it is down. One that does not end in time is killed."""
        process, self.process = self.process, None
        if process is not None:
            process.send_signal(signal_number)
            try:
                process.wait(STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if process.stdout is not None:
                process.stdout.close()
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


class Fleet:
    """A cluster of such processes in a folder, with the embedded coordinator. Leaves are named leaf-1, leaf-2, ..."""

    def __init__(
        self,
        folder: pathlib.Path,
        *,
        leaves: int = 3,
        shards: int = 8,
        replicas: int = 3,
        router_port: int = 0,
        leaf_arguments: Sequence[str] = (),
        router_arguments: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.names = [f"leaf-{number}" for number in range(1, leaves + 1)]
        self.coordinator_file = folder / "coordinator.db"
        self.coordinator = f"sqlite://{self.coordinator_file}"
        self.leaves = {name: self._leaf(name, leaf_arguments) for name in self.names}
        router = ("--listen", f"127.0.0.1:{router_port}", *self._shared(), *router_arguments)
        self.router = ServiceProcess(ROUTER, router, folder / "router.log", self.prefix(ROUTER))
        self.address = ""
        self._opened: Coordinator | None = None
        self._plan = BootstrapPlan(tuple(map(Leaf, self.names)), shards=shards, replicas=replicas)

    def _shared(self) -> tuple[str, ...]:
        return ("--coordinator", self.coordinator)

    def _leaf(self, name: str, arguments: Sequence[str]) -> ServiceProcess:
        place = ("--id", name, "--data-dir", str(self.data_dir(name)), *self.listen_arguments(name))
        log = self.folder / f"{name}.log"
        return ServiceProcess("leaf", (*place, *self._shared(), *arguments), log, self.prefix(name))

    def listen_arguments(self, name: str) -> tuple[str, ...]:
        """Where a leaf listens; any free port of the loopback if it is not said."""
        return ("--listen", "127.0.0.1:0")

    def prefix(self, name: str) -> tuple[str, ...]:
        """The command that a leaf, or the router, is started through."""
        return ()

    def data_dir(self, name: str) -> pathlib.Path:
        """Where a leaf's data is."""
        return self.folder / name

    @property
    def processes(self) -> dict[str, ServiceProcess]:
        """All of them by name, the router too."""
        return {**self.leaves, ROUTER: self.router}

    async def start(self) -> Self:
        """Bootstrap the cluster if it is new, and start everything; returns when it serves."""
        await bootstrap(self._store(), self._plan)
        for process in self.processes.values():
            process.start()
        for leaf in self.leaves.values():
            await leaf.wait_ready()
        self.address = await self.router.wait_ready()
        return self

    async def map(self) -> ClusterMap:
        """The map as the coordinator holds it."""
        found = assemble((await self._store().get_prefix(PREFIX)).items)
        assert found is not None
        return found

    def _store(self) -> Coordinator:
        if self._opened is None:
            self._opened = connect(self.coordinator, SystemClock())
        return self._opened

    async def primary(self, shard: int) -> str:
        """The leaf that leads a shard."""
        return (await self.map()).shards[shard].primary

    async def what_is_missing(self) -> str:
        """Which shards do not have all their wanted replicas in sync; empty when the cluster is whole."""
        shards = (await self.map()).shards.values()
        return ", ".join(
            f"shard {each.id} epoch {each.epoch}: in sync {[r.leaf for r in each.in_sync]}, learners "
            f"{[r.leaf for r in each.learners]}, desired {list(each.desired)}"
            for each in shards
            if each.learners or {r.leaf for r in each.in_sync} != set(each.desired)
        )

    async def wait_whole(self, timeout_s: float) -> float:
        """Wait until every wanted replica is in sync; returns the seconds that took. Raises RuntimeError after timeout_s."""
        began = time.monotonic()
        while missing := await self.what_is_missing():
            if time.monotonic() - began > timeout_s:
                raise RuntimeError(f"not whole after {timeout_s:g} s: {missing}; {list(self.processes.values())}")
            await asyncio.sleep(POLL_S)
        return time.monotonic() - began

    def stop(self) -> None:
        """End every process, the paused ones too."""
        running = [process for process in self.processes.values() if process.is_running]
        for process in running:
            process.send(signal.SIGCONT)
            process.send(signal.SIGTERM)
        for process in self.processes.values():
            process.stop()

    async def close(self) -> None:
        """End everything."""
        self.stop()
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    async def __aenter__(self) -> Self:
        try:
            return await self.start()
        except BaseException:
            await self.close()
            raise

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
