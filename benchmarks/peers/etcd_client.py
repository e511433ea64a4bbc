"""etcd's key-value calls through grpc.aio, with the messages that kvshard's own coordinator uses: the least a client can do."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from benchmarks.peers.servers import Server
from kvshard.coordination.v1 import etcd_pb2
from kvshard.rpc.channel import aio_channel

_TO_THE_END = b"\0"
"""As the end of a range: up to the last key."""


class EtcdClient:
    """Calls on one channel."""

    def __init__(
        self,
        put: Callable[[etcd_pb2.PutRequest], Awaitable[etcd_pb2.RangeResponse]],
        get: Callable[[etcd_pb2.RangeRequest], Awaitable[etcd_pb2.RangeResponse]],
    ) -> None:
        self._put = put
        self._get = get

    async def put(self, key: bytes, value: bytes) -> None:
        """Write a key; durable when it returns."""
        await self._put(etcd_pb2.PutRequest(key=key, value=value))

    async def get(self, key: bytes) -> bytes | None:
        """The value of a key."""
        kvs = (await self._get(etcd_pb2.RangeRequest(key=key))).kvs
        return kvs[0].value if kvs else None

    async def scan(self, start: bytes, count: int) -> list[bytes]:
        """The values of so many keys from this one on, in their order."""
        answer = await self._get(etcd_pb2.RangeRequest(key=start, range_end=_TO_THE_END, limit=count))
        return [kv.value for kv in answer.kvs]


@asynccontextmanager
async def connected(server: Server) -> AsyncIterator[EtcdClient]:
    """A client of this server."""
    async with aio_channel(server.address) as channel:
        yield EtcdClient(
            channel.unary_unary(
                "/etcdserverpb.KV/Put",
                etcd_pb2.PutRequest.SerializeToString,
                # The coordinator writes in transactions and has no PutResponse; on the wire it is a range without keys.
                etcd_pb2.RangeResponse.FromString,
            ),
            channel.unary_unary(
                "/etcdserverpb.KV/Range",
                etcd_pb2.RangeRequest.SerializeToString,
                etcd_pb2.RangeResponse.FromString,
            ),
        )
