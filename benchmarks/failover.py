"""What the death of a primary costs: time without writes, errors, acknowledged writes that are lost, writes done twice."""

import asyncio
import itertools
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from benchmarks.figures import Figure, percentile
from benchmarks.fleet import Fleet
from kvshard import Client, KvShardError
from kvshard.rpc.channel import aio_channel
from kvshard.v1 import kv_pb2, kv_pb2_grpc, types_pb2

VALUE_BYTES = 100
WHOLE_TIMEOUT_S = 60.0
RESUME_TIMEOUT_S = 30.0
"""Far beyond any failover that is still worth measuring."""

CALM_S = 0.3
"""Of load before each kill, so that it hits writes in the middle."""

CHECK_KEYS = 2_000
"""Keys of one batch read when the acknowledged writes are looked for."""

READERS_PER_SHARD = 2

WRITES = 10_000
WRITERS = 100
"""Client names: a shard knows the results of the newest few hundred numbers of each."""

SENDINGS = 3
CONCURRENCY = 64


@dataclass(slots=True)
class Traffic:
    """What the load of one shard has seen. keys: the acknowledged ones, in order. Instants are on the monotonic clock."""

    acked: dict[str, bytes] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    write_instants: list[float] = field(default_factory=list)
    read_instants: list[float] = field(default_factory=list)
    read_errors: list[str] = field(default_factory=list)
    write_errors: list[str] = field(default_factory=list)


class ShardLoad:
    """For each shard one task that writes new keys and some that read what was acknowledged, one call after the other."""

    def __init__(self, address: str, keys_of: dict[int, "itertools.chain[str]"]) -> None:
        self.traffic = {shard: Traffic() for shard in keys_of}
        self._client = Client(address, timeout=RESUME_TIMEOUT_S)
        self._is_over = asyncio.Event()
        self._tasks = [asyncio.create_task(self._write(shard, keys)) for shard, keys in keys_of.items()]
        self._tasks += [asyncio.create_task(self._read(shard)) for shard in keys_of for _ in range(READERS_PER_SHARD)]

    async def _write(self, shard: int, keys: "itertools.chain[str]") -> None:
        seen = self.traffic[shard]
        while not self._is_over.is_set():
            key, value = next(keys), os.urandom(VALUE_BYTES)
            try:
                await self._client.put(key, value)
            except KvShardError as error:
                seen.write_errors.append(error.message)
                continue
            seen.acked[key] = value
            seen.keys.append(key)
            seen.write_instants.append(time.monotonic())

    async def _read(self, shard: int) -> None:
        seen, rng = self.traffic[shard], random.Random(shard)
        while not self._is_over.is_set():
            if not seen.keys:
                await asyncio.sleep(0.01)
                continue
            try:
                await self._client.get(rng.choice(seen.keys))
            except KvShardError as error:
                seen.read_errors.append(error.message)
            else:
                seen.read_instants.append(time.monotonic())
            await asyncio.sleep(0.005)  # Enough to see a gap; more would only take the cores from the failover.

    async def wait_calls_after(self, shards: list[int], instant: float) -> None:
        """Wait until each of the shards has done a write and a read after an instant. Raises TimeoutError."""
        async with asyncio.timeout(RESUME_TIMEOUT_S):
            seen = [self.traffic[shard] for shard in shards]
            for instants in (each for shard in seen for each in (shard.write_instants, shard.read_instants)):
                while not instants or instants[-1] <= instant:  # noqa: ASYNC110 (an event a write would slow the load)
                    await asyncio.sleep(0.01)

    async def stop(self) -> None:
        """Let the calls under way end."""
        self._is_over.set()
        await asyncio.gather(*self._tasks)

    async def close(self) -> None:
        """Give the calls under way up, and close the connection."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._client.close()

    async def lost(self) -> int:
        """How many acknowledged writes are not there any more."""
        count = 0
        for seen in self.traffic.values():
            for first in range(0, len(seen.keys), CHECK_KEYS):
                piece = seen.keys[first : first + CHECK_KEYS]
                items = await self._client.get_many(piece)
                items.raise_for_failures()
                for key, item in zip(piece, items, strict=True):
                    count += item is None or isinstance(item, KvShardError) or item.value != seen.acked[key]
        return count


@asynccontextmanager
async def _shard_load(fleet: Fleet) -> AsyncIterator[ShardLoad]:
    shard_of_key = (await fleet.map()).shard_of_key
    numbers = itertools.count()
    shards = sorted((await fleet.map()).shards)

    def keys(shard: int) -> "itertools.chain[str]":
        tagged = next(tag for number in numbers if shard_of_key(tag := b"{%d}" % number) == shard).decode()
        return itertools.chain(f"{tagged}:{number}" for number in itertools.count())

    load = ShardLoad(fleet.address, {shard: keys(shard) for shard in shards})
    try:
        yield load
    finally:
        await load.close()


def _gap(instants: list[float], instant: float) -> float:
    """The time between two successes around an instant."""
    before = next((each for each in reversed(instants) if each <= instant), instant)
    after = next((each for each in instants if each > instant), None)
    if after is None:
        raise RuntimeError("nothing succeeded any more")
    return after - before


async def kills(fleet: Fleet, count: int) -> list[Figure]:
    """Kill the primary of one shard after the other with -9 under load; each comes back when the others have gone on."""
    write_gaps: list[float] = []
    read_gaps: list[float] = []
    async with _shard_load(fleet) as load:
        for number in range(count):
            await asyncio.sleep(CALM_S)
            cluster_map = await fleet.map()
            victim = cluster_map.shards[number % len(cluster_map.shards)].primary
            led = [shard for shard, config in cluster_map.shards.items() if config.primary == victim]
            killed_at = time.monotonic()
            fleet.leaves[victim].kill()
            await load.wait_calls_after(led, killed_at + CALM_S)
            write_gaps.append(max(_gap(load.traffic[shard].write_instants, killed_at) for shard in led))
            read_gaps.append(max(_gap(load.traffic[shard].read_instants, killed_at) for shard in led))
            fleet.leaves[victim].start()
            await fleet.leaves[victim].wait_ready()
            await fleet.wait_whole(WHOLE_TIMEOUT_S)
        await load.stop()
        lost = await load.lost()
        writes = sum(len(seen.acked) for seen in load.traffic.values())
        read_errors = sum(len(seen.read_errors) for seen in load.traffic.values())
        write_errors = sum(len(seen.write_errors) for seen in load.traffic.values())
        reads = sum(len(seen.read_instants) for seen in load.traffic.values())
    note = "the victim's shards; each kill counts its slowest shard"
    return [
        Figure("kill -9 of a primary: gap without writes, p50", percentile(write_gaps, 0.5), "s", count, note=note),
        Figure("kill -9 of a primary: gap without writes, p95", percentile(write_gaps, 0.95), "s", count, 2.5, note="goal 1.5"),
        Figure("its longest wait of strong reads, p95", percentile(read_gaps, 0.95), "s", count, note=note),
        Figure("errors of strong reads meanwhile", read_errors, "", reads, bound=0),
        Figure("errors of writes meanwhile", write_errors, "", writes, note="their callers had 30 s"),
        Figure(f"acknowledged writes lost in {count} kills", lost, "", writes, bound=0),
    ]


class _Repeater:
    """Writes that are sent again under the id of their first sending, as by a caller who lost the answer."""

    def __init__(self, stub: "kv_pb2_grpc.KVAsyncStub", watermarks: bytes) -> None:
        self._stub = stub
        self._watermarks = watermarks

    async def send(self, number: int, *, is_retry: bool) -> int:
        """The version that the write got."""
        id = types_pb2.RequestId(
            client=f"bench-{number % WRITERS}",
            number=number // WRITERS + 1,
            is_retry=is_retry,
            watermarks=self._watermarks if is_retry else b"",
        )
        request = kv_pb2.PutRequest(collection="default", key=_key(number), value=b"first", request_id=id)
        response = await self._stub.Put(request, timeout=RESUME_TIMEOUT_S)
        return response.version

    async def send_all(self, count: int, *, is_retry: bool) -> list[int]:
        """Every write once; those of one name in the order of their numbers."""
        versions = [0] * count
        names = iter(range(WRITERS))

        async def worker() -> None:
            for name in names:
                for number in range(name, count, WRITERS):
                    versions[number] = await self.send(number, is_retry=is_retry)

        await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
        return versions


def _key(number: int) -> bytes:
    return b"once:%d" % number


async def repeated_writes(fleet: Fleet, count: int = WRITES) -> list[Figure]:
    """Each write is sent three times, with the death of its shard's primary in between.

    Every second key is overwritten by others after the first sending: a write that were done again would show, by its version
    or by what it overwrites.
    """
    async with aio_channel(fleet.address) as channel, Client(fleet.address, timeout=RESUME_TIMEOUT_S) as client:
        stub = kv_pb2_grpc.KVStub(channel)
        id = types_pb2.RequestId(client="bench-first", number=1, wants_watermarks=True)
        first = await stub.Put(kv_pb2.PutRequest(collection="default", key=b"once", value=b"", request_id=id))
        repeater = _Repeater(stub, first.watermarks)
        versions = await repeater.send_all(count, is_retry=False)
        overwritten = {_key(number).decode(): b"second" for number in range(0, count, 2)}
        (await client.put_many(overwritten)).raise_for_failures()
        are_same = [True] * count
        for _ in range(SENDINGS - 1):
            victim = fleet.leaves[await fleet.primary(0)]
            victim.kill()
            again = await repeater.send_all(count, is_retry=True)
            are_same = [same and one == other for same, one, other in zip(are_same, versions, again, strict=True)]
            victim.start()
            await victim.wait_ready()
            await fleet.wait_whole(WHOLE_TIMEOUT_S)
        items = await client.get_many([_key(number) for number in range(count)])
        items.raise_for_failures()
    once = 0
    for number, (item, same) in enumerate(zip(items, are_same, strict=True)):
        assert item is not None
        assert not isinstance(item, KvShardError)
        is_right = item.value == b"second" if number % 2 == 0 else (item.value, item.version) == (b"first", versions[number])
        once += same and is_right
    note = f"each sent {SENDINGS} times, its primary killed in between"
    return [Figure("repeated writes applied exactly once", once, "", count, count, is_upper_bound=False, note=note)]
