"""Which fault hits which request of a leaf, and when it pauses: seeded, so that a run can be repeated.

Each leaf draws from a generator of its own (the fault's seed and the leaf's name), so that leaves with the same fault do not
misbehave in step. What is decided here is performed by `leaf/fault_injection.py`.

Pure: no clock, no process-wide chance; `now` is in monotonic seconds.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

from kvshard.errors import ErrorDetails, InvalidArgument, ResourceExhausted
from kvshard.fault_model import ActiveFaultRecord, FaultRecord
from kvshard.faults import DELAY, DROP, ERROR, FAULTS_MAX, METHODS, PAUSE, SLOW, check_fault


@dataclass(slots=True)
class Effect:
    """What happens to one request, of all faults together: delays add up, factors multiply. delay_s: before it begins."""

    delay_s: float = 0.0
    factor: float = 1.0
    is_failed: bool = False
    is_dropped: bool = False

    def add(self, fault: FaultRecord) -> None:
        """One more fault hits the request."""
        if fault.kind == DELAY:
            self.delay_s += fault.delay_s
        elif fault.kind == SLOW:
            self.factor *= fault.factor
        elif fault.kind == ERROR:
            self.is_failed = True
        elif fault.kind == DROP:
            self.is_dropped = True


@dataclass(slots=True)
class ActiveFault:
    """A fault in force. hits: requests or pauses that it has happened to."""

    record: FaultRecord
    ends_at: float
    rng: random.Random
    hits: int = 0


class PauseSchedule:
    """When a leaf pauses: pauses of one length, with gaps between them that are exponentially distributed.

    The mean gap makes the paused share of the time `share`; with 1 there is one pause from beginning to end. The schedule is
    absolute: a timer that fires late shortens a pause, and moves none of the later ones.
    """

    def __init__(self, length_s: float, share: float, begins_at: float, ends_at: float, rng: random.Random) -> None:
        self._length_s = ends_at - begins_at if share >= 1 else length_s
        self._mean_gap_s = length_s * (1 - share) / share
        self._free_at = begins_at
        self._ends_at = ends_at
        self._rng = rng

    def next_pause(self) -> tuple[float, float] | None:
        """[start, end) of the next pause; the last one is cut off at the end. None when there are no more."""
        gap_s = self._rng.expovariate(1 / self._mean_gap_s) if self._mean_gap_s > 0 else 0.0
        start = self._free_at + gap_s
        if start >= self._ends_at:
            return None
        self._free_at = end = min(start + self._length_s, self._ends_at)
        return start, end


class Faults:
    """The faults in force at one leaf, in the order of their coming; at most FAULTS_MAX."""

    def __init__(self, leaf: str) -> None:
        self._leaf = leaf
        self._active: dict[str, ActiveFault] = {}

    @property
    def has_request_faults(self) -> bool:
        """Whether any of them hits single requests."""
        return any(fault.record.kind != PAUSE for fault in self._active.values())

    @property
    def next_end(self) -> float | None:
        """When the next one ends; None when there is none."""
        return min((fault.ends_at for fault in self._active.values()), default=None)

    @property
    def ids(self) -> frozenset[str]:
        """Those in force."""
        return frozenset(self._active)

    def inject(self, record: FaultRecord, now: float) -> ActiveFault:
        """Put a fault in force. Raises InvalidArgument; ResourceExhausted when there are FAULTS_MAX already."""
        check_fault(record)
        if not record.id or record.id in self._active:
            raise InvalidArgument(f"{record.id!r} cannot be the id of a new fault", ErrorDetails(field="fault.id"))
        if len(self._active) >= FAULTS_MAX:
            text = f"leaf {self._leaf} has {FAULTS_MAX} faults already; clear some first"
            raise ResourceExhausted(text, ErrorDetails(field="fault", limit=FAULTS_MAX))
        # A text as the seed: numbers of the two parts, however combined, would give some pairs of leaves the same chances.
        fault = ActiveFault(record, now + record.duration_s, random.Random(f"{record.seed}/{self._leaf}"))
        self._active[record.id] = fault
        return fault

    def clear(self, ids: Sequence[str]) -> int:
        """End those with these ids, or all when there are none; returns how many."""
        gone = [id for id in self._active if not ids or id in ids]
        for id in gone:
            del self._active[id]
        return len(gone)

    def drop_ended(self, now: float) -> None:
        """Forget those whose time is over."""
        self._active = {id: fault for id, fault in self._active.items() if now < fault.ends_at}

    def report(self, now: float) -> list[ActiveFaultRecord]:
        """Those in force."""
        return [
            ActiveFaultRecord(fault.record, fault.ends_at - now, fault.hits)
            for fault in self._active.values()
            if now < fault.ends_at
        ]

    def draw(self, method: str, now: float) -> Effect | None:
        """What happens to a request of that method ("read", "scan", "search", "write"); None: nothing.

        Every fault of the method draws once for each of its requests, whatever the other faults do: with the same seed and the
        same requests it hits the same ones, alone or beside others.
        """
        assert method in METHODS, method
        effect: Effect | None = None
        for fault in self._active.values():
            record = fault.record
            if record.kind == PAUSE or now >= fault.ends_at or (record.methods and method not in record.methods):
                continue
            if fault.rng.random() < record.probability:
                fault.hits += 1
                effect = effect or Effect()
                effect.add(record)
        return effect

    def __repr__(self) -> str:
        shown = ", ".join(f"{fault.record.kind} {id} ({fault.hits} hits)" for id, fault in self._active.items())
        return f"Faults({self._leaf}: {shown or 'none'})"
