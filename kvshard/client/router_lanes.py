"""Operations on keys over lanes to the current router, and by its unary methods where it serves no lanes.

A lane is one stream, and a router of several workers serves each stream in one of them: several lanes spread over them. They
also keep small frames from waiting behind large ones.
"""

from random import Random
from typing import TypeVar

import structlog

from kvshard.client import unary_keys
from kvshard.client.checks import invalid
from kvshard.client.routers import Routers, closed_during_call
from kvshard.client.transport import KeyTransport, ReadHeard, TakeBack
from kvshard.clock import Clock
from kvshard.errors import KvShardError, Unimplemented
from kvshard.lane_messages import (
    DocumentsSearch,
    DocumentsSearchReply,
    KeysRead,
    KeysReadReply,
    KeysScan,
    KeysScanReply,
    KeysWrite,
    KeysWriteReply,
)
from kvshard.rpc.codec import READ_KEYS, SCAN_KEYS, SEARCH_DOCUMENTS, WRITE_KEYS, LaneCall, decode_error, decode_reply, encode
from kvshard.rpc.lane import Lane
from kvshard.rpc.lane_session import Outcome

LANES = 2
"""Lanes to a router: one for small frames and one for large ones. More pay off where the router has several workers: two for
each of them."""

LANES_MAX = 64
"""Beyond this the connections cost the router more than they spread."""

BULK_KEYS = 128
"""A batch of more keys is large: with 500 bytes a value, its answer has 64 KB, which takes as long as a dozen small ones."""

BULK_HITS = 16
"""A page of more documents is large: they are texts, of some kilobytes."""

BULK_BYTES = 64 * 1024
"""The same of a request that is as large."""

UNARY_FOR_S = 30.0
"""How long a router that does not know lanes is not asked for any: it may be replaced by a newer one, and asking costs a
connection or a round trip."""

RequestT = TypeVar("RequestT", KeysRead, KeysWrite, KeysScan, DocumentsSearch)
ReplyT = TypeVar("ReplyT")

log = structlog.get_logger(__name__)


class RouterLanes(KeyTransport):
    """One attempt at the router that is current when the call begins. lanes: to each router."""

    def __init__(self, routers: Routers, clock: Clock, random: Random, lanes: int = LANES) -> None:
        if not 1 <= lanes <= LANES_MAX:
            raise invalid(f"lanes lies between 1 and {LANES_MAX}, not {lanes!r}", "lanes", LANES_MAX)
        self._routers = routers
        self._clock = clock
        self._random = random
        self._count = lanes
        self._lanes: dict[int, list[Lane]] = {}
        self._unary_until: dict[int, float] = {}
        self._unknown_until: dict[tuple[int, int], float] = {}
        self._turn = 0

    def __repr__(self) -> str:
        return f"RouterLanes({self._routers!r}, lanes={self._count}, unary={sorted(self._unary_until)})"

    async def read(self, request: KeysRead, deadline: float) -> KeysReadReply:
        """Read keys."""
        router = self._routers.current
        if self._has_lanes(router):
            is_bulk = not request.is_each_alone and len(request.keys) > BULK_KEYS
            try:
                return await self._ask(READ_KEYS, router, request, deadline, is_bulk)
            except Unimplemented:
                self.note_unary(router)
        return await unary_keys.read(self._routers, request, deadline - self._clock.monotonic())

    def begin_read(self, request: KeysRead, deadline: float, heard: ReadHeard) -> TakeBack | None:
        """Send a read without awaiting anything; None: there is no open lane, or no room on it."""
        router = self._routers.current
        if not self._has_lanes(router):
            return None
        payload = encode(request)
        is_bulk = len(payload) > BULK_BYTES or (len(request.keys) > BULK_KEYS and not request.is_each_alone)
        lane = self._lane_for(router, is_bulk)
        return lane.start(READ_KEYS.number, payload, deadline, _ReadOutlet(self, router, heard))

    async def write(self, request: KeysWrite, deadline: float) -> KeysWriteReply:
        """Write keys."""
        router = self._routers.current
        if self._has_lanes(router):
            try:
                return await self._ask(WRITE_KEYS, router, request, deadline, is_bulk=False)
            except Unimplemented:
                self.note_unary(router)
        return await unary_keys.write(self._routers, request, deadline - self._clock.monotonic())

    async def scan(self, request: KeysScan, limit: int, deadline: float) -> KeysScanReply | None:
        """Read the first page of a scan, of at most `limit` keys; None: this router gives pages only as a stream.

        Raises a KvShardError, which is Cancelled when the client was closed meanwhile.
        """
        return await self._ask_if_known(SCAN_KEYS, request, deadline, limit > BULK_KEYS)

    async def search(self, request: DocumentsSearch, limit: int, deadline: float) -> DocumentsSearchReply | None:
        """Find documents, at most `limit`; None: this router takes searches only by its unary method. Raises as `scan` does."""
        return await self._ask_if_known(SEARCH_DOCUMENTS, request, deadline, limit > BULK_HITS)

    async def close(self) -> None:
        """Close the lanes."""
        opened, self._lanes = self._lanes, {}
        for lanes in opened.values():
            for lane in lanes:
                await lane.close()

    async def _ask_if_known(
        self, method: LaneCall[RequestT, ReplyT], request: RequestT, deadline: float, is_bulk: bool
    ) -> ReplyT | None:
        """Ask for what there is another way to ask for, too; None where the router knows that one only."""
        router, now = self._routers.current, self._clock.monotonic()
        if not self._has_lanes(router) or now < self._unknown_until.get((router, method.number), 0.0):
            return None
        try:
            return await self._ask(method, router, request, deadline, is_bulk)
        except Unimplemented:
            self._unknown_until[router, method.number] = now + UNARY_FOR_S
            return None
        except KvShardError as raised:
            error = raised
        raise closed_during_call(maybe_applied=False) if self._routers.is_closed else error

    async def _ask(
        self, method: LaneCall[RequestT, ReplyT], router: int, request: RequestT, deadline: float, is_bulk: bool
    ) -> ReplyT:
        payload = encode(request)
        lane = self._lane_for(router, is_bulk or len(payload) > BULK_BYTES)
        frame = await lane.call(method.number, payload, deadline, is_write=method.is_write)
        return decode_reply(method, frame.payload)

    def _has_lanes(self, router: int) -> bool:
        until = self._unary_until.get(router)
        if until is None:
            return True
        if self._clock.monotonic() < until:
            return False
        del self._unary_until[router]
        return True

    def note_unary(self, router: int) -> None:
        """This router knows no lanes."""
        self._unary_until[router] = self._clock.monotonic() + UNARY_FOR_S

    def _lane_for(self, router: int, is_bulk: bool) -> Lane:
        lanes = self._lanes.get(router)
        if lanes is None:
            self._routers.check_open()
            address = self._routers.addresses[router]
            lanes = [Lane(address, self._clock, peer="the router", rng=self._random) for _ in range(self._count)]
            self._lanes[router] = lanes
        if len(lanes) <= 2:  # The usual case of `choose_lane`: one for everything, or one for each size.
            return lanes[-1] if is_bulk else lanes[0]
        self._turn += 1
        return lanes[choose_lane([lane.outstanding for lane in lanes], is_bulk, self._turn)]


class _ReadOutlet:
    """Tells the outcome of a read that was started."""

    __slots__ = ("_heard", "_is_done", "_lanes", "_router")

    def __init__(self, lanes: RouterLanes, router: int, heard: ReadHeard) -> None:
        self._lanes = lanes
        self._router = router
        self._heard = heard
        self._is_done = False

    def done(self) -> bool:
        """Whether it has been told."""
        return self._is_done

    def set_result(self, outcome: Outcome, /) -> None:
        """Raises nothing: a defect behind it must not break the lane of all the others."""
        self._is_done = True
        try:
            self._heard(self._reply_of(outcome))
        except Exception:
            log.exception("an answer could not be taken in", router=self._router)

    def _reply_of(self, outcome: Outcome) -> KeysReadReply | KvShardError | None:
        if isinstance(outcome, KvShardError):
            error = outcome
        elif outcome.is_error:
            error = decode_error(outcome.payload)
        else:
            try:
                return decode_reply(READ_KEYS, outcome.payload)
            except KvShardError as unreadable:
                return unreadable
        if isinstance(error, Unimplemented):
            self._lanes.note_unary(self._router)
            return None
        return error


def choose_lane(outstanding: list[int], is_bulk: bool, turn: int) -> int:
    """Which of the lanes, by their requests without an answer, takes a request; among equals they take turns.

    The first lane is for small requests only, the last one for large ones only, if there are two.
    """
    count = len(outstanding)
    if count == 1:
        return 0
    first = int(is_bulk)
    places = [first + (turn + step) % (count - 1) for step in range(count - 1)]
    return min(places, key=outstanding.__getitem__)
