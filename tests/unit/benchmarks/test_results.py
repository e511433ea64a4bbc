import pytest

from benchmarks.fast_path import results
from benchmarks.fast_path.names import (
    COLUMNS_ECHO,
    DIRECT,
    ETCD,
    REDIS,
    REDIS_BENCHMARK,
    REDIS_PROXIED,
    ROUTER,
    STREAM_ECHO,
    UNARY,
    UNARY_ECHO,
)
from benchmarks.fast_path.results import BATCH_100, BATCH_1000, CALLS, LONE, PUTS, SINGLE
from benchmarks.measured import Absent, Block, Comparison, Measured, Usage
from benchmarks.ycsb import results as ycsb_results


def arm(name, rate, latencies=None):
    made = Measured(name, processes={"client": 1})
    made.blocks.append(Block(rate, 1.0, latencies or {}))
    made.usages.append(Usage(1.0, {"client": 0.5}))
    return made


def compared(rates, absent=(), latencies=None):
    arms = {name: arm(name, rate, (latencies or {}).get(name)) for name, rate in rates.items()}
    return Comparison("task", "keys/s", arms, [Absent(name, "not there") for name in absent])


FULL = {
    SINGLE: compared({ROUTER: 180, DIRECT: 200, REDIS: 12}),
    BATCH_100: compared({ROUTER: 300, DIRECT: 600, REDIS_PROXIED: 600, REDIS_BENCHMARK: 900, STREAM_ECHO: 700}),
    BATCH_1000: compared(
        {ROUTER: 500, DIRECT: 700, REDIS_PROXIED: 1000, REDIS_BENCHMARK: 2000, STREAM_ECHO: 1400, COLUMNS_ECHO: 900}
    ),
    PUTS: compared({ROUTER: 60, DIRECT: 60, ETCD: 5}),
    LONE: compared(
        {ROUTER: 10, DIRECT: 10, UNARY_ECHO: 10},
        latencies={ROUTER: {"get": [0.0026]}, DIRECT: {"get": [0.001]}, UNARY_ECHO: {"echo": [0.002]}},
    ),
    CALLS: compared({UNARY: 55, UNARY_ECHO: 100}),
}


def by_name(found):
    return {figure.name: figure for figure in found}


def test_the_figures_are_those_that_are_asked_for():
    found = by_name(results.figures(FULL, 90_000_000))
    asked = {name: (figure.value, figure.bound, figure.goal) for name, figure in found.items() if figure.bound is not None}
    assert asked == {
        "512 single gets / redis-py": (15.0, 6.0, 15.0),
        "get_many(1000) / mget through twemproxy": (0.5, 0.4, 0.8),
        "get_many(100) / mget through twemproxy": (0.5, 0.3, 0.6),
        "direct get_many(100) / mget through twemproxy": (1.0, 0.6, 1.0),
        "direct get_many(1000) / bare stream echo": (0.5, 0.5, 0.75),
        "durable put_many(1000) / etcd puts": (12.0, 5.0, 15.0),
        "unary Get / bare unary echo, calls": (0.55, 0.55, 0.75),
        "lone get, kvshard / bare unary echo, p50": (pytest.approx(1.3), 1.3, 1.0),
        "router memory, peak of the run": (90.0, 200.0, 120.0),
    }
    assert found["router memory, peak of the run"].is_goal_met
    assert all(figure.samples for figure in found.values())


def test_a_missing_peer_leaves_rows_that_say_so():
    without = {**FULL, SINGLE: compared({ROUTER: 180, DIRECT: 200}, absent=[REDIS])}
    figure = by_name(results.figures(without, 1))["512 single gets / redis-py"]
    assert figure.value is None
    assert figure.note == "redis-py + hiredis: not there"
    assert figure.is_met is None
    assert (figure.bound, figure.goal) == (6.0, 15.0)


def test_only_what_was_run_has_figures():
    assert list(by_name(results.figures({PUTS: FULL[PUTS]}, 1))) == [
        "durable put_many(1000) / etcd puts",
        "router memory, peak of the run",
    ]


def test_workloads_are_compared_with_etcd_first():
    reads = {name: {"read": [0.001, 0.004], "update": [0.009]} for name in ("kvshard", "kvshard direct", "etcd, grpc.aio")}
    found = {
        name: compared(
            {"kvshard": 60, "kvshard direct": 80, "etcd, grpc.aio": 10}, absent=["redis-py + hiredis"], latencies=reads
        )
        for name in ("A", "B")
    }
    figures = ycsb_results.figures(found, 1)
    rows = by_name(figures)
    assert [figure.name for figure in figures][:2] == [
        "YCSB A: kvshard / etcd, grpc.aio",
        "YCSB A: kvshard direct / etcd, grpc.aio",
    ]
    assert rows["YCSB A: kvshard / etcd, grpc.aio"].bound is None
    ahead = rows["YCSB B: kvshard / etcd, grpc.aio"]
    assert (ahead.value, ahead.bound, ahead.goal) == (6.0, 1.0, 5.0)
    assert "read p99 4.0 ms / 4.0 ms" in ahead.note
    assert rows["YCSB B: kvshard / redis-py + hiredis"].value is None
