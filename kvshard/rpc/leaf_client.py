"""How a process asks a leaf: the interface; `lane_client.py` has the one over real lanes, tests bring a fake."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

from kvshard.errors import KvShardError
from kvshard.fault_model import FaultOrder, FaultReport
from kvshard.model import (
    LeafStatusReply,
    LeafStatusRequest,
    ShardRead,
    ShardReadReply,
    ShardScan,
    ShardScanReply,
    ShardSearch,
    ShardSearchReply,
    ShardTerms,
    ShardTermsReply,
    ShardWrite,
    ShardWriteReply,
)

ReplyT = TypeVar("ReplyT", covariant=True)


@dataclass(slots=True)
class Answer(Generic[ReplyT]):
    """A leaf's reply with the times that the leaf measured. in_flight: requests that it had in work then besides this one.

    Not frozen, since every leg makes one; nobody changes it.
    """

    reply: ReplyT
    queue_us: int = 0
    service_us: int = 0
    in_flight: int = 0


Heard: TypeAlias = Callable[[Answer[Any] | KvShardError], None]
"""Is told what became of a read that was started: once, never while it is being started, not at all if it was taken back.

It runs in the lane's reader, so it must be quick and must not raise.
"""

TakeBack: TypeAlias = Callable[[], object]
"""Takes a read back that was started. Of no effect once it was answered."""

ReadRequest: TypeAlias = ShardRead | ShardScan | ShardSearch | ShardTerms


class Start(Protocol):
    """`LeafClient.start`."""

    def __call__(
        self, leaf: str, request: ReadRequest, deadline: float, heard: Heard, is_hedge: bool = False, is_last: bool = True, /
    ) -> TakeBack | None:
        """Send a read without awaiting anything."""
        ...


class LeafClient(ABC):
    """Asks leaves by their id. Every call takes an absolute deadline on the process's monotonic clock (seconds).

    Raises a KvShardError. Unavailable means that the leaf cannot be reached; for a write, details.maybe_applied tells whether
    it may have been sent. DeadlineExceeded is raised when the deadline passes. A cancelled call cancels the work at the leaf.
    is_hedge: another replica has been asked already; a leaf under load refuses such a request first.
    """

    @abstractmethod
    async def read(self, leaf: str, request: ShardRead, deadline: float, is_hedge: bool = False) -> Answer[ShardReadReply]:
        """Read keys of one shard."""

    def start(
        self, leaf: str, request: ReadRequest, deadline: float, heard: Heard, is_hedge: bool = False, is_last: bool = True
    ) -> TakeBack | None:
        """Send a read without awaiting anything; `heard` is told what became of it. The caller keeps to the deadline.

        is_last: the caller has no more to send now, so that it need not wait for what could share its message.
        None: that cannot be now, or not at all, with this client; `read` and the other methods wait until it can.
        """
        return None

    @abstractmethod
    async def write(self, leaf: str, request: ShardWrite, deadline: float) -> Answer[ShardWriteReply]:
        """Write keys of one shard; durable when it returns."""

    @abstractmethod
    async def scan(self, leaf: str, request: ShardScan, deadline: float, is_hedge: bool = False) -> Answer[ShardScanReply]:
        """Read a key range of one shard."""

    @abstractmethod
    async def search(
        self, leaf: str, request: ShardSearch, deadline: float, is_hedge: bool = False
    ) -> Answer[ShardSearchReply]:
        """Search one shard."""

    @abstractmethod
    async def term_statistics(
        self, leaf: str, request: ShardTerms, deadline: float, is_hedge: bool = False
    ) -> Answer[ShardTermsReply]:
        """Ask for one shard's statistics of some terms."""

    @abstractmethod
    async def status(self, leaf: str, request: LeafStatusRequest, deadline: float) -> Answer[LeafStatusReply]:
        """Report the leaf's state."""

    @abstractmethod
    async def ping(self, leaf: str, deadline: float) -> None:
        """Return as soon as the leaf answers anything."""

    @abstractmethod
    async def order_faults(self, leaf: str, order: FaultOrder, deadline: float) -> FaultReport:
        """Change or list the leaf's faults; carried out by a leaf that is paused, too.

        Raises FailedPrecondition when it takes no faults, InvalidArgument, ResourceExhausted when it has too many.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connections; outstanding calls fail with Unavailable."""
