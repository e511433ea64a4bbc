"""The core workloads, and the operations that they ask for.

Proportions, distributions and lengths are those of YCSB's workload files; a record is ten fields of 100 bytes. It is one value
here, as in any store of values: an update writes all of it (YCSB's `writeallfields`), a read reads all of it.

Pure: imports only the standard library and other pure files.
"""

import enum
import itertools
from bisect import bisect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from benchmarks.ycsb.distributions import Latest, ScrambledZipfian, fnv_hash

FIELDS, FIELD_BYTES = 10, 100
RECORD_BYTES = FIELDS * FIELD_BYTES
SCAN_LENGTH_MAX = 100
"""A scan asks for 1 to so many records, each length as likely."""

NEW_RECORDS_FUDGE = 2.0
"""The key space is made larger than what is loaded, by twice the records that are expected to be inserted: the popular ones
then stay the same. What is drawn beyond the inserted ones is drawn again."""


class Kind(enum.StrEnum):
    """What an operation does."""

    READ = "read"
    UPDATE = "update"
    INSERT = "insert"
    SCAN = "scan"
    READ_MODIFY_WRITE = "read-modify-write"


class Distribution(enum.Enum):
    """How records are chosen."""

    ZIPFIAN = enum.auto()
    LATEST = enum.auto()


@dataclass(frozen=True, slots=True)
class Workload:
    """One core workload. shares: of the operations, adding up to 1."""

    name: str
    title: str
    shares: Mapping[Kind, float]
    distribution: Distribution = Distribution.ZIPFIAN


WORKLOADS: Mapping[str, Workload] = {
    each.name: each
    for each in (
        Workload("A", "update heavy", {Kind.READ: 0.5, Kind.UPDATE: 0.5}),
        Workload("B", "read mostly", {Kind.READ: 0.95, Kind.UPDATE: 0.05}),
        Workload("C", "read only", {Kind.READ: 1.0}),
        Workload("D", "read latest", {Kind.READ: 0.95, Kind.INSERT: 0.05}, Distribution.LATEST),
        Workload("E", "short ranges", {Kind.SCAN: 0.95, Kind.INSERT: 0.05}),
        Workload("F", "read-modify-write", {Kind.READ: 0.5, Kind.READ_MODIFY_WRITE: 0.5}),
    )
}


def record_key(number: int) -> str:
    """The key of the record that was inserted as number so and so: its hash, so that the order of keys says nothing."""
    return f"user{fnv_hash(number)}"


class RecordKeys:
    """The keys of records by number, each hashed once: the load client's time is part of every figure."""

    def __init__(self, count: int) -> None:
        self._keys = [record_key(number) for number in range(count)]

    def __getitem__(self, number: int) -> str:
        while number >= len(self._keys):
            self._keys.append(record_key(len(self._keys)))
        return self._keys[number]


class Inserted:
    """Which records there are: those before the first one that is not acknowledged yet, as YCSB counts them."""

    def __init__(self, loaded: int) -> None:
        self._numbers = itertools.count(loaded)
        self._acknowledged: set[int] = set()
        self.newest = loaded - 1

    def next(self) -> int:
        """The number of a record that is to be inserted."""
        return next(self._numbers)

    def acknowledge(self, number: int) -> None:
        """That record is there."""
        self._acknowledged.add(number)
        while self.newest + 1 in self._acknowledged:
            self.newest += 1
            self._acknowledged.remove(self.newest)


class Operation(NamedTuple):
    """One operation. record: the number of its record. length: of a scan, 0 for others."""

    kind: Kind
    record: int
    length: int = 0


class Operations:
    """The operations of one workload against one store; the same seed gives the same ones, as far as inserts go alike."""

    def __init__(self, workload: Workload, inserted: Inserted, expected: int, seed: int = 1) -> None:
        """expected: how many operations there will be, roughly."""
        self._rng = Random(seed)
        self._inserted = inserted
        self._kinds = list(workload.shares)
        self._thresholds = list(itertools.accumulate(workload.shares.values()))
        self._draw = self._chooser(workload, expected)

    def _chooser(self, workload: Workload, expected: int) -> Callable[[], int]:
        inserted = self._inserted
        if workload.distribution is Distribution.LATEST:
            return Latest(lambda: inserted.newest, self._rng).draw
        new = int(expected * workload.shares.get(Kind.INSERT, 0.0) * NEW_RECORDS_FUDGE)
        draw = ScrambledZipfian(inserted.newest + 1 + new, self._rng).draw

        def among_the_inserted() -> int:
            while (number := draw()) > inserted.newest:
                pass
            return number

        return among_the_inserted

    def __iter__(self) -> Iterator[Operation]:
        return self

    def __next__(self) -> Operation:
        """The next one; there is always one. Who gets an insert has to acknowledge it."""
        kind = self._kinds[min(bisect(self._thresholds, self._rng.random()), len(self._kinds) - 1)]
        if kind is Kind.INSERT:
            return Operation(kind, self._inserted.next())
        if kind is Kind.SCAN:
            return Operation(kind, self._draw(), self._rng.randint(1, SCAN_LENGTH_MAX))
        return Operation(kind, self._draw())


DRAWN = 100_000
"""Operations drawn beforehand where none inserts; then they come again in the same order."""


def operations(workload: Workload, inserted: Inserted, expected: int, seed: int = 1) -> Iterator[Operation]:
    """The operations of a workload without end; drawn beforehand if no answer can change what is drawn."""
    drawing = Operations(workload, inserted, expected, seed)
    return drawing if Kind.INSERT in workload.shares else itertools.cycle(list(itertools.islice(drawing, DRAWN)))
