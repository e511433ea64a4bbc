"""One run: traffic, faults, healing, and the rules after every step. A seed replays exactly."""

import time
from collections import Counter
from dataclasses import dataclass, field

from sim.tail.legs import How, LegRun, Request, Router
from sim.tail.oracle import Violation
from sim.tail.world import Turn, World

from kvshard.clustermap import Replica, ShardConfig
from kvshard.errors import Unavailable
from kvshard.tail.hedging import Auto, FixedDelay, HedgePolicy, HedgeSettings, Off, Quantile, ReplicaChoice, Shorter
from kvshard.tail.replica_plan import ReplicaPlan, plan_read, plan_write

FAULTS_S = 8.0
HEALING_S = 16.0
"""A leaf at the top of its slowness needs eleven probes, one a second, to get off probation."""

POLICIES: tuple[HedgePolicy | None, ...] = (
    *([None] * 8), Auto(), Off(), FixedDelay(0.001), FixedDelay(0.02), Quantile(0.9), Shorter(Quantile(0.99), FixedDelay(0.03)),
)  # fmt: skip
SETTINGS = (None, None, None, HedgeSettings(budget=0.02), HedgeSettings(budget=0.3, max_attempts=2), HedgeSettings(budget=0.0))
CHOICES = (*([ReplicaChoice.ADAPTIVE] * 6), ReplicaChoice.RANDOM, ReplicaChoice.PRIMARY)
FAN_OUTS = (1, 1, 1, 1, 4, 8, 8, 32)
DEADLINES_S = (0.001, 0.02, 0.2, 1.0, 1.0, 3.0)


@dataclass
class Result:
    """How a run ended. rule: the one that was broken, empty when none was."""

    seed: int
    rule: str = ""
    error: str = ""
    counts: Counter[str] = field(default_factory=Counter)
    cpu_s: float = 0.0


class Simulation:
    """A router with its leaves."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed, leaves=0)
        rng = self.rng = self.world.rng
        self.world = World(seed, leaves=rng.choice([3, 4, 6, 6, 9]))
        rng = self.rng = self.world.rng
        self.router = Router(self.world, HedgeSettings(budget=rng.choice([None, None, 0.05, 0.2])))
        self.rate = rng.choice([10.0, 60.0, 120.0])
        leaves = list(self.world.leaves)
        shards = [
            ShardConfig(
                id=shard,
                first_slot=0,
                last_slot=0,
                epoch=1,
                primary=leaves[shard % len(leaves)],
                in_sync=tuple(Replica(leaves[(shard + place) % len(leaves)], "i") for place in range(rng.choice([2, 3, 3]))),
            )
            for shard in range(8)
        ]
        self.reads: list[ReplicaPlan] = [plan_read(config, is_stale=False) for config in shards]
        self.writes: list[ReplicaPlan] = [plan_write(config) for config in shards]

    def run(self) -> None:
        """Raises Violation."""
        world, oracle = self.world, self.router.oracle
        faults_end = world.now + FAULTS_S
        world.at(world.now, Turn.WORLD, lambda: self.arrive(faults_end + HEALING_S))
        for _ in range(self.rng.randrange(3, 25)):
            world.at(world.now + self.rng.random() * FAULTS_S, Turn.WORLD, self.fault)
        world.run(faults_end, oracle.check)
        for leaf in world.leaves.values():
            leaf.heal()
        world.run(faults_end + HEALING_S + 10.0, oracle.check)
        self.check_end()

    def check_end(self) -> None:
        """Nothing is left."""
        oracle = self.router.oracle
        oracle.require(not self.router.open, "request never ended", len(self.router.open))
        oracle.check_end(self.world.now)
        left = {leaf.name: len(leaf.in_work) for leaf in self.world.leaves.values() if leaf.in_work}
        oracle.require(not left, "loser still at work", left)

    def arrive(self, until: float) -> None:
        """The next request, and the one after it."""
        world, rng = self.world, self.rng
        if world.now >= until:
            return
        is_healing = world.now > until - HEALING_S
        world.at(world.now + rng.expovariate(25.0 if is_healing else self.rate), Turn.WORLD, lambda: self.arrive(until))
        # A request that comes while the loop is busy begins when it is free.
        world.at(world.now, Turn.ANSWER, lambda: self.begin(1 if is_healing else rng.choice(FAN_OUTS)))

    def begin(self, fan_out: int) -> None:
        """One request."""
        world, rng = self.world, self.rng
        if rng.random() < 0.1:
            request = Request(self.router, [rng.choice(self.writes)], rng.choice(DEADLINES_S), None)
        else:
            kind = rng.choice(["Get", "Get", "BatchGet/32", "Search"])
            how = How(rng.choice(POLICIES), rng.choice(SETTINGS), rng.choice(CHOICES), kind)
            plans = [rng.choice(self.reads) for _ in range(fan_out)]
            request = Request(self.router, plans, rng.choice(DEADLINES_S), how)
        if request.open and rng.random() < 0.04:
            world.at(world.now + rng.expovariate(100.0), Turn.ANSWER, request.cancel)

    def fault(self) -> None:
        """Something goes wrong for a while."""
        world, rng = self.world, self.rng
        leaf = rng.choice(list(world.leaves.values()))
        until = world.now + rng.choice([0.01, 0.05, 0.2, 1.0, 3.0])
        match rng.randrange(10):
            case 0 | 1:
                leaf.paused_until = until
            case 2:
                leaf.factor = rng.choice([3.0, 10.0, 50.0])
            case 3:
                leaf.dead_until = until
                self.broken(leaf.name)
            case 4:
                leaf.deaf_until = until
            case 5:
                leaf.sheds_until = until
            case 6:
                leaf.no_lease_until = until
            case 7:
                leaf.stale_until = until
            case 8:
                world.busy_until = max(world.busy_until, world.now + rng.choice([0.003, 0.02, 0.1, 0.5]))
            case 9:
                for each in world.leaves.values():
                    each.factor = rng.choice([1.0, 5.0, 20.0])

    def broken(self, leaf: str) -> None:
        """The connections to the leaf break: what is out there fails."""
        for request in sorted(self.router.open, key=lambda each: each.number):
            for leg in [leg for leg in request.legs if leg in request.open]:
                for attempt, held in list(leg.out.items()):
                    if held.leaf == leaf:
                        self.world.at(self.world.now, Turn.ANSWER, _failing(leg, attempt))


def _failing(leg: LegRun, attempt: int):
    return lambda: leg.failed(attempt, Unavailable("the lane broke"))


def run(seed: int) -> Result:
    """Run a seed."""
    begun = time.process_time()
    result = Result(seed)
    try:
        simulation = Simulation(seed)
        result.counts = simulation.router.oracle.counts
        simulation.run()
        counters = simulation.router.defences.counters
        result.counts.update({f"refused: {reason.value}": count for reason, count in counters.refused.items() if count})
        result.counts["hedges won"] = counters.hedges_won
        result.counts["held out"] = counters.held_out_requests
    except Violation as violation:
        result.rule, result.error = violation.rule, f"seed {seed}: {violation}"
    except AssertionError as failed:
        result.rule, result.error = "a rule of the code itself", f"seed {seed}: {failed}"
    result.cpu_s = time.process_time() - begun
    return result
