"""The ids of a client's writes, by which the shards recognise repetitions, and what they have to be told with them."""

import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from kvshard.clock import Clock
from kvshard.errors import KvShardError, in_doubt
from kvshard.request_ids import WriteNames
from kvshard.v1 import types_pb2

WATERMARKS_INTERVAL_S = 5.0
"""Between two looks at how far the shards have committed, which make a late repetition recognisable. A shard forgets clients
after a thousand others have written, so these are new enough; and a look costs 12 bytes a shard."""

_forks = 0
"""Forks that this process comes from. Counted, since to ask the kernel for the process's id at every write costs as much as the
rest of its id."""


def _note_fork() -> None:
    global _forks
    _forks += 1


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


class WriteId:
    """The id of one write, over all its sendings. known: what was known of the shards before the first of them.

    attempts: sendings made so far. is_retry: one of them may have taken effect.
    """

    __slots__ = ("_known", "_message", "attempts")

    def __init__(self, message: types_pb2.RequestId, known: bytes) -> None:
        self._message = message
        self._known = known
        self.attempts = 0

    @property
    def is_retry(self) -> bool:
        """Whether a sending may have taken effect."""
        return self._message.is_retry

    @property
    def is_safe_to_doubt(self) -> bool:
        """Whether the shards can tell a repetition from a new write: without watermarks they may have to refuse it."""
        return bool(self._known)

    def note(self, error: KvShardError) -> None:
        """A sending, or a part of it, has failed."""
        if error.details.maybe_applied and not self._message.is_retry:
            self._message.is_retry, self._message.watermarks = True, self._known

    def failed(self, error: KvShardError) -> KvShardError:
        """A sending has failed; the error, with what it means for the whole write."""
        self.note(error)
        return in_doubt(error) if self._message.is_retry else error

    def encoded(self, positions: Sequence[int] = (), total: int = 0) -> bytes:
        """The id as it travels. positions, total: of a part of the write, where it stands among so many keys."""
        if not positions:
            return self._message.SerializeToString()
        message = types_pb2.RequestId()
        message.CopyFrom(self._message)
        message.positions.extend(positions)
        message.total = total
        return message.SerializeToString()


class WriteIds:
    """Gives the ids, and keeps what routers told of the shards."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._names: WriteNames | None = None
        self._forks = 0
        self._watermarks = b""
        self._due_at = float("-inf")

    def __repr__(self) -> str:
        return f"WriteIds({self._names!r})"

    @contextmanager
    def new(self) -> Iterator[WriteId]:
        """The id of a write that begins; it is not sent any more when this is left."""
        names = self._own_names()
        name = names.take()
        message = types_pb2.RequestId(client=name.client, number=name.number, wants_watermarks=self._is_due())
        try:
            yield WriteId(message, self._watermarks)
        finally:
            names.give_back(name)

    def learn(self, watermarks: bytes) -> None:
        """A router told how far the shards have committed."""
        self._watermarks = watermarks or self._watermarks

    def _own_names(self) -> WriteNames:
        """Names that nobody else gives: processes that are forked with a client, and with its random numbers, have others."""
        if self._names is None or self._forks != _forks:
            self._names, self._forks = WriteNames(secrets.token_hex(12)), _forks
        return self._names

    def _is_due(self) -> bool:
        """Whether it is this write's turn to ask for watermarks."""
        now = self._clock.monotonic()
        if now < self._due_at:
            return False
        self._due_at = now + WATERMARKS_INTERVAL_S
        return True
