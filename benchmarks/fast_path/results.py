"""From comparisons to figures: which ratio answers to which bound, and what holds each rate.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Mapping

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
from benchmarks.figures import Figure, percentile
from benchmarks.measured import Comparison, Measured
from benchmarks.ratios import FOR_INFORMATION, Asked, ratio_figure, router_memory

SINGLE, BATCH_100, BATCH_1000, PUTS, LONE, CALLS = "single", "batch-100", "batch-1000", "puts", "lone", "calls"
"""The comparisons by name."""

_RATIOS = (
    (SINGLE, ROUTER, REDIS, "512 single gets / redis-py", Asked(6.0, 15.0)),
    (SINGLE, DIRECT, REDIS, "512 single gets, direct / redis-py", FOR_INFORMATION),
    (BATCH_1000, ROUTER, REDIS_PROXIED, "get_many(1000) / mget through twemproxy", Asked(0.4, 0.8)),
    (BATCH_100, ROUTER, REDIS_PROXIED, "get_many(100) / mget through twemproxy", Asked(0.3, 0.6)),
    (BATCH_1000, DIRECT, REDIS_PROXIED, "direct get_many(1000) / mget through twemproxy", FOR_INFORMATION),
    (BATCH_100, DIRECT, REDIS_PROXIED, "direct get_many(100) / mget through twemproxy", Asked(0.6, 1.0)),
    (BATCH_1000, ROUTER, REDIS_BENCHMARK, "get_many(1000) / redis-benchmark through twemproxy", FOR_INFORMATION),
    (BATCH_1000, DIRECT, STREAM_ECHO, "direct get_many(1000) / bare stream echo", Asked(0.5, 0.75)),
    (BATCH_1000, DIRECT, COLUMNS_ECHO, "direct get_many(1000) / stream echo of columns", FOR_INFORMATION),
    (PUTS, ROUTER, ETCD, "durable put_many(1000) / etcd puts", Asked(5.0, 15.0)),
    (CALLS, UNARY, UNARY_ECHO, "unary Get / bare unary echo, calls", Asked(0.55, 0.75)),
)
"""In the order of what matters: comparison, arm, the arm it is measured by, the figure's name, what is asked."""


def figures(found: Mapping[str, Comparison], router_peak_bytes: int) -> list[Figure]:
    """The figures that these comparisons answer; of comparisons that were not run there are none."""
    rows = [
        ratio_figure(name, found[comparison], one, other, asked)
        for comparison, one, other, name, asked in _RATIOS
        if comparison in found
    ]
    lone = _lone(found[LONE]) if LONE in found else []
    return [*rows, *lone, router_memory(router_peak_bytes)]


def _lone(compared: Comparison) -> list[Figure]:
    """A get that is alone against an echo that is."""
    echo = _middle(compared.arms[UNARY_ECHO], "echo")
    rows = [Figure("bare unary echo, p50", echo * 1e6, "us", compared.arms[UNARY_ECHO].operations)]
    for name, asked in ((ROUTER, Asked(1.3, 1.0)), (DIRECT, FOR_INFORMATION)):
        arm = compared.arms[name]
        middle = _middle(arm, "get")
        note = f"{middle * 1e6:,.0f} us; processor time by operation: {_by_role(arm)}"
        title = f"lone get, {name} / bare unary echo, p50"
        rows.append(Figure(title, middle / echo, "x", arm.operations, asked.bound, note=note, goal=asked.goal))
    return rows


def _middle(arm: Measured, kind: str) -> float:
    return percentile(arm.latencies(kind), 0.5)


def _by_role(arm: Measured) -> str:
    return ", ".join(f"{role} {value:,.0f} us" for role, value in arm.processor_us().items())
