"""Single reads of concurrent callers, as they travel together: see `batcher`.

Most frames are sent once and answered whole. Those need no task: a callback of the event loop sends them, and the lane's reader
tells their callers. Whatever else becomes of one, a task goes on with it from there.
"""

import asyncio
from collections.abc import Collection, Iterable
from itertools import compress, pairwise, repeat
from operator import methodcaller
from typing import TYPE_CHECKING, TypeAlias, cast

from kvshard.client.batcher import Batcher, Begun
from kvshard.client.batching import Caller, ReadBatching, ReadFrame
from kvshard.client.frame_slices import FrameSlices
from kvshard.client.key_answers import checked, fits
from kvshard.client.transport import TakeBack
from kvshard.client.wire import read_failures
from kvshard.errors import KvShardError, ResourceExhausted
from kvshard.lane_messages import KeysReadReply

if TYPE_CHECKING:
    from kvshard.client.key_calls import KeyCalls

VALUES_SAMPLED = 64
"""Values of an answer that are measured, to foresee how large the next one will be."""

FIRST_SLICE_S = 0.1
"""Of a frame of reads, at least: a person hardly notices, and of a read that is asked for again nothing is lost."""

Found: TypeAlias = tuple[bytes, int, int] | None
"""What a read found: (value, version, expires_at_ms); None: the key is absent."""


_IS_DONE = methodcaller("done")


class ReadBatcher(Batcher[ReadFrame]):
    """Single reads."""

    def __init__(self, calls: "KeyCalls") -> None:
        self._reads = ReadBatching()
        super().__init__(calls, self._reads, FrameSlices(FIRST_SLICE_S))
        self._following: dict[ReadFrame, ReadFrame] = {}
        self._flights: dict[ReadFrame, TakeBack] = {}
        self._needs_tasks = True  # As far as the last frame has shown.

    def read(self, collection: str, options: bytes, key: bytes, deadline: float, now: float) -> "asyncio.Future[Found]":
        """What the key holds. Raises FailedPrecondition after the close; every other error comes by the future."""
        loop = self._loop
        if loop is None or loop.is_closed():
            loop = self._own_loop()
        future: asyncio.Future[Found] = loop.create_future()
        self.ask(collection, options, key, future, deadline, now)
        return future

    def ask(self, collection: str, options: bytes, key: bytes, caller: Caller, deadline: float, now: float) -> None:
        """The same for a caller who is told as a future is: by `set_result` or `set_exception`, on the event loop."""
        if self._connection.routers.is_closed:
            self._connection.routers.check_open()
        self._reads.add(collection, options, key, caller, deadline)
        if not self._is_due or deadline < self._timer_at:  # Else a call of this pass has seen to it already.
            self._added(deadline, now)

    async def close(self) -> None:
        """Take everything back; callers get Cancelled."""
        flights, self._flights = self._flights, {}
        for take_back in flights.values():
            take_back()
        await super().close()

    def _begin_sending(self) -> None:
        if self._needs_tasks:
            super()._begin_sending()
        else:
            self._own_loop().call_soon(self._send_now)

    def _send_now(self) -> None:
        if not self._connection.routers.is_closed:  # Else the close takes what waits.
            for frame in self._take(self._now()):
                self._start_carrying(frame)

    def _take(self, now: float) -> list[ReadFrame]:
        return [frame for frame in super()._take(now) if not self._take_off(frame, now)]

    def _take_off(self, frame: ReadFrame, now: float) -> bool:
        """Send a frame without a task; False: it needs one."""
        if self._has_lost_callers(frame):
            return False
        router, until = self._connection.current, self._slice_of(frame, 1, now)

        def heard(outcome: KeysReadReply | KvShardError | None) -> None:
            if self._flights.pop(frame, None) is not None:
                self._land(frame, None if outcome is None else Begun(router, now, until, outcome))

        try:
            take_back = self._calls.transport.begin_read(frame.request(), until, heard)
        except Exception:  # The task meets it again, and tells the callers.
            take_back = None
        self._needs_tasks = take_back is None
        if take_back is None:
            return False
        self._flights[frame] = take_back
        return True

    def _land(self, frame: ReadFrame, begun: Begun | None) -> None:
        """What was sent without a task is over. None: it has to be sent in the other way."""
        reply = None if begun is None else begun.outcome
        if begun is not None and isinstance(reply, KeysReadReply) and not reply.rest and fits(reply, len(frame.keys)):
            now = self._now()
            self._slices.note(now - begun.began)
            self._tell(frame, reply)
            self._end_flight(frame, now)
        elif all(map(_IS_DONE, frame.callers)):
            self._end_flight(frame, self._now())  # As in a program that ends without a close: no task may begin there.
        else:
            self._start(self._carry(frame, begun), lambda _: self._drop(frame))

    def _end_flight(self, frame: ReadFrame, now: float) -> None:
        self._reads.end(frame)
        self._go_on(now)

    def _give_up(self, frame: ReadFrame) -> None:
        take_back = self._flights.pop(frame, None)
        if take_back is None:
            super()._give_up(frame)
        else:
            take_back()
            self._end_flight(frame, self._now())

    async def _attempt(self, frame: ReadFrame, deadline: float) -> dict[int, KvShardError]:
        return self._take_in(frame, await self._calls.read_once(frame.request(), deadline))

    async def _finish(self, frame: ReadFrame, outcome: KeysReadReply | KvShardError) -> dict[int, KvShardError]:
        if isinstance(outcome, KvShardError):
            raise outcome
        return self._take_in(frame, checked(outcome, len(frame.keys)))

    def _take_in(self, frame: ReadFrame, reply: KeysReadReply) -> dict[int, KvShardError]:
        """Tell the callers who have a result; the others by index, with their errors."""
        failed = read_failures(reply.rest)
        self._tell(frame, reply, failed)
        if failed and len(frame.callers) > 1:
            self._ask_for_less(frame, failed)
        return failed

    def _tell(self, frame: ReadFrame, reply: KeysReadReply, failed: Collection[int] = ()) -> None:
        callers = cast("list[asyncio.Future[Found]]", frame.callers)
        expiries: Iterable[int] = reply.expires_at_ms or repeat(0, len(callers))
        rows: Iterable[tuple[asyncio.Future[Found], bytes | None, int, int]] = zip(
            callers, reply.values, reply.versions, expiries, strict=True
        )
        if failed:
            rows = compress(rows, [index not in failed for index in range(len(callers))])
        for future, value, version, expires_at_ms in rows:
            if not future.done():
                future.set_result(None if value is None else (value, version, expires_at_ms))
        self._reads.learn(frame.collection, reply.values[:: max(1, len(callers) // VALUES_SAMPLED)])

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

    async def _carry(self, frame: ReadFrame, begun: Begun | None = None) -> None:
        try:
            await super()._carry(frame, begun)
        finally:
            following = self._following.pop(frame, None)
            if following is not None and not self._connection.routers.is_closed:
                self._start_carrying(following)


def _is_for_lack_of_room(error: KvShardError) -> bool:
    return isinstance(error, ResourceExhausted) and error.details.field == "keys"
