"""Removes keys whose time has passed, by deletes in the shard's log.

Reads do not need it: they look at the clock. It frees the space, keeps the counts honest and tells the search indexes.
"""

from collections import defaultdict
from typing import Final

from leaf import layout
from leaf.driver import Driver
from leaf.operations import WriteOperation, keys_of, size_of
from leaf.pending import latest_of, writable_last_slot
from leaf.write_plan import plan_expiry

SWEEP_MAX_KEYS: Final = 1_000
"""Of one shard in one turn: about 3 ms of the event loop. When more are due the next turn comes sooner."""


def look(driver: Driver, shard: int, now_ms: int) -> None:
    """Note from when on keys expire, so that searches need not ask the storage. For replicas that sweep nothing.

    Raises StorageError.
    """
    driver.store.note_due(shard, now_ms, driver.store.due(shard, now_ms, 1))


def sweep(driver: Driver, shard: int, now_ms: int) -> bool:
    """Propose deletes of keys that are due. Returns whether there may be more due. Raises StorageError."""
    machine = driver.replicas[shard].machine
    if machine is None or driver.committer.is_full:
        return False
    due = driver.store.due(shard, now_ms, SWEEP_MAX_KEYS)
    driver.store.note_due(shard, now_ms, due)
    by_collection: dict[int, list[tuple[bytes, int, bytes]]] = defaultdict(list)
    splits = driver.store.state(shard).splits
    last_slot = writable_last_slot(machine, splits.last_slot)
    is_cut = splits.has_leftovers or last_slot < splits.last_slot
    for row_key in due:
        expires_at_ms, collection_id, key = layout.expiry_of(row_key)
        if is_cut and driver.store.splits.slot_of(key) > last_slot:
            continue  # It leaves, or has left, for another shard; what is still here goes with the cleaning.
        by_collection[collection_id].append((key, expires_at_ms, row_key))
    stale: list[bytes] = []
    for collection_id, rows in by_collection.items():
        keys = [key for key, _, _ in rows]
        deletes, stale_indices = plan_expiry(
            [(key, expires_at_ms) for key, expires_at_ms, _ in rows],
            latest_of(machine, collection_id, keys),
            driver.store.headers(shard, collection_id, keys),
        )
        stale += [rows[index][2] for index in stale_indices]
        if deletes:
            operation = WriteOperation(collection_id, deletes, [None] * len(deletes))
            driver.propose(shard, operation, keys_of(operation), size_of(operation))
    if stale:
        driver.store.forget_expiries(stale)
    return len(due) == SWEEP_MAX_KEYS
