"""kvshard's arms: the client through the router, the client that asks the leaves itself, and bare unary calls."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import grpc

from benchmarks.fast_path.data import VALUE_BYTES, Data
from benchmarks.fast_path.names import UNARY
from benchmarks.fleet import Fleet
from benchmarks.loops import Refused, WrongAnswer, one_by_one, together
from benchmarks.turns import Arm, Run
from kvshard import Client
from kvshard.rpc.channel import aio_channel
from kvshard.v1 import kv_pb2, kv_pb2_grpc

LOADS_AT_ONCE = 4
UNARY_REQUESTS = 10_000
"""Messages made beforehand: making them would be measured as the service's time."""

CALL_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class KvShard:
    """One client, and the processes that work for it."""

    name: str
    client: Client[str]
    processes: Mapping[str, Sequence[int]]
    data: Data

    async def load(self) -> None:
        """Store all data."""
        pieces = self.data.pairs()

        async def worker() -> None:
            for piece in pieces:
                (await self.client.put_many(piece)).raise_for_failures()

        await asyncio.gather(*(worker() for _ in range(LOADS_AT_ONCE)))

    def single_gets(self, callers: int) -> Arm:
        """So many callers, each with one `await client.get(key)` after the other."""
        get, keys = self.client.get, self.data.single_keys()

        async def call() -> int:
            item = await get(next(keys))
            if item is None or len(item.value) != VALUE_BYTES:
                raise WrongAnswer(f"{self.name}: {item!r}")
            return 1

        return self._arm(lambda seconds: together(seconds, callers, call))

    def lone_get(self) -> Arm:
        """One `await client.get(key)` after the other."""
        get, keys = self.client.get, self.data.single_keys()

        async def call() -> int:
            if await get(next(keys)) is None:
                raise WrongAnswer(f"{self.name}: a key that was stored is not there")
            return 1

        return self._arm(lambda seconds: one_by_one(seconds, "get", call))

    def batch_gets(self, size: int, in_flight: int) -> Arm:
        """Batches of keys, so many at a time; all values are looked at."""
        get_many, batches = self.client.get_many, self.data.batches(size)

        async def call() -> int:
            values = (await get_many(next(batches))).values()
            if len(values) != size or None in values:
                raise WrongAnswer(f"{self.name}: {len(values)} values, {values.count(None)} of them absent")
            return size

        return self._arm(lambda seconds: together(seconds, in_flight, call), f"{in_flight} batches")

    def batch_puts(self, size: int, in_flight: int) -> Arm:
        """Batches of keys and values, so many at a time; every one is durable when it counts."""
        put_many, batches, value = self.client.put_many, self.data.batches(size), self.data.value

        async def call() -> int:
            results = await put_many(dict.fromkeys(next(batches), value))
            results.raise_for_failures()
            return len(results.outcomes)

        return self._arm(lambda seconds: together(seconds, in_flight, call))

    def _arm(self, run: Run, setting: str = "") -> Arm:
        return Arm(self.name, run, self.processes, setting)


@asynccontextmanager
async def unary_gets(fleet: Fleet, data: Data, callers: int) -> AsyncIterator[Arm]:
    """So many callers, each with one unary `KV.Get` after the other: what any other gRPC client does."""
    keys = itertools.islice(data.single_keys(), UNARY_REQUESTS)
    requests = itertools.cycle([kv_pb2.GetRequest(key=key.encode()) for key in keys])
    async with aio_channel(fleet.address) as channel:
        get = kv_pb2_grpc.KVStub(channel).Get

        async def call() -> int:
            try:
                response = await get(next(requests), timeout=CALL_TIMEOUT_S)
            except grpc.aio.AioRpcError as error:
                # The client does not repeat what is shed, as kvshard's own does.
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    raise Refused from error
                raise
            if len(response.item.value) != VALUE_BYTES:
                raise WrongAnswer(f"{UNARY}: {response!r}")
            return 1

        yield Arm(UNARY, lambda seconds: together(seconds, callers, call), processes_of(fleet))


@asynccontextmanager
async def direct_client(address: str) -> AsyncIterator[Client[str]]:
    """A client that asks the leaves itself. Raises RuntimeError when it cannot reach them: it would measure the router."""
    async with Client(address, direct=True, timeout=CALL_TIMEOUT_S) as client:
        if not await client.wait_direct(timeout=CALL_TIMEOUT_S):
            raise RuntimeError(f"the direct client cannot reach the leaves behind {address}")
        yield client


def processes_of(fleet: Fleet) -> dict[str, list[int]]:
    """The pids of a cluster by role."""
    return {"router": [fleet.router.pid], "leaves": [leaf.pid for leaf in fleet.leaves.values()]}
