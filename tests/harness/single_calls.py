"""Hundreds of callers that share few clients, each with one call at a time: the load that a batcher puts together into frames.

Half of the callers own a key each, which nobody else writes; the others write and read few keys together. Beside them a client
of an older version makes its unary calls on the shared keys, and a reader scans settled keys over and over. Every history must
be linearizable; of two puts of one key that a caller sends off one behind the other, the second must be the later one.

What is not known of a write stays unknown, as in `workload`; an error that says nothing was done is taken at its word.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter, defaultdict, deque
from collections.abc import Sequence

import grpc
from sim.linearizability import INFINITY, Kind, Operation, TooHard, is_linearizable, shortest_bad_prefix

from kvshard import Client
from kvshard.client.results import Item
from kvshard.errors import KvShardError
from kvshard.rpc.status import error_from_rpc
from kvshard.v1 import kv_pb2, kv_pb2_grpc

CALLERS = 512
SHARED_KEYS = 64
UNARY_CALLERS = 4

PAUSE_S = 0.1
"""Mean pause of a caller: while nothing is broken some dozens of calls are in flight, during a fault all of them."""

SETTLED_KEYS = 1_500
"""More than a page of a scan."""

SAMPLES_MAX = 4

VERSIONS_KEPT = 12
"""Of each key, those seen last: they tell a stale answer from a write that was done twice."""


class SingleCalls:
    """The load. clients: shared by the callers in turn; they are the caller's to close. unary: address of a router, or none."""

    def __init__(self, clients: Sequence[Client[str]], *, seed: int, prefix: str, unary: str = "") -> None:
        self.history: dict[str, list[Operation]] = defaultdict(list)
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.samples: dict[str, list[str]] = defaultdict(list)
        self.problems_seen: list[str] = []
        self.done_at: list[float] = []
        self.versions: dict[str, deque[tuple[float, str, int]]] = defaultdict(lambda: deque(maxlen=VERSIONS_KEPT))
        self._clients = clients
        self._prefix = prefix
        self._unary = unary
        self._rng = random.Random(seed)
        self._values = itertools.count(1)
        self._is_over = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._settled = {f"{prefix}:settled:{number:05d}": b"%d" % number for number in range(SETTLED_KEYS)}

    def __repr__(self) -> str:
        return f"SingleCalls({dict(self.counts)}, errors={dict(self.errors)}, samples={dict(self.samples)})"

    async def start(self) -> "SingleCalls":
        (await self._clients[0].put_many(self._settled)).raise_for_failures()
        rng = self._rng
        loops = [self._own(caller, random.Random(rng.random())) for caller in range(CALLERS // 2)]
        loops += [self._share(caller, random.Random(rng.random())) for caller in range(CALLERS // 2)]
        loops += [self._scan(client) for client in self._clients]
        if self._unary:
            loops += [self._call_unary(random.Random(rng.random())) for _ in range(UNARY_CALLERS)]
        self._loops = [asyncio.create_task(loop, name="single-calls") for loop in loops]
        return self

    async def progress(self, calls: int, timeout_s: float = 20.0) -> None:
        """Wait until so many more calls have succeeded."""
        goal = len(self.done_at) + calls
        async with asyncio.timeout(timeout_s):
            while len(self.done_at) < goal:
                for loop in self._loops:
                    if loop.done():
                        loop.result()
                await asyncio.sleep(0.01)

    async def finish(self) -> None:
        """Let the calls under way end, and read every key once more."""
        self._is_over.set()
        await asyncio.gather(*self._loops)
        keys = list(self.history)
        invoked = time.monotonic()
        items = await self._clients[0].get_many(keys, timeout=30.0)
        returned = time.monotonic()
        for key, item in zip(keys, items, strict=True):
            assert not isinstance(item, KvShardError), f"{key}: {item!r}"
            self._saw(key, item, invoked, returned)

    async def stop(self) -> None:
        self._is_over.set()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)

    # -- callers --------------------------------------------------------------------------------------------------------

    async def _own(self, caller: int, rng: random.Random) -> None:
        kv, key = self._clients[caller % len(self._clients)], f"{self._prefix}:own:{caller}"
        while not self._is_over.is_set():
            chance = rng.random()
            if chance < 0.2:
                await self._put_twice(kv, key)
            else:
                await self._act(kv, key, chance)
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S))

    async def _share(self, caller: int, rng: random.Random) -> None:
        kv = self._clients[caller % len(self._clients)]
        while not self._is_over.is_set():
            await self._act(kv, f"{self._prefix}:shared:{rng.randrange(SHARED_KEYS)}", rng.random())
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S))

    async def _act(self, kv: Client[str], key: str, chance: float) -> None:
        if chance < 0.5:
            await self._put(kv, key, self._new_value())
        elif chance < 0.92:
            await self._get(kv, key)
        else:
            await self._delete(kv, key)

    async def _put_twice(self, kv: Client[str], key: str) -> None:
        """Two puts of one key, the second sent off before the first has an answer; then a look."""
        first, second = (self._new_value() for _ in range(2))
        calls = [asyncio.create_task(self._put(kv, key, value)) for value in (first, second)]
        older, newer = await asyncio.gather(*calls)
        item = await self._get(kv, key)
        if older and newer and older > newer:  # Of one frame they may have one entry of the log, and one version.
            self.problems_seen.append(f"{key}: the first put has version {older}, the second {newer}")
        if newer and isinstance(item, Item) and item.value != second:
            self.problems_seen.append(f"{key}: {item.value!r} is there after {second!r} was acknowledged")

    async def _scan(self, kv: Client[str]) -> None:
        while not self._is_over.is_set():
            try:
                found = {item.key: item.value async for item in kv.scan(prefix=f"{self._prefix}:settled:")}
            except KvShardError as error:
                self._failed("scan", error)
            else:
                self._done("scan")
                if list(found.items()) != list(self._settled.items()):
                    self.problems_seen.append(f"a scan found {len(found)} of {len(self._settled)} keys, or out of order")
            await asyncio.sleep(0.2)

    async def _call_unary(self, rng: random.Random) -> None:
        """As a client does that knows nothing of lanes; it has no request ids, so it repeats nothing."""
        async with grpc.aio.insecure_channel(self._unary) as channel:
            stub = kv_pb2_grpc.KVStub(channel)
            while not self._is_over.is_set():
                key, invoked = f"{self._prefix}:shared:{rng.randrange(SHARED_KEYS)}", time.monotonic()
                value = self._new_value() if rng.random() < 0.5 else None
                try:
                    if value is None:
                        got = await stub.Get(kv_pb2.GetRequest(key=key.encode()), timeout=10.0)
                        observed = got.item.value if got.HasField("item") else None
                        self.history[key].append(Operation(Kind.GET, invoked, self._done("unary get"), observed=observed))
                    else:
                        await stub.Put(kv_pb2.PutRequest(key=key.encode(), value=value), timeout=10.0)
                        self.history[key].append(Operation(Kind.PUT, invoked, self._done("unary put"), value=value))
                except grpc.aio.AioRpcError as raised:
                    error = error_from_rpc(raised, is_write=value is not None)
                    self.counts[f"unary: {error.reason}"] += 1  # It does not turn to another router: failures are its lot.
                    if value is not None and error.details.maybe_applied:
                        self.history[key].append(Operation(Kind.PUT, invoked, INFINITY, value=value))
                await asyncio.sleep(rng.expovariate(1 / PAUSE_S))

    # -- calls ----------------------------------------------------------------------------------------------------------

    def _new_value(self) -> bytes:
        return b"%s#%d" % (self._prefix.encode(), next(self._values))

    def _done(self, kind: str) -> float:
        now = time.monotonic()
        self.counts[kind] += 1
        self.done_at.append(now)
        return now

    def _failed(self, kind: str, error: KvShardError) -> None:
        name = f"{kind}: {error.reason}"
        self.errors[name] += 1
        if len(self.samples[name]) < SAMPLES_MAX:
            self.samples[name].append(error.message)

    async def _put(self, kv: Client[str], key: str, value: bytes) -> int | None:
        invoked = time.monotonic()
        try:
            version = await kv.put(key, value)
        except KvShardError as error:
            self._failed("put", error)
            if error.details.maybe_applied:
                self.history[key].append(Operation(Kind.PUT, invoked, INFINITY, value=value))
            return None
        self.history[key].append(Operation(Kind.PUT, invoked, self._done("put"), value=value))
        self.versions[key].append((time.monotonic(), "put", version))
        return version

    async def _delete(self, kv: Client[str], key: str) -> None:
        invoked = time.monotonic()
        try:
            existed = await kv.delete(key)
        except KvShardError as error:
            self._failed("delete", error)
            if error.details.maybe_applied:
                self.history[key].append(Operation(Kind.DELETE, invoked, INFINITY))
            return
        # One that found nothing changed nothing: it is a read of an absent key.
        self.history[key].append(Operation(Kind.DELETE if existed else Kind.GET, invoked, self._done("delete")))

    async def _get(self, kv: Client[str], key: str) -> Item[str, bytes] | None:
        invoked = time.monotonic()
        try:
            item = await kv.get(key)
        except KvShardError as error:
            self._failed("get", error)
            return None
        self._saw(key, item, invoked, self._done("get"))
        return item

    def _saw(self, key: str, item: Item[str, bytes] | None, invoked: float, returned: float) -> None:
        self.history[key].append(Operation(Kind.GET, invoked, returned, observed=None if item is None else item.value))
        self.versions[key].append((returned, "get", 0 if item is None else item.version))

    # -- the verdict ----------------------------------------------------------------------------------------------------

    def problems(self) -> list[str]:
        """What must not be."""
        found = list(self.problems_seen)
        for key, operations in self.history.items():
            try:
                if not is_linearizable(operations):
                    shown = "\n  ".join(map(str, shortest_bad_prefix(operations)[-12:]))
                    found.append(
                        f"{key} is not linearizable; the end of the shortest bad prefix:\n  {shown}\n"
                        f"  versions: {list(self.versions[key])}"
                    )
            except TooHard as error:
                found.append(f"{key}: the checker gave up: {error}")
        return found


@contextlib.asynccontextmanager
async def single_calls(clients: Sequence[Client[str]], *, seed: int, prefix: str, unary: str = ""):
    """The load runs meanwhile; at the end it has finished, and its histories have been checked."""
    load = await SingleCalls(clients, seed=seed, prefix=prefix, unary=unary).start()
    try:
        yield load
        await load.finish()
        problems = load.problems()
        assert not problems, "\n".join([*problems[:5], repr(load)])
    finally:
        await load.stop()
