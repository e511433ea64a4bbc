"""What goes wrong: a schedule of faults drawn from the seed, each with an end, and the healing of all of them."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim.world import World

if TYPE_CHECKING:
    from sim.simulation import Simulation


FAULT = "fault: "
"""Before the name of a fault, in the counts of a run."""


KINDS = (
    "crash",
    "crash all",
    "leave",
    "wipe",
    "pause",
    "cut",
    "isolate",
    "partition",
    "torn write",
    "late takeover",
    "slow link",
    "loss",
    "coordinator out",
    "coordinator cut off",
    "ambiguity",
    "slow disk",
    "disk fails",
)
"""What may go wrong; each is a method of Faults. Duplication, reordering and drifting clocks are always there."""


class Faults:
    """Starts faults at random intervals. Which kinds a run has, and how often, differs from seed to seed."""

    def __init__(self, sim: "Simulation") -> None:
        self.sim = sim
        self.world: World = sim.world
        rng = self.world.rng
        self.kinds: dict[str, Callable[[str], None]] = {name: getattr(self, f"_{name.replace(' ', '_')}") for name in KINDS}
        self.weights = [rng.choice((0, 0, 1, 3)) * (0.3 if name == "crash all" else 1.0) for name in self.kinds]
        if not any(self.weights):
            self.weights[0] = 1
        self.gap_s = rng.choice((0.15, 0.3, 0.6, 1.5)) * sim.timings.failure_timeout
        self.is_over = False

    def start(self) -> None:
        """Begin; the first fault comes after a while."""
        self.world.at(self.sim.timings.failure_timeout * 0.5 + self.world.rng.random() * self.gap_s, self._next)

    def _next(self) -> None:
        if self.is_over:
            return
        rng = self.world.rng
        (name,) = rng.choices(list(self.kinds), self.weights)
        target = self._target()
        self.world.note("fault", name, target)
        self.sim.counts[f"{FAULT}{name}"] += 1
        self.kinds[name](target)
        self.world.at(rng.expovariate(1.0) * self.gap_s, self._next)

    def _target(self) -> str:
        rng = self.world.rng
        config = rng.choice(list(self.sim.coordinator.configs.values()))
        return rng.choice((config.primary, rng.choice(config.in_sync).leaf, rng.choice(self.sim.names)))

    def _length(self) -> float:
        """From far below the shortest lease to well beyond the grace."""
        rng = self.world.rng
        return rng.choice((0.2, 0.8, 2.0)) * rng.uniform(0.3, 1.3) * self.sim.timings.failure_timeout

    def heal(self) -> None:
        """End everything that goes wrong."""
        self.is_over = True
        self.world.note("healed")
        self.sim.network.heal()
        coordinator = self.sim.coordinator
        coordinator.is_out = False
        coordinator.cut_off.clear()
        coordinator.deferred.clear()
        coordinator.ambiguity = 0.0
        self.sim.client_loss = 0.0
        for leaf in self.sim.leaves.values():
            leaf.disk.slow_s = 0.0
            if leaf.is_up and (leaf.is_leaving or self._has_failed(leaf.id)):
                leaf.crash()
            leaf.resume()
            leaf.start()
        coordinator.reconnect()

    def _has_failed(self, name: str) -> bool:
        return any(host.machine.role.name == "FAILED" for host in self.sim.leaves[name].hosts.values())

    # Leaves

    def _crash(self, name: str) -> None:
        leaf = self.sim.leaves[name]
        leaf.crash()
        self.world.at(0.01 + self._length(), leaf.start)

    def _crash_all(self, _: str) -> None:
        for name in self.sim.names:
            self._crash(name)

    def _leave(self, name: str) -> None:
        """A stop as a person asks for it: the leaf hands over what it leads, as far as it can in time, and ends."""
        leaf = self.sim.leaves[name]
        leaf.leave(self.sim.timings.failure_timeout)
        self.world.at(self.sim.timings.failure_timeout + self._length(), leaf.start)

    def _wipe(self, name: str) -> None:
        """Only where each shard keeps another in-sync copy: no replication survives the loss of all of them."""
        if self.sim.may_wipe(name):
            self.sim.leaves[name].crash()
            self.sim.leaves[name].wipe()
            self.world.at(0.01 + self._length(), self.sim.leaves[name].start)

    def _pause(self, name: str) -> None:
        leaf = self.sim.leaves[name]
        leaf.pause()
        self.world.at(self._length(), leaf.resume)

    def _late_takeover(self, _: str) -> None:
        """A secondary asks to take over from a primary that stands still, and dies; both go on; then what it asked is done."""
        rng, timeout = self.world.rng, self.sim.timings.failure_timeout
        config = rng.choice(list(self.sim.coordinator.configs.values()))
        heirs = [each.leaf for each in config.in_sync if each.leaf != config.primary]
        if not heirs:
            return
        heir = self.sim.leaves[heirs[0]]

        def asked() -> None:
            self.world.at(0.05, heir.crash)
            self.world.at(0.1, heir.start)
            self.world.at(0.15, self.sim.leaves[config.primary].resume)

        self.sim.coordinator.deferred[heir.id] = (rng.uniform(0.2, 1.0) * timeout, asked)
        self.sim.leaves[config.primary].pause()
        self.world.at(2.0 * timeout, self.sim.leaves[config.primary].resume)
        self.world.at(2.0 * timeout, self.sim.coordinator.deferred.pop, heir.id, None)

    def _slow_disk(self, name: str) -> None:
        disk = self.sim.leaves[name].disk
        disk.slow_s = self.world.rng.choice((0.02, 0.3, 3.0))

        def end() -> None:
            disk.slow_s = 0.0

        self.world.at(self._length(), end)

    def _disk_fails(self, name: str) -> None:
        leaf = self.sim.leaves[name]
        leaf.fail_disk()

        def restart() -> None:
            if self._has_failed(name):
                leaf.crash()
                leaf.start()

        self.world.at(self._length(), restart)

    # Links

    def _cut(self, name: str) -> None:
        others = [each for each in self.sim.names if each != name]
        if not others:
            return
        other = self.world.rng.choice(others)
        self._cut_links([(name, other)] if self.world.rng.random() < 0.5 else [(other, name)])

    def _isolate(self, name: str) -> None:
        rng = self.world.rng
        directions = rng.choice(((True, True), (True, False), (False, True)))
        pairs = []
        for other in self.sim.names:
            if other != name:
                pairs += [(name, other)] * directions[0] + [(other, name)] * directions[1]
        self._cut_links(pairs)
        if rng.random() < 0.5:
            self._coordinator_cut_off(name)

    def _torn_write(self, _: str) -> None:
        """Some of a shard's secondaries get what its primary sends, others do not, and then it dies: their logs differ."""
        rng = self.world.rng
        config = rng.choice(list(self.sim.coordinator.configs.values()))
        others = [each.leaf for each in config.in_sync if each.leaf != config.primary]
        missed = rng.sample(others, rng.randint(1, len(others))) if others else []
        length = rng.uniform(0.02, 0.2)
        self._cut_links([(config.primary, name) for name in missed], length)
        self.world.at(length, self._crash, config.primary)

    def _partition(self, _: str) -> None:
        """Two halves that do not hear each other; most times only one of them reaches the coordinator."""
        rng = self.world.rng
        length = rng.uniform(0.5, 2.6) * self.sim.timings.failure_timeout
        config = rng.choice(list(self.sim.coordinator.configs.values()))
        secondaries = [each.leaf for each in config.in_sync if each.leaf != config.primary]
        if secondaries and rng.random() < 0.6:
            # One secondary takes over, while the old primary still hears the others.
            alone = rng.choice(secondaries)
            one = {name for name in self.sim.names if name != alone}
        else:
            one = set(rng.sample(self.sim.names, rng.randint(1, len(self.sim.names) - 1)))
        self._cut_links([pair for pair in self.sim.network.links if (pair[0] in one) != (pair[1] in one)], length)
        if rng.random() < 0.8:
            for name in sorted(one):
                self._coordinator_cut_off(name, length)

    def _cut_links(self, pairs: list[tuple[str, str]], length: float | None = None) -> None:
        for pair in pairs:
            self.sim.network.links[pair].is_cut = True

        def end() -> None:
            for pair in pairs:
                self.sim.network.links[pair].is_cut = False

        self.world.at(length or self._length(), end)

    def _slow_link(self, name: str) -> None:
        rng = self.world.rng
        extra = rng.choice((0.05, 0.3, 1.0)) * self.sim.timings.failure_timeout
        links = [link for (a, b), link in self.sim.network.links.items() if name in (a, b) and rng.random() < 0.7]
        for link in links:
            link.jitter = extra

        def end() -> None:
            for link in links:
                link.jitter = self.sim.network.jitter

        self.world.at(self._length(), end)

    def _loss(self, _: str) -> None:
        loss = self.world.rng.choice((0.05, 0.2, 0.5))
        for link in self.sim.network.links.values():
            link.loss = loss

        def end() -> None:
            for link in self.sim.network.links.values():
                link.loss = 0.0 if self.is_over else self.sim.network.base_loss

        self.world.at(self._length(), end)

    # Coordinator

    def _coordinator_out(self, _: str) -> None:
        self.sim.coordinator.is_out = True
        self.world.at(self._length(), self._coordinator_back)

    def _coordinator_back(self) -> None:
        self.sim.coordinator.is_out = False
        self.sim.coordinator.reconnect()

    def _coordinator_cut_off(self, name: str, length: float | None = None) -> None:
        cut_off = self.sim.coordinator.cut_off
        cut_off.add(name)

        def end() -> None:
            cut_off.discard(name)
            self.sim.coordinator.reconnect()

        self.world.at(length or self._length(), end)

    def _ambiguity(self, _: str) -> None:
        self.sim.coordinator.ambiguity = self.world.rng.choice((0.3, 0.8))

        def end() -> None:
            self.sim.coordinator.ambiguity = 0.0

        self.world.at(self._length() * 2.0, end)
