"""Arms that take turns: one block of each, there and back, so that the machine's noise, which comes in stretches of seconds,
meets them all alike."""

import gc
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.measured import CLIENT, Absent, Block, Comparison, Measured
from benchmarks.processor_time import ProcessorMeter

WARM_UP_S = 0.4
"""Of load before the turns: connections open, caches fill, pools of latencies settle."""


Run = Callable[[float], Coroutine[Any, Any, Block]]
"""Makes load for so many seconds."""


@dataclass(frozen=True, slots=True)
class Arm:
    """Somebody who can do the task. processes: pids by role, without this process. setting: how it is set up."""

    name: str
    run: Run
    processes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    setting: str = ""


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a comparison takes. turns: blocks of each arm; seconds: of a block."""

    turns: int = 6
    seconds: float = 1.0

    def finer(self, times: int) -> "Pace":
        """As much of each arm in so many times more blocks."""
        return Pace(self.turns * times, self.seconds / times)


async def in_turns(title: str, unit: str, arms: Sequence[Arm | Absent], pace: Pace) -> Comparison:
    """Measure the arms that are there, ABBA, after a warm-up of each that does not count."""
    present = [arm for arm in arms if isinstance(arm, Arm)]
    measured = {arm.name: Measured(arm.name, arm.setting, _counts(arm)) for arm in present}
    for arm in present:
        await arm.run(min(WARM_UP_S, pace.seconds))
    for turn in range(pace.turns):
        for arm in reversed(present) if turn % 2 else present:
            gc.collect()  # So that no arm pays for another's garbage.
            meter = ProcessorMeter(arm.processes)
            meter.start()
            block = await arm.run(pace.seconds)
            measured[arm.name].usages.append(meter.stop())
            measured[arm.name].blocks.append(block)
    return Comparison(title, unit, measured, [arm for arm in arms if isinstance(arm, Absent)])


def _counts(arm: Arm) -> dict[str, int]:
    return {CLIENT: 1, **{role: len(pids) for role, pids in arm.processes.items()}}


async def best(candidates: Sequence[Arm], seconds: float) -> tuple[Arm, dict[str, float]]:
    """The fastest of several settings of one arm, and the rate of each by its setting: a peer is compared at its best.

    seconds: of load for each setting; it is tried twice.
    """
    rates = dict.fromkeys((arm.setting for arm in candidates), 0.0)
    for arm in (*candidates, *reversed(candidates)):
        rates[arm.setting] = max(rates[arm.setting], (await arm.run(seconds)).rate)
    return max(candidates, key=lambda arm: rates[arm.setting]), rates
