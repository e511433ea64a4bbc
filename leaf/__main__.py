"""`python -m leaf`: one leaf process. Exit codes: 0 stopped, 2 wrong usage, 3 a port or the data directory cannot be had."""

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from kvshard.errors import InvalidArgument, KvShardError
from kvshard.supervision import watch_supervisor
from kvshard.telemetry import LOG_LEVELS, configure_logging
from leaf.server import LeafOptions, run

EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a wrong one ends the process with EXIT_USAGE."""
    parser = argparse.ArgumentParser(prog="python -m leaf", description="Runs one kvshard leaf.", allow_abbrev=False)
    parser.add_argument("--id", required=True, help="the leaf's name, unique in the cluster")
    parser.add_argument("--data-dir", required=True, type=Path, metavar="DIR", help="where its data lives; made if missing")
    parser.add_argument("--coordinator", required=True, metavar="URL", help="sqlite:///absolute/path/of/coordinator.db")
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument("--zone", default="", help="failure zone")
    parser.add_argument("--weight", type=float, default=1.0, help="share of the replicas, relative to other leaves")
    parser.add_argument("--metrics-port", type=int, default=0, help="serve Prometheus metrics there; absent or 0: nowhere")
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON objects")
    parser.add_argument("--log-level", default="info", choices=sorted(LOG_LEVELS))
    parser.add_argument("--no-fsync", action="store_true", help="lose acknowledged writes if the machine dies; for tests only")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM, SIGINT or the end of the supervisor. Returns the exit code."""
    options = parse(arguments)
    configure_logging(options.log_level, options.log_json)
    leaf = LeafOptions(
        options.id,
        options.data_dir,
        options.coordinator,
        options.listen,
        options.zone,
        options.weight,
        options.metrics_port or None,
        is_synced=not options.no_fsync,
    )
    try:
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(_serve(leaf))
    except InvalidArgument as error:
        print(f"leaf {leaf.id}: {error.message}", file=sys.stderr)
        return EXIT_USAGE
    except KvShardError as error:
        print(f"leaf {leaf.id}: {error.message}", file=sys.stderr)
        return EXIT_UNAVAILABLE
    return 0


async def _serve(options: LeafOptions) -> None:
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
