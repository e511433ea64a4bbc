"""Logs and metrics of every kvshard process: how they are configured, what the metrics are called, where they are served.

May live here: the setup of structlog, the metric objects of router and leaf, the HTTP server that shows them. What is counted
when is decided where it happens. The one door to `prometheus_client` and to the configuration of logging.
"""

import logging
import os
import sys
import threading
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from wsgiref.simple_server import WSGIServer

import prometheus_client
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from structlog.typing import EventDict, Processor

from kvshard.errors import ErrorDetails, InvalidArgument

LATENCY_BUCKETS_SECONDS = (
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
"""100 us is the fastest leg a Python leaf answers; 10 s is the client's default timeout, beyond it nobody waits. Factors of 2
to 2.5 between them keep an interpolated p99 within its bucket's factor and a histogram at 17 series per label set."""

COMMIT_BATCH_BUCKETS_ENTRIES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024)
"""Powers of two: group commit pays by doubling, and no group is larger than the committer's own bound."""

LOG_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
"""The levels that `--log-level` takes."""


def configure_logging(level: str = "info", as_json: bool = False, worker: str = "") -> None:
    """Send structlog's and the standard library's records to stderr, one line each, with UTC timestamps in ISO form.

    as_json makes every line, a foreign library's too, one JSON object. worker: stands in every line, where several processes
    write into one log. May be called again; the last call holds.
    """
    if level not in LOG_LEVELS:
        raise InvalidArgument(
            f"log level must be one of {', '.join(LOG_LEVELS)}, not {level!r}", ErrorDetails(field="log_level")
        )
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if worker:
        shared.append(_worker_adder(worker))
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(LOG_LEVELS[level]),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *_renderers(as_json)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LOG_LEVELS[level])


def _worker_adder(worker: str) -> Processor:
    def add_worker(logger: object, method: str, event: EventDict) -> EventDict:
        event["worker"] = worker
        return event

    return add_worker


def _renderers(as_json: bool) -> list[Processor]:
    # Plain tracebacks: the richer ones print local variables, and with them the users' keys and values.
    if as_json:
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    return [
        structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), pad_event_to=0, exception_formatter=structlog.dev.plain_traceback
        )
    ]


@dataclass(frozen=True, slots=True)
class ScrapedFamily:
    """A metric whose values are read when they are asked for. rows: (values of the labels, value)."""

    name: str
    help: str
    labels: tuple[str, ...]
    rows: Sequence[tuple[tuple[str, ...], float]]
    is_counter: bool = False


class _Scraped(Collector):
    """Brings families that somebody else keeps."""

    def __init__(self, read: Callable[[], Iterable[ScrapedFamily]]) -> None:
        self._read = read

    def collect(self) -> Iterator[Metric]:
        for family in self._read():
            kind = CounterMetricFamily if family.is_counter else GaugeMetricFamily
            metric = kind(family.name, family.help, labels=family.labels)
            for labels, value in family.rows:
                metric.add_metric(labels, value)
            yield metric

    def describe(self) -> Iterator[Metric]:
        """Nothing, so that a registration does not read yet."""
        return iter(())


class Durations:
    """Durations of one label, by bucket. Only one thread may observe."""

    __slots__ = ("counts", "sum")

    def __init__(self) -> None:
        self.counts = [0] * (len(LATENCY_BUCKETS_SECONDS) + 1)
        self.sum = 0.0

    def observe(self, seconds: float, count: int = 1) -> None:
        """So many took that long."""
        self.counts[bisect_left(LATENCY_BUCKETS_SECONDS, seconds)] += count
        self.sum += seconds * count

    def observe_all_us(self, durations_us: Sequence[int]) -> None:
        """Each of these microseconds."""
        counts = self.counts
        for duration_us in durations_us:
            counts[bisect_left(LATENCY_BUCKETS_SECONDS, duration_us * 1e-6)] += 1
        self.sum += sum(durations_us) * 1e-6


class DurationHistogram(Collector):
    """A histogram with LATENCY_BUCKETS_SECONDS for what ends by the hundred at once: each observation has a weight, and takes
    a third of the time that the library's takes, which locks twice."""

    def __init__(self, name: str, help: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._help = help
        self._labels = labels
        self._durations: dict[tuple[str, ...], Durations] = {}
        registry.register(self)

    def labels(self, *values: str) -> Durations:
        """The durations of these values of the labels."""
        return self._durations.setdefault(values, Durations())

    def collect(self) -> Iterator[Metric]:
        """What was observed so far."""
        family = HistogramMetricFamily(self._name, self._help, labels=self._labels)
        bounds = [*map(str, LATENCY_BUCKETS_SECONDS), "+Inf"]
        for values, durations in sorted(self._durations.copy().items()):
            buckets = list(zip(bounds, accumulate(durations.counts), strict=True))
            family.add_metric(values, buckets, durations.sum)
        yield family

    def describe(self) -> Iterator[Metric]:
        """Its name, so that it is registered once."""
        yield HistogramMetricFamily(self._name, self._help, labels=self._labels)


class Tally:
    """How often something happened. Only one thread may count."""

    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 0

    def inc(self, count: int = 1) -> None:
        """It happened so often."""
        self.count += count


class EventCounter(Collector):
    """A counter for what happens with every request, without the library's lock and checks: a quarter of its time."""

    def __init__(self, name: str, help: str, labels: Sequence[str], registry: CollectorRegistry) -> None:
        self._name = name
        self._help = help
        self._labels = labels
        self._tallies: dict[tuple[str, ...], Tally] = {}
        registry.register(self)

    def labels(self, *values: str) -> Tally:
        """The tally of these values of the labels."""
        return self._tallies.setdefault(values, Tally())

    def collect(self) -> Iterator[Metric]:
        """What was counted so far."""
        family = CounterMetricFamily(self._name, self._help, labels=self._labels)
        for values, tally in sorted(self._tallies.copy().items()):
            family.add_metric(values, float(tally.count))
        yield family

    def describe(self) -> Iterator[Metric]:
        """Its name, so that it is registered once."""
        yield CounterMetricFamily(self._name, self._help, labels=self._labels)


class RouterMetrics:
    """What a router counts.

    method: the RPC's name ("Get"). code: canonical status name ("OK", "UNAVAILABLE"). outcome of a leg: "ok", or the reason of
    its failure in lower case. Children of frequent label sets are worth keeping: `labels()` costs as much as the increment.
    registry: shows them; None: nobody does, as in a client that asks the leaves itself.
    """

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        registry = CollectorRegistry() if registry is None else registry
        self._registry = registry
        self.requests = EventCounter(
            "kvshard_router_requests", "Calls answered, by method and status code.", ["method", "code"], registry
        )
        self.request_seconds = DurationHistogram(
            "kvshard_router_request_seconds", "Time from a call's arrival to its answer.", ["method"], registry
        )
        self.calls_in_flight = Gauge("kvshard_router_calls_in_flight", "Calls taken and not yet answered.", registry=registry)
        self.arrival_wait_seconds = Gauge(
            "kvshard_router_arrival_wait_seconds",
            "How long a call waited last before the router looked at it.",
            registry=registry,
        )
        self.refused_share = Gauge(
            "kvshard_router_refused_share", "Share of the calls that an overloaded router refuses now.", registry=registry
        )
        self.legs = EventCounter(
            "kvshard_router_legs",
            "Legs ended: one shard's part of a call, by method and outcome.",
            ["method", "outcome"],
            registry,
        )
        self.gathered_seconds = DurationHistogram(
            "kvshard_router_gathered_seconds",
            "Time from a gathered read's arrival to its answer, of a scan to its first part, by method and fan-out class.",
            ["method", "fan_out"],
            registry,
        )
        self.ranked = EventCounter(
            "kvshard_router_ranked_searches",
            "Searches by score, by what the scores rest on: exact, cached or local statistics.",
            ["statistics"],
            registry,
        )
        self.statistics_trips = Counter(
            "kvshard_router_statistics_trips_total",
            "Round trips to shards that searches made for statistics alone.",
            registry=registry,
        )
        self.short_pages = Counter(
            "kvshard_router_short_pages_total",
            "Pages of searches for which some shard was asked once more, since it has more of their hits than most do.",
            registry=registry,
        )
        self.leg_seconds = DurationHistogram(
            "kvshard_router_leg_seconds", "Time from a leg's first attempt to its outcome.", ["method"], registry
        )

    def scrape(self, read: Callable[[], Iterable[ScrapedFamily]]) -> None:
        """Show also what `read` gives, which is called at every scrape, in the scraper's thread."""
        self._registry.register(_Scraped(read))


class LeafMetrics:
    """What a leaf counts. method: lane operation in lower case ("read"). code: "OK" or the error's reason."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        self.requests = EventCounter(
            "kvshard_leaf_requests_total", "Lane requests answered, by method and code.", ("method", "code"), registry
        )
        self.request_seconds = DurationHistogram(
            "kvshard_leaf_request_seconds", "Time from a lane request's arrival to its answer.", ["method"], registry
        )
        self.queue_depth = Gauge("kvshard_leaf_queue_depth", "Lane requests accepted and not yet answered.", registry=registry)
        self.cancelled = Counter(
            "kvshard_leaf_cancelled_total", "Lane requests that their caller took back before an answer.", registry=registry
        )
        self.wasted_seconds = Counter(
            "kvshard_leaf_wasted_seconds_total",
            "Work on requests that were taken back meanwhile, or whose deadline passed.",
            registry=registry,
        )
        self.documents = Gauge("kvshard_leaf_documents", "Live keys in all shards of this leaf.", registry=registry)
        self.disk_bytes = Gauge("kvshard_leaf_disk_bytes", "Bytes of the leaf's data directory.", registry=registry)
        self.commit_batch_entries = Histogram(
            "kvshard_leaf_commit_batch_entries",
            "Log entries made durable by one fsync.",
            registry=registry,
            buckets=COMMIT_BATCH_BUCKETS_ENTRIES,
        )
        self.fsync_seconds = Histogram(
            "kvshard_leaf_fsync_seconds", "Time of one fsync of the log.", registry=registry, buckets=LATENCY_BUCKETS_SECONDS
        )
        self.index_refresh_seconds = Histogram(
            "kvshard_leaf_index_refresh_seconds",
            "Time to commit an index and make its new documents visible to searches.",
            registry=registry,
            buckets=LATENCY_BUCKETS_SECONDS,
        )

    def scrape(self, read: Callable[[], Iterable[ScrapedFamily]]) -> None:
        """Show also what `read` gives, which is called at every scrape, in the scraper's thread."""
        self._registry.register(_Scraped(read))


def process_registry() -> CollectorRegistry:
    """A registry that already shows the process itself: CPU seconds, resident bytes, open files, garbage collections."""
    registry = CollectorRegistry()
    prometheus_client.ProcessCollector(registry=registry)
    prometheus_client.PlatformCollector(registry=registry)
    prometheus_client.GCCollector(registry=registry)
    return registry


def resident_bytes() -> int:
    """Memory of this process that is in RAM; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


_servers: dict[int, tuple[WSGIServer, threading.Thread]] = {}


def start_metrics(port: int, registry: CollectorRegistry) -> int:
    """Serve the registry over HTTP on 127.0.0.1 from a daemon thread; port 0 takes a free one. Returns the port.

    Raises OSError when the port is in use. `stop_metrics` closes it; otherwise it ends with the process.
    """
    # A "_created" gauge beside every counter would double the series and breaks promtool's naming rules.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    server, thread = prometheus_client.start_http_server(port, addr="127.0.0.1", registry=registry)
    _servers[server.server_port] = (server, thread)
    return server.server_port


def stop_metrics(port: int) -> None:
    """Close what start_metrics opened on this port, and its socket with it. Closing twice does nothing."""
    entry = _servers.pop(port, None)
    if entry is not None:
        server, thread = entry
        server.shutdown()
        server.server_close()
        thread.join()


def exposition(registry: CollectorRegistry) -> bytes:
    """What the HTTP server would answer now, in Prometheus' text format."""
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry)
