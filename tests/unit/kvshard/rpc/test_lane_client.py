"""What a leaf's answer means to who asked it; the lanes themselves are tested over real ones."""

import pytest

from kvshard.clock import SystemClock
from kvshard.errors import Internal
from kvshard.model import ShardRead, ShardWrite
from kvshard.rpc.lane import Lane
from kvshard.rpc.lane_client import LaneLeafClient
from kvshard.v1 import lane_pb2


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> LaneLeafClient:
    async def garbled(*request: object, **flags: object) -> lane_pb2.ResponseFrame:
        return lane_pb2.ResponseFrame(payload=b"\xc1")

    monkeypatch.setattr(Lane, "call", garbled)
    return LaneLeafClient({"leaf-1": "127.0.0.1:1"}.get, SystemClock())


async def test_a_write_whose_answer_cannot_be_read_is_in_doubt(client: LaneLeafClient) -> None:
    with pytest.raises(Internal, match="not a ShardWriteReply") as told:
        await client.write("leaf-1", ShardWrite(1, 2, 3, [b"a"], [b""]), 1e9)
    assert told.value.details.maybe_applied


async def test_a_read_whose_answer_cannot_be_read_is_not(client: LaneLeafClient) -> None:
    with pytest.raises(Internal, match="not a ShardReadReply") as told:
        await client.read("leaf-1", ShardRead(1, 2, 3, [b"a"]), 1e9)
    assert not told.value.details.maybe_applied
