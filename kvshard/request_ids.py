"""Names for writes, (client, number), by which a shard that keeps a bounded number of results recognises every repetition.

A shard keeps the results of the newest numbers of a client, some hundreds, and refuses what lies below them. A sender with
many writes under way would outrun a slow one of its own. So a sender is a family of clients, and a number is taken only from
one whose oldest write under way is near. Few clients suffice: one for each SPAN writes begun while another one was stuck.

Pure: imports only the standard library.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

CLIENT_MAX_CHARS = 64
"""Of a client's name: it stands in each of its log entries and in every shard's table."""

SPAN = 128
"""Numbers between a client's oldest write under way and its newest: far less than what a shard keeps."""


class WriteName(NamedTuple):
    """Names a write for good."""

    client: str
    number: int


@dataclass(slots=True)
class _Client:
    name: str
    last: int = 0
    under_way: dict[int, None] = field(default_factory=dict)  # Ascending.

    @property
    def has_room(self) -> bool:
        return not self.under_way or self.last - next(iter(self.under_way)) < SPAN - 1


class WriteNames:
    """Gives names to the writes of one sender. family: random, of this sender alone.

    There are as many clients as were ever needed at once, at most one a write under way. Invariant: the numbers under way of
    one client lie within SPAN.
    """

    def __init__(self, family: str) -> None:
        assert 0 < len(family) <= CLIENT_MAX_CHARS - 16, "the client's number is added to it"
        self._family = family
        self._clients = [_Client(f"{family}-0")]
        self._current = 0

    def __repr__(self) -> str:
        return f"WriteNames({self._family}, clients={len(self._clients)}, under_way={self.under_way})"

    @property
    def under_way(self) -> int:
        """Writes whose names have not been given back."""
        return sum(len(client.under_way) for client in self._clients)

    def take(self) -> WriteName:
        """A name for a write that begins; give it back when the write will not be sent any more."""
        client = self._clients[self._current]
        if not client.has_room:
            client = self._next()
        client.last += 1
        client.under_way[client.last] = None
        return WriteName(client.name, client.last)

    def give_back(self, name: WriteName) -> None:
        """The write has ended, however it did."""
        index = int(name.client.rpartition("-")[2])
        client = self._clients[index]
        del client.under_way[name.number]
        if index < self._current and client.has_room:
            self._current = index  # The fewer clients are in use, the longer the shards remember each.

    def _next(self) -> _Client:
        found = next((index for index, client in enumerate(self._clients) if client.has_room), None)
        if found is None:
            found = len(self._clients)
            self._clients.append(_Client(f"{self._family}-{found}"))
        self._current = found
        return self._clients[found]

    def check_invariants(self) -> None:
        """Raise AssertionError unless the invariant of the class holds."""
        for client in self._clients:
            assert all(client.last - number < SPAN for number in client.under_way), repr(self)
            assert list(client.under_way) == sorted(client.under_way), repr(self)
