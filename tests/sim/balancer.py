"""The balancer as an actor: changes where shards are wanted, at random while faults run, toward the whole at the end."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sim.simulation import Simulation


class Balancer:
    """Writes `desired` and nothing else."""

    def __init__(self, sim: "Simulation") -> None:
        self.sim = sim
        self.gap_s = sim.world.rng.choice((0.4, 1.0, 4.0)) * sim.timings.failure_timeout

    def start(self) -> None:
        """Begin."""
        self.sim.world.at(self.gap_s * self.sim.world.rng.random(), self._move)

    def _move(self) -> None:
        if self.sim.faults.is_over:
            return
        sim, rng = self.sim, self.sim.world.rng
        shard = rng.choice(list(sim.coordinator.configs))
        desired = list(sim.coordinator.configs[shard].desired)
        spare = [name for name in sim.names if name not in desired]
        if spare and rng.random() < 0.6:
            # One replica elsewhere, the primary's own at times.
            desired[rng.randrange(len(desired))] = rng.choice(spare)
        else:
            rng.shuffle(desired)
        if not sim.coordinator.is_out:
            sim.counts["moves"] += 1
            sim.coordinator.set_desired(shard, tuple(desired))
        sim.world.at(self.gap_s * (0.5 + rng.random()), self._move)
