"""The disk of a leaf: operations of all its shards in one order, made durable by one flush at a time.

A split that is applied makes the child's image in the same operation, of the parent's as it is at that entry. A crash keeps any
prefix of what was not yet flushed. A wipe keeps nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

from sim.world import World

from kvshard.clustermap import Replica
from kvshard.splitting import derived_incarnation, origin_of
from leaf.operations import Split
from leaf.replication.actions import Append, Apply, InstallSnapshot, SaveEpoch, TrimLog, Truncate
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import Entry

State = dict[int, tuple[int, int]]
"""Key -> (value, version)."""

CLEAR = "clear"
"""Payload of an entry that removes every key; others are None (a barrier), a Split, or (key, value or None) pairs.

A key is its own token slot."""

RANGE = -1
"""Key of the row of a snapshot that says where the range ends."""


def contribution(key: int, item: tuple[int, int]) -> int:
    """What a key adds (by exclusive or) to the digest of the state it is in."""
    return hash((key, *item))


def digest_of(state: State) -> int:
    """Order does not count. Equal states have equal digests."""
    digest = 0
    for key, item in state.items():
        digest ^= contribution(key, item)
    return digest


def fold(state: State, entry: Entry, digest: int = 0) -> int:
    """Change a state by one entry; returns the digest brought up to date."""
    payload = entry.payload
    if payload is None:
        return digest
    if payload == CLEAR:
        state.clear()
        return 0
    if isinstance(payload, Split):
        for key in [key for key in state if key >= payload.at_slot]:
            digest ^= contribution(key, state.pop(key))
        return digest
    assert isinstance(payload, tuple)
    for key, value in payload:
        before = state.pop(key, None)
        if before is not None:
            digest ^= contribution(key, before)
        if value is not None:
            state[key] = item = (value, entry.seqno)
            digest ^= contribution(key, item)
    return digest


Rows = tuple[tuple[int, tuple[int, int]], ...]


def rows_of(state: State, last_slot: int) -> Rows:
    """A state as it travels."""
    return ((RANGE, (last_slot, 0)), *sorted(state.items()))


def split_rows(rows: Rows) -> tuple[State, int]:
    """The state that has travelled, and where its range ends."""
    state = dict(rows)
    return state, state.pop(RANGE)[0]


@dataclass(frozen=True, slots=True)
class Install:
    """An InstallSnapshot with the rows that were staged for it."""

    action: InstallSnapshot
    rows: Rows


Operation = SaveEpoch | Append | Truncate | Install | Apply | TrimLog


@dataclass(slots=True)
class Image:
    """What is durable of one replica. departed: splits applied here, by child: (seqno, first slot that left)."""

    incarnation: str
    dedup: DedupTable
    last_slot: int
    epoch: int = 0
    base_seqno: int = 0
    base_epoch: int = 0
    entries: list[Entry] = field(default_factory=list)
    applied: int = 0
    state: State = field(default_factory=dict)
    departed: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def last(self) -> int:
        """Seqno of the newest entry."""
        return self.base_seqno + len(self.entries)

    def epoch_at(self, seqno: int) -> int | None:
        """Epoch of an entry or of the base; None where the log does not reach."""
        if seqno == self.base_seqno:
            return self.base_epoch
        if self.base_seqno < seqno <= self.last:
            return self.entries[seqno - self.base_seqno - 1].epoch
        return None

    def perform(self, operation: Operation) -> "dict[int, Image]":
        """Make one operation durable. Returns the images of children that it made."""
        children: dict[int, Image] = {}
        if isinstance(operation, Append):
            assert operation.entries[0].seqno == self.last + 1, f"a gap in the log on disk: {operation} after {self.last}"
            self.entries.extend(operation.entries)
        elif isinstance(operation, Apply):
            for entry in operation.entries:
                if entry.seqno > self.applied:
                    if isinstance(entry.payload, Split):
                        children[entry.payload.child] = self.divide(entry, entry.payload)
                    self._apply(entry)
        elif isinstance(operation, SaveEpoch):
            self.epoch = operation.epoch
        elif isinstance(operation, Truncate):
            assert operation.after >= self.base_seqno
            del self.entries[operation.after - self.base_seqno :]
        elif isinstance(operation, TrimLog):
            self._trim(operation.through)
        else:
            self._install(operation)
        return children

    def _apply(self, entry: Entry) -> None:
        fold(self.state, entry)
        self.applied = entry.seqno
        if entry.request is not None:
            self.dedup.record(entry.request, entry.seqno, entry.result)
        if isinstance(entry.payload, Split):
            self.last_slot = entry.payload.at_slot - 1
            self.departed[entry.payload.child] = (entry.seqno, entry.payload.at_slot)

    def divide(self, entry: Entry, split: Split) -> "Image":
        """The child's image, of what this one holds when the entry is applied."""
        state = {key: item for key, item in self.state.items() if key >= split.at_slot}
        return Image(
            derived_incarnation(self.incarnation, split.child),
            self.dedup.copy(),
            split.last_slot,
            base_seqno=entry.seqno,
            base_epoch=entry.epoch,
            applied=entry.seqno,
            state=state,
        )

    def _trim(self, through: int) -> None:
        if through > self.base_seqno:
            assert through <= self.applied, "an entry is trimmed that is not yet applied on disk"
            epoch = self.epoch_at(through)
            assert epoch is not None
            del self.entries[: through - self.base_seqno]
            self.base_seqno, self.base_epoch = through, epoch

    def _install(self, operation: Install) -> None:
        action = operation.action
        self.entries = []
        self.base_seqno, self.base_epoch = action.seqno, action.seqno_epoch
        self.state, self.last_slot = split_rows(operation.rows)
        self.departed = {}
        self.applied = action.seqno
        self.dedup.restore(action.dedup, action.forgotten_through)


class Disk:
    """Images by shard, and what is on its way to them. on_durable(shard, ticket) is called after each flush."""

    def __init__(self, world: World, on_durable: Callable[[int, int, int], None]) -> None:
        self.world = world
        self.images: dict[int, Image] = {}
        self.flush_s = world.rng.choice((0.0003, 0.001, 0.004))
        self.slow_s = 0.0  # A fault: each flush takes up to so much longer.
        self._on_durable = on_durable
        self._waiting: list[tuple[int, int, Operation]] = []
        self._flushing: list[tuple[int, int, Operation]] = []
        self._boot = 0

    def put(self, shard: int, ticket: int, operation: Operation) -> None:
        """Queue an operation. ticket: 0 when nobody waits for it."""
        self._waiting.append((shard, ticket, operation))
        if not self._flushing:
            self._begin()

    def start(self, boot: int) -> None:
        """A process has opened the disk; boot: which run of it."""
        self._boot = boot

    def crash(self) -> None:
        """The process died: some prefix of what was under way survives."""
        pending = self._flushing + self._waiting
        kept = self.world.rng.choice((0, len(pending), self.world.rng.randint(0, len(pending))))
        for shard, _, operation in pending[:kept]:
            if shard in self.images:
                self._perform(shard, operation)
        self._waiting, self._flushing = [], []
        self._boot = 0

    def _perform(self, shard: int, operation: Operation) -> None:
        for child, image in self.images[shard].perform(operation).items():
            self.images.setdefault(child, image)  # What is there already is of a replica that joined by itself.

    def drop(self, shard: int) -> None:
        """Delete a replica's data."""
        self.images.pop(shard, None)
        self._waiting = [each for each in self._waiting if each[0] != shard]
        self._flushing = [each for each in self._flushing if each[0] != shard]

    def will_divide(self, replica: Replica, child: int) -> bool:
        """The data of which this replica's is to be made is here, and the split is not applied in it."""
        origin = origin_of(replica.incarnation)
        parent = next((image for image in self.images.values() if image.incarnation == origin), None)
        return parent is not None and child not in parent.departed

    def _begin(self) -> None:
        self._flushing, self._waiting = self._waiting, []
        rng = self.world.rng
        length = self.flush_s * (0.5 + rng.random())
        if self.slow_s:
            length += self.slow_s * rng.random()
        self.world.at(length, self._end, self._boot)

    def _end(self, boot: int) -> None:
        if boot != self._boot:
            return
        tickets: dict[int, int] = {}
        for shard, ticket, operation in self._flushing:
            self._perform(shard, operation)
            if ticket > tickets.get(shard, 0):
                tickets[shard] = ticket
        self._flushing = []
        if self._waiting:
            self._begin()
        for shard, ticket in tickets.items():
            self._on_durable(shard, ticket, boot)
