"""What serves the methods of lanes: the functions that a process hands to its `LaneServicer`."""

from collections.abc import Awaitable, Callable

from kvshard.errors import KvShardError

Handler = Callable[[bytes, float], Awaitable[bytes]]
"""Serves a method: (payload, absolute deadline) -> reply payload. Raises KvShardError."""

ImmediateHandler = Callable[[bytes, float], bytes | None]
"""The short cut of a method: answers without awaiting, or returns None to leave the request to the method's Handler.

It runs inside the lane's reader, so it must be quick.
"""

Answer = Callable[[bytes | KvShardError | None], None]
"""Is told the reply payload of a request that was begun, or its error; None: it is left to the method's Handler. Once."""

BeginningHandler = Callable[[bytes, float, Answer], Callable[[], object] | None]
"""The other short cut of a method: begins the request without awaiting, or returns None to leave it to the method's Handler.

It tells `Answer` the outcome, not before it has returned. Returns what gives the request up, after which it tells nothing. It
runs inside the lane's reader, as what tells the outcome most often does, so both must be quick.
"""

HedgeGate = Callable[[int], KvShardError | None]
"""Why a hedge of a method cannot be taken now; None when it can."""
