"""The stores that the workloads run against: how each of them reads, writes and scans records, as its users would have it."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from benchmarks.peers.etcd_client import EtcdClient
from kvshard import Client

if TYPE_CHECKING:
    from redis.asyncio import Redis

LOADED_AT_ONCE = 500
"""Records of one batch while they are loaded: half a megabyte."""

ETCD_LOADERS = 256
"""Concurrent puts while etcd is loaded: it syncs together what waits together."""

REDIS_INDEX = "ycsb:index"
"""A sorted set of all keys, as YCSB's own redis binding keeps one: redis has no order among its keys."""


class Store(Protocol):
    """A store of records by key."""

    async def load(self, records: Mapping[str, bytes]) -> None:
        """Store all of these."""
        ...

    async def read(self, key: str) -> bytes | None:
        """The record, None when it is absent."""
        ...

    async def update(self, key: str, record: bytes) -> None:
        """Write a record that is there."""
        ...

    async def insert(self, key: str, record: bytes) -> None:
        """Write a new record, such that scans find it."""
        ...

    async def scan(self, start: str, count: int) -> Sequence[bytes | None]:
        """Up to so many records from this key on, in the order of keys."""
        ...


class KvShardStore:
    """kvshard's client: single operations, and scans over all shards."""

    def __init__(self, client: Client[str]) -> None:
        self._client = client

    async def load(self, records: Mapping[str, bytes]) -> None:
        """In batches."""
        for piece in _pieces(records):
            (await self._client.put_many(piece)).raise_for_failures()

    async def read(self, key: str) -> bytes | None:
        """One get."""
        item = await self._client.get(key)
        return None if item is None else item.value

    async def update(self, key: str, record: bytes) -> None:
        """One put."""
        await self._client.put(key, record)

    insert = update

    async def scan(self, start: str, count: int) -> list[bytes]:
        """One scan with a limit."""
        return [item.value async for item in self._client.scan(start=start, limit=count)]


class RedisStore:
    """redis-py: strings, and a sorted set with all keys for scans."""

    def __init__(self, client: "Redis") -> None:
        self._client = client

    async def load(self, records: Mapping[str, bytes]) -> None:
        """In batches, records and index."""
        for piece in _pieces(records):
            await self._client.mset(piece)
            await self._client.zadd(REDIS_INDEX, dict.fromkeys(piece, 0))

    async def read(self, key: str) -> bytes | None:
        """GET."""
        value: bytes | None = await self._client.get(key)
        return value

    async def update(self, key: str, record: bytes) -> None:
        """SET."""
        await self._client.set(key, record)

    async def insert(self, key: str, record: bytes) -> None:
        """SET and ZADD, sent together."""
        async with self._client.pipeline(transaction=False) as pipeline:
            pipeline.set(key, record)
            pipeline.zadd(REDIS_INDEX, {key: 0})
            await pipeline.execute()

    async def scan(self, start: str, count: int) -> list[bytes | None]:
        """ZRANGEBYLEX in the index, then one MGET."""
        keys = await self._client.zrangebylex(REDIS_INDEX, f"[{start}", "+", start=0, num=count)
        values: list[bytes | None] = await self._client.mget(keys)
        return values


class EtcdStore:
    """etcd: puts and ranges, one call each."""

    def __init__(self, client: EtcdClient) -> None:
        self._client = client

    async def load(self, records: Mapping[str, bytes]) -> None:
        """Put by put, many at once."""
        pairs = iter(records.items())

        async def worker() -> None:
            for key, record in pairs:
                await self._client.put(key.encode(), record)

        await asyncio.gather(*(worker() for _ in range(ETCD_LOADERS)))

    async def read(self, key: str) -> bytes | None:
        """A range of one key, linearizable."""
        return await self._client.get(key.encode())

    async def update(self, key: str, record: bytes) -> None:
        """One put."""
        await self._client.put(key.encode(), record)

    insert = update

    async def scan(self, start: str, count: int) -> list[bytes]:
        """One range with a limit."""
        return await self._client.scan(start.encode(), count)


def _pieces(records: Mapping[str, bytes]) -> list[dict[str, bytes]]:
    pairs = list(records.items())
    return [dict(pairs[first : first + LOADED_AT_ONCE]) for first in range(0, len(pairs), LOADED_AT_ONCE)]
