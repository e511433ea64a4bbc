"""Locust's events: options, the data to ask for, and the exact histograms, merged from workers and shown beside its own."""

import json
from typing import Any

from flask import Response, request
from locust import events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.runners import MasterRunner, WorkerRunner
from rich.console import Console
from rich.table import Table

from loadtests.locust_stats import PERCENTILES, OpenLoopStats
from loadtests.locust_users import STATS, connection

KEY = "open-loop"
_COUNTS = (("name", "Name"), ("n", "n"), ("failed", "Failed"), ("skipped", "Not sent"))
COLUMNS = (*_COUNTS, *((label, f"{label} (ms)") for _, label in PERCENTILES), ("max", "Max (ms)"))


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """The options; the web page shows them too."""
    parser.add_argument("--rate", type=float, default=20.0, help="requests a second of one user")
    parser.add_argument("--deadline", type=float, default=2.0, help="timeout of a request in seconds")
    parser.add_argument("--hedge", default="auto", help='"auto", "off", "10ms", "p99"')
    parser.add_argument("--replica-choice", default="adaptive", choices=["adaptive", "random", "primary"], help="who is asked")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule and the choice of keys")


@events.test_start.add_listener
def on_test_start(environment: Environment, **_: Any) -> None:
    """Store what will be asked for, once; workers only learn what it is, before their users start."""
    STATS.clear()
    reads = connection(environment)
    if not isinstance(environment.runner, WorkerRunner):
        reads.load()


@events.report_to_master.add_listener
def on_report_to_master(client_id: str, data: dict[str, Any], **_: Any) -> None:
    """Send what came since the last report."""
    data[KEY] = STATS.as_record()
    STATS.clear()


@events.worker_report.add_listener
def on_worker_report(client_id: str, data: dict[str, Any], **_: Any) -> None:
    """Add what a worker sent."""
    if KEY in data:
        STATS.merge(OpenLoopStats.from_record(data[KEY]))


@events.init.add_listener
def on_init(environment: Environment, **_: Any) -> None:
    """Add a tab to the web page, on the process that has one."""
    page = environment.web_ui
    if page is None:
        return
    structure = [{"key": key, "title": title} for key, title in COLUMNS]
    page.template_args = {
        **page.template_args,
        "extended_tabs": [{"title": "Latency, exact", "key": KEY}],
        "extended_tables": [{"key": KEY, "structure": structure}],
    }

    @page.app.after_request
    def add_rows(response: Response) -> Response:
        if request.path == "/stats/requests" and response.is_json:
            body = {**response.get_json(), "extended_stats": [{"key": KEY, "data": list(STATS.rows())}]}
            response.set_data(json.dumps(body))
        return response

    @page.app.route("/open-loop.json")
    def as_json() -> dict[str, Any]:
        return STATS.as_record()


@events.quitting.add_listener
def on_quitting(environment: Environment, **_: Any) -> None:
    """Print the exact latencies beside what locust makes of them."""
    if isinstance(environment.runner, WorkerRunner) or not STATS.by_name:
        return
    table = Table(*(title for _, title in COLUMNS), "locust p50", "locust p99", title="latency from the planned start, exact")
    for row in STATS.rows():
        entry = environment.stats.get(row["name"], "kvshard")
        rounded = [f"{entry.get_response_time_percentile(fraction):,g}" for fraction in (0.5, 0.99)]
        table.add_row(*(str(row.get(key, "")) for key, _ in COLUMNS), *rounded)
    console = Console(width=150)
    console.print(table)
    lag = STATS.lag.quantiles((0.5, 0.99, 0.999))
    if lag:
        shown = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in zip(("p50", "p99", "p99.9"), lag, strict=True))
        where = "workers" if isinstance(environment.runner, MasterRunner) else "process"
        console.print(f"sent late by the {where}: {shown} (n {STATS.lag.count:,})")
