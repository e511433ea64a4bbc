"""The arms of redis, twemproxy and etcd: the same tasks with the client that a Python user of them has, each at its best."""

import itertools
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

from benchmarks.fast_path.data import VALUE_BYTES, Data, key_name
from benchmarks.fast_path.names import ETCD, REDIS_BENCHMARK
from benchmarks.loops import WrongAnswer, together
from benchmarks.peers import etcd_client, redis_client
from benchmarks.peers.executables import Executable
from benchmarks.peers.redis_benchmark import RANDOM_KEY, RedisBenchmark
from benchmarks.peers.servers import Proxy, Server
from benchmarks.turns import Arm, best

if TYPE_CHECKING:
    from redis.asyncio import Redis

POOL_SIZES = (4, 16, 32, 64, 128, 512)
"""Pools of redis-py that are tried: waiting for a connection costs less than too many of them, up to a point."""

ETCD_CALLERS = (64, 256, 1024)
"""Concurrent puts that are tried: etcd syncs together what waits together."""

SWEEP_S = 0.4
"""Of load for each setting that is tried, twice."""

Sweep = dict[str, float]
"""Rates by setting."""


class RedisArms:
    """redis-py against a server or a proxy. Clients live as long as the stack."""

    def __init__(self, name: str, server: Server, data: Data, stack: AsyncExitStack) -> None:
        self.name = name
        self._server = server
        self._data = data
        self._stack = stack
        behind = server.behind if isinstance(server, Proxy) else ()
        self._suffix = f", {server.connections} to each server" if isinstance(server, Proxy) else ""
        redis = [pid for each in behind or (server,) for pid in each.pids]
        self._processes = {"twemproxy": server.pids, "redis": redis} if behind else {"redis": redis}

    async def load(self) -> None:
        """Store all data."""
        client = await self._connected(1)
        for pairs in self._data.pairs():
            await client.mset(dict(pairs))

    async def single_gets(self, callers: int, pool_size: int) -> Arm:
        """So many callers, each with one `await redis.get(key)` after the other."""
        get, keys = (await self._connected(pool_size)).get, self._data.single_keys()

        async def call() -> int:
            value = await get(next(keys))
            if value is None or len(value) != VALUE_BYTES:
                raise WrongAnswer(f"{self.name}: {value!r}")
            return 1

        setting = f"{pool_size} connections{self._suffix}"
        return Arm(self.name, lambda seconds: together(seconds, callers, call), self._processes, setting)

    async def batch_gets(self, size: int, in_flight: int) -> Arm:
        """`mget` of batches, so many at a time, each over a connection of its own."""
        mget, batches = (await self._connected(in_flight)).mget, self._data.batches(size)

        async def call() -> int:
            values = await mget(next(batches))
            if len(values) != size or None in values:
                raise WrongAnswer(f"{self.name}: {len(values)} values, {values.count(None)} of them absent")
            return size

        setting = f"{in_flight} connections{self._suffix}"
        return Arm(self.name, lambda seconds: together(seconds, in_flight, call), self._processes, setting)

    async def _connected(self, connections: int) -> "Redis":
        return await self._stack.enter_async_context(redis_client.connected(self._server, connections))

    def benchmark(self, executable: Executable, size: int, connections: int) -> Arm:
        """The same server under redis-benchmark: GET for one key, MGET for more."""
        command = ["GET", RANDOM_KEY] if size == 1 else ["MGET", *[RANDOM_KEY] * size]
        load = RedisBenchmark(executable, self._server, command, connections=connections, keys=self._data.keys, operations=size)
        return Arm(REDIS_BENCHMARK, load.run, self._processes, f"{connections} connections{self._suffix}")


async def best_single_gets(servers: Sequence[RedisArms], callers: int) -> tuple[Arm, Sweep]:
    """With the pool, and the server of these, that suit so many callers best."""
    return await best([await each.single_gets(callers, size) for each in servers for size in POOL_SIZES], SWEEP_S)


async def best_benchmark(
    servers: Sequence[RedisArms], executable: Executable, size: int, connections: int
) -> tuple[Arm, Sweep]:
    """redis-benchmark with the server of these that suits it best."""
    return await best([each.benchmark(executable, size, connections) for each in servers], SWEEP_S)


async def etcd_puts(server: Server, data: Data, stack: AsyncExitStack) -> tuple[Arm, Sweep]:
    """Puts of one key each, with as many callers as suits etcd best. They are durable when they count."""
    client = await stack.enter_async_context(etcd_client.connected(server))
    keys = itertools.cycle([key_name(number).encode() for number in range(data.keys)])

    async def call() -> int:
        await client.put(next(keys), data.value)
        return 1

    def arm(callers: int) -> Arm:
        return Arm(ETCD, lambda seconds: together(seconds, callers, call), {"etcd": server.pids}, f"{callers} callers")

    return await best([arm(callers) for callers in ETCD_CALLERS], SWEEP_S)
