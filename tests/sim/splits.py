"""Splits of shards: which keys there are and where, who wishes for splits, and what a replica does for one.

A key is its own token slot, so what a split takes away can be read off the keys. What a replica does next is decided by the
product (`leaf/splitting.py`); only the copying is left out: here a shadow is complete as soon as it is wanted, and the child's
data comes into being when the entry is applied.
"""

from typing import TYPE_CHECKING

from kvshard.clustermap import WantedSplit
from kvshard.splitting import derived_incarnation
from leaf.operations import Split
from leaf.replication.events import Divided, Write
from leaf.replication.machine import ReplicationMachine, Role
from leaf.splitting import Part, Shadow, Situation, Task, next_task

if TYPE_CHECKING:
    from sim.host import Host
    from sim.simulation import Simulation

SHARDS = 2
"""At the begin of a run."""

SLOTS = 100
"""Of each of those."""

KEYS = (0, 61, 22, 83, 44)
"""Places of keys within each of those; the first are the hot ones. A split leaves some on either side, as does a second one."""


def all_keys() -> list[int]:
    """Every key."""
    return [first * SLOTS + place for first in range(SHARDS) for place in KEYS]


def pending_split(machine: ReplicationMachine) -> tuple[int, Split] | None:
    """(seqno, split) that is in the log and not applied. There is one at most: no other entry of all keys goes beside it."""
    seqno = machine.latest_of_all
    payload = machine.log.entry(seqno).payload if seqno else None
    return (seqno, payload) if isinstance(payload, Split) else None


def tend(host: "Host") -> None:
    """The next step of a replica for the split that its map wants."""
    look_whether_divided(host)
    config = host.leaf.seen.get(host.shard)
    if config is None or config.split is None or host.machine.role is not Role.PRIMARY:
        return
    wanted, reign = config.split, host.machine.reign
    assert reign is not None
    members = reign.have_divided_off(wanted.child)
    is_applied = host.last_slot < wanted.at_slot
    part = Part(wanted.child, wanted.at_slot, host.last_slot)
    task = next_task(
        Situation(
            wanted=wanted,
            is_applied=is_applied,
            shadow=None if is_applied else Shadow(part, is_complete=True),
            departed=(),
            is_primary=True,
            is_in_flight=host.machine.latest_of_all > 0,
            may_begin=True,
            are_others_ready=True,
            waited_s=0.0,
            divided_s=host.divided_s,
            have_others_divided=members >= {each.leaf for each in reign.config.in_sync},
            known=host.leaf.seen,
        )
    )
    if task is Task.PROPOSE:
        propose(host, Split(*part))
    elif task is Task.FINISH and host.leaf.clock() >= host.finish_at:
        host.finish_at = host.leaf.clock() + host.leaf.sim.timings.coordinator_retry
        host.world.note(host.leaf.id, host.shard, "asks for the end of", wanted)
        host.leaf.sim.coordinator.finish_split(host.leaf.id, host.shard, host.machine.epoch, wanted, members)


def look_whether_divided(host: "Host") -> None:
    """Tell the machine when the data of a child that the map does not know yet is whole on the disk, and when it does."""
    images, incarnation = host.leaf.disk.images, host.machine.me.incarnation
    whole = [
        child
        for child in host.departed
        if child not in host.leaf.seen
        and child in images
        and images[child].incarnation == derived_incarnation(incarnation, child)
    ]
    child = whole[-1] if whole else None
    if host.machine.divided_off != child:
        host.divided_at = host.leaf.clock()
        host.step(Divided(child))


def propose(host: "Host", split: Split) -> None:
    """Put the split into the log, if this replica takes writes now."""
    token = host.leaf.new_token()
    host.proposals[token] = split
    host.step(Write(token, None, 0))
    host.proposals.pop(token, None)


class Splitter:
    """Whoever wishes for splits: in some runs, at some times, while faults run."""

    def __init__(self, sim: "Simulation") -> None:
        self.sim = sim
        self.wishes = sim.world.rng.choice((0, 0, 1, 2, 4))

    def start(self, until: float) -> None:
        """Begin. until: when the faults end."""
        for _ in range(self.wishes):
            self.sim.world.at(until * self.sim.world.rng.random(), self._wish)

    def _wish(self) -> None:
        sim = self.sim
        config = sim.world.rng.choice(list(sim.coordinator.configs.values()))
        if config.split is None and config.first_slot < config.last_slot and not sim.coordinator.is_out:
            sim.counts["splits wanted"] += 1
            sim.coordinator.set_split(config.id, WantedSplit(sim.new_shard(), config.middle_slot))
