"""`python -m router`: one router process. Exit codes: 0 stopped, 2 wrong usage, 3 a port cannot be had."""

import argparse
import asyncio
import sys
from collections.abc import Callable, Coroutine, Sequence

from kvshard.heap import settle_heap
from kvshard.hedge_settings import AUTO, router_settings
from kvshard.service_process import run_service
from kvshard.tail.hedging import ATTEMPTS_MAX
from kvshard.telemetry import LOG_LEVELS, configure_logging
from router.server import RouterOptions, run


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
    _add_hedging(parser)
    parser.add_argument("--metrics-port", type=int, default=0, help="serve Prometheus metrics there; absent or 0: nowhere")
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until SIGTERM, SIGINT or the end of the supervisor. Returns the exit code."""
    options = parse(arguments)
    configure_logging(options.log_level, options.log_json)

    def serve(stop: asyncio.Event, on_ready: Callable[[str], None]) -> Coroutine[object, object, None]:
        def settle(address: str) -> None:
            settle_heap()
            on_ready(address)

        hedging = router_settings(options.hedge, options.hedge_budget, options.hedge_attempts)
        router = RouterOptions(options.coordinator, options.listen, options.metrics_port or None, hedging)
        return run(router, stop, settle)

    return run_service("router", serve)


if __name__ == "__main__":
    sys.exit(main())
