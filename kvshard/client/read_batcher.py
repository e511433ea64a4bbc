"""Single reads of concurrent callers, as they travel together: see `batcher`."""

import asyncio
from collections.abc import Iterable
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, TypeAlias, cast

from kvshard.client.batcher import Batcher
from kvshard.client.batching import ReadBatching, ReadFrame
from kvshard.client.frame_slices import FrameSlices
from kvshard.client.wire import read_failures
from kvshard.errors import KvShardError, ResourceExhausted

if TYPE_CHECKING:
    from kvshard.client.key_calls import KeyCalls

VALUES_SAMPLED = 64
"""Values of an answer that are measured, to foresee how large the next one will be."""

FIRST_SLICE_S = 0.1
"""Of a frame of reads, at least: a person hardly notices, and of a read that is asked for again nothing is lost."""

Found: TypeAlias = tuple[bytes, int, int] | None
"""What a read found: (value, version, expires_at_ms); None: the key is absent."""


class ReadBatcher(Batcher[ReadFrame]):
    """Single reads."""

    def __init__(self, calls: "KeyCalls") -> None:
        self._reads = ReadBatching()
        super().__init__(calls, self._reads, FrameSlices(FIRST_SLICE_S))
        self._following: dict[ReadFrame, ReadFrame] = {}

    def read(self, collection: str, options: bytes, key: bytes, deadline: float, now: float) -> "asyncio.Future[Found]":
        """What the key holds. Raises FailedPrecondition after the close; every other error comes by the future."""
        self._connection.routers.check_open()
        future: asyncio.Future[Found] = asyncio.get_running_loop().create_future()
        self._reads.add(collection, options, key, future, deadline)
        self._added(deadline, now)
        return future

    async def _attempt(self, frame: ReadFrame, deadline: float) -> dict[int, KvShardError]:
        reply = await self._calls.read_once(frame.request(), deadline)
        failed = read_failures(reply.rest)
        callers = cast("list[asyncio.Future[Found]]", frame.callers)
        expiries: Iterable[int] = reply.expires_at_ms or repeat(0, len(callers))
        for index, (future, value, version, expires_at_ms) in enumerate(
            zip(callers, reply.values, reply.versions, expiries, strict=True)
        ):
            if not future.done() and index not in failed:
                future.set_result(None if value is None else (value, version, expires_at_ms))
        self._reads.learn(frame.collection, reply.values[:: max(1, len(callers) // VALUES_SAMPLED)])
        if failed and len(callers) > 1:
            self._ask_for_less(frame, failed)
        return failed

    def _ask_for_less(self, frame: ReadFrame, failed: dict[int, KvShardError]) -> None:
        """Keys that found no room in the answer are asked for again, by halves: each of them alone would have found some."""
        crowded = [index for index, error in failed.items() if _is_for_lack_of_room(error)]
        for index in crowded:
            del failed[index]
        halves = self._reads.split(frame, crowded)
        for half, following in pairwise(halves):
            self._following[half] = following
        if halves:
            self._start_carrying(halves[0])

    async def _carry(self, frame: ReadFrame) -> None:
        try:
            await super()._carry(frame)
        finally:
            following = self._following.pop(frame, None)
            if following is not None and not self._connection.routers.is_closed:
                self._start_carrying(following)


def _is_for_lack_of_room(error: KvShardError) -> bool:
    return isinstance(error, ResourceExhausted) and error.details.field == "keys"
