"""A cluster of real processes whose network, disks and coordinator can be made bad.

Each leaf stands behind proxies of its own, whose address is the one in the map: router and leaves reach it only through these.
"""

import asyncio
import contextlib
import pathlib
import shutil
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Iterable, Sequence

from harness.cluster import free_port
from harness.fault_doors import FaultDoors
from harness.fault_proxy import Direction, Fault, Mode
from harness.socket_owner import owner_of

from benchmarks.fleet import ROUTER, Fleet

FAILURE_TIMEOUT_S = 1.0
"""Shorter than the default, so that the tests are; long against the pauses of a machine that does other things too."""

WHOLE_WITHIN_S = 25.0
"""Time to be in sync again after a fault: a restart, a grace, a catch-up of little data, on a busy machine."""


NOTICED_WITHIN_S = 0.7 * FAILURE_TIMEOUT_S
"""A little more than the silence after which a replica is put out."""


class FaultyCluster(Fleet):
    """Three leaves, a router, the embedded coordinator, and a proxy before each leaf."""

    def __init__(self, folder: pathlib.Path, *, shards: int = 4, extra: Sequence[str] = ()) -> None:
        names = [f"leaf-{number}" for number in (1, 2, 3)]
        self.proxies = {name: FaultDoors(self._who) for name in names}
        timeout = ("--failure-timeout", str(FAILURE_TIMEOUT_S))
        super().__init__(folder, shards=shards, router_port=free_port(), leaf_arguments=(*timeout, *extra))

    def listen_arguments(self, name: str) -> tuple[str, ...]:
        doors = self.proxies[name]
        return ("--listen", f"127.0.0.1:{doors.ports[0]}", "--advertise", doors.address, *doors.lane_arguments)

    def _who(self, local: int, remote: int) -> str:
        return owner_of(local, remote, {name: each.pid for name, each in self.processes.items() if each.is_running})

    async def start(self) -> "FaultyCluster":
        for proxy in self.proxies.values():
            await proxy.start()
        await super().start()
        return self

    async def close(self) -> None:
        """Stop the processes, then the network."""
        await super().close()
        for proxy in self.proxies.values():
            await proxy.close()

    def direct_address(self, leaf: str) -> str:
        """Where the leaf listens itself, past its proxy."""
        return f"127.0.0.1:{self.proxies[leaf].ports[0]}"

    # -- the network ----------------------------------------------------------------------------------------------------

    def cut(self, sender: str, receiver: str, mode: Mode = Mode.STALL) -> None:
        """No byte of one leaf reaches the other one, on whichever connection; the other way goes on."""
        fault = Fault(mode)
        self.proxies[receiver].set(fault, sender, [Direction.TO_SERVER])
        self.proxies[sender].set(fault, receiver, [Direction.TO_DIALLER])

    def part(self, one: str, others: Iterable[str], mode: Mode = Mode.STALL) -> None:
        """Cut both ways between one leaf and some others."""
        for other in others:
            self.cut(one, other, mode)
            self.cut(other, one, mode)

    def isolate_from_router(self, leaf: str, mode: Mode = Mode.STALL) -> None:
        """The router does not reach the leaf; the other leaves do."""
        self.proxies[leaf].set(Fault(mode), ROUTER)

    def heal(self) -> None:
        """Let the network be good again."""
        for proxy in self.proxies.values():
            proxy.heal()

    # -- processes and disks ---------------------------------------------------------------------------------------------

    def others(self, leaf: str) -> list[str]:
        return [name for name in self.names if name != leaf]

    async def restart(self, name: str) -> None:
        """Start what is down."""
        process = self.processes[name]
        process.start()
        address = await process.wait_ready()
        if name == ROUTER:
            self.address = address

    def wipe(self, leaf: str) -> None:
        """Delete the data of a leaf that is down."""
        assert not self.leaves[leaf].is_running
        for entry in self.data_dir(leaf).iterdir():
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    @contextlib.asynccontextmanager
    async def paused(self, leaf: str) -> AsyncIterator[None]:
        """The leaf does not run meanwhile."""
        self.leaves[leaf].send(signal.SIGSTOP)
        try:
            yield
        finally:
            self.leaves[leaf].send(signal.SIGCONT)

    @contextlib.contextmanager
    def locked_coordinator(self):
        """Nobody can write to the coordinator meanwhile."""
        db = sqlite3.connect(self.coordinator_file, timeout=10.0, isolation_level=None)
        try:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("ROLLBACK")
        finally:
            db.close()

    async def mend(self) -> float:
        """Heal the network, start what is down, and wait until all is in sync; returns the seconds that took."""
        began = time.monotonic()
        self.heal()
        for process in self.processes.values():
            if not process.is_running:
                process.start()
        for process in self.processes.values():
            await process.wait_ready()
        while True:
            await self.wait_whole(WHOLE_WITHIN_S)
            ended = time.monotonic()
            # What just happened may not have been noticed yet.
            await asyncio.sleep(NOTICED_WITHIN_S)
            if not await self.what_is_missing():
                return ended - began
