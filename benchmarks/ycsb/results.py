"""From workloads to figures: each store by the others, with the tails of what is asked most.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Mapping

from benchmarks.figures import Figure, percentile
from benchmarks.measured import Comparison
from benchmarks.ratios import FOR_INFORMATION, Asked, ratio_figure, router_memory

KVSHARD, DIRECT, REDIS, ETCD = "kvshard", "kvshard direct", "redis-py + hiredis", "etcd, grpc.aio"
"""The stores, as the report has them."""

_AGAINST_ETCD = {"B": Asked(1.0, 5.0), "C": Asked(1.0, 5.0)}
"""Ahead of it; five times its rate is aimed at."""


def figures(found: Mapping[str, Comparison], router_peak_bytes: int) -> list[Figure]:
    """kvshard by etcd, then by redis, workload by workload."""
    rows = []
    for theirs in (ETCD, REDIS):
        for workload, compared in found.items():
            for mine in (KVSHARD, DIRECT):
                is_asked = (mine, theirs) == (KVSHARD, ETCD)
                asked = _AGAINST_ETCD.get(workload, FOR_INFORMATION) if is_asked else FOR_INFORMATION
                note = _tails(compared, mine, theirs)
                rows.append(ratio_figure(f"YCSB {workload}: {mine} / {theirs}", compared, mine, theirs, asked, note))
    return [*rows, router_memory(router_peak_bytes)]


def _tails(compared: Comparison, *names: str) -> str:
    """p99 of the operation that is asked most, for arms that are there."""
    if compared.why_absent(*names):
        return ""
    arms = [compared.arms[name] for name in names]
    kind = max(arms[0].kinds, key=lambda each: len(arms[0].latencies(each)))
    return f"{kind} p99 {' / '.join(f'{percentile(arm.latencies(kind), 0.99) * 1e3:.1f} ms' for arm in arms)}"
