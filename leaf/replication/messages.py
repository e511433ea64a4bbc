"""What the replicas of one shard say to each other, and the entries of their log.

Every message names the epoch it was sent in. The driver carries (sender, receiver, message), both as `clustermap.Replica`, that
is with incarnation: data that was lost and created anew never answers in the name of what it was before.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from kvshard.clustermap import ShardConfig


class RequestId(NamedTuple):
    """Names a write for good, however often it is sent. number: grows with each write of the client.

    since: a committed seqno of this shard that the client knew before it first sent the write (0: none). It lets a shard that
    has forgotten the client say EXPIRED instead of applying a late copy a second time.
    """

    client: str
    number: int
    since: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """One position of the log. The machine looks into nothing but these fields; `payload` and `result` are the driver's.

    payload: what applying it does, None for a barrier. keys: the keys it makes dirty, None: every key. result: what a caller
    that repeats the request is told.
    """

    epoch: int
    seqno: int
    payload: object
    keys: Collection[Hashable] | None = ()
    size: int = 0
    request: RequestId | None = None
    result: object = None


class Echo(NamedTuple):
    """A secondary's own clock reading, sent back to it. boot: the run of its process that read the clock."""

    boot: int
    clock: float


class DedupRecord(NamedTuple):
    """One client of the dedup table, as it travels. results: (number, seqno, result), by number."""

    client: str
    born: int
    floor: int
    last_seqno: int
    results: tuple[tuple[int, int, object], ...]


@dataclass(frozen=True, slots=True)
class Beacon:
    """From the primary, every T/10. echo: the newest clock reading it has of the receiver. config: until the receiver knows it.

    grants_lease: the receiver may serve strong reads until echo.clock + read_lease, in this epoch.
    """

    epoch: int
    sent_at: float
    committed: int
    echo: Echo | None
    grants_lease: bool
    config: ShardConfig | None


@dataclass(frozen=True, slots=True)
class BeaconAck:
    """sent_at: of the beacon answered, by the primary's clock. clock: the sender's own. acked: as in PrepareAck.

    is_stopping: the sender's leaf is about to stop and wants to be put out before, so that no commit waits for it.
    ready_for: the shard that the sender is ready to divide off (`Core.ready_for`). divided_off: the one that it has
    (`Core.divided_off`). is_full: the sender's disk has no room for new writes (`Core.is_full`).
    """

    epoch: int
    sent_at: float
    clock: Echo
    acked: int
    is_stopping: bool = False
    ready_for: int | None = None
    divided_off: int | None = None
    is_full: bool = False


@dataclass(frozen=True, slots=True)
class Prepare:
    """Entries to follow the one at prev. Without entries it only asks whether the logs agree at prev."""

    epoch: int
    prev_epoch: int
    prev_seqno: int
    entries: tuple[Entry, ...]
    committed: int


@dataclass(frozen=True, slots=True)
class PrepareAck:
    """The log agrees with the primary's through `acked`, and is durable that far."""

    epoch: int
    acked: int


@dataclass(frozen=True, slots=True)
class PrepareNack:
    """The log does not hold the entry at prev_seqno; it may agree at hint. needs_snapshot: the state is not whole."""

    epoch: int
    prev_seqno: int
    hint: int
    needs_snapshot: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotChunk:
    """Part of the applied state at (seqno_epoch, seqno). rows: the driver's. dedup, forgotten_through: with the last chunk."""

    epoch: int
    snapshot: int
    index: int
    seqno: int
    seqno_epoch: int
    rows: object
    is_last: bool
    dedup: tuple[DedupRecord, ...] = ()
    forgotten_through: int = 0


@dataclass(frozen=True, slots=True)
class SnapshotAck:
    """Every chunk through `index` has arrived; with the last one, the whole is durable. -1: the snapshot is not known."""

    epoch: int
    snapshot: int
    index: int


@dataclass(frozen=True, slots=True)
class Outdated:
    """The receiver's epoch is older than this one: it should look at the coordinator."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Join:
    """To the primary: the sender is wanted here (`desired`) and not yet in the configuration."""

    epoch: int


@dataclass(frozen=True, slots=True)
class Commit:
    """Entries through `committed` are committed. Sent when nothing else carries it, so that dirty reads need not wait."""

    epoch: int
    committed: int


Message: TypeAlias = (
    Beacon | BeaconAck | Prepare | PrepareAck | PrepareNack | Commit | SnapshotChunk | SnapshotAck | Outdated | Join
)
