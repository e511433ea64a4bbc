"""How far each shard has committed, as far as this router has heard: what it needs for writes that may be repeated.

A shard recognises a repeated write by its request id, but remembers only so many of them. To tell a new write from the late
copy of a forgotten one, it wants `since`: a seqno that the shard had committed before the write was first sent. If everything
that the shard has forgotten lies at or below it, no copy of the write can be among that, and the write is new. The greater
`since` the better, but it must be true, or a late copy is done a second time. Hence:

    first sending          the highest seqno that this router has seen of the shard; kept while the router itself repeats the
                           write (`Repetition`)
    is_retry of a client   what a router told that client before the first sending, if the client gives it back (the opaque
                           `watermarks`, which `Watermarks.encode` makes); else 0. What this router knows by now is of no use:
                           the first copy may be part of it

A write that was never sent before and is refused EXPIRED all the same knew too little. The refusal says what the shard has
committed, and with that as its `since` it is sent again, once.

Pure: imports only the standard library and other pure files.
"""

import struct

from kvshard.errors import ErrorDetails, Expired, InvalidArgument, KvShardError
from kvshard.limits import SHARDS_MAX
from kvshard.model import ShardWrite, changed

SHARDS_REMEMBERED = 2 * SHARDS_MAX
"""A map has half as many; the rest are shards that were split, and those heard of first are forgotten."""

_FORMAT = 1
_ROW = struct.Struct(">IQ")

ENCODED_MAX_BYTES = 1 + SHARDS_REMEMBERED * _ROW.size
"""Of watermarks as they travel; anything longer was not made by a router."""


class Watermarks:
    """Shard -> the highest seqno known to be committed. At most SHARDS_REMEMBERED shards."""

    def __init__(self, known: dict[int, int] | None = None) -> None:
        self._known = known or {}

    def __repr__(self) -> str:
        return f"Watermarks({self._known})"

    def learn(self, shard: int, seqno: int) -> None:
        """A reply showed that the shard has committed this seqno."""
        known = self._known
        if seqno > known.get(shard, 0):
            known[shard] = seqno
            if len(known) > SHARDS_REMEMBERED:
                del known[next(iter(known))]

    def of(self, shard: int) -> int:
        """0: nothing is known."""
        return self._known.get(shard, 0)

    def encode(self) -> bytes:
        """For a client to keep."""
        return bytes([_FORMAT]) + b"".join(_ROW.pack(shard, seqno) for shard, seqno in sorted(self._known.items()))

    @classmethod
    def decode(cls, encoded: bytes) -> "Watermarks":
        """What `encode` made; empty ones of empty bytes. Raises InvalidArgument."""
        if not encoded:
            return cls()
        rows = encoded[1:]
        if len(encoded) > ENCODED_MAX_BYTES or encoded[0] != _FORMAT or len(rows) % _ROW.size:
            text = "request_id.watermarks are none that a router gave"
            raise InvalidArgument(text, ErrorDetails(field="request_id.watermarks"))
        return cls(dict(_ROW.iter_unpack(rows)))


class Repetition:
    """One leg of a write, as often as it is sent.

    may_be_done: an earlier sending, here or by the client, may have taken effect.
    """

    def __init__(self, request: ShardWrite, is_retry: bool) -> None:
        self.may_be_done = is_retry
        self._request = request
        self._has_caught_up = False

    def __repr__(self) -> str:
        return f"Repetition(since={self._request.since}, may_be_done={self.may_be_done})"

    def next_sending(self, epoch: int) -> ShardWrite:
        """What is to be sent, routed by this epoch."""
        if self._request.epoch != epoch:
            self._request = changed(self._request, epoch=epoch)
        return self._request

    def may_send_at_once(self, error: KvShardError) -> bool:
        """Take note of the error of a sending. True: send again now, to the same leaf."""
        if not isinstance(error, Expired):
            self.may_be_done |= error.details.maybe_applied
            return False
        committed = error.details.committed or 0
        if self.may_be_done or self._has_caught_up or committed <= self._request.since:
            return False
        self._has_caught_up = True
        self._request = changed(self._request, since=committed)
        return True
