import json

import pytest

from loadtests.locust_stats import OpenLoopStats


def stats_of(*seconds, name="get"):
    made = OpenLoopStats()
    for each in seconds:
        made.record(name, each)
    made.lag.record(0.0001)
    return made


def test_workers_histograms_merge_exactly():
    whole = OpenLoopStats()
    for worker in (stats_of(0.0004, 0.0005), stats_of(0.0006), stats_of(0.02, name="search")):
        whole.merge(OpenLoopStats.from_record(json.loads(json.dumps(worker.as_record()))))
    once = stats_of(0.0004, 0.0005, 0.0006)
    assert whole.by_name["get"].latency.buckets() == once.by_name["get"].latency.buckets()
    assert whole.lag.count == 3


def test_what_locust_rounds_away_is_kept():
    rows = {row["name"]: row for row in stats_of(0.0004, 0.0004, 0.0149).rows()}
    assert rows["get"]["p50"] == pytest.approx(0.4, rel=0.005)
    assert rows["get"]["max"] == 14.9


def test_failures_and_skipped_requests_are_counted_and_cleared():
    stats = OpenLoopStats()
    stats.record("get", 2.0, is_failed=True)
    stats.record("get", 2.0, is_failed=True, is_skipped=True)
    (row,) = stats.rows()
    assert (row["n"], row["failed"], row["skipped"]) == (2, 2, 1)
    stats.clear()
    assert list(stats.rows()) == []
    assert stats.lag.count == 0
