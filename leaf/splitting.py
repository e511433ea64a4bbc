"""How a shard becomes two, online: what of the parent's state is the child's, and what a replica does next.

    BEGIN      a replica sees that a split is wanted: it begins a shadow, a copy of the rows that are to leave
    COPY       it walks the parent's rows in their order, a chunk at a time; what is written meanwhile is mirrored
    PROPOSE    the primary puts a Split into the log once its shadow is complete, and those of the others, or they were waited
               for long enough. From then on it takes no writes of the part that leaves
    (applied)  the same seqno N everywhere: the range ends before `at_slot`, a complete shadow is the child's state after N.
               One that is not complete is copied on, from rows that nothing writes any more
    FINISH     the primary writes parent and child into the map, in one transaction that compares its epoch, once it and the
               others in sync have N applied and the child's state whole on disk, or they were waited for long enough: who has
               not is not in sync of the child. N in its log is not enough, for it may be put out of the parent, and its log
               replaced by a snapshot, before it comes to apply it
    CLEAN      the map knows the child: the parent's rows of the part that left go

Whoever becomes primary in between goes on where its own state stands; nothing else is remembered. Between N and FINISH the
part that leaves lives in rows that no snapshot of the parent carries: a learner that was sent one must not be taken in sync
then (`ReplicationMachine.is_dividing`).

Mirror rule: of the child's slots, keys at or before the cursor are applied to the child's rows, in the batch that applies them
to the parent's; keys behind it are met by the walk. So the shadow is always the child's part of the parent's rows through the
cursor.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from kvshard.clustermap import WantedSplit
from kvshard.model import NEVER
from leaf.layout import (
    INLINE_MAX_BYTES,
    KEY_AT,
    PLACE_AT,
    VERSION_BYTES,
    Batch,
    expiry_key,
    header_of,
    key_of_place,
    large_prefix,
    place_of,
    value_prefix,
)
from leaf.operations import NO_COUNTS, Counts, DropCollection, Split, WriteOperation
from leaf.replication.messages import Entry

READY_PATIENCE_S: Final = 30.0
"""How long a primary waits for the shadows of the other replicas in sync, or as long as its own has taken, if that is longer.
One that is not ready when the split comes is not in sync of the child at first; nothing is lost by it."""

DIVIDED_PATIENCE_S: Final = 1.0
"""How long a primary waits for the other replicas in sync to have the child's data whole on disk; nobody serves the part that
left meanwhile. Who has not is not in sync of the child, and joins it as a learner."""

LARGE_CHUNK_BYTES: Final = 256 * 1024
"""Large values copied in one chunk, the last one over it: so much takes a millisecond."""

SlotOf: TypeAlias = Callable[[bytes], int]
"""key -> its token slot."""

Row: TypeAlias = tuple[bytes, bytes]


class Part(NamedTuple):
    """The slots [at_slot, last_slot] that leave a shard for the child."""

    child: int
    at_slot: int
    last_slot: int

    @classmethod
    def of(cls, split: Split) -> "Part":
        """The part that a log entry names."""
        return cls(split.child, split.at_slot, split.last_slot)

    def holds(self, slot: int) -> bool:
        """Whether a slot is one of them."""
        return self.at_slot <= slot <= self.last_slot


@dataclass(slots=True)
class Shadow:
    """The copy of a part, as far as it has come.

    cursor: place (`layout.place_of`) of the last row walked. counts: of what was copied. walked: rows of the parent looked at.
    """

    part: Part
    cursor: bytes = b""
    is_complete: bool = False
    counts: dict[int, Counts] = field(default_factory=dict)
    walked: int = 0

    def has_passed(self, collection_id: int, key: bytes) -> bool:
        """Whether the walk will not come by this key any more."""
        return self.is_complete or place_of(collection_id, key) <= self.cursor

    @property
    def documents(self) -> int:
        """Keys copied."""
        return sum(each.documents for each in self.counts.values())


@dataclass(frozen=True, slots=True)
class Departed:
    """A part that has left by the entry (epoch, seqno).

    is_copied: the child's state here is whole, or was made in another way, so that these rows are not needed. is_counted: the
    parent's counts are without it.
    """

    part: Part
    seqno: int
    epoch: int
    is_copied: bool
    is_counted: bool


class Task(Enum):
    """What a replica does for a split; see the module's docstring. DISCARD: of a shadow that nobody wants any more."""

    BEGIN = "begin"
    COPY = "copy"
    DISCARD = "discard"
    PROPOSE = "propose"
    FINISH = "finish"
    CLEAN = "clean"


@dataclass(frozen=True, slots=True)
class Situation:
    """A replica of a shard that is being split.

    wanted: by the newest map. is_applied: this replica has applied it, the map does not show it yet. may_begin: the child has
    no data here. are_others_ready: all other replicas in sync have a complete shadow; waited_s: how long this one has had its
    own; took_s: how long that took to make. divided_s: how long the child's data has been whole on this disk, None: it is not.
    have_others_divided: it is on the disks of all other replicas in sync. known: the shards of the map.
    """

    wanted: WantedSplit | None
    is_applied: bool
    shadow: Shadow | None
    departed: Sequence[Departed]
    is_primary: bool
    is_in_flight: bool
    may_begin: bool
    are_others_ready: bool
    waited_s: float
    divided_s: float | None
    have_others_divided: bool
    known: Iterable[int]
    took_s: float = 0.0


def next_task(now: Situation) -> Task | None:
    """What to do next; None: nothing, or nothing yet."""
    wanted, shadow = now.wanted, now.shadow
    if any(not each.is_copied for each in now.departed):
        return Task.COPY
    is_divided = now.divided_s is not None and (now.have_others_divided or now.divided_s >= DIVIDED_PATIENCE_S)
    if now.is_applied and now.is_primary and is_divided:
        return Task.FINISH
    if shadow is not None:
        is_wanted = wanted is not None and (wanted.child, wanted.at_slot) == shadow.part[:2]
        if not is_wanted and shadow.part.child not in now.known:
            return Task.DISCARD
        if not shadow.is_complete:
            return Task.COPY
        is_time = now.are_others_ready or now.waited_s >= max(READY_PATIENCE_S, now.took_s)
        if is_wanted and now.is_primary and not now.is_in_flight and is_time:
            return Task.PROPOSE
    elif wanted is not None and not now.is_applied and now.may_begin and not now.is_in_flight:
        return Task.BEGIN
    return Task.CLEAN if any(each.part.child in now.known for each in now.departed) else None


def mirrored(entries: Iterable[Entry], shadow: Shadow, slot_of: SlotOf) -> list[Entry]:
    """What of these entries is to be applied to the child's rows."""
    found: list[Entry] = []
    for entry in entries:
        operation = entry.payload
        if isinstance(operation, DropCollection):
            found.append(entry)
        elif isinstance(operation, WriteOperation):
            kept = _mirrored_write(operation, shadow, slot_of)
            if kept is not None:
                found.append(replace(entry, payload=kept, request=None, result=None))
    return found


def _mirrored_write(operation: WriteOperation, shadow: Shadow, slot_of: SlotOf) -> WriteOperation | None:
    collection_id, holds = operation.collection_id, shadow.part.holds
    indices = [i for i, key in enumerate(operation.keys) if holds(slot_of(key)) and shadow.has_passed(collection_id, key)]
    if len(indices) == len(operation.keys):
        return operation
    if not indices:
        return None
    expiries = [operation.expires_at_ms[i] for i in indices] if operation.expires_at_ms else []
    keys, values = [operation.keys[i] for i in indices], [operation.values[i] for i in indices]
    return WriteOperation(collection_id, keys, values, expiries)


def copy_rows(
    shadow: Shadow, rows: Sequence[Row], large_of: Callable[[bytes], bytes | None], slot_of: SlotOf, batch: Batch
) -> None:
    """Walk these value rows of the parent: put those of the part into the batch as the child's, and move the cursor.

    large_of: place -> the row of its large value. Stops early once the large values are LARGE_CHUNK_BYTES.
    """
    part, counts, put = shadow.part, shadow.counts, batch.put
    child_rows = value_prefix(part.child, 0)[:PLACE_AT]
    child_large = large_prefix(part.child, 0)[:PLACE_AT]
    room = LARGE_CHUNK_BYTES
    at_slot, last_slot = part.at_slot, part.last_slot
    for walked, (row_key, row) in enumerate(rows, 1):
        key = row_key[KEY_AT:]
        if not at_slot <= slot_of(key) <= last_slot:
            continue
        collection_id = key_of_place(row_key)[0]
        place = row_key[PLACE_AT:]
        _, expires_at_ms, size = header_of(row)
        put(child_rows + place, row)
        documents, size_sum = counts.get(collection_id, NO_COUNTS)
        counts[collection_id] = Counts(documents + 1, size_sum + len(key) + size)
        if expires_at_ms != NEVER:
            put(expiry_key(part.child, expires_at_ms, collection_id, key), b"")
        if size > INLINE_MAX_BYTES:
            large = large_of(place)
            if large is not None:
                put(child_large + place, large)
                room -= len(large) - VERSION_BYTES
            if room <= 0:
                shadow.cursor, shadow.walked = place, shadow.walked + walked
                return
    if rows:
        shadow.cursor, shadow.walked = rows[-1][0][PLACE_AT:], shadow.walked + len(rows)


def clean_rows(parent: int, part: Part, rows: Iterable[Row], slot_of: SlotOf, batch: Batch) -> dict[int, Counts]:
    """Remove what of these value rows belongs to the part, with what hangs on it. Returns the counts of that."""
    removed: dict[int, Counts] = {}
    for row_key, row in rows:
        collection_id, key = key_of_place(row_key)
        if not part.holds(slot_of(key)):
            continue
        _, expires_at_ms, size = header_of(row)
        batch.delete(row_key)
        if size > INLINE_MAX_BYTES:
            batch.delete(large_prefix(parent, collection_id) + key)
        if expires_at_ms != NEVER:
            batch.delete(expiry_key(parent, expires_at_ms, collection_id, key))
        documents, size_sum = removed.get(collection_id, NO_COUNTS)
        removed[collection_id] = Counts(documents + 1, size_sum + len(key) + size)
    return removed


def without(counts: dict[int, Counts], left: dict[int, Counts]) -> dict[int, Counts]:
    """The counts of a shard after a part with these counts has left it."""
    after = dict(counts)
    for collection_id, (documents, size) in left.items():
        before = after.get(collection_id, NO_COUNTS)
        after[collection_id] = Counts(before.documents - documents, before.bytes - size)
        assert min(after[collection_id]) >= 0, f"more of collection {collection_id} has left than there was"
    return after
