"""A LeafClient over real lanes: two a leaf, each opened on first use."""

import asyncio
import random
from collections.abc import Callable
from typing import TypeVar

import structlog

from kvshard.clock import Clock
from kvshard.errors import KvShardError, Unavailable
from kvshard.fault_model import FaultOrder, FaultReport
from kvshard.model import (
    LeafStatusReply,
    LeafStatusRequest,
    ShardRead,
    ShardReadReply,
    ShardScan,
    ShardScanReply,
    ShardSearch,
    ShardSearchReply,
    ShardTerms,
    ShardTermsReply,
    ShardWrite,
    ShardWriteReply,
)
from kvshard.rpc.codec import (
    FAULT,
    METHODS,
    PING,
    READ,
    SCAN,
    SEARCH,
    STATUS,
    TERM_STATS,
    WRITE,
    LaneCall,
    decode,
    decode_error,
    decode_reply,
    encode,
)
from kvshard.rpc.frames import ResponseFrame
from kvshard.rpc.lane import Lane
from kvshard.rpc.lane_choice import is_bulk
from kvshard.rpc.lane_pair import LanePair
from kvshard.rpc.lane_session import LateAnswers, Outcome
from kvshard.rpc.leaf_client import Answer, Heard, LeafClient, ReadRequest, TakeBack
from kvshard.rpc.message_stream import TRANSPORTS

RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")

_log = structlog.get_logger(__name__)


class _AnswerOutlet:
    """Tells an outcome on as an answer."""

    __slots__ = ("_heard", "_is_done", "_reply")

    def __init__(self, reply: type, heard: Heard) -> None:
        self._reply = reply
        self._heard = heard
        self._is_done = False

    def done(self) -> bool:
        """Whether it has been told."""
        return self._is_done

    def set_result(self, outcome: Outcome, /) -> None:
        """Raises nothing: a defect behind it must not break the lane of all the others."""
        self._is_done = True
        try:
            self._heard(outcome if isinstance(outcome, KvShardError) else _answer_of(self._reply, outcome))
        except Exception:
            _log.exception("an answer could not be taken in", reply=self._reply.__name__)


def _answer_of(reply: type[ReplyT], frame: ResponseFrame) -> Answer[ReplyT] | KvShardError:
    if frame.is_error:
        return decode_error(frame.payload)
    try:
        return Answer(decode(reply, frame.payload), frame.queue_us, frame.service_us, frame.in_flight)
    except KvShardError as error:
        return error


class LaneLeafClient(LeafClient):
    """Asks leaves over lanes. address_of: a leaf's present `host:port` (None or empty: it has none), asked at every call, so
    that a leaf that came back elsewhere is found as soon as the map says so.

    mark_of: how a leaf's lanes must be marked (see `codec.leaf_mark`), for whom an address may lead elsewhere than it was meant
    to; None: whoever answers there is the leaf.

    late: answers that came after their request was taken back, from all leaves. A leaf that stopped in time, as searches do,
    does not answer; what it had done by then it counts itself.
    """

    def __init__(
        self,
        address_of: Callable[[str], str | None],
        clock: Clock,
        rng: random.Random | None = None,
        mark_of: Callable[[str], str] | None = None,
    ) -> None:
        self._address_of = address_of
        self._mark_of = mark_of
        self._clock = clock
        self._rng = rng or random.Random()
        self.late = LateAnswers()
        self._lanes: dict[str, LanePair] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._is_closed = False

    async def read(self, leaf: str, request: ShardRead, deadline: float, is_hedge: bool = False) -> Answer[ShardReadReply]:
        """Read keys of one shard."""
        return await self._ask(READ, leaf, request, deadline, is_hedge)

    def start(
        self, leaf: str, request: ReadRequest, deadline: float, heard: Heard, is_hedge: bool = False, is_last: bool = True
    ) -> TakeBack | None:
        """Send a read without awaiting anything; None: there is no open lane, or no room on it."""
        number, reply = METHODS[type(request)]
        try:
            lanes = self._lanes_to(leaf)
        except Unavailable:
            return None  # Whoever asks in the other way is told why.
        payload = encode(request)
        lane = lanes.bulk if is_bulk(request, len(payload)) else lanes.small
        return lane.start(number, payload, deadline, _AnswerOutlet(reply, heard), is_hedge, is_last)

    async def write(self, leaf: str, request: ShardWrite, deadline: float) -> Answer[ShardWriteReply]:
        """Write keys of one shard; durable when it returns."""
        return await self._ask(WRITE, leaf, request, deadline)

    async def scan(self, leaf: str, request: ShardScan, deadline: float, is_hedge: bool = False) -> Answer[ShardScanReply]:
        """Read a key range of one shard."""
        return await self._ask(SCAN, leaf, request, deadline, is_hedge)

    async def search(
        self, leaf: str, request: ShardSearch, deadline: float, is_hedge: bool = False
    ) -> Answer[ShardSearchReply]:
        """Search one shard."""
        return await self._ask(SEARCH, leaf, request, deadline, is_hedge)

    async def term_statistics(
        self, leaf: str, request: ShardTerms, deadline: float, is_hedge: bool = False
    ) -> Answer[ShardTermsReply]:
        """Ask for one shard's statistics of some terms."""
        return await self._ask(TERM_STATS, leaf, request, deadline, is_hedge)

    async def status(self, leaf: str, request: LeafStatusRequest, deadline: float) -> Answer[LeafStatusReply]:
        """Report the leaf's state."""
        return await self._ask(STATUS, leaf, request, deadline)

    async def ping(self, leaf: str, deadline: float) -> None:
        """Return as soon as the leaf answers anything."""
        await self._lanes_to(leaf).small.call(PING, b"", deadline)

    async def order_faults(self, leaf: str, order: FaultOrder, deadline: float) -> FaultReport:
        """Change or list the leaf's faults, over a lane of its own: a leaf that is paused does not read the others."""
        lane = Lane(
            self._address(leaf), self._clock, peer=f"leaf {leaf}", rng=self._rng, is_internal=True, no_lanes=Unavailable
        )
        try:
            return decode(FAULT.reply, (await lane.call(FAULT.number, encode(order), deadline)).payload)
        finally:
            await lane.close()

    def lanes_by_transport(self) -> dict[str, int]:
        """Lanes that are open, by what they run over."""
        lanes = [lane for pair in list(self._lanes.values()) for lane in (pair.small, pair.bulk)]
        return {transport: sum(lane.transport == transport for lane in lanes) for transport in TRANSPORTS}

    async def close(self) -> None:
        """Close every lane; outstanding calls fail with Unavailable."""
        self._is_closed = True
        lanes = list(self._lanes.values())
        self._lanes.clear()
        await asyncio.gather(*self._closing, *(pair.close() for pair in lanes))

    async def _ask(
        self, method: LaneCall[RequestT, ReplyT], leaf: str, request: RequestT, deadline: float, is_hedge: bool = False
    ) -> Answer[ReplyT]:
        lanes, payload = self._lanes_to(leaf), encode(request)
        lane = lanes.bulk if is_bulk(request, len(payload)) else lanes.small
        frame = await lane.call(method.number, payload, deadline, is_write=method.is_write, is_hedge=is_hedge)
        return Answer(decode_reply(method, frame.payload), frame.queue_us, frame.service_us, frame.in_flight)

    def _lanes_to(self, leaf: str) -> LanePair:
        address = self._address_of(leaf)
        lanes = self._lanes.get(leaf)
        if lanes is not None and lanes.address == address:
            return lanes
        address = self._address(leaf)
        if lanes is not None:
            # The leaf has moved, so the process behind the old address is gone, and with it what was outstanding there.
            task = asyncio.create_task(lanes.close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        # Where a leaf was there is now a process that knows no lanes: to whoever looks for the leaf it is gone.
        self._lanes[leaf] = lanes = LanePair(
            address,
            self._clock,
            peer=f"leaf {leaf}",
            rng=self._rng,
            late=self.late,
            is_internal=True,
            no_lanes=Unavailable,
            leaf_mark="" if self._mark_of is None else self._mark_of(leaf),
        )
        return lanes

    def _address(self, leaf: str) -> str:
        """Where to reach a leaf. Raises Unavailable when it cannot be."""
        if self._is_closed:
            raise Unavailable("this process is stopping")
        address = self._address_of(leaf)
        if not address:
            raise Unavailable(f"leaf {leaf} has no address: it has not been up yet")
        return address

    def __repr__(self) -> str:
        return f"LaneLeafClient({list(self._lanes.values())})"
