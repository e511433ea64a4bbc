"""Planted bugs in splits of shards: what leaves, what the child begins with, who may serve it, who may be in sync."""

import contextlib
import dataclasses
from collections.abc import Iterable

from sim import clients, host, splits
from sim.disk import Image, Operation, Rows, State, rows_of
from sim.host import Host, ReadCall, WriteRequest
from sim.planting import Plant, replace, replacing

from leaf.operations import Split
from leaf.replication.actions import Apply
from leaf.replication.core import Core
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import Entry
from leaf.replication.reign import Reign

# What the child begins with


def at_different_seqnos(stack: contextlib.ExitStack) -> None:
    """On some leaves the child is made of the state before the entries that are applied together with the split."""
    original = Image.perform

    def perform(self: Image, operation: Operation) -> dict[int, Image]:
        before: State = dict(self.state)
        children = original(self, operation)
        if isinstance(operation, Apply) and sum(map(ord, self.incarnation)) % 2:
            for child in children.values():
                child.state = {key: before[key] for key in child.state if key in before}
        return children

    replace(stack, Image, "perform", perform)


def requests_not_copied(stack: contextlib.ExitStack) -> None:
    """The child knows of no request that was done before."""
    original = Image.divide

    def divide(self: Image, entry: Entry, split: Split) -> Image:
        child = original(self, entry, split)
        child.dedup = DedupTable(self.dedup.window, self.dedup.clients)
        return child

    replace(stack, Image, "divide", divide)


def later_requests_copied(stack: contextlib.ExitStack) -> None:
    """The child is given the table of requests as it is by now, not as of the split."""
    original = Core.advance

    def advance(self: Core, through: int, now: float) -> None:
        original(self, through, now)
        self.out = [
            dataclasses.replace(action, table=None) if isinstance(action, Apply) and action.table else action
            for action in self.out
        ]

    replace(stack, Core, "advance", advance)


def range_not_in_snapshot(state: State, last_slot: int) -> Rows:
    """A snapshot does not say where the range ends by now."""
    return rows_of(state, last_slot - last_slot % splits.SLOTS + splits.SLOTS - 1)


# Who serves what


def served_by_the_parent(self: Host, call: ReadCall, seqno: int, age_s: float | None) -> None:
    """Nobody looks whether the key is still here."""
    found = self.values_of(call.keys)
    self.oracle.read_served(self, call, seqno, age_s, found)
    call.answer("read", self.applied, found)


def written_behind_the_split(self: Host, request: WriteRequest) -> tuple[str, int] | None:
    """Writes of what leaves are taken until the split is applied."""
    left = [by for by in (self.left_by(key) for key, _ in request.values) if by is not None]
    return ("MOVED", left[0]) if left else None


def clean_but_for_named(self: Core, keys: Iterable[int] | None) -> int:
    """Reads do not wait for an entry that concerns every key."""
    if keys is None:
        return self.log.last if self.log.last > self.committed else 0
    return max((self._dirty.get(key, 0) for key in keys), default=0)


# Who is in sync


def told_too_early(stack: contextlib.ExitStack) -> None:
    """The end of a split is written when its entry has been proposed."""
    original = splits.propose

    def propose(self: Host, split: Split) -> None:
        original(self, split)
        wanted = self.leaf.seen[self.shard].split
        if wanted is not None:
            self.leaf.sim.coordinator.finish_split(
                self.leaf.id, self.shard, self.machine.epoch, wanted, in_sync_of(self.machine.reign)
            )

    replace(stack, splits, "propose", propose)


def in_sync_of(reign: Reign | None) -> frozenset[str]:
    return frozenset(each.leaf for each in reign.config.in_sync) if reign is not None else frozenset()


def entry_taken_for_data(stack: contextlib.ExitStack) -> None:
    """Whoever has the split in its log counts as in sync of the child."""
    replace(stack, Reign, "have_divided_off", lambda self, child: in_sync_of(self))


MUTANTS: dict[str, Plant] = {
    "split at different seqnos": at_different_seqnos,
    "requests not copied to the child of a split": requests_not_copied,
    "later requests copied to the child of a split": later_requests_copied,
    "range not in the snapshot": replacing(host, "rows_of", range_not_in_snapshot),
    "moved key served by the parent": replacing(Host, "_serve", served_by_the_parent),
    "write taken behind a split in flight": replacing(Host, "_refusal", written_behind_the_split),
    "reads do not wait for an entry of every key": replacing(Core, "clean_after", clean_but_for_named),
    "repetition recognised by its id alone": replacing(Host, "left_out", lambda self, request, seqno, result: None),
    "watermark of the parent taken for the child's": replacing(clients, "since_elsewhere", lambda since, moved_at: since),
    "learner taken in while the shard is divided": replacing(Host, "note_map", lambda self: None),
    "end of a split told before it is committed": told_too_early,
    "child's data taken for there where the entry is": entry_taken_for_data,
}
