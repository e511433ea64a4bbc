"""A shard's split in the engine: the shadow of what is to leave, what has left, and the marks that survive a crash.

    m parent "shadow"           -> child, at_slot, last_slot, is_complete     before the split
    m parent "departed" child   -> child, at_slot, last_slot, seqno, epoch, is_copied, is_counted     after it, until the
                                   parent is cleaned
    m child "shadow-of"         -> parent     the child's rows here are no replica yet

A shadow that is not complete is begun anew after a restart: its cursor is kept in memory only. A complete one stays equal to
its part, because what mirrors an entry is in the batch that applies it. Everything is done in bounded pieces on the event loop.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from struct import Struct
from typing import Final

from kvshard import hashing
from kvshard.clustermap import TOKEN_SLOTS
from kvshard.splitting import derived_incarnation
from leaf import layout
from leaf.count_rows import read_counts
from leaf.dedup_rows import DedupRows
from leaf.engine import Engine
from leaf.layout import Batch, Header
from leaf.operations import Counts, Split, apply_entries
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import Entry
from leaf.splitting import Departed, Part, Shadow, clean_rows, copy_rows, mirrored, without

CHUNK_ROWS: Final = 512
CHUNK_BYTES: Final = 512 * 1024
"""Rows walked in one piece: it holds the event loop for about 2 ms."""

_MARK: Final = Struct(">IIIB")
_DEPARTED: Final = Struct(">IIIQQBB")
_CHILD: Final = Struct(">I")

_SHADOW: Final = b"shadow"
_SHADOW_OF: Final = b"shadow-of"
_DEPARTED_NAME: Final = b"departed"

Learned = Mapping[int, Mapping[bytes, Header | None]]
"""collection -> key -> its header before the entries."""


@dataclass(slots=True)
class SplitState:
    """What a replica has of splits.

    last_slot: end of the range in the applied state, if it was cut; cuts: how often. shadow: of the split to come. late:
    shadows of departed parts that are not copied, by child. cleaned: place of the last row that was cleaned of a departed part,
    by child.
    """

    last_slot: int = TOKEN_SLOTS - 1
    cuts: int = 0
    shadow: Shadow | None = None
    departed: tuple[Departed, ...] = ()
    late: dict[int, Shadow] = field(default_factory=dict)
    cleaned: dict[int, bytes] = field(default_factory=dict)

    @property
    def is_counted(self) -> bool:
        """Whether the shard's counts are without everything that has left."""
        return all(each.is_counted for each in self.departed)

    @property
    def has_leftovers(self) -> bool:
        """Whether there may be rows outside of the range."""
        return bool(self.departed)


class SplitRows:
    """Splits of the shards of one engine. seed: of the token hash; set before any shard is loaded."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.chunk_rows = CHUNK_ROWS
        self.slot_of: Callable[[bytes], int] = partial(hashing.slot, seed=0)

    def __repr__(self) -> str:
        return f"SplitRows({self._engine!r})"

    def set_seed(self, seed: int) -> None:
        """The cluster's seed of the token hash is known."""
        self.slot_of = partial(hashing.slot, seed=seed)

    # -- what the disk holds --------------------------------------------------------------------------------------------

    def load(self, shard: int) -> SplitState:
        """What the disk has of a shard's splits. A shadow that is not complete is removed; a late one begins anew."""
        state = SplitState(*self.range_of(shard))
        changes = layout.Changes()
        row = self._engine.get(layout.meta_key(shard, _SHADOW))
        if row is not None:
            child, at_slot, last_slot, is_complete = _MARK.unpack(row)
            if is_complete:
                state.shadow = Shadow(Part(child, at_slot, last_slot), b"", True, read_counts(self._engine, child))
            else:
                self._remove(shard, child, changes)
        for row in self._departed_rows(shard):
            child, at_slot, last_slot, seqno, epoch, is_copied, is_counted = _DEPARTED.unpack(row)
            each = Departed(Part(child, at_slot, last_slot), seqno, epoch, bool(is_copied), bool(is_counted))
            state.departed += (each,)
            if not is_copied:
                state.late[child] = Shadow(each.part)
                _clear(child, layout.STATE_TAGS, changes)
        if len(changes):
            batch = self._engine.new_batch()
            changes.write_to(batch)
            self._engine.write(batch)
        return state

    def range_of(self, shard: int) -> tuple[int, int]:
        """(last_slot, cuts) as the rows have it."""
        row = self._engine.get(layout.range_key(shard))
        return layout.unpack_range(row) if row is not None else (TOKEN_SLOTS - 1, 0)

    def parent_of_shadow(self, shard: int) -> int | None:
        """The shard whose shadow the rows of this one are; None: they are no shadow."""
        row = self._engine.get(layout.meta_key(shard, _SHADOW_OF))
        return int(_CHILD.unpack(row)[0]) if row is not None else None

    def has_uncopied(self, shard: int) -> bool:
        """Whether a part has left the shard that is still to be copied from its rows."""
        return any(not _DEPARTED.unpack(row)[-2] for row in self._departed_rows(shard))

    def _departed_rows(self, shard: int) -> list[bytes]:
        # A shard of n slots can be split n - 1 times at most, so one look finds all.
        prefix = layout.meta_key(shard, _DEPARTED_NAME)
        return [row for _, row in self._engine.scan(prefix, layout.end_of(prefix), TOKEN_SLOTS).rows]

    def wipe(self, shard: int, batch: Batch) -> None:
        """The rows of the parent go: with them what was made of them and is no replica yet, and every mark."""
        row = self._engine.get(layout.meta_key(shard, _SHADOW))
        if row is not None:
            self._remove(shard, _MARK.unpack(row)[0], batch)
        for row in self._departed_rows(shard):
            child, *_, is_copied, _ = _DEPARTED.unpack(row)
            if not is_copied:
                self._remove(shard, child, batch)
        prefix = layout.meta_key(shard, _DEPARTED_NAME)
        batch.delete_range(prefix, layout.end_of(prefix))

    # -- before the split -----------------------------------------------------------------------------------------------

    def may_begin(self, child: int) -> bool:
        """Whether there is no data of the child here."""
        return self._engine.get(layout.meta_key(child, layout.INCARNATION)) is None

    def begin(self, shard: int, state: SplitState, part: Part) -> None:
        """Begin a shadow."""
        batch = self._engine.new_batch()
        state.shadow = self._begin(shard, part, batch)
        self._engine.write(batch)

    def discard(self, shard: int, state: SplitState) -> None:
        """Nobody wants the shadow any more."""
        assert state.shadow is not None
        batch = self._engine.new_batch()
        self._remove(shard, state.shadow.part.child, batch)
        self._engine.write(batch)
        state.shadow = None

    def _begin(self, shard: int, part: Part, batch: Batch) -> Shadow:
        self._remove(shard, part.child, batch)
        batch.put(layout.meta_key(shard, _SHADOW), _MARK.pack(*part, 0))
        batch.put(layout.meta_key(part.child, _SHADOW_OF), _CHILD.pack(shard))
        return Shadow(part)

    @staticmethod
    def _remove(shard: int, child: int, batch: Batch) -> None:
        batch.delete(layout.meta_key(shard, _SHADOW))
        _clear(child, layout.ALL_TAGS, batch)

    def copy(self, shard: int, state: SplitState, counts: dict[int, Counts]) -> dict[int, Counts]:
        """Copy the next piece of a shadow that is not complete. Returns the shard's counts: a late one's end changes them."""
        shadow = next(iter(state.late.values()), state.shadow)
        assert shadow is not None, f"shard {shard} has nothing to copy"
        batch = self._engine.new_batch()
        if self._copy(shard, shadow, batch):
            shadow.is_complete = True
            _put_counts(shadow.part.child, shadow.counts, batch)
            if shadow is state.shadow:
                batch.put(layout.meta_key(shard, _SHADOW), _MARK.pack(*shadow.part, 1))
            else:
                counts = self._complete(shard, state, shadow, counts, batch)
        self._engine.write(batch)
        return counts

    def _copy(self, shard: int, shadow: Shadow, batch: Batch) -> bool:
        """Walk one chunk. Returns whether the walk has ended."""
        start, end = layout.shard_range(ord("v"), shard)
        large = layout.shard_range(ord("b"), shard)[0]
        rows, has_more = self._engine.scan(_behind(start, shadow.cursor), end, self.chunk_rows, CHUNK_BYTES)
        copy_rows(shadow, rows, lambda place: self._engine.get(large + place), self.slot_of, batch)
        return not has_more and (not rows or shadow.cursor == rows[-1][0][layout.PLACE_AT :])

    # -- entries --------------------------------------------------------------------------------------------------------

    def follow(
        self,
        shard: int,
        state: SplitState,
        entries: Sequence[Entry],
        learned: Learned,
        counts: dict[int, Counts],
        dedup: DedupTable,
        batch: Batch,
    ) -> dict[int, Counts]:
        """Entries are applied to the shard in this batch: do what follows for its parts. Returns the shard's counts afterwards.

        A split is the last one of the entries; dedup: the table after them.
        """
        shadow = state.shadow
        if shadow is not None:
            shadow.counts = apply_entries(
                shadow.part.child,
                mirrored(entries, shadow, self.slot_of),
                lambda collection_id, keys: [learned[collection_id][key] for key in keys],
                shadow.counts,
                batch,
            )
        split = entries[-1].payload
        if isinstance(split, Split):
            counts = self._depart(shard, state, entries[-1], Part.of(split), counts, dedup, batch)
        return counts

    def _depart(
        self,
        shard: int,
        state: SplitState,
        entry: Entry,
        part: Part,
        counts: dict[int, Counts],
        dedup: DedupTable,
        batch: Batch,
    ) -> dict[int, Counts]:
        """A part leaves with this entry."""
        assert part.at_slot <= part.last_slot <= state.last_slot, f"shard {shard}: {part} leaves of [.., {state.last_slot}]"
        state.last_slot = part.at_slot - 1
        state.cuts += 1
        batch.put(layout.range_key(shard), layout.pack_range(state.last_slot, state.cuts))
        # A replica of the child may have been made anew here; then nothing is derived of this one.
        is_derived = self.may_begin(part.child)
        departed = Departed(part, entry.seqno, entry.epoch, is_copied=not is_derived, is_counted=False)
        state.departed += (departed,)
        batch.put(_departed_key(shard, part.child), _pack(departed))
        if not is_derived:
            return counts
        shadow, state.shadow = state.shadow, None
        if shadow is None or shadow.part != part:
            shadow = self._begin(shard, part, batch)
        batch.delete(layout.meta_key(shard, _SHADOW))
        DedupRows(part.child).replace(dedup.records(), dedup.forgotten_through, batch)
        state.late[part.child] = shadow
        return self._complete(shard, state, shadow, counts, batch) if shadow.is_complete else counts

    def _complete(
        self, shard: int, state: SplitState, shadow: Shadow, counts: dict[int, Counts], batch: Batch
    ) -> dict[int, Counts]:
        """The copy of a part that has left is whole: it is the child's state. Returns the parent's counts."""
        child = shadow.part.child
        departed = next(each for each in state.departed if each.part == shadow.part)
        incarnation = (self._engine.get(layout.meta_key(shard, layout.INCARNATION)) or b"").decode()
        batch.put(layout.meta_key(child, layout.INCARNATION), derived_incarnation(incarnation, child).encode())
        batch.put(layout.meta_key(child, layout.APPLIED), layout.pack_number(departed.seqno))
        batch.put(layout.meta_key(child, layout.TRIMMED), layout.pack_position(departed.seqno, departed.epoch))
        batch.put(layout.range_key(child), layout.pack_range(shadow.part.last_slot, 0))
        batch.delete(layout.meta_key(child, _SHADOW_OF))
        for collection_id, each in shadow.counts.items():
            if not each.documents:  # Emptied while it was mirrored; where it was not there is no row.
                batch.delete(layout.counts_key(child, collection_id))
        after = without(counts, shadow.counts)
        _put_counts(shard, {each: after[each] for each in shadow.counts}, batch)
        copied = replace(departed, is_copied=True, is_counted=True)
        batch.put(_departed_key(shard, child), _pack(copied))
        state.departed = tuple(copied if each is departed else each for each in state.departed)
        del state.late[child]
        return after

    # -- after the split ------------------------------------------------------------------------------------------------

    def finish_late(self, shard: int, state: SplitState, counts: dict[int, Counts]) -> dict[int, Counts]:
        """Copy whatever has left and is not copied, now: its rows are about to go. Returns the shard's counts."""
        while state.late:
            counts = self.copy(shard, state, counts)
        return counts

    def clean(self, shard: int, state: SplitState, child: int, counts: dict[int, Counts]) -> dict[int, Counts]:
        """Remove the next piece of the rows that have left for a child; `departed` has the child until the last one.

        Returns the shard's counts.
        """
        departed = next(each for each in state.departed if each.part.child == child)
        assert departed.is_copied, f"shard {shard}: rows that left for {child} are still needed"
        start, end = layout.shard_range(ord("v"), shard)
        rows, has_more = self._engine.scan(_behind(start, state.cleaned.get(child, b"")), end, self.chunk_rows, CHUNK_BYTES)
        batch = self._engine.new_batch()
        removed = clean_rows(shard, departed.part, rows, self.slot_of, batch)
        if not departed.is_counted:
            counts = without(counts, removed)
            _put_counts(shard, {each: counts[each] for each in removed}, batch)
        if not has_more:
            batch.delete(_departed_key(shard, child))
        self._engine.write(batch)
        if has_more:
            state.cleaned[child] = rows[-1][0][layout.PLACE_AT :]
        else:
            state.cleaned.pop(child, None)
            state.departed = tuple(each for each in state.departed if each is not departed)
        return counts


def _behind(start: bytes, place: bytes) -> bytes:
    return start + place + b"\0" if place else start


def _departed_key(shard: int, child: int) -> bytes:
    return layout.meta_key(shard, _DEPARTED_NAME + _CHILD.pack(child))


def _pack(departed: Departed) -> bytes:
    return _DEPARTED.pack(*departed.part, departed.seqno, departed.epoch, departed.is_copied, departed.is_counted)


def _put_counts(shard: int, counts: Mapping[int, Counts], batch: Batch) -> None:
    for collection_id, each in counts.items():
        batch.put(layout.counts_key(shard, collection_id), layout.pack_counts(*each))


def _clear(shard: int, tags: bytes, batch: Batch) -> None:
    for tag in tags:
        batch.delete_range(*layout.shard_range(tag, shard))
