"""The coordinator: a small, consistent store with compare-and-write transactions, watches and leases.

The interface is a subset of what etcd v3 offers, so that the embedded store and etcd pass one conformance suite. Keys are
text, values bytes. Every successful transaction that writes gets the store's next revision, one for all its writes.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

ABSENT = 0
"""Revision of a key that is not there."""

TXN_OPERATIONS_MAX = 128
"""Compares, and writes, of one transaction: etcd's default (--max-txn-ops). Every engine holds to it, so that what works with
the embedded one works with etcd."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A stored key. revision: that of its last write."""

    key: str
    value: bytes
    revision: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All keys under a prefix, by key, at one revision of the store."""

    revision: int
    items: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Compare:
    """Holds when the key's revision is exactly this one (ABSENT: the key is not there)."""

    key: str
    revision: int


@dataclass(frozen=True, slots=True)
class Put:
    """Write a key; with a lease the key goes when the lease ends."""

    key: str
    value: bytes
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key; nothing happens when it is absent."""

    key: str


@dataclass(frozen=True, slots=True)
class TxnResult:
    """has_succeeded: every compare held and every write was made. revision: the store's revision afterwards."""

    has_succeeded: bool
    revision: int


@dataclass(frozen=True, slots=True)
class Event:
    """A change of one key; value None: it was deleted."""

    key: str
    value: bytes | None
    revision: int


class CoordinatorUnavailable(Exception):
    """The store did not answer in time, or lost the connection. A transaction may or may not have taken effect: read again."""


class HistoryCompacted(Exception):
    """The revision a watch wanted to start from is no longer kept: read a snapshot and watch from there."""


class LeaseExpired(Exception):
    """The lease ended before it was renewed; its keys are gone."""


def check_txn(compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> None:
    """Raise ValueError for a transaction that no engine takes."""
    if len({write.key for write in writes}) < len(writes):
        raise ValueError("a key is written twice in one transaction")
    if max(len(compares), len(writes)) > TXN_OPERATIONS_MAX:
        raise ValueError(
            f"{len(compares)} compares and {len(writes)} writes, at most {TXN_OPERATIONS_MAX} of each are possible"
        )


class Coordinator(ABC):
    """A handle on the store. Safe for concurrent use by the tasks of one event loop.

    Atomicity: a transaction happens whole or not at all, also when the process is killed in its middle, and is durable when the
    call returns. Every method may raise CoordinatorUnavailable.
    """

    @abstractmethod
    async def get(self, key: str) -> KeyValue | None:
        """The key as it is now (linearizable), or None."""

    @abstractmethod
    async def get_prefix(self, prefix: str) -> Snapshot:
        """All keys that begin with prefix, at one revision."""

    @abstractmethod
    async def txn(self, compares: Sequence[Compare], writes: Sequence[Put | Delete]) -> TxnResult:
        """Make all writes if every compare holds, else none.

        Raises LeaseExpired when a Put names a lease that has ended, ValueError when a key is written twice or there are more
        than TXN_OPERATIONS_MAX compares or writes.
        """

    @abstractmethod
    def watch(self, prefix: str, after_revision: int) -> AsyncIterator[list[Event]]:
        """Yield every later change of the keys under prefix, in order of revision; all events of one revision come together.

        Iterating raises HistoryCompacted when changes after after_revision are no longer kept. Ends only by cancellation or
        aclose().
        """

    @abstractmethod
    async def grant_lease(self, ttl_s: float) -> int:
        """A new lease that ends after ttl_s seconds unless it is kept alive."""

    @abstractmethod
    async def keep_alive(self, lease: int) -> None:
        """Renew a lease for its full length. Raises LeaseExpired."""

    @abstractmethod
    async def revoke_lease(self, lease: int) -> None:
        """End a lease now and delete its keys; nothing happens when it has ended."""

    @abstractmethod
    async def close(self) -> None:
        """Release files, threads and connections."""
