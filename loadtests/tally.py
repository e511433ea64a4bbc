"""What a run has seen: raw latencies in mergeable histograms, by kind of request and by slice of time.

A latency counts from the *planned* start. What failed, and what was never sent because too much was under way, counts as the
deadline: a run that drops its slow requests must not look faster for it.

Pure: imports only the standard library and other pure files.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from kvshard.tail.histogram import LogHistogram

SLICE_S = 1.0
"""Length of the slices that the bootstrap draws: many times the longest pause that is injected, so that what a pause does to
neighbouring requests stays in one slice."""


class Tally:
    """Counts of one cell of an experiment. Planned starts are seconds from the start of the cell's first block."""

    def __init__(self, deadline_s: float) -> None:
        self.deadline_s = deadline_s
        self.slices: dict[str, dict[int, LogHistogram]] = {}
        self.lag = LogHistogram()
        self.overrun = LogHistogram()
        self.ok = 0
        self.skipped = 0
        self.late = 0
        self.failed: Counter[str] = Counter()

    def __repr__(self) -> str:
        return f"Tally(ok={self.ok}, failed={dict(self.failed)}, skipped={self.skipped}, kinds={sorted(self.slices)})"

    def record_ok(self, kind: str, planned: float, seconds: float) -> None:
        """A request was answered, that long after its planned start. Later than the deadline it is good to nobody."""
        self.ok += 1
        self.late += seconds > self.deadline_s
        self._record(kind, planned, seconds)

    def record_failed(self, kind: str, planned: float, reason: str) -> None:
        """A request failed."""
        self.failed[reason] += 1
        self._record(kind, planned, self.deadline_s)

    def record_skipped(self, kind: str, planned: float) -> None:
        """A request was not sent: too many were under way."""
        self.skipped += 1
        self._record(kind, planned, self.deadline_s)

    def record_sent(self, lag_s: float) -> None:
        """A request was sent, that long after its planned start."""
        self.lag.record(lag_s)

    def record_overrun(self, seconds: float) -> None:
        """A request ended that long after its deadline (0: in time), counted from when it was sent."""
        self.overrun.record(seconds)

    def _record(self, kind: str, planned: float, seconds: float) -> None:
        by_slice = self.slices.setdefault(kind, {})
        number = int(planned / SLICE_S)
        held = by_slice.get(number)
        if held is None:
            held = by_slice[number] = LogHistogram()
        held.record(seconds)

    @property
    def total(self) -> int:
        """Requests that were planned."""
        return self.ok + self.skipped + self.failed.total()

    @property
    def goodput(self) -> int:
        """Requests that were answered in time."""
        return self.ok - self.late

    def latency(self, kinds: Iterable[str] | None = None) -> LogHistogram:
        """All latencies of these kinds; None: of all."""
        merged = LogHistogram()
        for kind in self.slices if kinds is None else kinds:
            for held in self.slices.get(kind, {}).values():
                merged.merge(held)
        return merged

    def of_slices(self, kind: str) -> list[LogHistogram]:
        """The latencies of a kind, slice by slice."""
        return [held for _, held in sorted(self.slices.get(kind, {}).items())]

    def append(self, other: "Tally", after_s: float) -> None:
        """Add a block that began that long after this tally's own first one: its slices stay apart from those before."""
        shift = int(-(-after_s // SLICE_S))
        for kind, by_slice in other.slices.items():
            mine = self.slices.setdefault(kind, {})
            for number, held in by_slice.items():
                mine.setdefault(number + shift, LogHistogram()).merge(held)
        self.lag.merge(other.lag)
        self.overrun.merge(other.overrun)
        self.ok += other.ok
        self.skipped += other.skipped
        self.late += other.late
        self.failed += other.failed

    def as_record(self) -> dict[str, Any]:
        """Plain data for JSON; `from_record` reads it."""
        return {
            "deadline_s": self.deadline_s,
            "ok": self.ok,
            "late": self.late,
            "skipped": self.skipped,
            "failed": dict(self.failed),
            "lag": self.lag.as_record(),
            "overrun": self.overrun.as_record(),
            "slices": {
                kind: [[number, held.as_record()] for number, held in sorted(by_slice.items())]
                for kind, by_slice in self.slices.items()
            },
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "Tally":
        """What `as_record` wrote. Raises KeyError, TypeError, ValueError for anything else."""
        tally = cls(float(record["deadline_s"]))
        tally.ok, tally.late, tally.skipped = int(record["ok"]), int(record["late"]), int(record["skipped"])
        tally.failed = Counter({str(reason): int(count) for reason, count in record["failed"].items()})
        tally.lag = LogHistogram.from_record(record["lag"])
        tally.overrun = LogHistogram.from_record(record["overrun"])
        tally.slices = {
            str(kind): {int(number): LogHistogram.from_record(held) for number, held in slices}
            for kind, slices in record["slices"].items()
        }
        return tally
