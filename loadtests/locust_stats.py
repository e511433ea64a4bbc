"""Latencies of a locust run as they were, not as locust rounds them.

Locust keeps whole milliseconds below 100 ms. Here each process keeps logarithmic histograms (0.4 %) by name of request, which
workers send to the master with their reports, where they are merged exactly.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from kvshard.tail.histogram import LogHistogram

PERCENTILES = ((0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p99.9"))


@dataclass(slots=True)
class NamedStats:
    """One kind of request. Failed and skipped requests are in the latency too, as long as the deadline."""

    latency: LogHistogram = field(default_factory=LogHistogram)
    failed: int = 0
    skipped: int = 0

    def merge(self, other: "NamedStats") -> None:
        """Count all that the other has counted."""
        self.latency.merge(other.latency)
        self.failed += other.failed
        self.skipped += other.skipped


class OpenLoopStats:
    """All requests of a process, or of all workers together. lag: from planned start to sending."""

    def __init__(self) -> None:
        self.by_name: dict[str, NamedStats] = {}
        self.lag = LogHistogram()

    def __repr__(self) -> str:
        return f"OpenLoopStats({ {name: each.latency.count for name, each in self.by_name.items()} })"

    def of(self, name: str) -> NamedStats:
        """Those of one kind."""
        found = self.by_name.get(name)
        if found is None:
            found = self.by_name[name] = NamedStats()
        return found

    def record(self, name: str, seconds: float, *, is_failed: bool = False, is_skipped: bool = False) -> None:
        """Count a request."""
        stats = self.of(name)
        stats.latency.record(seconds)
        stats.failed += is_failed
        stats.skipped += is_skipped

    def merge(self, other: "OpenLoopStats") -> None:
        """Count all that the other has counted."""
        for name, stats in other.by_name.items():
            self.of(name).merge(stats)
        self.lag.merge(other.lag)

    def clear(self) -> None:
        """Forget everything."""
        self.by_name.clear()
        self.lag = LogHistogram()

    def as_record(self) -> dict[str, Any]:
        """Plain data, as it travels to the master."""
        by_name = {
            name: {"latency": stats.latency.as_record(), "failed": stats.failed, "skipped": stats.skipped}
            for name, stats in self.by_name.items()
        }
        return {"by_name": by_name, "lag": self.lag.as_record()}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "OpenLoopStats":
        """What `as_record` wrote."""
        made = cls()
        for name, stats in record["by_name"].items():
            latency = LogHistogram.from_record(stats["latency"])
            made.by_name[name] = NamedStats(latency, int(stats["failed"]), int(stats["skipped"]))
        made.lag = LogHistogram.from_record(record["lag"])
        return made

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row a kind of request, by name: counts, and latencies in milliseconds."""
        fractions = [fraction for fraction, _ in PERCENTILES]
        for name, stats in sorted(self.by_name.items()):
            values = stats.latency.quantiles(fractions)
            shown = {label: round(1e3 * value, 3) for (_, label), value in zip(PERCENTILES, values, strict=False)}
            yield {
                "name": name,
                "n": stats.latency.count,
                "failed": stats.failed,
                "skipped": stats.skipped,
                **shown,
                "max": round(1e3 * stats.latency.maximum, 3),
            }
