"""Single writes of concurrent callers, as they travel together: see `batcher`."""

import asyncio
from operator import methodcaller
from typing import TYPE_CHECKING, TypeAlias, cast

from kvshard.client.batcher import Batcher, Begun
from kvshard.client.frame_slices import FrameSlices
from kvshard.client.write_batching import WriteBatching, WriteCall, WriteFrame
from kvshard.client.write_ids import WriteId
from kvshard.errors import KvShardError, in_doubt
from kvshard.model import Refresh

if TYPE_CHECKING:
    from kvshard.client.key_calls import KeyCalls

FIRST_SLICE_S = 0.5
"""Of a frame of writes, at least: longer than a slow disk takes, since one that is sent again is in doubt until it is done."""

Done: TypeAlias = tuple[int, bool]
"""What a write did: (version, existed), as in `KeysWriteReply`."""

_IS_DONE = methodcaller("done")


class WriteBatcher(Batcher[WriteFrame]):
    """Single writes."""

    def __init__(self, calls: "KeyCalls") -> None:
        self._writes = WriteBatching()
        super().__init__(calls, self._writes, FrameSlices(FIRST_SLICE_S))
        self._ids: dict[WriteFrame, WriteId] = {}

    def write(
        self,
        collection: str,
        key: bytes,
        value: bytes | None,
        *,
        ttl_ms: int = 0,
        condition: int | None = None,
        refresh: Refresh = False,
        deadline: float,
        now: float,
    ) -> "asyncio.Future[Done]":
        """Write a key, or delete it (None). Raises FailedPrecondition after the close; other errors come by the future."""
        future: asyncio.Future[Done] = self._own_loop().create_future()
        self.ask(collection, WriteCall(key, value, ttl_ms, condition, refresh, future, deadline), now)
        return future

    def ask(self, collection: str, call: WriteCall, now: float) -> None:
        """The same for a caller who is told as a future is: by `set_result` or `set_exception`, on the event loop."""
        self._connection.routers.check_open()
        self._writes.add(collection, call)
        self._added(call.deadline, now)

    async def _rounds(self, frame: WriteFrame, begun: Begun | None = None) -> None:
        with self._calls.ids.new() as id:
            self._ids[frame] = id
            try:
                await super()._rounds(frame, begun)
            finally:
                del self._ids[frame]

    async def _attempt(self, frame: WriteFrame, deadline: float) -> dict[int, KvShardError]:
        id, places = self._ids[frame], frame.places
        positions = places if len(places) < frame.total else ()
        try:
            written = await self._calls.write_once(frame.request(), id, deadline, positions, frame.total)
        except KvShardError as error:
            id.note(error)
            if error.details.maybe_applied:
                frame.doubtful.update(places)
            raise
        failed = written.failures
        for index, failure in failed.items():
            id.note(failure)
            if failure.details.maybe_applied:
                frame.doubtful.add(places[index])
        callers = cast("list[asyncio.Future[Done]]", frame.callers)
        for index, (future, version, existed) in enumerate(zip(callers, written.versions, written.existed, strict=True)):
            if not future.done() and index not in failed:
                future.set_result((version, existed))
        return failed

    def _has_lost_callers(self, frame: WriteFrame) -> bool:
        """It is looked at each of them: one may have been cancelled in this very pass, without having come to tell it."""
        return any(map(_IS_DONE, frame.callers))

    def _slice_of(self, frame: WriteFrame, attempts: int, now: float) -> float:
        if not self._ids[frame].is_safe_to_doubt:
            return frame.deadline
        return super()._slice_of(frame, attempts, now)

    def _error_for(self, frame: WriteFrame, index: int, error: KvShardError) -> KvShardError:
        """It says maybe_applied when a sending that is under way, or an earlier one, may have taken effect."""
        return in_doubt(error) if frame.is_out or frame.places[index] in frame.doubtful else error
