"""`python -m router`: a router, of one process or of several workers. Exit codes: 0 stopped, 2 wrong usage, 3 a port cannot be
had."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence

from kvshard.hedge_settings import AUTO, router_settings
from kvshard.lane_arguments import add_lane_port
from kvshard.rpc.lane_port import LanePort, text_of
from kvshard.service_process import run_service
from kvshard.tail.hedging import ATTEMPTS_MAX
from kvshard.telemetry import LOG_LEVELS, configure_logging
from kvshard.workers import WorkerPlace
from router.worker_group import GroupOptions, run_group


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line; a wrong one ends the process with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m router", description="Runs one kvshard router.", allow_abbrev=False)
    parser.add_argument(
        "--coordinator",
        required=True,
        metavar="URL",
        help="sqlite:///absolute/path/of/coordinator.db or etcd://host:port,host:port",
    )
    parser.add_argument("--listen", default="127.0.0.1:7700", metavar="HOST:PORT", help="port 0 takes a free one")
    add_lane_port(parser)
    _add_hedging(parser)
    parser.add_argument(
        "--metrics-port",
        type=int,
        default=0,
        help="serve Prometheus metrics there, the other workers on the ports after it; absent or 0: nowhere",
    )
    _add_workers(parser)
    parser.add_argument("--log-json", action="store_true", help="log lines as JSON objects")
    parser.add_argument("--log-level", default="info", choices=sorted(LOG_LEVELS))
    return parser.parse_args(arguments)


def _add_hedging(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--hedge",
        default=AUTO,
        metavar="POLICY",
        help='when a read is asked at a spare replica too, where neither it nor its collection says so: "auto", "off", a delay '
        'as "10ms", a quantile as "p99", "min(a,b)" or "max(a,b)" of two of them (default: %(default)s)',
    )
    parser.add_argument(
        "--hedge-budget",
        default=AUTO,
        metavar="PART",
        help='extra requests allowed, as a part of the first ones in every 10 s: "5%%", at most 50%%; "0" allows none; "auto" '
        "tunes itself between 1%% and 10%% (default: %(default)s)",
    )
    parser.add_argument(
        "--hedge-attempts",
        type=int,
        default=ATTEMPTS_MAX,
        metavar="COUNT",
        help="attempts of a shard's part of a read at most, the first one included (default: %(default)d)",
    )


def _add_workers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="COUNT",
        help="processes that share the port; each connection is with one of them (default: %(default)d)",
    )
    # What a worker is told by whoever started it.
    parser.add_argument("--worker", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--worker-addresses", default="", help=argparse.SUPPRESS)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM, SIGINT or the end of the supervisor. Returns the exit code."""
    options = parse(arguments)
    addresses = tuple(filter(None, options.worker_addresses.split(",")))
    worker = WorkerPlace(options.worker, addresses, options.metrics_port or None)
    configure_logging(options.log_level, options.log_json, worker.name if addresses else "")
    if options.workers != 1:
        return run_service("router", lambda stop, on_ready: run_group(_group_of(options), stop, on_ready))

    def serve(stop: asyncio.Event, on_ready: Callable[[str], None]) -> Coroutine[object, object, None]:
        # Here, so that a process that only looks after workers does not load what they need.
        from kvshard.heap import COLLECT_SELDOM, settle_heap
        from router.server import RouterOptions, run

        def settle(address: str) -> None:
            settle_heap(COLLECT_SELDOM)
            on_ready(address)

        hedging = router_settings(options.hedge, options.hedge_budget, options.hedge_attempts)
        lanes = LanePort(options.lane_port, options.advertise_lane_port)
        lanes.check()
        place = worker.checked()
        router = RouterOptions(
            options.coordinator, options.listen, worker.metrics_port, hedging, place, lanes.shifted(place.number - 1)
        )
        return run(router, stop, settle)

    return run_service("router", serve)


def _group_of(options: argparse.Namespace) -> GroupOptions:
    router_settings(options.hedge, options.hedge_budget, options.hedge_attempts)
    LanePort(options.lane_port, options.advertise_lane_port).check()
    flags = [
        f"--coordinator={options.coordinator}",
        f"--hedge={options.hedge}",
        f"--hedge-budget={options.hedge_budget}",
        f"--hedge-attempts={options.hedge_attempts}",
        f"--lane-port={text_of(options.lane_port)}",
        f"--advertise-lane-port={options.advertise_lane_port}",
        f"--log-level={options.log_level}",
        *(["--log-json"] if options.log_json else []),
    ]
    return GroupOptions(options.listen, options.workers, options.metrics_port or None, tuple(flags))


if __name__ == "__main__":
    sys.exit(main())
