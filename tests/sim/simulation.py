"""One run: a cluster built from a seed, faults for a while, healing, then the checks at the end."""

import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from sim.balancer import Balancer
from sim.clients import Client, probe
from sim.coordinator import Coordinator
from sim.disk import Image
from sim.faults import Faults
from sim.invariants import Oracle
from sim.leaf_model import Leaf
from sim.linearizability import Operation, TooHard, is_linearizable, shortest_bad_prefix
from sim.network import Network
from sim.splits import SHARDS, SLOTS, Splitter, all_keys
from sim.world import Violation, World

from kvshard.clustermap import Replica, ShardConfig
from leaf.replication.dedup import DedupTable
from leaf.replication.machine import ReplicationMachine, Role
from leaf.replication.messages import RequestId
from leaf.replication.timings import Timings

FAULTS_S = 7.5
"""Virtual seconds with faults: five failure timeouts, enough for three or four changes of the primary."""

CLIENTS = (3, 6, 12)
"""Callers of a run, drawn from its seed. Many of them have many writes in flight when a primary dies: then logs differ."""

HEALING_LIMIT = 16
"""Failure timeouts within which a healed cluster must be whole: a learner, a handover (at most one per 5 T), their retries."""

POLL_S = 0.1

DRAIN_S = 0.5
"""Time for calls under way to end; what has not is of unknown outcome."""


@dataclass
class Result:
    """What a run was. error: the violation, with the trace before it; empty when there was none. cpu_s: processor time."""

    seed: int
    error: str = ""
    rule: str = ""
    virtual_s: float = 0.0
    cpu_s: float = 0.0
    steps: int = 0
    digest: str = ""
    counts: Counter[str] = field(default_factory=Counter)


class Simulation:
    """The parts of one run and what they share."""

    def __init__(
        self,
        seed: int,
        *,
        machine_class: type[ReplicationMachine] = ReplicationMachine,
        failure_timeout: float = 1.5,
        is_hashing: bool = False,
    ) -> None:
        self.world = World(seed, is_hashing)
        self.machine_class = machine_class
        self.timings = Timings.of(failure_timeout)
        rng = self.world.rng
        self.names = [f"leaf{number}" for number in range(rng.choice((3, 3, 4, 5)))]
        self.keys = all_keys()
        self.replicas = rng.choice((1, 2, 2, 3, 3, 3, 3, 3))
        self.min_in_sync = rng.choice((1, max(1, self.replicas - 1)))
        self.retained_entries = rng.choice((4, 16, 4096))
        self.patience = rng.choice((0.5, 2.0, 5.0))
        self.client_loss = rng.choice((0.0, 0.01, 0.1))
        self.ghosts = rng.choice((0.0, 0.1, 0.5))
        self._dedup_clients = rng.choice((2, 4, 1024))
        self._dedup_window = rng.choice((2, 8, 256))
        self._client_count = rng.choice(CLIENTS)
        self.counts: Counter[str] = Counter()
        self.history: dict[int, list[Operation]] = defaultdict(list)
        self.acknowledged: list[tuple[int, int, RequestId]] = []
        self.is_stopping = False
        self.clients: list[Client] = []
        self._values = 0
        self._incarnations = 0
        self._shards = SHARDS
        self.parents: dict[int, int] = {}
        self.oracles = {shard: Oracle(self, shard, shard * SLOTS, (shard + 1) * SLOTS - 1) for shard in range(SHARDS)}
        self.network = Network(self.world, self.names)
        self.coordinator = Coordinator(self.world, {shard: self._first_config(shard) for shard in self.oracles}, self)
        self.leaves = {name: Leaf(self, name) for name in self.names}
        self.coordinator.watchers.extend(self.leaves.values())
        self.faults = Faults(self)
        self.balancer = Balancer(self)
        self.splitter = Splitter(self)

    def _first_config(self, shard: int) -> ShardConfig:
        names = self.world.rng.sample(self.names, self.replicas)
        oracle = self.oracles[shard]
        members = tuple(Replica(name) for name in names)
        config = ShardConfig(shard, oracle.first_slot, oracle.last_slot, 1, names[0], members, (), tuple(names))
        oracle.configs[1] = config
        return config

    # What the parts ask

    def config_changes(self, before: ShardConfig, after: ShardConfig) -> None:
        """The coordinator is about to store a configuration."""
        self.oracles[after.id].config_changes(before, after)
        stay = {each.leaf for each in after.in_sync}
        for replica in before.in_sync:
            if replica.leaf not in stay or (replica.leaf == before.primary and before.primary != after.primary):
                self._ask_the_outdated(self.leaves[replica.leaf], after.id)

    def shard_divided(self, parent: ShardConfig, child: ShardConfig) -> None:
        """The coordinator is about to store the end of a split."""
        oracle = self.oracles.get(child.id)
        if oracle is None:
            raise Violation(f"I4: {child} is to be stored, but no entry that splits {parent} is committed")
        oracle.born(child)
        self.oracles[parent.id].config_changes(self.coordinator.configs[parent.id], parent)
        self.parents[child.id] = parent.id
        self.counts["splits finished"] += 1

    def _ask_the_outdated(self, leaf: Leaf, shard: int) -> None:
        """Clients that know an older map read where they must be given nothing, or nothing stale."""
        for later in (0.01, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.3):
            self.world.at(later * self.timings.failure_timeout, leaf.post, None, self._ask, leaf, shard, False)

    def leads(self, leaf: Leaf, shard: int) -> None:
        """A replica has just become primary. Clients that know it read at once what its predecessor acknowledged."""
        for later in (0.0, 0.002, 0.01, 0.03, 0.1):
            self.world.at(later, leaf.post, leaf.boot, self._ask, leaf, shard, True)

    def _ask(self, leaf: Leaf, shard: int, is_of_all: bool) -> None:
        host = leaf.hosts.get(shard)
        if host is not None:
            host.read(None if is_of_all else (host.oracle.first_slot,), True, lambda *_: None)

    def new_dedup(self) -> DedupTable:
        """An empty table, its bounds as in the whole of this run."""
        return DedupTable(self._dedup_window, self._dedup_clients)

    def new_image(self, leaf: str, shard: int) -> Image:
        """Empty data of a new replica."""
        self._incarnations += 1
        return Image(f"{leaf}-{shard}-{self._incarnations}", self.new_dedup(), self.oracles[shard].last_slot)

    def new_shard(self) -> int:
        """A number that no shard has had."""
        self._shards += 1
        return self._shards - 1

    def new_value(self) -> int:
        """A value that no other write has."""
        self._values += 1
        return self._values

    def shard_of(self, key: int) -> int:
        """The shard that a key is in, by the newest map."""
        return next(config.id for config in self.coordinator.configs.values() if config.first_slot <= key <= config.last_slot)

    def may_wipe(self, name: str) -> bool:
        """No shard would lose its last in-sync copy, not even by a change that was asked for and is not done yet."""
        asked = [
            config for expected, config in self.coordinator.pending if expected == self.coordinator.configs[config.id].epoch
        ]
        for config in (*self.coordinator.configs.values(), *asked):
            oracle = self.oracles[config.id]
            others = [each for each in config.in_sync if each.leaf != name and oracle.holds(each)]
            mine = [each for each in config.in_sync if each.leaf == name]
            if mine and not others:
                return False
        return True

    # The run

    def start(self, faults_s: float) -> None:
        """Everything begins. faults_s: until when faults are to come."""
        for leaf in self.leaves.values():
            self.world.at(self.world.rng.random() * 0.5, leaf.start)
        self.clients = [Client(self, f"client{number}") for number in range(self._client_count)]
        for client in self.clients:
            self.world.at(self.world.rng.random() * 0.5, client.begin)
        self.faults.start()
        self.balancer.start()
        self.splitter.start(faults_s)

    def heal(self) -> None:
        """End the faults and wait until every shard is whole and takes writes; Violation when that takes too long."""
        self.faults.heal()
        limit = self.world.now + HEALING_LIMIT * self.timings.failure_timeout
        since = self.world.now
        while not self._is_whole():
            if self.world.now > limit:
                raise Violation(f"liveness: not whole {self.world.now - since:.1f} s after healing: {self._state()}")
            self.world.run(self.world.now + POLL_S)
        self.counts["healing ms"] += int(1000 * (self.world.now - since))
        self.is_stopping = True
        self._probe()
        self.world.run(self.world.now + DRAIN_S)
        for client in self.clients:
            client.give_up()

    def _is_whole(self) -> bool:
        return all(
            {each.leaf for each in config.in_sync} == set(config.desired)
            and not config.learners
            and config.split is None
            and all(self._is_in_place(each, config) for each in config.in_sync)
            for config in self.coordinator.configs.values()
        )

    def _is_in_place(self, replica: Replica, config: ShardConfig) -> bool:
        host = self.leaves[replica.leaf].hosts.get(config.id)
        if host is None or host.machine.me != replica or host.machine.epoch != config.epoch:
            return False
        return host.machine.role is (Role.PRIMARY if replica.leaf == config.primary else Role.SECONDARY)

    def _state(self) -> str:
        lines = [f"{config}" for config in self.coordinator.configs.values()]
        lines += [repr(host) for leaf in self.leaves.values() for host in leaf.hosts.values()]
        return "\n  ".join(["", *lines])

    def _probe(self) -> None:
        """Each shard takes a write now, and each of its replicas answers a strong read of it."""
        answers: dict[int, str] = {}
        limit = self.world.now + 4 * self.timings.failure_timeout
        while True:
            for shard in self.oracles:
                if answers.get(shard) != "done":
                    probe(self, shard, lambda kind, *_, shard=shard: answers.__setitem__(shard, kind))
            self.world.run(self.world.now + 0.2)
            if all(answers.get(shard) == "done" for shard in self.oracles):
                break
            if self.world.now > limit:
                raise Violation(f"liveness: a whole cluster takes no write: {answers} {self._state()}")
        self._probe_reads(limit)

    def _probe_reads(self, limit: float) -> None:
        missing = {(shard, each.leaf) for shard, config in self.coordinator.configs.items() for each in config.in_sync}

        def answered(place: tuple[int, str], kind: str) -> None:
            if kind == "read":
                missing.discard(place)

        while missing:
            for shard, leaf in sorted(missing):
                host = self.leaves[leaf].hosts.get(shard)
                if host is not None:
                    host.read(None, True, lambda kind, *_, place=(shard, leaf): answered(place, kind))
            self.world.run(self.world.now + 0.1)
            if self.world.now > limit and missing:
                raise Violation(f"liveness: no strong read at {sorted(missing)} of a whole cluster {self._state()}")

    def check_acknowledged(self) -> None:
        """What callers were told is done is in the log of every replica in sync, and what they show is what the log makes."""
        self.counts["acknowledged writes"] += len(self.acknowledged)
        lost = [each for each in self.acknowledged if not self._is_kept(*each)]
        self.counts["lost writes"] += len(lost)
        if lost:
            raise Violation(f"I4: {len(lost)} acknowledged writes are lost: {lost[:5]} {self._state()}")

    def _is_kept(self, shard: int, seqno: int, request: RequestId) -> bool:
        oracle = self.oracles[shard]
        hosts = [self.leaves[each.leaf].hosts.get(shard) for each in self.coordinator.configs[shard].in_sync]
        return oracle.has_request(seqno, request) and all(
            host is not None and oracle.holds_entry(host, seqno) and oracle.is_state_true(host) for host in hosts
        )

    def check_histories(self) -> None:
        """I11, and that all replicas hold the same in the end."""
        for key, history in self.history.items():
            self.counts["operations"] += len(history)
            try:
                is_good = is_linearizable(history)
            except TooHard:
                self.counts["undecided keys"] += 1
                continue
            if not is_good:
                lines = "\n".join(str(each) for each in shortest_bad_prefix(history)[-12:])
                raise Violation(f"I11: the history of key {key} is not linearizable:\n{lines}")
        for leaf in self.leaves.values():
            for host in leaf.hosts.values():
                host.oracle.check_machine(host)


def run(
    seed: int,
    *,
    machine_class: type[ReplicationMachine] = ReplicationMachine,
    faults_s: float = FAULTS_S,
    is_hashing: bool = False,
    trace_lines: int = 60,
) -> Result:
    """Run one seed to its end. Never raises for what is wrong in the code under test: see `Result.error`."""
    begun = time.process_time()
    sim = Simulation(seed, machine_class=machine_class, is_hashing=is_hashing)
    result = Result(seed)
    try:
        sim.start(faults_s)
        sim.world.run(faults_s)
        sim.heal()
        sim.check_acknowledged()
        sim.check_histories()
    except Exception as error:  # A crash of the machine is a finding like any other.
        result.rule = str(error).split(":", 1)[0] if isinstance(error, Violation) else type(error).__name__
        result.error = f"seed {seed} at {sim.world.now:.4f} s: {_where(error)}\n{sim.world.tail(trace_lines)}"
    result.virtual_s = sim.world.now
    result.cpu_s = time.process_time() - begun
    result.steps = sim.world.steps
    result.digest = sim.world.digest if is_hashing else ""
    result.counts = sum((oracle.counts for oracle in sim.oracles.values()), sim.counts)
    return result


def _where(error: Exception) -> str:
    if isinstance(error, Violation):
        return str(error)
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame is not None else "?"
    return f"{type(error).__name__} at {place}: {error}"
