"""Finds the rate at which to measure: one that leaves the processors room, or one that is just too much.

Latency on a machine that is full says how full it is, not what hedging does. So the rate is chosen by the processor time that
the cluster and the load client take themselves; what others take is their own affair, and stands in the report.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from loadtests.arrivals import Steady, schedule
from loadtests.cpu import CpuMeter
from loadtests.openloop import Call, OpenLoop
from loadtests.tally import Tally
from loadtests.usage import Usage

FIRST_RATE = 40.0
PROBE_S = 3.0
TARGET_PART = 0.42
"""Of all cores, for the rate that leaves room. The bound of the figures is 0.55; hedges and faults come on top."""

RATE_MAX = 20_000.0
GROWTH_MAX = 4.0
"""Between two probes, so that a first probe that was too short to be true does no harm."""

PROBES = 4
FULL_PART = 0.95
"""Of the requests answered in time: below it the cluster is full."""

BISECTIONS = 4

LEG_MAX_S = 0.01
"""A median leg that takes longer waits for the processor: faults that are set as multiples of it would be absurd."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """rate: requests a second. usage: of the last probe. leg_p50_s: median of requests to one shard, at most LEG_MAX_S."""

    rate: float
    usage: Usage
    leg_p50_s: float


async def _probe(
    rate: float, kinds: Sequence[tuple[str, float]], call: Call, meter: CpuMeter, deadline_s: float, rng: Random
) -> tuple[Tally, Usage]:
    arrivals = schedule(Steady(rate, PROBE_S), kinds, rng)
    meter.start()
    tally = await OpenLoop(arrivals, call, deadline_s=deadline_s).run()
    return tally, meter.stop()


async def roomy_rate(
    kinds: Sequence[tuple[str, float]], call: Call, meter: CpuMeter, deadline_s: float, rng: Random
) -> Calibration:
    """The rate at which the cluster and the client take TARGET_PART of the processors."""
    rate = FIRST_RATE
    tally, usage = await _probe(rate, kinds, call, meter, deadline_s, rng)
    for _ in range(PROBES):
        rate = min(RATE_MAX, rate * min(GROWTH_MAX, TARGET_PART / max(usage.own, 1e-3)))
        tally, usage = await _probe(rate, kinds, call, meter, deadline_s, rng)
        if abs(usage.own - TARGET_PART) < 0.03:
            break
    return Calibration(rate, usage, min(LEG_MAX_S, tally.latency(("1",)).quantile(0.5) or 0.0))


async def full_rate(
    kinds: Sequence[tuple[str, float]], call: Call, meter: CpuMeter, deadline_s: float, rng: Random
) -> Calibration:
    """The highest rate at which FULL_PART of the requests are answered in time."""
    found = await roomy_rate(kinds, call, meter, deadline_s, rng)
    low, high, usage = found.rate, 2 * found.rate, found.usage

    async def holds(rate: float) -> bool:
        nonlocal usage
        # Once more where it fails: what somebody else on the machine did meanwhile is no bound of the cluster's.
        for _ in range(2):
            tally, usage = await _probe(rate, kinds, call, meter, deadline_s, rng)
            if tally.goodput >= FULL_PART * tally.total:
                return True
        return False

    while high < RATE_MAX and await holds(high):
        low, high = high, 2 * high
    for _ in range(BISECTIONS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if await holds(middle) else (low, middle)
    return Calibration(low, usage, found.leg_p50_s)
