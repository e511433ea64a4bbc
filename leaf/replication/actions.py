"""What a replica wants done: the actions that `ReplicationMachine.step` gives. Perform them in order.

Pure: imports only the standard library and other pure files.
"""

from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from kvshard.clustermap import Replica, ShardConfig
from leaf.replication.dedup import DedupTable
from leaf.replication.messages import DedupRecord, Entry, Message


class Reason(Enum):
    """Why a call is refused. Only ABANDONED leaves open whether the write took effect."""

    NOT_PRIMARY = "not primary"
    NOT_READY = "not ready"
    NO_LEASE = "no lease"
    TOO_FEW_IN_SYNC = "too few in sync"
    BUSY = "busy"
    EXPIRED = "expired"
    ABANDONED = "abandoned"


@dataclass(frozen=True, slots=True)
class Send:
    """Hand a message to the lane to that replica. It may get lost; never wait for it."""

    receiver: Replica
    message: Message


@dataclass(frozen=True, slots=True)
class SaveEpoch:
    """Disk: remember the epoch."""

    ticket: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Append:
    """Disk: add entries to the log."""

    ticket: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True, slots=True)
class Truncate:
    """Disk: remove the entries after a seqno."""

    ticket: int
    after: int


@dataclass(frozen=True, slots=True)
class InstallSnapshot:
    """Disk: replace state, dedup table and log by the staged rows; the log goes on after (seqno_epoch, seqno)."""

    ticket: int
    snapshot: int
    seqno: int
    seqno_epoch: int
    dedup: tuple[DedupRecord, ...]
    forgotten_through: int


@dataclass(frozen=True, slots=True)
class Apply:
    """Write the entries, and what `dedup` has of them, into the state; readers see it when this returns.

    An entry that concerns every key is the last one of its action. table: the requests done as of that entry, where `dedup` may
    have later ones already; else None.
    """

    entries: tuple[Entry, ...]
    table: DedupTable | None = None


@dataclass(frozen=True, slots=True)
class TrimLog:
    """Entries through a seqno are needed by no replica; remove them when it suits."""

    through: int


@dataclass(frozen=True, slots=True)
class Evaluate:
    """Check the write's conditions against `latest_write` and the state, and send Propose or Conclude before anything else."""

    token: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The write is done: tell the caller. seqno: 0 when nothing was written."""

    token: int
    seqno: int
    result: object


@dataclass(frozen=True, slots=True)
class Refuse:
    """Tell the caller why not."""

    token: int
    reason: Reason
    committed: int = 0


@dataclass(frozen=True, slots=True)
class ServeRead:
    """Read the state now and answer. age_s: the state holds every write acknowledged before that long ago (None: not known)."""

    token: int
    seqno: int
    age_s: float | None


@dataclass(frozen=True, slots=True)
class CompareAndSet:
    """Coordinator: if the shard's epoch is `expected_epoch`, write the replica set; token range and `desired` stay."""

    expected_epoch: int
    config: ShardConfig


@dataclass(frozen=True, slots=True)
class ReadConfig:
    """Coordinator: read the shard's configuration (linearizable) and send ConfigSeen."""


@dataclass(frozen=True, slots=True)
class OpenSnapshot:
    """Take a consistent view of the applied state now, under this number."""

    snapshot: int


@dataclass(frozen=True, slots=True)
class ReadSnapshot:
    """Read a bounded piece of an open snapshot from the cursor (None: its begin) and send SnapshotRows."""

    snapshot: int
    cursor: object


@dataclass(frozen=True, slots=True)
class CloseSnapshot:
    """Forget an open snapshot."""

    snapshot: int


@dataclass(frozen=True, slots=True)
class StageRows:
    """Keep a piece of an arriving snapshot, unseen by readers; index 0 discards what another one left.

    From then on until InstallSnapshot there need be no state: nothing is read, nothing applied, another snapshot may begin.
    """

    snapshot: int
    index: int
    rows: object


Action: TypeAlias = (
    Send
    | SaveEpoch
    | Append
    | Truncate
    | InstallSnapshot
    | Apply
    | TrimLog
    | Evaluate
    | Answer
    | Refuse
    | ServeRead
    | CompareAndSet
    | ReadConfig
    | OpenSnapshot
    | ReadSnapshot
    | CloseSnapshot
    | StageRows
)
