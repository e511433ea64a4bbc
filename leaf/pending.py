"""What a shard's entries in flight leave of the keys that they write.

A condition is checked against the latest state, entries that are not yet committed among it.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Collection
from itertools import repeat
from typing import NamedTuple

from kvshard.model import ABSENT, NEVER
from leaf.operations import DropCollection, Split, WriteOperation
from leaf.replication.machine import ReplicationMachine


class Latest(NamedTuple):
    """A key as its last entry leaves it, applied or not. version ABSENT: deleted."""

    seqno: int
    version: int
    expires_at_ms: int


def latest_of(machine: ReplicationMachine, collection_id: int, keys: Collection[bytes]) -> dict[bytes, Latest]:
    """The keys among these that an entry in flight writes, as the last such entry leaves them."""
    if not machine.in_flight_entries:
        return {}
    dropped = max((seqno for seqno, payload in _of_all(machine) if payload == DropCollection(collection_id)), default=0)
    if not dropped and not machine.writes_any(zip(repeat(collection_id), keys)):
        return {}
    positions: dict[int, dict[bytes, int]] = {}
    found: dict[bytes, Latest] = {}
    for key in keys:
        seqno = machine.latest_write((collection_id, key), by_name=True) or 0
        if seqno <= dropped:
            if dropped:
                found[key] = Latest(dropped, ABSENT, NEVER)
            continue
        operation = machine.log.entry(seqno).payload
        assert isinstance(operation, WriteOperation), f"entry {seqno} of shard {machine.shard} writes no keys"
        if seqno not in positions:
            positions[seqno] = {written: index for index, written in enumerate(operation.keys)}
        index = positions[seqno][key]
        if operation.values[index] is None:
            found[key] = Latest(seqno, ABSENT, NEVER)
        else:
            found[key] = Latest(seqno, seqno, operation.expires_at_ms[index] if operation.expires_at_ms else NEVER)
    return found


def is_splitting(machine: ReplicationMachine) -> bool:
    """Whether a split is in flight."""
    return any(isinstance(payload, Split) for _, payload in _of_all(machine))


def writable_last_slot(machine: ReplicationMachine, last_slot: int) -> int:
    """The end of the range in which keys may be written. last_slot: in the applied state.

    What a split in flight takes away belongs to the child: a write behind it would be lost to it.
    """
    cuts = [payload.at_slot - 1 for _, payload in _of_all(machine) if isinstance(payload, Split)]
    return min([last_slot, *cuts])


def _of_all(machine: ReplicationMachine) -> list[tuple[int, object]]:
    """(seqno, payload) of the entries in flight that concern every key; nearly always there is none."""
    through = machine.latest_of_all
    if not through:
        return []
    entries = machine.log.between(machine.committed, through)
    return [(entry.seqno, entry.payload) for entry in entries if entry.keys is None]
