"""Why a replica does not do what it is asked for, as the errors that routers understand.

    StaleEpoch    another leaf is responsible: look at the map
    NotReady      not this replica now: ask another one
    Unavailable   no replica can do it now; with maybe_applied it is open whether the write took effect

Pure: imports only the standard library and other pure files.
"""

from typing import Final

from kvshard.errors import (
    ErrorDetails,
    Expired,
    KvShardError,
    NotReady,
    ResourceExhausted,
    StaleEpoch,
    StorageFailed,
    Unavailable,
)
from leaf.replication.actions import Reason

RETRY_AFTER_MS: Final = 20
"""A few group commits: by then the queue has moved."""

FAILOVER_RETRY_MS: Final = 200
"""A replica set that is too small grows by what takes seconds; sooner asking only costs."""


def error_of(reason: Reason, shard: int, committed: int = 0) -> KvShardError:
    """The error for a refusal. committed: the shard's committed seqno, where the machine told it."""
    details = ErrorDetails(shards=(shard,), retry_after_ms=RETRY_AFTER_MS)
    match reason:
        case Reason.NOT_PRIMARY:
            return StaleEpoch(f"this leaf is not the primary of shard {shard}", ErrorDetails(shards=(shard,)))
        case Reason.NOT_READY:
            return NotReady(f"the replica of shard {shard} does not serve yet", details)
        case Reason.NO_LEASE:
            return NotReady(f"the replica of shard {shard} holds no lease", details)
        case Reason.TOO_FEW_IN_SYNC:
            text = f"shard {shard} has too few replicas in sync to take writes"
            return Unavailable(text, ErrorDetails(shards=(shard,), retry_after_ms=FAILOVER_RETRY_MS))
        case Reason.BUSY:
            return ResourceExhausted(f"shard {shard} has too many requests in flight", details)
        case Reason.EXPIRED:
            text = f"shard {shard} no longer knows whether this write took effect"
            return Expired(text, ErrorDetails(shards=(shard,), committed=committed))
        case Reason.ABANDONED:
            text = f"shard {shard} changed its primary while the write was under way"
            return Unavailable(text, ErrorDetails(shards=(shard,), maybe_applied=True))


def storage_failed(shard: int, reason: str, *, maybe_applied: bool = False) -> StorageFailed:
    """The error of a replica whose disk refused a write."""
    details = ErrorDetails(shards=(shard,), maybe_applied=maybe_applied)
    return StorageFailed(f"shard {shard} stopped: its storage failed: {reason}", details)
