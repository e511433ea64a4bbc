"""What happens to a replica: the events that `ReplicationMachine.step` takes.

Pure: imports only the standard library and other pure files.
"""

from collections.abc import Collection, Hashable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from kvshard.clustermap import Replica, ShardConfig
from leaf.replication.messages import Message, RequestId


class Outcome(Enum):
    """Of a compare-and-set. UNKNOWN: no answer, or one that leaves open whether it was done or may still be done."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed. Sent every `timings.tick`, and soon after a step that left the machine behind (`Core.is_behind`)."""


@dataclass(frozen=True, slots=True)
class Receive:
    """A message has come. receiver: whom the sender meant, incarnation included."""

    sender: Replica
    receiver: Replica
    message: Message


@dataclass(frozen=True, slots=True)
class Durable:
    """Every disk action with a ticket up to this one survives a crash."""

    ticket: int


@dataclass(frozen=True, slots=True)
class ConfigSeen:
    """The coordinator holds (or held, a moment ago) this configuration: from the watch, or as the answer to ReadConfig."""

    config: ShardConfig


@dataclass(frozen=True, slots=True)
class CasAnswer:
    """Answer to CompareAndSet. config: what the coordinator holds instead, when it said so."""

    expected_epoch: int
    outcome: Outcome
    config: ShardConfig | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """A caller wants to write; `token` names the call. Gives Evaluate, Answer or Refuse, or joins one in flight."""

    token: int
    request: RequestId | None
    size: int


@dataclass(frozen=True, slots=True)
class Propose:
    """The evaluated write. Legal only as the direct answer to Evaluate, with nothing in between."""

    token: int
    request: RequestId | None
    payload: object
    keys: Collection[Hashable] | None
    size: int
    result: object


@dataclass(frozen=True, slots=True)
class Conclude:
    """The evaluated write changes nothing (a condition failed). result may be told once `depends_on` is committed."""

    token: int
    depends_on: int
    result: object


@dataclass(frozen=True, slots=True)
class Read:
    """A caller wants to read keys (None: any of them). Gives ServeRead or Refuse, at once or later."""

    token: int
    keys: tuple[Hashable, ...] | None
    is_strong: bool


@dataclass(frozen=True, slots=True)
class SnapshotRows:
    """Answer to ReadSnapshot. cursor: where to go on, None at the end."""

    snapshot: int
    rows: object
    cursor: object


@dataclass(frozen=True, slots=True)
class Leave:
    """The leaf is about to stop: hand the shard over, and get out of the replicas in sync, as far as others are there."""


@dataclass(frozen=True, slots=True)
class Divided:
    """The data of the shard that a split has taken out of this one is whole on the disk. None: the map knows that shard."""

    child: int | None


@dataclass(frozen=True, slots=True)
class Cancel:
    """The caller of this token gave up: answer it no more. A write that was proposed takes effect all the same."""

    token: int


@dataclass(frozen=True, slots=True)
class Fail:
    """The storage failed: stop for good."""

    reason: str


Event: TypeAlias = (
    Tick
    | Receive
    | Durable
    | ConfigSeen
    | CasAnswer
    | Write
    | Propose
    | Conclude
    | Read
    | SnapshotRows
    | Leave
    | Divided
    | Cancel
    | Fail
)
