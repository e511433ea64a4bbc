"""What a run has brought, as data that can be written to JSON and read again: the report is made from it, now or later.

Pure apart from the files that it reads and writes.
"""

import json
import pathlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kvshard.tail.histogram import LogHistogram
from loadtests.reference import Reference
from loadtests.tally import Tally
from loadtests.usage import Usage, mean

VERSION = 1
"""Of the JSON; a file of another version is refused."""


@dataclass(frozen=True, slots=True)
class ExtraPoint:
    """Extra load in one interval of a block. at: seconds from the start of the cell's measured time. legs: first attempts."""

    at: float
    legs: int
    hedges: int


@dataclass(slots=True)
class CellResult:
    """What one cell has seen, all of its blocks together.

    blocks: how many. measured_s: their length without warm-up. extra: hedges over time. slow_leaf_share: of the first attempts
    of the measured time, the part that the first leaf got, block by block; a fair share is 1 / leaves. wasted_s: service time
    that went into answers nobody used. pauses: (leaf from 0, start, end) of those that were injected, on the clock of the
    tally's slices; None: not noted. prediction: of the what-if model, as "p50", "p99", "p99.9" (seconds) and "extra".
    """

    condition: str
    condition_title: str
    arm: str
    arm_title: str
    tally: Tally
    blocks: int = 0
    measured_s: float = 0.0
    legs: int = 0
    hedges: int = 0
    usages: list[Usage] = field(default_factory=list)
    extra: list[ExtraPoint] = field(default_factory=list)
    slow_leaf_share: list[float] = field(default_factory=list)
    wasted_s: float | None = None
    pauses: list[tuple[int, float, float]] | None = None
    prediction: dict[str, float] | None = None

    @property
    def name(self) -> str:
        """As `scenarios.Cell.name`."""
        return f"{self.condition}/{self.arm}"

    @property
    def extra_part(self) -> float:
        """Hedges sent, as a part of the first attempts."""
        return self.hedges / self.legs if self.legs else 0.0

    @property
    def usage(self) -> Usage:
        """Processor time over all blocks."""
        return mean(self.usages)

    def latency(self, kind: str) -> LogHistogram:
        """All latencies of the requests of this kind."""
        return self.tally.latency((kind,))

    def as_record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "condition": self.condition,
            "condition_title": self.condition_title,
            "arm": self.arm,
            "arm_title": self.arm_title,
            "blocks": self.blocks,
            "measured_s": self.measured_s,
            "legs": self.legs,
            "hedges": self.hedges,
            "usages": [usage.as_record() for usage in self.usages],
            "extra": [[point.at, point.legs, point.hedges] for point in self.extra],
            "slow_leaf_share": self.slow_leaf_share,
            "wasted_s": self.wasted_s,
            "pauses": self.pauses,
            "prediction": self.prediction,
            "tally": self.tally.as_record(),
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "CellResult":
        """What `as_record` wrote. Raises KeyError, TypeError, ValueError for anything else."""
        plain = {name: record[name] for name in _PLAIN_FIELDS}
        pauses = record.get("pauses")  # Older runs did not note them.
        return cls(
            pauses=pauses if pauses is None else [(int(leaf), float(start), float(end)) for leaf, start, end in pauses],
            tally=Tally.from_record(record["tally"]),
            usages=[Usage(**usage) for usage in record["usages"]],
            extra=[ExtraPoint(*point) for point in record["extra"]],
            **plain,
        )


_PLAIN_FIELDS = (
    "condition", "condition_title", "arm", "arm_title", "blocks", "measured_s", "legs", "hedges", "slow_leaf_share", "wasted_s",
    "prediction",
)  # fmt: skip


@dataclass(slots=True)
class ExperimentResult:
    """An experiment. rate: requests a second. leg_p50_s: what a lone leg took in the calibration. fan_outs: the kinds.

    leaves, replicas: of the cluster. references: from which the cells were predicted, by choice of the replica.
    """

    name: str
    title: str
    workload: str
    rate: float
    leg_p50_s: float
    deadline_s: float
    fan_outs: list[int]
    cells: list[CellResult]
    notes: list[str] = field(default_factory=list)
    leaves: int = 0
    replicas: int = 0
    references: dict[str, Reference] = field(default_factory=dict)

    def cell(self, condition: str, arm: str) -> CellResult | None:
        """A cell; None when it was not measured."""
        return next((cell for cell in self.cells if (cell.condition, cell.arm) == (condition, arm)), None)

    @property
    def widest(self) -> str:
        """The kind of the requests that ask the most shards."""
        return str(max(self.fan_outs))

    def as_record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        plain = {name: getattr(self, name) for name in _EXPERIMENT_FIELDS}
        references = {choice: reference.as_record() for choice, reference in self.references.items()}
        return {**plain, "references": references, "cells": [cell.as_record() for cell in self.cells]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> "ExperimentResult":
        """What `as_record` wrote."""
        cells = [CellResult.from_record(cell) for cell in record["cells"]]
        found = record.get("references", {})
        references = {str(choice): Reference.from_record(reference) for choice, reference in found.items()}
        plain = {name: record[name] for name in _EXPERIMENT_FIELDS if name in record}  # Older runs knew less.
        return cls(cells=cells, references=references, **plain)


_EXPERIMENT_FIELDS = ("name", "title", "workload", "rate", "leg_p50_s", "deadline_s", "fan_outs", "notes", "leaves", "replicas")


@dataclass(slots=True)
class RunResult:
    """A whole run. made_at: ISO 8601. setting: what it ran on, in words, by name. seconds: how long it took.

    bookkeeping_s, bookkeeping_n: what the router's own work on a leg took at the median, and of how many requests.
    """

    made_at: str
    seed: int
    setting: dict[str, str]
    experiments: list[ExperimentResult]
    seconds: float = 0.0
    bookkeeping_s: float | None = None
    bookkeeping_n: int = 0

    def as_record(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "version": VERSION,
            "made_at": self.made_at,
            "seed": self.seed,
            "setting": self.setting,
            "seconds": self.seconds,
            "bookkeeping_s": self.bookkeeping_s,
            "bookkeeping_n": self.bookkeeping_n,
            "experiments": [experiment.as_record() for experiment in self.experiments],
        }

    def write(self, target: pathlib.Path) -> None:
        """Write it as JSON."""
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(self.as_record(), separators=(",", ":")) + "\n")

    @classmethod
    def read(cls, source: pathlib.Path) -> "RunResult":
        """What `write` wrote. Raises OSError; ValueError for a file that is no run of this version."""
        record = json.loads(source.read_text())
        if isinstance(record, dict) and "run" in record:
            record = record["run"]  # The report's JSON holds the run.
        if not isinstance(record, dict) or record.get("version") != VERSION:
            raise ValueError(f"{source} is no load-test run of version {VERSION}")
        try:
            experiments = [ExperimentResult.from_record(each) for each in record["experiments"]]
            return cls(
                record["made_at"], int(record["seed"]), dict(record["setting"]), experiments, float(record["seconds"]),
                record["bookkeeping_s"], int(record["bookkeeping_n"]),
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise ValueError(f"{source} is damaged: {error!r}") from error
