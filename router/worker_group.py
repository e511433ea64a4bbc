"""`python -m router --workers N`: a process that keeps N router processes running on one port, and is none itself."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from kvshard.clock import SystemClock
from kvshard.errors import FailedPrecondition
from kvshard.router_workers import RouterWorkers
from kvshard.supervisor import StartFailed, Supervisor

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class GroupOptions:
    """How the workers run. listen: the address they share. metrics_port: the first one's; None: none. flags: what all get."""

    listen: str
    workers: int
    metrics_port: int | None
    flags: tuple[str, ...]


async def run_group(options: GroupOptions, stop: asyncio.Event, on_ready: Callable[[str], None]) -> None:
    """Run the workers until `stop` is set. on_ready gets the shared host:port once all of them serve.

    A worker that ends is started again, at its places. Raises InvalidArgument for a wrong option, Unavailable when a port is
    taken, FailedPrecondition when a worker does not start.
    """
    with RouterWorkers(options.listen, options.workers) as workers:
        # -P: a folder "router" where the user happens to stand must not be taken for ours.
        command = (sys.executable, "-P", "-m", "router", *options.flags)
        specs = workers.specs(command, options.metrics_port)
        supervisor = Supervisor(specs, None, SystemClock(), log.warning, _echo)
        # Each waits for the cluster for as long as it takes, as a router without workers does.
        starting = asyncio.create_task(supervisor.start(timeout=None), name="workers-start")
        stopping = asyncio.create_task(stop.wait(), name="workers-stop-wait")
        try:
            await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not stop.is_set():
                starting.result()
                log.info("router ready", address=workers.address, workers=supervisor.pids)
                on_ready(workers.address)
                await stopping
            log.info("router stopping", address=workers.address)
        except StartFailed as error:
            raise FailedPrecondition(f"{error}; what it said stands above") from None
        finally:
            starting.cancel()
            stopping.cancel()
            await supervisor.stop()
            await asyncio.gather(starting, stopping, return_exceptions=True)


def _echo(name: str, line: str) -> None:
    # Each of a worker's own lines names it; a prefix would make JSON unreadable.
    print(line, file=sys.stderr, flush=True)
