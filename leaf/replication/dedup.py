"""The replicated table of requests already done: each request id takes effect once.

Part of the shard's state: it changes only when an entry is applied, so it is equal on every replica at equal seqnos, and it
travels in snapshots. No clock is read. Both bounds count; what lies beyond them is answered EXPIRED, never done again:

    per client   the newest WINDOW results by number; the highest number dropped is its floor
    clients      the CLIENTS most recently written; `forgotten_through` is the last seqno of any that was dropped, and a request
                 whose `since` lies below it may have been done by a client dropped since
    bytes        results count RESULT_BYTES at most, else the client that wrote least recently goes; of a single client the
                 results with the lowest numbers

Pure: imports only the standard library and other pure files.
"""

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple

from leaf.replication.messages import DedupRecord, RequestId

WINDOW: Final = 1_024
"""Results kept of one client: more than one client has writes of one shard in flight."""

CLIENTS: Final = 1_024
"""Clients kept of one shard: routers and client processes that wrote lately."""

RESULT_BYTES: Final = 4 * 1024 * 1024
"""Of all results of a shard. One of a single key has few bytes, one of 10,000 keys 2,500 and more if many of them failed."""

RESULT_OVERHEAD: Final = 32
"""What each result counts besides its own bytes. The table travels in one message, as does a result's number and seqno."""


class Expired(Enum):
    """The one value that says: whether the request was done is no longer known."""

    EXPIRED = "expired"


class Done(NamedTuple):
    """A request that took effect."""

    seqno: int
    result: object


@dataclass(slots=True)
class _Client:
    born: int
    floor: int = 0
    last_seqno: int = 0
    results: dict[int, Done] = field(default_factory=dict)
    numbers: list[int] = field(default_factory=list)  # A heap of the keys of `results`.
    bytes: int = 0


class DedupTable:
    """Requests done, by client.

    Invariants: at most `clients` clients with at most `window` results each, of `result_bytes` in all unless there is only one
    client; every number of a client is above its floor.
    """

    def __init__(self, window: int = WINDOW, clients: int = CLIENTS, result_bytes: int = RESULT_BYTES) -> None:
        self.window = window
        self.clients = clients
        self.result_bytes = result_bytes
        self.bytes = 0
        self.forgotten_through = 0
        self._by_client: dict[str, _Client] = {}  # Oldest write first.

    def __repr__(self) -> str:
        return f"DedupTable({len(self._by_client)} clients, forgotten_through={self.forgotten_through})"

    def find(self, request: RequestId) -> Done | Expired | None:
        """What is known of a request; None: it was not done."""
        known = self._by_client.get(request.client)
        if known is None:
            return Expired.EXPIRED if request.since < self.forgotten_through else None
        done = known.results.get(request.number)
        if done is not None:
            return done
        is_old = request.number <= known.floor or request.since < known.born
        return Expired.EXPIRED if is_old else None

    def record(self, request: RequestId, seqno: int, result: object) -> None:
        """A request has been applied."""
        known = self._by_client.pop(request.client, None)
        if known is None:
            known = _Client(self.forgotten_through)
        self._by_client[request.client] = known
        known.last_seqno = seqno
        if request.number <= known.floor:
            return  # It was in flight while higher numbers went by.
        before = known.results.get(request.number)
        if before is None:
            heapq.heappush(known.numbers, request.number)
        else:
            self._count(known, -size_of(before.result))
        known.results[request.number] = Done(seqno, result)
        self._count(known, size_of(result))
        self._forget(known)

    def _forget(self, known: _Client) -> None:
        """Keep within the bounds. The same on every replica: it depends on nothing but what was recorded."""
        while len(known.results) > self.window or (known.bytes > self.result_bytes and len(known.results) > 1):
            oldest = heapq.heappop(known.numbers)
            self._count(known, -size_of(known.results.pop(oldest).result))
            known.floor = max(known.floor, oldest)
        while len(self._by_client) > self.clients or (self.bytes > self.result_bytes and len(self._by_client) > 1):
            dropped = self._by_client.pop(next(iter(self._by_client)))
            self.bytes -= dropped.bytes
            self.forgotten_through = max(self.forgotten_through, dropped.last_seqno)

    def _count(self, known: _Client, size: int) -> None:
        known.bytes += size
        self.bytes += size

    def marks_of(self, client: str) -> tuple[int, int, int] | None:
        """(born, floor, last_seqno) of a client, without its results; None: the table has nothing of it, or no more."""
        known = self._by_client.get(client)
        return (known.born, known.floor, known.last_seqno) if known is not None else None

    def record_of(self, client: str) -> DedupRecord | None:
        """What the table has of one client; None: nothing, or no more."""
        known = self._by_client.get(client)
        return _record(client, known) if known is not None else None

    def records(self) -> tuple[DedupRecord, ...]:
        """The whole table, oldest client first."""
        return tuple(_record(client, known) for client, known in self._by_client.items())

    def restore(self, records: Iterable[DedupRecord], forgotten_through: int) -> None:
        """Become the table that gave these records."""
        self.forgotten_through = forgotten_through
        self._by_client = {
            record.client: _Client(
                record.born,
                record.floor,
                record.last_seqno,
                {number: Done(seqno, result) for number, seqno, result in record.results},
                sorted(number for number, _, _ in record.results),
            )
            for record in records
        }
        self.bytes = 0
        for known in self._by_client.values():
            self._count(known, sum(size_of(done.result) for done in known.results.values()))

    def copy(self) -> "DedupTable":
        """Another table with the same contents."""
        made = DedupTable(self.window, self.clients, self.result_bytes)
        made.restore(self.records(), self.forgotten_through)
        return made

    def check_invariants(self) -> None:
        """Raise AssertionError unless the invariants of the class hold."""
        assert len(self._by_client) <= self.clients, repr(self)
        for known in self._by_client.values():
            assert len(known.results) <= self.window, repr(self)
            assert all(number > known.floor for number in known.results), repr(self)
            assert sorted(known.numbers) == sorted(known.results), repr(self)
        assert self.bytes <= self.result_bytes or len(self._by_client) == 1, repr(self)
        assert self.bytes == sum(known.bytes for known in self._by_client.values()), repr(self)


def size_of(result: object) -> int:
    """Bytes that a result counts; what is not bytes (in the simulation) counts as empty."""
    return RESULT_OVERHEAD + (len(result) if isinstance(result, bytes) else 0)


def _record(client: str, known: _Client) -> DedupRecord:
    results = tuple((number, *done) for number, done in sorted(known.results.items()))
    return DedupRecord(client, known.born, known.floor, known.last_seqno, results)
