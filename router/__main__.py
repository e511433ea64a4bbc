"""`python -m router`: one router process. Exit codes: 0 stopped, 2 wrong usage, 3 a port cannot be had."""

import argparse
import asyncio
import os
import signal
import sys
from collections.abc import Sequence

from kvshard.errors import InvalidArgument, KvShardError
from kvshard.supervision import watch_supervisor
from kvshard.telemetry import LOG_LEVELS, configure_logging

# gRPC's C++ core writes lines of its own to stderr, which are neither JSON nor for operators; what matters is raised. It reads
# this once, when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

from router.server import RouterOptions, run

EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a wrong one ends the process with EXIT_USAGE."""
    parser = argparse.ArgumentParser(prog="python -m router", description="Runs one kvshard router.", allow_abbrev=False)
    parser.add_argument("--coordinator", required=True, metavar="URL", help="sqlite:///absolute/path/of/coordinator.db")
    parser.add_argument("--listen", default="127.0.0.1:7700", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--metrics-port", type=int, default=0, help="serve Prometheus metrics there; absent or 0: nowhere")
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON objects")
    parser.add_argument("--log-level", default="info", choices=sorted(LOG_LEVELS))
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM, SIGINT or the end of the supervisor. Returns the exit code."""
    options = parse(arguments)
    configure_logging(options.log_level, options.log_json)
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(RouterOptions(options.coordinator, options.listen, options.metrics_port or None)))
    except InvalidArgument as error:
        print(f"router: {error.message}", file=sys.stderr)
        return EXIT_USAGE
    except KvShardError as error:
        print(f"router: {error.message}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return 0


async def _serve(options: RouterOptions) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def stop_from_thread() -> None:
        loop.call_soon_threadsafe(stop.set)

    watch_supervisor(stop_from_thread)
    await run(options, stop, lambda address: print(f"ready: {address}", flush=True))


def _loop_factory() -> "type[asyncio.AbstractEventLoop] | None":
    """uvloop's event loop, a tenth faster under gRPC; the standard one where uvloop does not exist."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.Loop


if __name__ == "__main__":
    sys.exit(main())
