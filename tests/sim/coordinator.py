"""The coordinator: shard configurations under compare-and-set, watched with delay, at times away or ambiguous."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Protocol

from sim.world import World

from kvshard.clustermap import Replica, ShardConfig, WantedSplit
from kvshard.splitting import divided
from leaf.replication.events import CasAnswer, Outcome


class Judge(Protocol):
    """Who is told of each change before it takes effect."""

    def config_changes(self, before: ShardConfig, after: ShardConfig) -> None:
        """Raise Violation when it must not happen."""

    def shard_divided(self, parent: ShardConfig, child: ShardConfig) -> None:
        """The same, of a split's end."""


class Watcher(Protocol):
    """A leaf as the coordinator sees it."""

    id: str

    def config_seen(self, config: ShardConfig, revision: int) -> None:
        """Called with each change, late. revision: which is newer."""


class Coordinator:
    """Configurations by shard.

    is_out: nobody is answered. cut_off: leaves that are not. ambiguity: probability that the outcome of a
    compare-and-set is not told, whether it was done, is done later or never. deferred: leaves whose next takeover is done so
    much later, and what is called when it is asked for. pending: what may still be done.
    """

    def __init__(self, world: World, configs: Mapping[int, ShardConfig], judge: Judge) -> None:
        self.world = world
        self.configs = dict(configs)
        self.judge = judge
        self.watchers: list[Watcher] = []
        self.is_out = False
        self.cut_off: set[str] = set()
        self.ambiguity = 0.0
        self.deferred: dict[str, tuple[float, Callable[[], None]]] = {}
        self.delay = world.rng.choice((0.001, 0.005, 0.02))
        self.watch_delay = world.rng.choice((self.delay, 0.1, 0.5))
        self.revisions = dict.fromkeys(configs, 1)
        self._told: dict[tuple[str, int], int] = {}
        self.pending: list[tuple[int, ShardConfig]] = []

    def reaches(self, leaf: str) -> bool:
        """Requests of this leaf are answered now."""
        return not self.is_out and leaf not in self.cut_off

    def _pause(self) -> float:
        return self.delay * (0.3 + self.world.rng.expovariate(1.0))

    # Requests of leaves

    def compare_and_set(self, leaf: str, expected_epoch: int, config: ShardConfig, answer: Callable[[CasAnswer], None]) -> None:
        """Ask for a change; answered in the end, if only with UNKNOWN."""
        self.pending.append((expected_epoch, config))
        self.world.at(self._pause(), self._serve_cas, leaf, expected_epoch, config, answer)

    def _serve_cas(self, leaf: str, expected: int, config: ShardConfig, answer: Callable[[CasAnswer], None]) -> None:
        rng = self.world.rng
        if leaf in self.deferred and config.primary == leaf != self.configs[config.id].primary:
            delay, asked = self.deferred.pop(leaf)
            asked()
            self.world.at(delay, self._execute_late, expected, config)
            self.world.at(0.05 + rng.random() * 0.5, answer, CasAnswer(expected, Outcome.UNKNOWN))
            return
        if self.reaches(leaf) and rng.random() >= self.ambiguity:
            is_done = self._execute(expected, config)
            held = None if is_done or rng.random() < 0.3 else self.configs[config.id]
            outcome = Outcome.SUCCEEDED if is_done else Outcome.FAILED
            self.world.at(self._pause(), answer, CasAnswer(expected, outcome, held))
            return
        fate = rng.random()
        if fate < 0.35:
            self._execute(expected, config)
        elif fate < 0.65:
            self.world.at(rng.random() ** 2 * 4.0, self._execute_late, expected, config)
        else:
            self.pending.remove((expected, config))
        self.world.at(0.05 + rng.random() * 0.5, answer, CasAnswer(expected, Outcome.UNKNOWN))

    def _execute(self, expected: int, config: ShardConfig) -> bool:
        self.pending.remove((expected, config))
        stored = self.configs[config.id]
        if stored.epoch != expected:
            return False
        self._store(stored.succeeded_by(config))
        return True

    def _execute_late(self, expected: int, config: ShardConfig) -> None:
        self._execute(expected, config)

    def read(self, leaf: str, shard: int, answer: Callable[[ShardConfig, int], None]) -> None:
        """Read now and answer later; asked again while there is no answer."""
        if self.reaches(leaf):
            self.world.at(self._pause(), self._serve_read, leaf, shard, answer)
        else:
            self.world.at(0.2, self.read, leaf, shard, answer)

    def _serve_read(self, leaf: str, shard: int, answer: Callable[[ShardConfig, int], None]) -> None:
        if self.reaches(leaf):
            self.world.at(self._pause(), answer, self.configs[shard], self.revisions[shard])
        else:
            self.read(leaf, shard, answer)

    def register(self, shard: int, replica: Replica) -> None:
        """Fill in the incarnation of an in-sync member that has none; asked again until it is there."""
        if self.reaches(replica.leaf):
            stored = self.configs[shard]
            nameless = Replica(replica.leaf)
            if nameless in stored.in_sync:
                filled = tuple(replica if each == nameless else each for each in stored.in_sync)
                self._store(dataclasses.replace(stored, in_sync=filled))
        else:
            self.world.at(0.3, self.register, shard, replica)

    # The balancer

    def set_desired(self, shard: int, desired: tuple[str, ...]) -> None:
        """Change where a shard is wanted; the epoch stays."""
        self._store(dataclasses.replace(self.configs[shard], desired=desired))

    # Splits

    def set_split(self, shard: int, wanted: WantedSplit) -> None:
        """Wish for a split; the epoch stays."""
        self._store(dataclasses.replace(self.configs[shard], split=wanted))

    def finish_split(self, leaf: str, shard: int, epoch: int, wanted: WantedSplit, members: frozenset[str]) -> None:
        """Ask for the end of a split. Nobody is answered: the watch tells, else it is asked for again."""
        self.world.at(self._pause(), self._serve_finish, leaf, shard, epoch, wanted, members)

    def _serve_finish(self, leaf: str, shard: int, epoch: int, wanted: WantedSplit, members: frozenset[str]) -> None:
        rng = self.world.rng
        fate = 0.0 if self.reaches(leaf) and rng.random() >= self.ambiguity else rng.random()
        if fate < 0.35:
            self._finish(shard, epoch, wanted, members)
        elif fate < 0.65:
            self.world.at(rng.random() ** 2 * 4.0, self._finish, shard, epoch, wanted, members)

    def _finish(self, shard: int, epoch: int, wanted: WantedSplit, members: frozenset[str]) -> None:
        """As `kvshard/coordination/splits.py` does it."""
        held = self.configs[shard]
        is_named = held.primary in members and all(each.incarnation for each in held.in_sync)
        if held.split != wanted or held.epoch != epoch or not is_named:
            return
        parent, child = divided(held, members)
        self.judge.shard_divided(parent, child)
        for config in (parent, child):
            self._put(config)

    # Watches

    def _store(self, config: ShardConfig) -> None:
        before = self.configs[config.id]
        self.judge.config_changes(before, config)
        self._put(config)

    def _put(self, config: ShardConfig) -> None:
        self.configs[config.id] = config
        self.revisions[config.id] = self.revisions.get(config.id, 0) + 1
        self.world.note("coordinator", config.id, config)
        for watcher in self.watchers:
            self._watch(watcher, config.id, self.watch_delay * self.world.rng.expovariate(1.0))

    def _watch(self, watcher: Watcher, shard: int, delay: float) -> None:
        self.world.at(delay, self._notify, watcher, self.configs[shard], self.revisions[shard])

    def _notify(self, watcher: Watcher, config: ShardConfig, revision: int) -> None:
        if self.reaches(watcher.id):
            self._told[watcher.id, config.id] = revision
            watcher.config_seen(config, revision)

    def reconnect(self) -> None:
        """After an outage watches resume with what was missed, and nothing else: who missed no change is told nothing again."""
        for watcher in self.watchers:
            for shard in self.configs:
                if self._told.get((watcher.id, shard), 0) < self.revisions[shard]:
                    self._watch(watcher, shard, self._pause())
