"""How the dataclasses of `kvshard/model.py` and `kvshard/lane_messages.py` become lane payloads and come back.

Only the encoding lives here: which method number carries which request, and msgpack on either side. A payload that does not
decode is a defect or another version at the far end, so it becomes Internal, never a stack trace on the other machine.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Generic, TypeVar, cast

import msgspec

from kvshard.errors import ErrorRecord, Internal, KvShardError, error_of, in_doubt, record_of
from kvshard.fault_model import FaultOrder, FaultReport
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
from kvshard.limits import MESSAGE_MAX_BYTES
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
from kvshard.v1 import lane_pb2

RequestT = TypeVar("RequestT")
ReplyT = TypeVar("ReplyT")

CANCEL = int(lane_pb2.LANE_METHOD_CANCEL)
"""Method number of the frame that takes a request back."""

PING = int(lane_pb2.LANE_METHOD_PING)
"""Method number of a request that the leaf answers at once, with nothing."""

LANE_MARK = ("kvshard-lane", "1")
"""Initial metadata of a lane: tells the caller that a leaf has accepted the stream, and which form the frames have."""

LEAF_MARK = "kvshard-leaf"
"""Initial metadata of a lane that a leaf serves, beside LANE_MARK: which leaf it is, see `leaf_mark`."""

MESSAGE_BYTES = 4 * 1024 * 1024
"""A message takes frames until it is this big: the cost per message is long amortised, and a small frame behind it waits
a few milliseconds at most. One frame alone may be larger."""

MESSAGE_FRAMES = 512
"""Frames per message: the receiver handles a message in one go, and this many are about 5 ms of its event loop."""

PAYLOAD_MAX_BYTES = MESSAGE_MAX_BYTES - 1024
"""A larger payload would break the stream for all; the rest is room for the frame's other fields."""


@dataclass(frozen=True, slots=True)
class LaneCall(Generic[RequestT, ReplyT]):
    """One method of the lane: its number on the wire and what it carries.

    is_write: the work may have taken effect although no answer came.
    """

    number: int
    request: type[RequestT]
    reply: type[ReplyT]
    is_write: bool = False


READ = LaneCall(int(lane_pb2.LANE_METHOD_READ), ShardRead, ShardReadReply)
WRITE = LaneCall(int(lane_pb2.LANE_METHOD_WRITE), ShardWrite, ShardWriteReply, is_write=True)
SCAN = LaneCall(int(lane_pb2.LANE_METHOD_SCAN), ShardScan, ShardScanReply)
SEARCH = LaneCall(int(lane_pb2.LANE_METHOD_SEARCH), ShardSearch, ShardSearchReply)
TERM_STATS = LaneCall(int(lane_pb2.LANE_METHOD_TERM_STATS), ShardTerms, ShardTermsReply)
STATUS = LaneCall(int(lane_pb2.LANE_METHOD_STATUS), LeafStatusRequest, LeafStatusReply)
FAULT = LaneCall(int(lane_pb2.LANE_METHOD_FAULT), FaultOrder, FaultReport)
READ_KEYS = LaneCall(int(lane_pb2.LANE_METHOD_READ_KEYS), KeysRead, KeysReadReply)
WRITE_KEYS = LaneCall(int(lane_pb2.LANE_METHOD_WRITE_KEYS), KeysWrite, KeysWriteReply, is_write=True)
SCAN_KEYS = LaneCall(int(lane_pb2.LANE_METHOD_SCAN_KEYS), KeysScan, KeysScanReply)
SEARCH_DOCUMENTS = LaneCall(int(lane_pb2.LANE_METHOD_SEARCH_DOCUMENTS), DocumentsSearch, DocumentsSearchReply)

METHODS: dict[type, tuple[int, type]] = {
    call.request: (call.number, call.reply)
    for call in (READ, WRITE, SCAN, SEARCH, TERM_STATS, STATUS, FAULT, READ_KEYS, WRITE_KEYS, SCAN_KEYS, SEARCH_DOCUMENTS)
}
"""Request type -> (method number, reply type)."""

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[type, msgspec.msgpack.Decoder[object]] = {
    kind: msgspec.msgpack.Decoder(kind) for request, (_, reply) in METHODS.items() for kind in (request, reply)
}
_error_decoder = msgspec.msgpack.Decoder(ErrorRecord)


def encode(message: object) -> bytes:
    """A request or a reply as a payload."""
    return _encoder.encode(message)


def decode(kind: type[ReplyT], payload: bytes) -> ReplyT:
    """The request or reply of that type in a payload; Internal when it is not one."""
    try:
        return cast(ReplyT, _decoders[kind].decode(payload))
    except msgspec.MsgspecError as error:
        raise Internal(f"not a {kind.__name__} payload: {error}") from None


def decode_reply(method: LaneCall[RequestT, ReplyT], payload: bytes) -> ReplyT:
    """The reply of that method in a payload; Internal when it is not one, with maybe_applied where the method writes.

    Whoever answers a write has taken it: that its answer cannot be read says nothing of what was done.
    """
    try:
        return decode(method.reply, payload)
    except Internal as error:
        raise (in_doubt(error) if method.is_write else error) from None


def encode_error(error: KvShardError) -> bytes:
    """An error as the payload of a frame with is_error set."""
    return _encoder.encode(record_of(error))


def decode_error(payload: bytes) -> KvShardError:
    """The error in the payload of a frame with is_error set."""
    try:
        return error_of(_error_decoder.decode(payload))
    except msgspec.MsgspecError as error:
        return Internal(f"not an error payload: {error}")


def leaf_mark(cluster_id: str, leaf: str) -> str:
    """Tells a leaf from every other one, also of other clusters. A digest: metadata takes fewer characters than an id has."""
    return blake2b(f"{cluster_id}/{leaf}".encode(), digest_size=16).hexdigest()


def handler_of(
    request: type[RequestT], function: Callable[[RequestT, float], Awaitable[ReplyT]]
) -> tuple[int, Callable[[bytes, float], Awaitable[bytes]]]:
    """(method number, lane handler) that serves `request` by an async function (request, deadline) -> reply.

    For the servicer: `LaneServicer(dict([handler_of(ShardRead, service.read), ...]), clock)`.
    """
    number, _ = METHODS[request]

    async def handle(payload: bytes, deadline: float) -> bytes:
        return _encoder.encode(await function(decode(request, payload), deadline))

    return number, handle


def immediate_handler_of(
    request: type[RequestT], function: Callable[[RequestT, float], ReplyT | None]
) -> tuple[int, Callable[[bytes, float], bytes | None]]:
    """The same for a short cut: a plain, quick function that answers, or returns None to leave it to the async one."""
    number, _ = METHODS[request]

    def handle(payload: bytes, deadline: float) -> bytes | None:
        reply = function(decode(request, payload), deadline)
        return None if reply is None else _encoder.encode(reply)

    return number, handle
