"""The physical limit: a `grpc.aio` server that does nothing with what it gets.

The unary method answers with the request. The stream answers each message with as many bytes as the message says, since a batch
that is read has a small request and a large answer. The stream of columns decodes a batch of keys and encodes as many values,
as kvshard's lanes do, without a store between the two.
"""

from collections.abc import AsyncIterator

import grpc
import msgspec
import uvloop

from kvshard.lane_messages import KeysRead, KeysReadReply

METHOD = "/kvshard.benchmarks.Echo/Echo"
STREAM_METHOD = "/kvshard.benchmarks.Echo/Stream"
COLUMNS_METHOD = "/kvshard.benchmarks.Echo/Columns"
VALUE = bytes(range(100))
"""Of every key, on the stream of columns."""


SIZE_BYTES = 4
"""Of a stream's message: first the size of the answer, big end first."""

MESSAGE_MAX_BYTES = 32 * 1024 * 1024
"""As large as a batch of kvshard may be; an answer is no larger either."""

OPTIONS = (("grpc.max_receive_message_length", MESSAGE_MAX_BYTES), ("grpc.max_send_message_length", MESSAGE_MAX_BYTES))


async def _echo(request: bytes, context: object) -> bytes:
    return request


async def _stream(requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
    answer, made_for = b"", bytes(SIZE_BYTES)
    async for request in requests:
        size = request[:SIZE_BYTES]
        if size != made_for:  # Making it anew each time would cost more than sending it.
            answer, made_for = bytes(min(MESSAGE_MAX_BYTES, int.from_bytes(size))), size
        await context.write(answer)


async def _columns(requests: AsyncIterator[bytes], context: "grpc.aio.ServicerContext[bytes, bytes]") -> None:
    decode, encode = msgspec.msgpack.Decoder(KeysRead).decode, msgspec.msgpack.Encoder().encode
    async for request in requests:
        keys = decode(request).keys
        await context.write(encode(KeysReadReply([VALUE for _ in keys], [len(keys) for _ in keys])))


def sized(request_bytes: int, answer_bytes: int) -> bytes:
    """A message for the stream that is so long and gets an answer that is so long."""
    return answer_bytes.to_bytes(SIZE_BYTES).ljust(request_bytes, b"\0")


class _Handler(grpc.GenericRpcHandler):
    def service(self, handler_call_details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        if handler_call_details.method == METHOD:
            return grpc.unary_unary_rpc_method_handler(_echo)
        if handler_call_details.method == STREAM_METHOD:
            return grpc.stream_stream_rpc_method_handler(_stream)
        if handler_call_details.method == COLUMNS_METHOD:
            return grpc.stream_stream_rpc_method_handler(_columns)
        return None


async def serve() -> None:
    """Serve on an ephemeral loopback port, printed as `ready: host:port`, until terminated."""
    server = grpc.aio.server(handlers=(_Handler(),), options=OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"ready: 127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(serve())
