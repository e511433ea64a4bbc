"""Names of the metrics, the exposition over HTTP, and what a log line looks like."""

import itertools
import json
import logging
import re
import shutil
import subprocess
import urllib.request

import pytest
import structlog
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.parser import text_string_to_metric_families

from kvshard.errors import InvalidArgument
from kvshard.rpc.lane_session import LateAnswers
from kvshard.tail.defences import TailCounters
from kvshard.telemetry import (
    LATENCY_BUCKETS_SECONDS,
    DurationHistogram,
    Durations,
    EventCounter,
    LeafMetrics,
    RouterMetrics,
    configure_logging,
    exposition,
    process_registry,
    start_metrics,
    stop_metrics,
)
from leaf.cache_metrics import cache_families
from leaf.key_cache import KeyCache
from router.amplification import Amplification
from router.tail_metrics import amplification_families, hedging_families, lane_families, wasted_families


@pytest.fixture
def registry():
    """Router and leaf in one registry, each metric with a sample."""
    registry = process_registry()
    router, leaf = RouterMetrics(registry), LeafMetrics(registry)
    router.requests.labels("Get", "OK").inc()
    router.request_seconds.labels("Get").observe(0.0004)
    router.legs.labels("Get", "ok").inc()
    router.leg_seconds.labels("Get").observe(0.0003)
    router.gathered_seconds.labels("Search", "5-16").observe(0.004)
    amplification = Amplification()
    for n in range(100):
        amplification.record("Search", 8, 0.003 + n / 1e6, [1000 + n] * 8, 1000.0)
    router.scrape(lambda: amplification_families(amplification, 1001.0))
    router.scrape(lambda: hedging_families(TailCounters()))
    router.scrape(lambda: wasted_families(LateAnswers()))
    router.scrape(lambda: lane_families({"unix": 6, "tcp": 0, "grpc": 0}))
    leaf.requests.labels("read", "OK").count += 1
    leaf.request_seconds.labels("read").observe(0.0001)
    leaf.queue_depth.set(3)
    leaf.documents.set(20_000)
    leaf.disk_bytes.set(1 << 20)
    leaf.commit_batch_entries.observe(17)
    leaf.fsync_seconds.observe(0.004)
    leaf.index_refresh_seconds.observe(0.02)
    leaf.scrape(lambda: cache_families(KeyCache()))
    return registry


def test_the_names_are_the_documented_ones(registry):
    families = {family.name for family in text_string_to_metric_families(exposition(registry).decode())}
    assert {name for name in families if name.startswith("kvshard_")} == {
        "kvshard_leaf_cache_bytes",
        "kvshard_leaf_cache_hits",
        "kvshard_leaf_cache_keys",
        "kvshard_leaf_cache_limit_bytes",
        "kvshard_leaf_cache_misses",
        "kvshard_leaf_cache_turns",
        "kvshard_leaf_cancelled",
        "kvshard_leaf_wasted_seconds",
        "kvshard_router_arrival_wait_seconds",
        "kvshard_router_calls_in_flight",
        "kvshard_router_refused_share",
        "kvshard_router_lanes",
        "kvshard_router_ranked_searches",
        "kvshard_router_statistics_trips",
        "kvshard_router_short_pages",
        "kvshard_router_late_answers",
        "kvshard_router_requests",
        "kvshard_router_wasted_leaf_seconds",
        "kvshard_router_request_seconds",
        "kvshard_router_legs",
        "kvshard_router_leg_seconds",
        "kvshard_router_gathered_seconds",
        "kvshard_router_amplification_p99",
        "kvshard_router_gathered_p99_seconds",
        "kvshard_router_gathered_window_reads",
        "kvshard_router_leg_p99_seconds",
        "kvshard_router_first_attempts",
        "kvshard_router_hedges_sent",
        "kvshard_router_hedges_won",
        "kvshard_router_hedges_wasted",
        "kvshard_router_hedges_refused",
        "kvshard_router_failovers",
        "kvshard_router_hold_out_reads",
        "kvshard_router_hold_out_latency_seconds",
        "kvshard_router_hedging_saved_seconds",
        "kvshard_leaf_requests",
        "kvshard_leaf_request_seconds",
        "kvshard_leaf_queue_depth",
        "kvshard_leaf_documents",
        "kvshard_leaf_disk_bytes",
        "kvshard_leaf_commit_batch_entries",
        "kvshard_leaf_fsync_seconds",
        "kvshard_leaf_index_refresh_seconds",
    }


def test_naming_rules_of_prometheus(registry):
    """What `promtool check metrics` looks for, where it is not installed."""
    text = exposition(registry).decode()
    names = re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE)
    helps = dict(re.findall(r"^# HELP (\S+) (.*)$", text, re.MULTILINE))
    for name, kind in names:
        assert re.fullmatch(r"[a-z][a-z0-9_]*", name)
        assert helps[name], f"{name} has no help text"
        assert (kind == "counter") == name.endswith("_total"), name
        assert not re.search(r"_(count|sum|bucket|created|info)$", name) or name == "python_info", name
        assert not re.search(r"_(ms|us|kb|mb|millis\w*|micros\w*|kilo\w*|mega\w*)(_|$)", name), f"{name}: not a base unit"
        assert kind not in name.split("_"), f"{name} repeats its type"


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_has_nothing_to_say(registry):
    done = subprocess.run(["promtool", "check", "metrics"], input=exposition(registry), capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_served_on_an_ephemeral_port_and_closed_again(registry):
    port = start_metrics(0, registry)
    try:
        assert port > 0
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            assert b'kvshard_router_requests_total{code="OK",method="Get"} 1.0' in answer.read()
        with pytest.raises(OSError, match="in use"):
            start_metrics(port, registry)
    finally:
        stop_metrics(port)
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5)
    stop_metrics(port)


def test_buckets_reach_from_100_us_to_10_s():
    assert (LATENCY_BUCKETS_SECONDS[0], LATENCY_BUCKETS_SECONDS[-1]) == (0.0001, 10.0)
    steps = [high / low for low, high in itertools.pairwise(LATENCY_BUCKETS_SECONDS)]
    assert all(1.9 < step < 2.6 for step in steps)


@pytest.fixture
def clean_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("clean_logging")
def test_json_lines_for_our_records_and_foreign_ones(capsys):
    configure_logging("info", as_json=True)
    structlog.get_logger("leaf.driver").info("shard opened", shard=3, key=b"\xff")
    structlog.get_logger("leaf.driver").debug("not shown")
    logging.getLogger("grpc").warning("foreign %d", 7)
    try:
        secret = "value of a user"  # noqa: F841
        raise ValueError("bad")
    except ValueError:
        structlog.get_logger("leaf.driver").exception("failed")
    captured = capsys.readouterr()
    ours, foreign, failed = map(json.loads, captured.err.splitlines())
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", ours.pop("timestamp"))
    assert ours == {"event": "shard opened", "level": "info", "logger": "leaf.driver", "shard": 3, "key": "b'\\xff'"}
    assert (foreign["event"], foreign["level"], foreign["logger"]) == ("foreign 7", "warning", "grpc")
    assert "ValueError: bad" in failed["exception"]
    assert "locals" not in failed["exception"]
    assert captured.out == ""


@pytest.mark.usefixtures("clean_logging")
def test_plain_lines(capsys):
    configure_logging("warning")
    structlog.get_logger("router").info("not shown")
    structlog.get_logger("router").warning("leg failed", shard=3)
    line = capsys.readouterr().err
    assert re.search(r"\[warning\s*\] leg failed .*shard=3", line)
    assert line.count("\n") == 1


@pytest.mark.usefixtures("clean_logging")
@pytest.mark.parametrize("as_json", [False, True])
def test_lines_name_the_worker_where_several_write_into_one_log(capsys, as_json):
    configure_logging("info", as_json, "router-2")
    structlog.get_logger("router").info("ours")
    logging.getLogger("grpc").warning("foreign")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for line in lines:
        assert json.loads(line)["worker"] == "router-2" if as_json else "worker=router-2" in line


def test_unknown_level_is_refused():
    with pytest.raises(InvalidArgument, match="log level must be one of debug, info, warning, error"):
        configure_logging("loud")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([0.0, 0.0001, 0.00011, 0.3, 10.0, 10.1, 1e6]), st.integers(1, 20)), max_size=20))
def test_weighted_durations_are_those_of_the_library(observations):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    weighted = DurationHistogram("x_seconds", "help", ["method"], ours)
    plain = Histogram("x_seconds", "help", ["method"], registry=theirs, buckets=LATENCY_BUCKETS_SECONDS)
    for method in ("Put", "Get"):
        for seconds, count in observations:
            weighted.labels(method).observe(seconds, count)
            for _ in range(count):
                plain.labels(method).observe(seconds)
    for method in ("Get", "Put") if observations else ():
        for name in ("count", "sum"):
            value = theirs.get_sample_value(f"x_seconds_{name}", {"method": method})
            assert ours.get_sample_value(f"x_seconds_{name}", {"method": method}) == pytest.approx(value)
        for bound in (*LATENCY_BUCKETS_SECONDS, "+Inf"):
            labels = {"method": method, "le": str(bound)}
            value = theirs.get_sample_value("x_seconds_bucket", labels)
            assert value is not None
            assert ours.get_sample_value("x_seconds_bucket", labels) == value


def test_a_name_is_registered_once():
    registry = CollectorRegistry()
    DurationHistogram("x_seconds", "help", ["method"], registry)
    with pytest.raises(ValueError, match="Duplicated"):
        DurationHistogram("x_seconds", "help", ["method"], registry)


@given(st.lists(st.sampled_from([0, 99, 100, 101, 300_000, 10_000_001]), max_size=20))
def test_durations_that_come_together_are_those_one_by_one(durations_us):
    together, alone = Durations(), Durations()
    together.observe_all_us(durations_us)
    for duration_us in durations_us:
        alone.observe(duration_us * 1e-6)
    assert together.counts == alone.counts
    assert together.sum == pytest.approx(alone.sum)


def test_events_are_counted_as_the_library_counts_them():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    events = EventCounter("x_calls", "help", ["method", "code"], ours)
    plain = Counter("x_calls", "help", ["method", "code"], registry=theirs)
    for labels, count in ((("Put", "OK"), 3), (("Get", "OK"), 1), (("Put", "OK"), 2), (("Get", "INTERNAL"), 0)):
        events.labels(*labels).inc(count)
        plain.labels(*labels).inc(count)
    for labels in (("Put", "OK"), ("Get", "OK"), ("Get", "INTERNAL")):
        sample = {"method": labels[0], "code": labels[1]}
        value = theirs.get_sample_value("x_calls_total", sample)
        assert value is not None
        assert ours.get_sample_value("x_calls_total", sample) == value
    with pytest.raises(ValueError, match="Duplicated"):
        EventCounter("x_calls", "help", ["method", "code"], ours)
