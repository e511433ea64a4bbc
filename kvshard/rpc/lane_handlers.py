"""What serves the methods of lanes: the functions that a process hands to its `LaneServicer`."""

from collections.abc import Awaitable, Callable

from kvshard.errors import KvShardError

Handler = Callable[[bytes, float], Awaitable[bytes]]
"""Serves a method: (payload, absolute deadline) -> reply payload. Raises KvShardError."""

ImmediateHandler = Callable[[bytes, float], bytes | None]
"""The short cut of a method: answers without awaiting, or returns None to leave the request to the method's Handler.

It runs inside the lane's reader, so it must be quick.
"""

HedgeGate = Callable[[int], KvShardError | None]
"""Why a hedge of a method cannot be taken now; None when it can."""
