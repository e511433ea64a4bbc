"""Faults that a leaf can be told to have: which there are, what they mean, and within which bounds.

Whatever is slow sleeps; no fault burns CPU. A fault ends by itself, and with the leaf's process.

Pure: imports only the standard library and other pure files.
"""

import math
from typing import Final

from kvshard.errors import ErrorDetails, InvalidArgument
from kvshard.fault_model import FaultRecord

PAUSE: Final = "pause"
"""Every now and then the whole leaf stops for delay_s: it reads no request and sends no answer, pings and status included.

probability is the part of the time that it is stopped; with 1 it is stopped until the fault ends, and delay_s may be 0.
Replication goes on all the same (beacons, acknowledgements, the leaf's own work): leases would end otherwise and other replicas
take over, which is what stopping the process (SIGSTOP) or killing it is for.
"""

DELAY: Final = "delay"
"""A request begins delay_s later."""

SLOW: Final = "slow"
"""A request takes factor times as long; one of less than SLOW_FLOOR_S as if it had taken that."""

ERROR: Final = "error"
"""A request fails with UNAVAILABLE, and nothing is done."""

DROP: Final = "drop"
"""A request is never answered, and nothing is done."""

KINDS: Final = (PAUSE, DELAY, SLOW, ERROR, DROP)

METHODS: Final = ("read", "scan", "search", "write")
"""Methods that a fault of single requests can be limited to."""

SLOW_FLOOR_S: Final = 0.0005
"""A read from memory takes 50 us: ten times that is lost in the network's own spread, and would be no straggler."""

DURATION_MAX_S: Final = 3600.0
"""An hour: a fault that somebody forgot must not outlive the day's work."""

DELAY_MIN_S: Final = 0.001
"""The resolution of the event loop's timers; shorter pauses would only wake it up."""

DELAY_MAX_S: Final = 60.0
"""Longer than every deadline that is of use; beyond that a drop says the same."""

FACTOR_MAX: Final = 1_000.0
"""Makes 0.5 s of the shortest request."""

SEED_MAX: Final = 2**64 - 1
"""What the wire carries."""

FAULTS_MAX: Final = 16
"""Faults of a leaf at a time: every request looks at each of them."""


def check_fault(fault: FaultRecord) -> None:
    """Raise InvalidArgument, naming field and limit, for a fault that is none or exceeds a bound."""
    if fault.kind not in KINDS:
        raise _wrong(f"{fault.kind or 'no kind'!r} is no kind of fault; there are {', '.join(KINDS)}", "kind")
    _check_range("probability", fault.probability, 0.0, 1.0, is_least_in=False)
    _check_range("duration_s", fault.duration_s, 0.0, DURATION_MAX_S, is_least_in=False)
    if not 0 <= fault.seed <= SEED_MAX:
        raise _wrong(f"seed must be 0 to {SEED_MAX}, not {fault.seed}", "seed")
    _check_delay(fault)
    if fault.kind == SLOW:
        _check_range("factor", fault.factor, 1.0, FACTOR_MAX, is_least_in=False)
    elif fault.factor:
        raise _wrong(f"a factor is for {SLOW!r}, not for {fault.kind!r}", "factor")
    _check_methods(fault)


def _check_delay(fault: FaultRecord) -> None:
    if fault.kind not in (PAUSE, DELAY):
        if fault.delay_s:
            raise _wrong(f"a delay is for {DELAY!r} and {PAUSE!r}, not for {fault.kind!r}", "delay_ms")
    elif fault.kind == DELAY or fault.probability < 1 or fault.delay_s:
        low, high = DELAY_MIN_S * 1000, DELAY_MAX_S * 1000
        _check_range("delay_ms", fault.delay_s * 1000, low, high)


def _check_methods(fault: FaultRecord) -> None:
    if fault.kind == PAUSE and fault.methods:
        raise _wrong("a pause stops the whole leaf: it takes no methods", "methods")
    for method in fault.methods:
        if method not in METHODS:
            raise _wrong(f"{method!r} is no method; there are {', '.join(METHODS)}", "methods")


def _check_range(field: str, value: float, least: float, most: float, *, is_least_in: bool = True) -> None:
    is_above = value >= least if is_least_in else value > least
    if not (math.isfinite(value) and is_above and value <= most):
        low = f"from {least:g}" if is_least_in else f"above {least:g}"
        text = f"{field} must be {low} to {most:g}, not {value:g}"
        raise InvalidArgument(text, ErrorDetails(field=f"fault.{field}", limit=int(most)))


def _wrong(text: str, field: str) -> InvalidArgument:
    return InvalidArgument(text, ErrorDetails(field=f"fault.{field}"))
