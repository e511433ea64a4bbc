"""Planted bugs in what the leaf does for its machines: disk, clock, driver. The machine itself stays as it is."""

import contextlib
import dataclasses
from collections.abc import Callable
from unittest import mock

from sim.disk import Disk, Image, Operation
from sim.host import Host
from sim.leaf_model import Leaf
from sim.planting import Plant, replace
from sim.simulation import Simulation

from kvshard.clustermap import Replica
from leaf.replication import actions as act
from leaf.replication.events import CasAnswer, Conclude, Durable, Event, Outcome, Propose, Read
from leaf.replication.machine import ReplicationMachine
from leaf.replication.messages import Beacon, BeaconAck, Echo, Message, PrepareAck, SnapshotChunk
from leaf.replication.oplog import ReplicatedLog
from leaf.replication.timings import Timings


def on_receive(change: Callable[[Leaf, int, Message], Message]) -> Plant:
    """Each message is changed as it arrives."""

    def plant(stack: contextlib.ExitStack) -> None:
        original = Leaf.receive

        def receive(self: Leaf, shard: int, sender: Replica, receiver: Replica, message: Message) -> None:
            original(self, shard, sender, receiver, change(self, shard, message))

        replace(stack, Leaf, "receive", receive)

    return plant


def on_event(change: Callable[[Host, Event], Event]) -> Plant:
    """Each event is changed before the machine sees it."""

    def plant(stack: contextlib.ExitStack) -> None:
        original = Host.step

        def step(self: Host, event: Event) -> None:
            original(self, change(self, event))

        replace(stack, Host, "step", step)

    return plant


def with_machine(**changes: Callable[[Leaf, object], object]) -> Plant:
    """The machine is made with other arguments."""

    def plant(stack: contextlib.ExitStack) -> None:
        original = Leaf._machine

        def machine(self: Leaf, shard: int, image: Image) -> ReplicationMachine:
            made = self.sim.machine_class

            def make(*args: object, **named: object) -> ReplicationMachine:
                for name, change in changes.items():
                    named[name] = change(self, named[name])
                return made(*args, **named)  # type: ignore[arg-type]

            with mock.patch.object(self.sim, "machine_class", make):
                return original(self, shard, image)

        replace(stack, Leaf, "_machine", machine)

    return plant


# Time


def lease_from_receipt(leaf: Leaf, _: int, message: Message) -> Message:
    """A secondary counts its read lease from when the beacon arrives."""
    if isinstance(message, Beacon) and message.echo is not None:
        return dataclasses.replace(message, echo=Echo(leaf.boot, leaf.clock()))
    return message


def primary_lease_from_receipt(leaf: Leaf, _: int, message: Message) -> Message:
    """A primary counts its lease from when the ack arrives."""
    return dataclasses.replace(message, sent_at=leaf.clock()) if isinstance(message, BeaconAck) else message


def wrong_timings(**factors: float) -> Plant:
    """Timings that break the inequalities on which safety rests."""

    def plant(stack: contextlib.ExitStack) -> None:
        original = Timings.of

        def of(failure_timeout: float) -> Timings:
            timings = original(failure_timeout)
            for name, factor in factors.items():
                object.__setattr__(timings, name, factor * failure_timeout)
            return timings

        replace(stack, Timings, "of", of)

    return plant


# Disk


def ack_before_fsync(stack: contextlib.ExitStack) -> None:
    """What was written is reported durable at once."""
    original = Disk.put

    def put(self: Disk, shard: int, ticket: int, operation: Operation) -> None:
        original(self, shard, ticket, operation)
        if ticket:
            self.world.at(0.0, self._on_durable, shard, ticket, self._boot)

    replace(stack, Disk, "put", put)


def epoch_not_persisted(stack: contextlib.ExitStack) -> None:
    """SaveEpoch does nothing, and says that it is done."""
    original = Image.perform

    def perform(self: Image, operation: Operation) -> dict[int, Image]:
        return {} if isinstance(operation, act.SaveEpoch) else original(self, operation)

    replace(stack, Image, "perform", perform)


def wiped_disk_trusted(stack: contextlib.ExitStack) -> None:
    """New data takes the name of the data that was lost."""
    original = Simulation.new_image

    def new_image(self: Simulation, leaf: str, shard: int) -> Image:
        image = original(self, leaf, shard)
        image.incarnation = f"{leaf}.{shard}"
        return image

    replace(stack, Simulation, "new_image", new_image)


def tail_lost(_: Leaf, recovered: object) -> object:
    """After a restart the newest entry is left out."""
    log = recovered.log  # type: ignore[attr-defined]
    if log.last > max(log.base_seqno, recovered.applied):  # type: ignore[attr-defined]
        log = ReplicatedLog(log.base_seqno, log.base_epoch, log.between(log.base_seqno, log.last - 1))
    return dataclasses.replace(recovered, log=log)  # type: ignore[type-var]


def older_epoch(_: Leaf, recovered: object) -> object:
    """After a restart the epoch is that of the log."""
    return dataclasses.replace(recovered, epoch=recovered.log.last_epoch)  # type: ignore[type-var, attr-defined]


# Coordinator


def ambiguity_is_success(_: Host, event: Event) -> Event:
    """An answer that leaves the outcome open is taken as a yes."""
    if isinstance(event, CasAnswer) and event.outcome is Outcome.UNKNOWN:
        return CasAnswer(event.expected_epoch, Outcome.SUCCEEDED)
    return event


# Reads and writes


def no_read_lease(_: Host, event: Event) -> Event:
    """A strong read is served as a stale one."""
    return dataclasses.replace(event, is_strong=False) if isinstance(event, Read) else event


def dirty_read(_: Host, event: Event) -> Event:
    """Nobody looks whether a key has an uncommitted entry."""
    return dataclasses.replace(event, keys=()) if isinstance(event, Read) else event


def conflict_told_early(_: Host, event: Event) -> Event:
    """A condition that failed because of a pending write is told before that commits."""
    return dataclasses.replace(event, depends_on=0) if isinstance(event, Conclude) else event


def request_id_not_logged(_: Host, event: Event) -> Event:
    """The entry does not carry its request id."""
    return dataclasses.replace(event, request=None) if isinstance(event, Propose) else event


def early_durable(host: Host, event: Event) -> Event:
    """A flush that ends is taken for all that was written meanwhile."""
    return Durable(event.ticket + 1) if isinstance(event, Durable) and host.world.rng.random() < 0.5 else event


def pending_ignored(stack: contextlib.ExitStack) -> None:
    """Conditions are looked at without the writes that are under way."""

    def latest(self: Host, key: int) -> tuple[tuple[int, int] | None, int]:
        held = self.state.get(key)
        return held, held[1] if held else 0

    replace(stack, Host, "latest", latest)


def uncommitted_shown(stack: contextlib.ExitStack) -> None:
    """A read shows the newest entry of the log."""
    original = Host.values_of

    def values_of(self: Host, keys: tuple[int, ...] | None) -> dict[int, tuple[int, int] | None]:
        return {key: self.latest(key)[0] for key in keys} if keys else original(self, keys)

    replace(stack, Host, "values_of", values_of)


# Dedup


def dedup_not_in_snapshot(_: Leaf, __: int, message: Message) -> Message:
    """A snapshot comes without the table of requests."""
    return dataclasses.replace(message, dedup=(), forgotten_through=0) if isinstance(message, SnapshotChunk) else message


def dedup_expired_by_clock(host: Host, event: Event) -> Event:
    """Each replica forgets requests when it thinks that they are old."""
    if host.world.rng.random() < 0.01:
        host.machine.dedup.restore(host.machine.dedup.records()[1:], host.machine.dedup.forgotten_through)
    return event


def dedup_lost_at_restart(_: Leaf, recovered: object) -> object:
    """The table starts empty."""
    recovered.dedup.restore((), 0)  # type: ignore[attr-defined]
    return recovered


# Messages


def ack_for_everything(leaf: Leaf, shard: int, message: Message) -> Message:
    """An ack is counted for all that was sent."""
    host = leaf.hosts.get(shard)
    return dataclasses.replace(message, acked=host.machine.last) if isinstance(message, PrepareAck) and host else message


MUTANTS: dict[str, Plant] = {
    "read lease counted from receipt": on_receive(lease_from_receipt),
    "primary lease counted from receipt": on_receive(primary_lease_from_receipt),
    "evicted before its read lease has ended": wrong_timings(evict_after=0.3),
    "grace shorter than the primary's lease": wrong_timings(grace=0.4, stagger=0.05),
    "ack before fsync": ack_before_fsync,
    "epoch not persisted": epoch_not_persisted,
    "wiped disk trusted": wiped_disk_trusted,
    "newest entry lost at restart": with_machine(recovered=tail_lost),
    "epoch at restart taken from the log": with_machine(recovered=older_epoch),
    "ambiguous compare-and-set taken as done": on_event(ambiguity_is_success),
    "no read lease check": on_event(no_read_lease),
    "dirty read": on_event(dirty_read),
    "uncommitted value shown": uncommitted_shown,
    "failed condition told before its cause commits": on_event(conflict_told_early),
    "conditions looked at without pending writes": pending_ignored,
    "request id not logged": on_event(request_id_not_logged),
    "dedup not in the snapshot": on_receive(dedup_not_in_snapshot),
    "dedup expired by local clock": on_event(dedup_expired_by_clock),
    "dedup lost at restart": with_machine(recovered=dedup_lost_at_restart),
    "durable taken for more than was flushed": on_event(early_durable),
    "ack counted for all that was sent": on_receive(ack_for_everything),
    "min_in_sync not looked at": with_machine(min_in_sync=lambda leaf, _: 1),
}
