"""Puts a cluster into the state that a condition describes, and takes it back."""

import asyncio
import itertools
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from benchmarks.fleet import Fleet
from kvshard import Client
from kvshard.fault_model import FaultRecord
from leaf.faults import Faults, PauseSchedule
from loadtests.scenarios import Condition, Fault, Throttle

MARGIN_S = 60.0
"""Faults end by themselves so long after the block that wanted them, should the load client die."""

_SEEDS = itertools.count(1)
"""Each injection of a run draws other pauses, the same ones in every run."""


@asynccontextmanager
async def in_force(
    condition: Condition, fleet: Fleet, client: Client[str], *, seconds: float, leg_p50_s: float
) -> AsyncIterator[list[tuple[int, float, float]]]:
    """Keep the cluster in this condition. seconds: for how long at most. leg_p50_s: what a lone leg takes.

    Gives the pauses of the leaves in that time: (number of the leaf from 0, start, end), of the monotonic clock.
    """
    pauses: list[tuple[int, float, float]] = []
    for fault in condition.faults:
        seed = next(_SEEDS)
        await client.inject_fault(
            fault.kind,
            leaves=fleet.names[: fault.leaves] if fault.leaves else (),
            probability=fault.probability,
            delay=fault.seconds(leg_p50_s),
            duration=seconds + MARGIN_S,
            seed=seed,
        )
        if fault.kind == "pause":
            names = fleet.names[: fault.leaves] if fault.leaves else fleet.names
            for number, name in enumerate(names):
                found = pauses_of(fault, name, seed, time.monotonic(), seconds)
                pauses += [(number, start, end) for start, end in found]
    throttled = None
    if condition.throttle is not None:
        throttled = asyncio.create_task(_throttle(fleet, condition.throttle))
    try:
        yield pauses
    finally:
        if throttled is not None:
            throttled.cancel()
            await asyncio.gather(throttled, return_exceptions=True)
        if condition.faults:
            await client.clear_faults()


def pauses_of(fault: Fault, leaf: str, seed: int, begins_at: float, seconds: float) -> list[tuple[float, float]]:
    """When a leaf that has such a fault stands still: it decides by itself, but from the seed, and as is done here."""
    record = FaultRecord("here", fault.kind, fault.probability, fault.delay, duration_s=seconds + MARGIN_S, seed=seed)
    active = Faults(leaf).inject(record, begins_at)
    schedule = PauseSchedule(record.delay_s, record.probability, begins_at, active.ends_at, active.rng)
    found: list[tuple[float, float]] = []
    while (pause := schedule.next_pause()) is not None and pause[0] < begins_at + seconds:
        found.append(pause)
    return found


async def _throttle(fleet: Fleet, throttle: Throttle) -> None:
    """Stop and continue the leaves in turns; the stops of different leaves do not fall together."""
    names = fleet.names[: throttle.leaves]
    await asyncio.gather(*(_throttle_one(fleet, name, throttle, index / len(names)) for index, name in enumerate(names)))


async def _throttle_one(fleet: Fleet, name: str, throttle: Throttle, phase: float) -> None:
    leaf, begin = fleet.leaves[name], time.monotonic() + phase * throttle.period_s
    try:
        for number in itertools.count():
            await _sleep_until(begin + number * throttle.period_s)
            leaf.send(signal.SIGSTOP)
            await _sleep_until(begin + number * throttle.period_s + throttle.stop_s)
            leaf.send(signal.SIGCONT)
    finally:
        leaf.send(signal.SIGCONT)


async def _sleep_until(at: float) -> None:
    await asyncio.sleep(max(0.0, at - time.monotonic()))


def pids(fleet: Fleet) -> Sequence[int]:
    """The processes of the cluster."""
    return [process.pid for process in fleet.processes.values()]
