"""One shard's replica on this leaf: its state machine, and the callers who wait for what it decides.

Decides nothing; the machine does (`leaf/replication/`). Before the machine is there, while the disk is read, a replica is
RECOVERING; one that cannot be opened keeps the error that says why.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from kvshard.errors import ErrorDetails, KvShardError, NotReady
from leaf.refusals import RETRY_AFTER_MS, error_of
from leaf.replication.actions import Reason
from leaf.replication.events import Conclude, Propose
from leaf.replication.machine import ReplicationMachine, Role
from leaf.snapshots import SnapshotSource, StagedSnapshot


class Written(NamedTuple):
    """A write is committed and applied, or changed nothing (seqno 0). result: what the entry keeps for a repetition."""

    seqno: int
    result: object


class Served(NamedTuple):
    """The state may be read now. age_s: it holds every write acknowledged before that long ago (None: not known)."""

    seqno: int
    age_s: float | None


Outcome: TypeAlias = Written | Served
Caller: TypeAlias = "asyncio.Future[Outcome | None]"
"""Who waits for an outcome. None: the deadline came first."""
Evaluate: TypeAlias = Callable[[int], Propose | Conclude]
"""token -> the write, evaluated against the latest state. May raise KvShardError; then nothing is written."""


@dataclass(slots=True)
class OpenSnapshot:
    """A snapshot that is being sent. began_at: monotonic seconds."""

    source: SnapshotSource
    began_at: float
    sent_bytes: int = 0
    task: asyncio.Task[None] | None = None


class Replica:
    """The replica of one shard. number: unique among all that this process ever opened, so that late news of the disk, which
    may be for a replica of the same shard that was closed meanwhile, find the right one."""

    def __init__(self, shard: int, number: int) -> None:
        self.shard = shard
        self.number = number
        self.machine: ReplicationMachine | None = None
        self.error: KvShardError | None = None
        self.callers: dict[int, Caller] = {}
        self.evaluations: dict[int, Evaluate] = {}
        self.snapshots: dict[int, OpenSnapshot] = {}
        self.staged: StagedSnapshot | None = None
        self.serves_though_failed = False

    def __repr__(self) -> str:
        return f"Replica(shard={self.shard}, {self.role}, {len(self.callers)} callers)"

    @property
    def role(self) -> str:
        """What the replica does, as status shows it."""
        if self.error is not None:
            return "failed"
        return self.machine.role.value if self.machine is not None else "recovering"

    @property
    def is_primary(self) -> bool:
        """Whether it takes writes."""
        return self.error is None and self.machine is not None and self.machine.role is Role.PRIMARY

    @property
    def epoch(self) -> int:
        """Of the replica set that it acts in; 0 before it knows one."""
        return self.machine.epoch if self.machine is not None else 0

    @property
    def last(self) -> int:
        """Seqno of the newest entry of its log."""
        return self.machine.last if self.machine is not None else 0

    @property
    def committed(self) -> int:
        """The entries through this seqno are committed, as far as it knows."""
        return self.machine.committed if self.machine is not None else 0

    @property
    def applied(self) -> int:
        """Its state holds the entries through this seqno."""
        return self.machine.applied if self.machine is not None else 0

    def may_stop(self, now: float) -> bool:
        """Whether no commit would wait for it if it were gone. now: monotonic seconds."""
        return self.machine is None or self.machine.may_stop(now)

    def fail(self, error: KvShardError) -> None:
        """Remember why the replica stopped. The only one in sync goes on to answer reads: nobody else can, nor can write."""
        machine = self.machine
        if machine is not None and machine.config is not None and machine.role is Role.PRIMARY:
            self.serves_though_failed = len(machine.config.in_sync) == 1
        self.error = error

    def opened(self) -> ReplicationMachine:
        """The machine. Raises why there is none, or NotReady."""
        if self.machine is None:
            details = ErrorDetails(shards=(self.shard,), retry_after_ms=RETRY_AFTER_MS)
            raise self.error or NotReady(f"shard {self.shard} is {self.role}", details)
        return self.machine

    def answer(self, token: int, outcome: Outcome) -> None:
        """Tell the caller of that token, if it still waits."""
        caller = self.callers.pop(token, None)
        if caller is not None and not caller.done():
            caller.set_result(outcome)

    def refuse(self, token: int, reason: Reason, committed: int) -> None:
        """Tell the caller of that token why not. A replica whose storage failed says so instead."""
        caller = self.callers.pop(token, None)
        if caller is not None and not caller.done():
            caller.set_exception(self.error or error_of(reason, self.shard, committed))

    def abandon(self, error: KvShardError) -> None:
        """Give every caller this error."""
        callers, self.callers = self.callers, {}
        for caller in callers.values():
            if not caller.done():
                caller.set_exception(error)

    def close_snapshots(self) -> None:
        """Free the views that are being sent."""
        for number in list(self.snapshots):
            self.close_snapshot(number)

    def close_snapshot(self, number: int) -> None:
        """Free one view; a read of it that is under way is waited for by whoever owns its task."""
        snapshot = self.snapshots.pop(number, None)
        if snapshot is not None and snapshot.task is None:
            snapshot.source.close()
