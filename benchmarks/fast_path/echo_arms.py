"""The bare calls that bound everything: unary and on a stream, to a server that does nothing."""

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc
import msgspec

from benchmarks import echo_server
from benchmarks.fast_path.data import VALUE_BYTES, Data
from benchmarks.fast_path.names import COLUMNS_ECHO, STREAM_ECHO, UNARY_ECHO
from benchmarks.loops import WrongAnswer, one_by_one, together
from benchmarks.measured import Block
from benchmarks.processes import RunningEcho
from benchmarks.turns import Arm
from kvshard.lane_messages import KeysRead, KeysReadReply

_PAYLOAD = bytes(VALUE_BYTES)
_Unary: TypeAlias = "grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]"
_Stream: TypeAlias = "grpc.aio.StreamStreamCall[bytes, bytes]"


class Echoes:
    """Arms against one echo server, over one channel."""

    def __init__(self, channel: grpc.aio.Channel, server: RunningEcho) -> None:
        self._channel = channel
        self._processes = {"echo": [server.pid]}
        self._echo: _Unary = channel.unary_unary(echo_server.METHOD)

    def lone(self) -> Arm:
        """One unary call after the other."""
        return Arm(UNARY_ECHO, lambda seconds: one_by_one(seconds, "echo", self._call), self._processes)

    def many(self, callers: int) -> Arm:
        """So many callers, each with one unary call after the other."""
        return Arm(UNARY_ECHO, lambda seconds: together(seconds, callers, self._call), self._processes)

    async def _call(self) -> int:
        answer = await self._echo(_PAYLOAD)
        if len(answer) != VALUE_BYTES:
            raise WrongAnswer(f"{UNARY_ECHO}: {len(answer)} bytes")
        return 1

    def stream(self, data: Data, size: int, in_flight: int) -> Arm:
        """On one stream, so many messages at a time, each as large as the request for a batch, and answers as large as its."""
        request_bytes, answer_bytes = data.wire_bytes(size)
        request = echo_server.sized(request_bytes, answer_bytes)

        def check(answer: bytes) -> int:
            return size if len(answer) == answer_bytes else 0

        return self._on_a_stream(STREAM_ECHO, echo_server.STREAM_METHOD, lambda: request, check, in_flight)

    def columns(self, data: Data, size: int, in_flight: int) -> Arm:
        """The same with keys and values that are encoded and decoded at both ends, as kvshard does it, but not stored."""
        decode, encode = msgspec.msgpack.Decoder(KeysReadReply).decode, msgspec.msgpack.Encoder().encode
        batches = data.batches(size)

        def request() -> bytes:
            return encode(KeysRead("default", [key.encode() for key in next(batches)]))

        def check(answer: bytes) -> int:
            values = decode(answer).values
            return len(values) if None not in values else 0

        return self._on_a_stream(COLUMNS_ECHO, echo_server.COLUMNS_METHOD, request, check, in_flight)

    def _on_a_stream(
        self, name: str, method: str, request: Callable[[], bytes], check: Callable[[bytes], int], in_flight: int
    ) -> Arm:
        """check: how many keys an answer holds, 0 if it is not right."""

        async def run(seconds: float) -> Block:
            stream: _Stream = self._channel.stream_stream(method)()
            began = time.perf_counter()
            done = 0
            for _ in range(in_flight):
                await stream.write(request())
            while time.perf_counter() < began + seconds:
                done += await _answered(name, stream, check)
                await stream.write(request())
            for _ in range(in_flight):
                done += await _answered(name, stream, check)
            ended = time.perf_counter()
            await stream.done_writing()
            return Block(done, ended - began)

        return Arm(name, run, self._processes, f"{in_flight} messages")


async def _answered(name: str, stream: _Stream, check: Callable[[bytes], int]) -> int:
    answer = await stream.read()
    keys = check(answer) if isinstance(answer, bytes) else 0  # The end of the stream is no bytes.
    if not keys:
        raise WrongAnswer(f"{name}: not what was asked for")
    return keys


@asynccontextmanager
async def echoes(server: RunningEcho) -> AsyncIterator[Echoes]:
    """The arms of this server."""
    async with grpc.aio.insecure_channel(server.address, options=echo_server.OPTIONS) as channel:
        yield Echoes(channel, server)
