"""What routers and leaves say to each other of injected faults. Types only.

Pure: imports only the standard library.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class FaultRecord:
    """A way in which a leaf is to misbehave; `kvshard/faults.py` says what the kinds mean and which fields they take.

    probability: part of the requests, of the time for a pause. delay_s, factor: 0 where the kind has none. methods: empty for
    all of "read", "scan", "search", "write".
    """

    id: str
    kind: str
    probability: float
    delay_s: float = 0.0
    factor: float = 0.0
    duration_s: float = 60.0
    seed: int = 0
    methods: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ActiveFaultRecord:
    """A fault in force at a leaf. left_s: seconds until it ends. hits: requests or pauses that it has happened to."""

    fault: FaultRecord
    left_s: float
    hits: int


@dataclass(frozen=True, slots=True)
class FaultOrder:
    """Change the faults of a leaf. inject: one more. clear: end those with these ids, or all when ids is empty.

    With neither the faults are only reported.
    """

    inject: FaultRecord | None = None
    clear: bool = False
    ids: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class FaultReport:
    """The faults in force at a leaf once the order was carried out. cleared: how many it has ended."""

    faults: list[ActiveFaultRecord]
    cleared: int = 0
