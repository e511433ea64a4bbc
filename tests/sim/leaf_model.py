"""A leaf: a process that starts, is paused, crashes and recovers from its disk, with a clock that runs at its own rate."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from sim.disk import Disk, Image
from sim.host import Host
from sim.splits import tend

from kvshard.clustermap import Replica, ShardConfig
from leaf.replication.dedup import DedupTable
from leaf.replication.events import ConfigSeen, Durable, Fail, Leave, Receive, Tick
from leaf.replication.machine import Recovered, ReplicationMachine, Role
from leaf.replication.messages import Message
from leaf.replication.oplog import ReplicatedLog, Retention

if TYPE_CHECKING:
    from sim.simulation import Simulation

TICK = Tick()
MANAGE_EVERY_TICKS = 5
"""Hosting is looked at so often: what is wanted here gets data of its own, what was removed is deleted."""

LEAVE_POLL_S = 0.05

DROP_CHANCE = 0.3
"""That a look at a removed replica deletes it; else it may be taken in again as it is."""


class Leaf:
    """One leaf and the replicas on it."""

    def __init__(self, sim: "Simulation", name: str) -> None:
        self.sim = sim
        self.world = sim.world
        self.id = name
        rng = self.world.rng
        self.rate = rng.choice((0.9, 1.1, rng.uniform(0.9, 1.1)))
        self.disk = Disk(self.world, self._durable)
        self.hosts: dict[int, Host] = {}
        self.seen: dict[int, ShardConfig] = {}
        self._revisions: dict[int, int] = {}
        self.boot = 0
        self.is_up = False
        self.is_paused = False
        self.is_leaving = False
        self._backlog: list[tuple[int | None, Callable[..., None], tuple[object, ...]]] = []
        self._clock_base = 0.0
        self._booted_at = 0.0
        self._tokens = 0
        self._ticks = 0

    def __repr__(self) -> str:
        return f"Leaf({self.id}, up={self.is_up}, paused={self.is_paused}, boot={self.boot})"

    def clock(self) -> float:
        """This process's monotonic clock: an unknown beginning, a rate within a tenth of true."""
        return self._clock_base + (self.world.now - self._booted_at) * self.rate

    def new_token(self) -> int:
        """A number for a call, unique on this leaf."""
        self._tokens += 1
        return self._tokens

    # Faults

    def start(self) -> None:
        """Start the process from what is on disk."""
        if self.is_up:
            return
        self.boot += 1
        self.is_up = True
        self.is_paused = self.is_leaving = False
        self._clock_base = self.world.rng.uniform(0.0, 10_000.0)
        self._booted_at = self.world.now
        self.seen = {}
        self._revisions = {}
        self.disk.start(self.boot)
        for shard in sorted(self.disk.images):
            self._host(shard)
        self.world.note(self.id, "start", self.boot)
        self.world.at(0.0, self.post, self.boot, self._tick)
        self._read_map()

    def crash(self) -> None:
        """The process dies."""
        if not self.is_up:
            return
        self.world.note(self.id, "crash")
        self.is_up = self.is_paused = False
        self._backlog.clear()
        self.hosts = {}
        self.disk.crash()

    def leave(self, patience: float) -> None:
        """SIGTERM: end as soon as no shard would miss this leaf, or when the patience, in seconds, has run out."""
        if self.is_up and not self.is_paused:
            self.world.note(self.id, "leaves")
            self.is_leaving = True
            for host in list(self.hosts.values()):
                host.step(Leave())
            self.world.at(LEAVE_POLL_S, self.post, self.boot, self._end_when_free, self.world.now + patience)

    def _end_when_free(self, until: float) -> None:
        if self.world.now >= until or all(host.machine.may_stop(self.clock()) for host in self.hosts.values()):
            self.crash()
        else:
            self.world.at(LEAVE_POLL_S, self.post, self.boot, self._end_when_free, until)

    def wipe(self) -> None:
        """Lose the disk of a process that is down."""
        assert not self.is_up
        self.world.note(self.id, "wipe")
        for shard in list(self.disk.images):
            self.disk.drop(shard)

    def pause(self) -> None:
        """SIGSTOP: nothing runs; what comes waits."""
        if self.is_up:
            self.world.note(self.id, "pause")
            self.is_paused = True

    def resume(self) -> None:
        """SIGCONT."""
        if not self.is_paused:
            return
        self.world.note(self.id, "resume")
        self.is_paused = False
        backlog, self._backlog = self._backlog, []
        for boot, call, args in backlog:
            self.post(boot, call, *args)

    def fail_disk(self) -> None:
        """The storage reports an error: every machine stops for good."""
        if self.is_up and not self.is_paused:
            self.world.note(self.id, "disk fails")
            for host in self.hosts.values():
                host.step(Fail("the simulated disk is full"))

    # Events

    def post(self, boot: int | None, call: Callable[..., None], *args: object) -> None:
        """Run now, or at resume; not at all in a process other than the one meant (boot; None: any)."""
        if not self.is_up or (boot is not None and boot != self.boot):
            return
        if self.is_paused:
            self._backlog.append((boot, call, args))
        else:
            call(*args)

    def receive(self, shard: int, sender: Replica, receiver: Replica, message: Message) -> None:
        """A message from another leaf."""
        host = self.hosts.get(shard)
        if host is not None:
            host.step(Receive(sender, receiver, message))

    def config_seen(self, config: ShardConfig, revision: int) -> None:
        """From the watch."""
        self.post(self.boot, self.learn, config, revision)

    def learn(self, config: ShardConfig, revision: int) -> None:
        """A map never goes back, as in `MapStore`; what messages bring may be older."""
        if revision < self._revisions.get(config.id, 0):
            return
        self._revisions[config.id] = revision
        self.seen[config.id] = config
        for host in self.hosts.values():
            host.note_map()
        self._manage(config.id)
        host = self.hosts.get(config.id)
        if host is not None:
            host.step(ConfigSeen(config))

    def _read_map(self) -> None:
        boot = self.boot
        for shard in self.sim.coordinator.configs:
            self.sim.coordinator.read(self.id, shard, lambda config, revision: self.post(boot, self.learn, config, revision))

    def _durable(self, shard: int, ticket: int, boot: int) -> None:
        self.post(boot, self._tell_durable, shard, ticket)

    def _tell_durable(self, shard: int, ticket: int) -> None:
        host = self.hosts.get(shard)
        if host is not None:
            host.step(Durable(ticket))

    def _tick(self) -> None:
        self._ticks += 1
        for host in list(self.hosts.values()):
            host.step(TICK)
            tend(host)
        if self._ticks % MANAGE_EVERY_TICKS == 0:
            for shard in list(self.seen):
                self._manage(shard)
        # An event loop is late at times, never early.
        delay = self.sim.timings.tick / self.rate * (1.0 + 0.3 * self.world.rng.random())
        self.world.at(delay, self.post, self.boot, self._tick)

    # Hosting

    def _manage(self, shard: int) -> None:
        config = self.seen[shard]
        host = self.hosts.get(shard)
        if host is not None and host.machine.role is Role.REMOVED and self.world.rng.random() < DROP_CHANCE:
            self.world.note(self.id, shard, "drops its data")
            host.is_dropped = True
            del self.hosts[shard]
            self.disk.drop(shard)
            host = None
        is_named = self.id in config.desired or any(each.leaf == self.id for each in config.replicas)
        if host is None and is_named:
            if shard not in self.disk.images:
                self.disk.images[shard] = self.sim.new_image(self.id, shard)
            self._host(shard)
            self.hosts[shard].step(ConfigSeen(config))
        host = self.hosts.get(shard)
        if host is not None and Replica(self.id) in config.in_sync:
            self.world.at(self.world.rng.random() * 0.01, self.sim.coordinator.register, shard, host.machine.me)

    def _host(self, shard: int) -> None:
        image = self.disk.images[shard]
        self.hosts[shard] = Host(self, shard, self._machine(shard, image), image)

    def _machine(self, shard: int, image: Image) -> ReplicationMachine:
        dedup = DedupTable(image.dedup.window, image.dedup.clients)
        dedup.restore(image.dedup.records(), image.dedup.forgotten_through)
        log = ReplicatedLog(image.base_seqno, image.base_epoch, image.entries)
        return self.sim.machine_class(
            shard,
            Replica(self.id, image.incarnation),
            self.sim.timings,
            boot=self.boot,
            min_in_sync=self.sim.min_in_sync,
            recovered=Recovered(image.epoch, log, image.applied, dedup),
            now=self.clock(),
            retention=Retention(entries=self.sim.retained_entries, bytes=1 << 20),
        )
