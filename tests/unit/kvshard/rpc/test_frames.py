"""Frames on a plain connection: whole again however the network cuts them, and damaged ones told from good ones."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvshard.limits import MESSAGE_MAX_BYTES
from kvshard.rpc.frames import (
    HEAD_BYTES,
    PING,
    PONG,
    FrameError,
    MessageReader,
    RequestFrame,
    Requests,
    ResponseFrame,
    Responses,
    encode_message,
)

U64 = st.integers(0, 2**63 - 1)
REQUESTS = st.builds(
    Requests,
    st.lists(st.builds(RequestFrame, U64, st.integers(0, 15), U64, st.binary(max_size=40), st.booleans()), max_size=4),
    U64,
)


def bytes_of(message: Requests | Responses) -> bytes:
    return b"".join(encode_message(message))


@given(st.lists(st.one_of(REQUESTS, st.sampled_from([PING, PONG])), max_size=8), st.data())
def test_messages_survive_every_cut(sent: list[Requests | bytes], data: st.DataObject) -> None:
    stream = b"".join(each if isinstance(each, bytes) else bytes_of(each) for each in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    reader = MessageReader(Requests)
    got: list[Requests] = []
    for begin, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        got += reader.feed(stream[begin:end])
    assert got == [each for each in sent if isinstance(each, Requests)]
    assert reader.pings == sent.count(PING)


def test_a_byte_at_a_time() -> None:
    message = Responses([ResponseFrame(7, True, 1, 2, b"x" * 300, 3)])
    reader = MessageReader(Responses)
    got = [each for byte in bytes_of(message) for each in reader.feed(bytes([byte]))]
    assert got == [message]


def test_a_large_message_in_pieces_is_held_once() -> None:
    message = Requests([RequestFrame(1, 1, 5, bytes(1_000_000))], 9)
    data = bytes_of(message)
    reader = MessageReader(Requests)
    for at in range(0, len(data) - 65_536, 65_536):
        assert reader.feed(data[at : at + 65_536]) == []
    assert reader.feed(data[(len(data) - 1) // 65_536 * 65_536 :]) == [message]
    assert "0 of" in repr(reader)


@pytest.mark.parametrize("length", [MESSAGE_MAX_BYTES + 1, 2**31, 2**32 - 3])
def test_a_length_that_no_message_has(length: int) -> None:
    with pytest.raises(FrameError, match=str(MESSAGE_MAX_BYTES)):
        MessageReader(Requests).feed(length.to_bytes(HEAD_BYTES, "big"))


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x93\x01\x02\x03", msgspec.msgpack.encode([["text"], 1])])
def test_a_body_that_is_none(body: bytes) -> None:
    with pytest.raises(FrameError, match="not a message"):
        MessageReader(Requests).feed(len(body).to_bytes(HEAD_BYTES, "big") + body)


def test_fields_of_a_later_version_are_passed_over() -> None:
    body = msgspec.msgpack.encode([[[1, 2, 3, b"p", True, "new"]], 4, "newer"])
    (message,) = MessageReader(Requests).feed(len(body).to_bytes(HEAD_BYTES, "big") + body)
    assert message == Requests([RequestFrame(1, 2, 3, b"p", True)], 4)


def test_fields_that_an_earlier_version_does_not_have() -> None:
    body = msgspec.msgpack.encode([[[1, 2, 3, b"p"]]])
    (message,) = MessageReader(Requests).feed(len(body).to_bytes(HEAD_BYTES, "big") + body)
    assert message == Requests([RequestFrame(1, 2, 3, b"p", False)], 0)
