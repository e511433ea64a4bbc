"""How much of each experiment is measured, and how long that takes.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass
from math import ceil

from loadtests.scenarios import Experiment

WARM_UP_S = 1.0
"""Of each block, sent but not counted: what the router learned under the cell before is not what this cell measures."""

OVERHEAD_S = 0.3
"""Of a block, for making the schedule, injecting faults and adding up; for the estimate of how long a run takes."""

SETTLE_S = 0.2
"""Between the end of a block and the next, for what is still on its way."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured. rounds: each has two blocks of every cell; None: as many as an experiment's samples take."""

    rounds: int | None = None
    seed: int = 1

    def rounds_of(self, experiment: Experiment, rate: float) -> int:
        """Rounds of an experiment at so many requests a second."""
        if self.rounds is not None:
            return self.rounds
        part = experiment.fan_outs[0][1] / sum(weight for _, weight in experiment.fan_outs)
        return max(1, ceil(experiment.samples / (2 * experiment.block_s * rate * part)))


def seconds_of(experiment: Experiment, rounds: int) -> float:
    """How long so many rounds take, about."""
    block_s = experiment.block_s + SETTLE_S + OVERHEAD_S
    return 2 * rounds * sum(block_s + max(WARM_UP_S, cell.condition.after_s) for cell in experiment.cells)
