"""What a shard's entries in flight leave of the keys that they write.

A condition is checked against the latest state, entries that are not yet committed among it.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Iterable
from typing import NamedTuple

from kvshard.model import ABSENT, NEVER
from leaf.operations import DropCollection, WriteOperation
from leaf.replication.machine import ReplicationMachine


class Latest(NamedTuple):
    """A key as its last entry leaves it, applied or not. version ABSENT: deleted."""

    seqno: int
    version: int
    expires_at_ms: int


def latest_of(machine: ReplicationMachine, collection_id: int, keys: Iterable[bytes]) -> dict[bytes, Latest]:
    """The keys among these that an entry in flight writes, as the last such entry leaves them."""
    if not machine.in_flight_entries:
        return {}
    positions: dict[int, dict[bytes, int]] = {}
    found: dict[bytes, Latest] = {}
    for key in keys:
        seqno = machine.latest_write((collection_id, key))
        if seqno is None:
            continue
        operation = machine.log.entry(seqno).payload
        if isinstance(operation, DropCollection):
            if operation.collection_id == collection_id:
                found[key] = Latest(seqno, ABSENT, NEVER)
                continue
            seqno = machine.latest_write((collection_id, key), by_name=True)
            if seqno is None:
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
