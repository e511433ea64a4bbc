"""Who must be sure to have reached a certain leaf, and no other process at its address, over real gRPC on loopback."""

import pytest

from kvshard.clock import SystemClock
from kvshard.errors import Unavailable
from kvshard.model import ShardRead, ShardReadReply
from kvshard.rpc.channel import aio_server, bind
from kvshard.rpc.codec import handler_of, leaf_mark
from kvshard.rpc.lane_client import LaneLeafClient
from kvshard.rpc.lane_server import LaneServicer
from kvshard.v1 import lane_pb2_grpc

CLOCK = SystemClock()


async def read(request: ShardRead, deadline: float) -> ShardReadReply:
    return ShardReadReply([*request.keys], [1] * len(request.keys))


@pytest.mark.parametrize(
    ("mark", "wanted", "is_taken"),
    [
        (leaf_mark("blue", "leaf-1"), leaf_mark("blue", "leaf-1"), True),
        (leaf_mark("blue", "leaf-1"), leaf_mark("green", "leaf-1"), False),
        (leaf_mark("blue", "leaf-1"), leaf_mark("blue", "leaf-2"), False),
        ("", leaf_mark("blue", "leaf-1"), False),
        (leaf_mark("blue", "leaf-1"), None, True),
    ],
)
async def test_only_the_leaf_that_is_meant_is_asked(mark: str, wanted: str | None, is_taken: bool) -> None:
    servicer = LaneServicer(dict([handler_of(ShardRead, read)]), CLOCK, mark=lambda: mark)
    server = aio_server()
    lane_pb2_grpc.add_LanesServicer_to_server(servicer, server)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    leaves = LaneLeafClient(lambda leaf: address, CLOCK, mark_of=None if wanted is None else lambda leaf: wanted)
    try:
        call = leaves.read("leaf-1", ShardRead(0, 1, 1, [b"key"]), CLOCK.monotonic() + 5)
        if is_taken:
            assert (await call).reply.values == [b"key"]
        else:
            with pytest.raises(Unavailable, match="another process answers there"):
                await call
    finally:
        await leaves.close()
        await server.stop(None)
