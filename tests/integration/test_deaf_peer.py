"""A leaf that reads nothing costs the others a bounded amount of memory, and none of their time."""

import asyncio

import grpc.aio
import pytest

from kvshard.clock import SystemClock
from kvshard.clustermap import Replica
from kvshard.rpc.channel import aio_server, bind
from kvshard.rpc.peer_stream import PeerServicer
from kvshard.v1 import peer_pb2_grpc
from leaf.entry_codec import EntryRows
from leaf.operations import WriteOperation, keys_of, size_of
from leaf.peers import Peers
from leaf.replication.messages import Commit, Entry, Prepare

ME = Replica("a", "a1")
VALUE = bytes(1024 * 1024)
SENT_MIB = 160
ELSEWHERE_MIB = 40
"""What gRPC and the receiver's flow control may hold besides the queue, and what else the process does meanwhile."""


class DeafServicer(peer_pb2_grpc.PeerServicer):
    """Takes a stream and never reads it."""

    async def Replicate(self, request_iterator, context):
        await asyncio.Event().wait()


def resident_mib() -> float:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * 4096 / len(VALUE)


async def serve(servicer: peer_pb2_grpc.PeerServicer) -> tuple[grpc.aio.Server, str]:
    server = aio_server()
    peer_pb2_grpc.add_PeerServicer_to_server(servicer, server)
    address = bind(server, "127.0.0.1:0")
    await server.start()
    return server, address


async def test_a_leaf_that_reads_nothing_holds_up_nobody_and_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leaf.peers.QUEUE_MAX_BYTES", 16 * len(VALUE))
    heard = asyncio.Event()
    deaf, deaf_address = await serve(DeafServicer())
    sound, sound_address = await serve(PeerServicer("sound", lambda: "cluster", lambda sender, payload: heard.set()))
    addresses = {"deaf": deaf_address, "sound": sound_address}
    peers = Peers("a", lambda: "cluster", addresses.get, EntryRows(), SystemClock(), lambda *_: None)
    try:
        before = resident_mib()
        for seqno in range(1, SENT_MIB + 1):
            operation = WriteOperation(1, [b"k"], [VALUE + bytes(seqno)])
            entry = Entry(1, seqno, operation, keys_of(operation), size_of(operation))
            peers.send("deaf", 0, ME, Replica("deaf", "d1"), Prepare(1, 1, seqno - 1, (entry,), 0))
            await asyncio.sleep(0)
        peers.send("sound", 0, ME, Replica("sound", "s1"), Commit(1, 1))
        async with asyncio.timeout(5):
            await heard.wait()
        assert resident_mib() - before < 16 + ELSEWHERE_MIB, "of 160 MiB that were sent"
    finally:
        await peers.close()
        await deaf.stop(None)
        await sound.stop(None)
