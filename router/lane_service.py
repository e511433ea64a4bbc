"""The methods of the lanes that lead to a router: keys of a collection are read and written, in columns.

The work is that of KV (`kvshard.scatter.key_frames`), and so is what stands around it: admission, deadlines, metrics, the slow
log. A frame of single operations counts as so many Gets, Puts and Deletes.
"""

import asyncio
from collections.abc import Callable, Sequence
from functools import partial

from kvshard.clock import Clock
from kvshard.errors import KvShardError
from kvshard.lane_messages import KeysRead, KeysReadReply, KeysWrite
from kvshard.limits import KEY_MAX_BYTES
from kvshard.rpc.codec import PING, READ_KEYS, SCAN_KEYS, SEARCH_DOCUMENTS, WRITE_KEYS, decode, encode
from kvshard.rpc.lane_handlers import Answer, Handler
from kvshard.rpc.lane_server import LaneServicer
from kvshard.scatter.key_frames import FrameAccount, KeyFrames
from kvshard.scatter.lone_reads import LoneReads
from router.calls import Calls
from router.ledger_wire import detail_of_keys
from router.reads import Reads

OTHER = "other"
"""Method under which a frame is counted that was refused unseen and whose method this version does not know."""

LONE_MAX_BYTES = 2 * KEY_MAX_BYTES
"""Of a frame that is looked at for being the read of one key, with the name of its collection and options: a larger one is not
decoded twice."""

_METHODS = {
    READ_KEYS.number: "BatchGet",
    WRITE_KEYS.number: "BatchWrite",
    SCAN_KEYS.number: "Scan",
    SEARCH_DOCUMENTS.number: "Search",
}


class LaneService:
    """Handlers for the LaneServicer of a router."""

    def __init__(self, calls: Calls, reads: Reads, frames: KeyFrames, lone: LoneReads) -> None:
        self._calls = calls
        self._reads = reads
        self._frames = frames
        self._lone = lone
        self.handlers: dict[int, Handler] = {
            READ_KEYS.number: self._read,
            WRITE_KEYS.number: self._write,
            PING: _answer_ping,
        }

    def __repr__(self) -> str:
        return f"LaneService({self._frames!r})"

    def servicer(self, clock: Clock) -> LaneServicer:
        """Serves these methods on lanes."""
        at_once = {PING: lambda payload, deadline: b""}
        beginning = {READ_KEYS.number: self._begin_read}
        return LaneServicer(
            self.handlers, clock, immediate=at_once, beginning=beginning, on_refused=self.note_refused, name="router"
        )

    def note_refused(self, method: int, error: KvShardError) -> None:
        """The lane server has not taken a frame. Nobody has looked how many operations it holds: it counts as one."""
        self._calls.note_refused(_METHODS.get(method, OTHER), error)

    async def _read(self, payload: bytes, deadline: float) -> bytes:
        request = decode(KeysRead, payload)
        method, calls = ("Get", len(request.keys)) if request.is_each_alone else ("BatchGet", 1)
        detail = partial(detail_of_keys, request.keys)
        with self._reads.frame(method, calls, len(payload), request.collection, detail) as frame:
            account = FrameAccount(frame.times)
            reply = await self._frames.read(request, self._calls.leg_deadline_of(deadline), account)
            if request.is_each_alone:
                frame.failed(account.failures)
            return encode(reply)

    def _begin_read(self, payload: bytes, deadline: float, answer: Answer) -> Callable[[], object] | None:
        """The read of one key, where nothing has to be awaited before it is sent."""
        if len(payload) > LONE_MAX_BYTES:
            return None
        request = decode(KeysRead, payload)
        lone = self._lone.find(request)
        if lone is None:
            return None
        frame = self._reads.frame("Get", 1, len(payload), request.collection, partial(detail_of_keys, request.keys))
        frame.begin()

        def told(outcome: KeysReadReply | KvShardError | None) -> None:
            if outcome is None:
                frame.leave()
                answer(None)
            elif isinstance(outcome, KvShardError):
                answer(outcome)
                frame.end(outcome)
            else:
                answer(encode(outcome))
                frame.end(None)

        try:
            take_back = self._lone.begin(lone, self._calls.leg_deadline_of(deadline), frame.times, told)
        except Exception as error:
            frame.end(error)
            raise

        def give_up() -> None:
            take_back()
            frame.end(asyncio.CancelledError())

        return give_up

    async def _write(self, payload: bytes, deadline: float) -> bytes:
        request = decode(KeysWrite, payload)
        with self._calls.frame(_write_counts(request), len(payload)) as frame:
            account = FrameAccount()
            reply = await self._frames.write(request, self._calls.leg_deadline_of(deadline), account)
            if request.is_each_alone:
                frame.failed += [(_method_of(request.values, index), record) for index, record in account.failures]
            return encode(reply)


async def _answer_ping(payload: bytes, deadline: float) -> bytes:
    return b""


def _write_counts(request: KeysWrite) -> dict[str, int]:
    """How many calls of each method a frame of writes holds."""
    if not request.is_each_alone:
        return {"BatchWrite": 1}
    deletes = min(len(request.keys), request.values.count(None))  # Nobody has compared the columns yet.
    puts = len(request.keys) - deletes
    return {method: calls for method, calls in (("Put", puts), ("Delete", deletes)) if calls}


def _method_of(values: Sequence[bytes | None], index: int) -> str:
    return "Delete" if values[index] is None else "Put"
