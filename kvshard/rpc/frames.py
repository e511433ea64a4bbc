"""Frames of lanes, and their form on a plain TCP connection: length, then a msgpack array.

A message holds the frames that were ready in one pass of its sender's event loop. Four bytes before it tell its length; two
lengths that no message has stand for a ping and its answer. The fields of frames have fixed places, and a reader passes over
fields that it does not know, so that later versions may add some at the end.

Over gRPC the same frames travel as the messages of lane.proto (`grpc_stream.py`).
"""

from typing import Final, Generic, TypeVar

import msgspec

from kvshard.limits import MESSAGE_MAX_BYTES

HEAD_BYTES: Final = 4
PING: Final = b"\xff\xff\xff\xff"
PONG: Final = b"\xff\xff\xff\xfe"
_PING_LENGTH: Final = int.from_bytes(PING, "big")
_PONG_LENGTH: Final = int.from_bytes(PONG, "big")


class RequestFrame(msgspec.Struct, array_like=True, gc=False):
    """One request, or what takes one back. Fields: as in lane.proto; timeout_us: microseconds left when it was sent."""

    id: int
    method: int
    timeout_us: int
    payload: bytes
    is_hedge: bool = False


class ResponseFrame(msgspec.Struct, array_like=True, gc=False):
    """One answer. Fields: as in lane.proto; queue_us, service_us: microseconds of waiting and of work."""

    id: int
    is_error: bool
    queue_us: int
    service_us: int
    payload: bytes
    in_flight: int = 0


class Requests(msgspec.Struct, array_like=True, gc=False):
    """A message of a caller. sent_us: its monotonic clock in microseconds; 0: not told."""

    frames: list[RequestFrame]
    sent_us: int = 0


class Responses(msgspec.Struct, array_like=True, gc=False):
    """A message of who serves."""

    frames: list[ResponseFrame]


MessageT = TypeVar("MessageT", Requests, Responses)

_encoder = msgspec.msgpack.Encoder()


class FrameError(Exception):
    """Bytes that are no message of a lane: the connection they came by cannot be used any further."""


def encode_message(message: Requests | Responses) -> tuple[bytes, bytes]:
    """Head and body, as they follow each other on the connection."""
    body = _encoder.encode(message)
    return len(body).to_bytes(HEAD_BYTES, "big"), body


class MessageReader(Generic[MessageT]):
    """Cuts the bytes of a connection into messages of one kind. Holds at most one message that is not whole yet."""

    def __init__(self, kind: type[MessageT]) -> None:
        self._decoder: msgspec.msgpack.Decoder[MessageT] = msgspec.msgpack.Decoder(kind)
        self._rest = bytearray()
        self._wanted = HEAD_BYTES
        self.pings = 0

    def __repr__(self) -> str:
        return f"MessageReader({len(self._rest)} of {self._wanted} bytes)"

    def feed(self, data: bytes | bytearray) -> list[MessageT]:
        """The messages that are whole now; `pings` counts what asks for a PONG. Raises FrameError."""
        rest = self._rest
        if rest:
            rest += data
            if len(rest) < self._wanted:
                return []
            data, self._rest = rest, bytearray()
        messages: list[MessageT] = []
        at, end = 0, len(data)
        view = memoryview(data)
        while end - at >= HEAD_BYTES:
            length = int.from_bytes(data[at : at + HEAD_BYTES], "big")
            if length > MESSAGE_MAX_BYTES:
                self._note_control(length)
                at += HEAD_BYTES
                continue
            after = at + HEAD_BYTES + length
            if after > end:
                break
            messages.append(self._decode(view[at + HEAD_BYTES : after]))
            at = after
        if at < end:
            self._keep(view[at:])
        return messages

    def _keep(self, rest: memoryview) -> None:
        self._rest = bytearray(rest)
        self._wanted = HEAD_BYTES
        if len(rest) >= HEAD_BYTES:
            self._wanted += int.from_bytes(rest[:HEAD_BYTES], "big")

    def _note_control(self, length: int) -> None:
        if length == _PING_LENGTH:
            self.pings += 1
        elif length != _PONG_LENGTH:
            raise FrameError(f"a message of {length} bytes, more than the {MESSAGE_MAX_BYTES} that one may have")

    def _decode(self, body: memoryview) -> MessageT:
        try:
            return self._decoder.decode(body)
        except msgspec.MsgspecError as error:
            raise FrameError(f"not a message of a lane: {error}") from None
