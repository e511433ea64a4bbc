"""What the processes of a router and of a leaf have in common: event loop, stop signals, supervisor, exit code.

Import it before anything that loads gRPC.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import TypeAlias

from kvshard.errors import InvalidArgument, KvShardError
from kvshard.event_loop import loop_factory
from kvshard.supervision import HASTY_STOP_SIGNAL, watch_supervisor

# gRPC's C++ core writes lines of its own to stderr, which are neither JSON nor for operators; what matters is raised. It reads
# this once, when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3

Serve: TypeAlias = Callable[[asyncio.Event, Callable[[str], None]], Coroutine[object, object, int | None]]
"""Serves until the event is set; calls the function with host:port once it does. May return an exit code."""


def run_service(name: str, serve: Serve) -> int:
    """Serve until SIGTERM, SIGINT, SIGHUP (in haste: see StopOrder) or the end of the supervisor.

    Returns the exit code; errors go to stderr, a line each.
    """
    try:
        with asyncio.Runner(loop_factory=loop_factory()) as runner:
            code = runner.run(_serve(serve))
    except InvalidArgument as error:
        print(f"{name}: {error.message}", file=sys.stderr)
        return EXIT_USAGE
    except KvShardError as error:
        print(f"{name}: {error.message}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return code or 0


class StopOrder(asyncio.Event):
    """Set when the process is to stop. is_hasty: everything stops together, so that there is nobody to hand work over to."""

    is_hasty = False

    def set_hasty(self) -> None:
        """Stop without handing over."""
        self.is_hasty = True
        self.set()


async def _serve(serve: Serve) -> int | None:
    stop = StopOrder()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.add_signal_handler(HASTY_STOP_SIGNAL, stop.set_hasty)

    def stop_from_thread() -> None:
        loop.call_soon_threadsafe(stop.set_hasty)

    watch_supervisor(stop_from_thread)
    return await serve(stop, lambda address: print(f"ready: {address}", flush=True))
