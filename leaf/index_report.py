"""What a leaf tells of the indexes of one collection in one shard."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from leaf.index_slot import IndexSlot, Phase


@dataclass(frozen=True, slots=True)
class IndexReport:
    """indexed_through: what searches see. The other fields: see `model.CollectionCountRecord`."""

    indexed_through: int = 0
    schema_version: int = 0
    rebuilt: int = 0
    to_rebuild: int = 0
    misfits: dict[str, int] = field(default_factory=dict)


def report_of(slots: Sequence[IndexSlot], documents: int) -> IndexReport:
    """slots: of one collection in one shard. documents: that it has there."""
    if not slots:
        return IndexReport()
    newest = max(slots, key=lambda slot: slot.collection.version)
    serving = [slot.indexed_through() for slot in slots if not slot.is_beside]
    is_building = newest.phase is not Phase.SERVING
    return IndexReport(
        max(serving, default=0),
        max((slot.collection.version for slot in slots if slot.is_ready), default=0),
        min(newest.rebuilt, documents) if is_building else 0,
        documents if is_building else 0,
        newest.misfits,
    )
