"""`python -m leaf`: one leaf process.

Exit codes: 0 stopped, 2 wrong usage, 3 a port or the data directory cannot be had, 4 the leaf was removed from the cluster.
"""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path

from kvshard.heap import settle_heap
from kvshard.lane_arguments import add_lane_port
from kvshard.limits import FAILURE_TIMEOUT_S, HEAL_AFTER_S, REFRESH_INTERVAL_S
from kvshard.rpc.lane_port import LanePort
from kvshard.service_process import run_service
from kvshard.telemetry import LOG_LEVELS, configure_logging
from leaf.key_cache import CACHE_BYTES
from leaf.server import MIB, LeafOptions, run

SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep Python's lock while others want it. With the usual 5 ms the event loop waits so long each time it
wakes beside a search that computes in Python, several times for one answer."""


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a wrong one ends the process with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m leaf", description="Runs one kvshard leaf.", allow_abbrev=False)
    parser.add_argument("--id", required=True, help="the leaf's name, unique in the cluster")
    parser.add_argument("--data-dir", required=True, type=Path, metavar="DIR", help="where its data lives; made if missing")
    parser.add_argument(
        "--coordinator",
        required=True,
        metavar="URL",
        help="sqlite:///absolute/path/of/coordinator.db or etcd://host:port,host:port",
    )
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0 takes a free one")
    parser.add_argument(
        "--advertise", default="", metavar="HOST:PORT", help="where others reach it; absent: the address that it listens on"
    )
    add_lane_port(parser)
    parser.add_argument("--join", action="store_true", help="become part of the cluster if its map does not have this leaf")
    parser.add_argument("--zone", help="failure zone; absent: as the map has it")
    parser.add_argument(
        "--weight", type=float, help="share of the replicas, relative to other leaves; absent: as the map has it, else 1"
    )
    parser.add_argument(
        "--cache-mb",
        type=int,
        default=CACHE_BYTES // MIB,
        metavar="MB",
        help="memory for the cache of keys; 0: none (default: %(default)d)",
    )
    _add_times(parser)
    parser.add_argument("--metrics-port", type=int, default=0, help="serve Prometheus metrics there; absent or 0: nowhere")
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON objects")
    parser.add_argument("--log-level", default="info", choices=sorted(LOG_LEVELS))
    parser.add_argument("--no-fsync", action="store_true", help="lose acknowledged writes if the machine dies; for tests only")
    parser.add_argument(
        "--allow-faults", action="store_true", help="let anybody who reaches a router make this leaf misbehave, for tests"
    )
    return parser.parse_args(arguments)


def _add_times(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--refresh-interval",
        type=float,
        default=REFRESH_INTERVAL_S,
        metavar="SECONDS",
        help="after so long at the latest searches see a write (default: %(default)g)",
    )
    parser.add_argument(
        "--heal-after",
        type=float,
        default=HEAL_AFTER_S,
        metavar="SECONDS",
        help="what a leaf held that is missing for so long is made anew elsewhere (default: %(default)g)",
    )
    parser.add_argument(
        "--failure-timeout",
        type=float,
        default=FAILURE_TIMEOUT_S,
        metavar="SECONDS",
        help="after so long without a sign of it a primary is replaced (default: %(default)g); the same on every leaf",
    )


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
        failure_timeout_s=options.failure_timeout,
        heal_after_s=options.heal_after,
        is_joining=options.join,
        advertise=options.advertise,
        are_faults_allowed=options.allow_faults,
        cache_bytes=options.cache_mb * MIB,
        lane_port=LanePort(options.lane_port, options.advertise_lane_port),
        refresh_interval_s=options.refresh_interval,
    )

    sys.setswitchinterval(SWITCH_INTERVAL_S)

    def serve(stop: asyncio.Event, on_ready: Callable[[str], None]) -> Coroutine[object, object, int | None]:
        def settle(address: str) -> None:
            settle_heap()
            on_ready(address)

        return run(leaf, stop, settle)

    return run_service(f"leaf {leaf.id}", serve)


if __name__ == "__main__":
    sys.exit(main())
