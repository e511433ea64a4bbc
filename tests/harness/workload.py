"""A recorded load on a real cluster, and what its record must hold: linearizable keys, no acknowledged write lost.

Two kinds of keys. Some few are written, compared, deleted and read by everybody at once: their histories go to the checker that
the simulator uses. And a ledger: each of its keys is written once, by whoever made it up, and must be there in the end.

One monotonic clock stamps all. A write whose outcome is not known stays so; one whose error says that nothing was done is taken
at its word, so a false word shows up as a violation.
"""

import asyncio
import contextlib
import itertools
import random
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from sim.linearizability import INFINITY, Kind, Operation, TooHard, is_linearizable, shortest_bad_prefix

from kvshard import Client
from kvshard.client.results import Item
from kvshard.errors import KvShardError, VersionConflict

CLIENTS = 3
LOOPS_PER_CLIENT = 2
READERS_PER_CLIENT = 1
"""Loops that only read what was acknowledged: they show whether reads go on while writers wait for a new primary."""

PAUSE_S = 0.004
"""Mean pause of a loop between two calls: the load must not starve the cluster that it measures on the same cores."""

BATCH_KEYS = 4
LEDGER_BATCH = 10
CHECK_BATCH = 2_000
SAMPLES_MAX = 5
"""Errors kept with their text, by kind."""


@dataclass
class Ledger:
    """Keys written once. acked: those that were acknowledged. unknown: those that may be there."""

    acked: dict[str, bytes] = field(default_factory=dict)
    unknown: dict[str, bytes] = field(default_factory=dict)


@dataclass
class StaleRead:
    invoked: float
    seqno: int
    age_s: float


class Workload:
    """The load. prefix: of its keys, so that several loads may follow each other on one cluster. direct: of how many of its
    clients ask the leaves themselves.
    """

    def __init__(
        self, address: str, *, seed: int, prefix: str = "", keys: int = 12, timeout_s: float = 10.0, direct: int = 0
    ) -> None:
        self.address = address
        self.timeout_s = timeout_s
        self.direct = direct
        self.prefix = prefix
        self.keys = [f"{prefix}k{number}" for number in range(keys)]
        self.history: dict[str, list[Operation]] = defaultdict(list)
        self.ledger = Ledger()
        self.lost: set[str] = set()
        self.counts: Counter[str] = Counter()
        self.errors: Counter[str] = Counter()
        self.samples: dict[str, list[str]] = defaultdict(list)
        self.writes_at: list[float] = []
        self.reads_at: list[float] = []
        self.began = self.ended = 0.0
        self._rng = random.Random(seed)
        self._values = 0
        self._acked_keys: list[str] = []
        self._versions: dict[str, dict[int, bytes]] = defaultdict(dict)
        self._acked_at: dict[str, list[tuple[float, int]]] = defaultdict(list)
        self._conflicts: list[tuple[str, float, float, bytes | None, bytes, int]] = []
        self._stale: dict[str, list[StaleRead]] = defaultdict(list)
        self._is_over = asyncio.Event()
        self._loops: list[asyncio.Task[None]] = []
        self._clients: list[Client[str]] = []

    def __repr__(self) -> str:
        return f"Workload({dict(self.counts)}, errors={dict(self.errors)}, samples={dict(self.samples)})"

    @property
    def direct_clients(self) -> list[Client[str]]:
        """Those that ask the leaves themselves."""
        return self._clients[: self.direct]

    # -- running --------------------------------------------------------------------------------------------------------

    async def start(self) -> "Workload":
        self._clients = [Client(self.address, timeout=self.timeout_s, direct=number < self.direct) for number in range(CLIENTS)]
        self.began = time.monotonic()
        self._loops = [
            asyncio.create_task(self._loop(kv, random.Random(self._rng.random())), name="workload")
            for kv in self._clients
            for _ in range(LOOPS_PER_CLIENT)
        ]
        self._loops += [
            asyncio.create_task(self._read_loop(kv, random.Random(self._rng.random())), name="workload-reader")
            for kv in self._clients
            for _ in range(READERS_PER_CLIENT)
        ]
        return self

    async def progress(self, calls: int, timeout_s: float = 20.0) -> None:
        """Wait until so many more calls have succeeded."""
        goal = len(self.writes_at) + len(self.reads_at) + calls
        async with asyncio.timeout(timeout_s):
            while len(self.writes_at) + len(self.reads_at) < goal:
                self._raise_if_broken()
                await asyncio.sleep(0.01)

    def _raise_if_broken(self) -> None:
        for loop in self._loops:
            if loop.done():
                loop.result()

    async def finish(self) -> None:
        """Let the calls under way end, then read every key once more. The cluster must be able to answer."""
        self._is_over.set()
        await asyncio.gather(*self._loops)
        self.ended = time.monotonic()
        kv = self._clients[0]
        await self._get_many(kv, self.keys)
        await self._read_ledger(kv)
        await self.close()

    async def close(self) -> None:
        self._is_over.set()
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        for client in self._clients:
            await client.close()

    async def _loop(self, kv: Client[str], rng: random.Random) -> None:
        menu: list[tuple[int, Callable[[Client[str], random.Random], Awaitable[None]]]] = [
            (22, self._put),
            (15, self._compare),
            (8, self._delete),
            (28, self._get),
            (7, self._stale_get),
            (6, self._put_batch),
            (8, self._get_batch),
            (6, self._write_ledger),
        ]
        weights = [weight for weight, _ in menu]
        while not self._is_over.is_set():
            ((_, act),) = rng.choices(menu, weights)
            await act(kv, rng)
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S))

    async def _read_loop(self, kv: Client[str], rng: random.Random) -> None:
        while not self._is_over.is_set():
            await self._read_acked(kv, rng)
            await asyncio.sleep(rng.expovariate(1 / PAUSE_S))

    # -- calls ----------------------------------------------------------------------------------------------------------

    def _new_value(self) -> bytes:
        self._values += 1
        return b"%s#%d" % (self.prefix.encode(), self._values)

    def _failed(self, kind: str, error: KvShardError) -> None:
        name = f"{kind}: {error.reason}"
        self.errors[name] += 1
        if error.details.maybe_applied:
            self.counts["unknown"] += 1
        if len(self.samples[name]) < SAMPLES_MAX:
            self.samples[name].append(f"+{time.monotonic() - self.began:.2f} s {error.message}")

    def _done(self, kind: str, *, is_write: bool) -> float:
        now = time.monotonic()
        self.counts[kind] += 1
        (self.writes_at if is_write else self.reads_at).append(now)
        return now

    def _written(self, key: str, kind: Kind, invoked: float, returned: float, version: int, value: bytes, **more) -> None:
        self.history[key].append(Operation(kind, invoked, returned, value=value, **more))
        self._versions[key][version] = value
        self._acked_at[key].append((returned, version))

    def _in_doubt(self, key: str, kind: Kind, invoked: float, error: KvShardError, **more) -> None:
        """A failed write: not part of the history if nothing was done, else of unknown outcome."""
        if error.details.maybe_applied:
            self.history[key].append(Operation(kind, invoked, INFINITY, **more))

    async def _put(self, kv: Client[str], rng: random.Random) -> None:
        key, value, invoked = rng.choice(self.keys), self._new_value(), time.monotonic()
        try:
            version = await kv.put(key, value)
        except KvShardError as error:
            self._failed("put", error)
            self._in_doubt(key, Kind.PUT, invoked, error, value=value)
            return
        self._written(key, Kind.PUT, invoked, self._done("put", is_write=True), version, value)

    async def _compare(self, kv: Client[str], rng: random.Random) -> None:
        """Put on the condition that the key is as the newest known version says, or absent."""
        key, value = rng.choice(self.keys), self._new_value()
        known = self._versions[key]
        version = max(known, default=0) if rng.random() < 0.8 else 0
        expected = known.get(version)
        condition = {"if_version": version} if version else {"if_absent": True}
        invoked = time.monotonic()
        try:
            written = await kv.put(key, value, **condition)
        except VersionConflict as conflict:
            returned = self._done("compare, refused", is_write=True)
            self._conflicts.append((key, invoked, returned, expected, value, conflict.details.current_version or 0))
            return
        except KvShardError as error:
            self._failed("compare", error)
            self._in_doubt(key, Kind.CAS, invoked, error, value=value, expected=expected, has_applied=None)
            return
        self._written(key, Kind.CAS, invoked, self._done("compare", is_write=True), written, value, expected=expected)

    async def _delete(self, kv: Client[str], rng: random.Random) -> None:
        key, invoked = rng.choice(self.keys), time.monotonic()
        try:
            existed = await kv.delete(key)
        except KvShardError as error:
            self._failed("delete", error)
            self._in_doubt(key, Kind.DELETE, invoked, error)
            return
        returned = self._done("delete", is_write=True)
        # One that found nothing changed nothing: it is a read of an absent key.
        self.history[key].append(Operation(Kind.DELETE if existed else Kind.GET, invoked, returned))

    def _saw(self, key: str, item: Item[str, bytes] | None, invoked: float, returned: float) -> None:
        if item is not None:
            self._versions[key][item.version] = item.value
        self.history[key].append(Operation(Kind.GET, invoked, returned, observed=None if item is None else item.value))

    async def _get(self, kv: Client[str], rng: random.Random) -> None:
        key, invoked = rng.choice(self.keys), time.monotonic()
        try:
            item = await kv.get(key)
        except KvShardError as error:
            self._failed("get", error)
            return
        self._saw(key, item, invoked, self._done("get", is_write=False))

    async def _stale_get(self, kv: Client[str], rng: random.Random) -> None:
        key, invoked = rng.choice(self.keys), time.monotonic()
        try:
            item = await kv.get(key, consistency="stale")
        except KvShardError as error:
            self._failed("stale get", error)
            return
        self.counts["stale get"] += 1
        if item is not None and item.state is not None and item.state.age_ms is not None:
            self._stale[key].append(StaleRead(invoked, item.state.seqno, item.state.age_ms / 1000))

    async def _put_batch(self, kv: Client[str], rng: random.Random) -> None:
        keys = rng.sample(self.keys, BATCH_KEYS)
        values, invoked = {key: self._new_value() for key in keys}, time.monotonic()
        try:
            results = await kv.put_many(values)
        except KvShardError as error:
            self._failed("put_many", error)
            for key in keys:
                self._in_doubt(key, Kind.PUT, invoked, error, value=values[key])
            return
        returned = self._done("put_many", is_write=True)
        for key in keys:
            result = results[key]
            if isinstance(result, KvShardError):
                self._failed("put_many key", result)
                self._in_doubt(key, Kind.PUT, invoked, result, value=values[key])
            else:
                self._written(key, Kind.PUT, invoked, returned, result, values[key])

    async def _get_batch(self, kv: Client[str], rng: random.Random) -> None:
        await self._get_many(kv, rng.sample(self.keys, BATCH_KEYS))

    async def _get_many(self, kv: Client[str], keys: list[str]) -> None:
        invoked = time.monotonic()
        try:
            items = await kv.get_many(keys)
        except KvShardError as error:
            self._failed("get_many", error)
            return
        returned = self._done("get_many", is_write=False)
        for key, item in zip(keys, items, strict=True):
            if isinstance(item, KvShardError):
                self._failed("get_many key", item)
            else:
                self._saw(key, item, invoked, returned)

    async def _write_ledger(self, kv: Client[str], rng: random.Random) -> None:
        values = {}
        for _ in range(LEDGER_BATCH):
            value = self._new_value()
            values[f"{self.prefix}ledger:{value.decode()}"] = value
        try:
            results = await kv.put_many(values)
        except KvShardError as error:
            self._failed("ledger", error)
            self.ledger.unknown.update(values)
            return
        self._done("ledger", is_write=True)
        for key, value in values.items():
            result = results[key]
            if isinstance(result, KvShardError):
                self._failed("ledger key", result)
                self.ledger.unknown[key] = value
            else:
                self.ledger.acked[key] = value
                self._acked_keys.append(key)

    async def _read_acked(self, kv: Client[str], rng: random.Random) -> None:
        """A key of the ledger, which nobody writes any more: no read of it has a reason to wait."""
        acked = self.ledger.acked
        if not acked:
            return
        key = self._acked_keys[rng.randrange(len(self._acked_keys))]
        try:
            item = await kv.get(key)
        except KvShardError as error:
            self._failed("get of a settled key", error)
            return
        self._done("get of a settled key", is_write=False)
        if item is None or item.value != acked[key]:
            self.lost.add(key)

    # -- the verdict ----------------------------------------------------------------------------------------------------

    async def _read_ledger(self, kv: Client[str]) -> None:
        keys = list(self.ledger.acked)
        for first in range(0, len(keys), CHECK_BATCH):
            piece = keys[first : first + CHECK_BATCH]
            for key, item in zip(piece, await kv.get_many(piece, timeout=30.0), strict=True):
                assert not isinstance(item, KvShardError), f"{key}: {item!r}"
                if item is None or item.value != self.ledger.acked[key]:
                    self.lost.add(key)

    def problems(self) -> list[str]:
        """What must not be: acknowledged writes lost, histories that no order explains, stale reads older than they say."""
        found = [f"acknowledged write lost: {key}" for key in sorted(self.lost)]
        self._explain_conflicts()
        for key, operations in self.history.items():
            with contextlib.suppress(TooHard):
                if not is_linearizable(operations):
                    shown = "\n  ".join(map(str, shortest_bad_prefix(operations)[-12:]))
                    found.append(f"{key} is not linearizable; the end of the shortest bad prefix:\n  {shown}")
                continue
            found.append(f"{key}: the checker gave up on {len(operations)} operations")
        for key, reads in self._stale.items():
            for read in reads:
                found += [
                    f"{key}: a stale read said it holds all writes acknowledged {read.age_s} s before {read.invoked}, through "
                    f"seqno {read.seqno}, but seqno {version} was acknowledged by {returned}"
                    for returned, version in self._acked_at[key]
                    if returned < read.invoked - read.age_s and version > read.seqno
                ]
        return found

    def _explain_conflicts(self) -> None:
        """A refused condition tells the version that was there: an observation, where its value is known."""
        for key, invoked, returned, expected, value, version in self._conflicts:
            observed = self._versions[key].get(version)
            if version and observed is None:
                continue
            operation = Operation(
                Kind.CAS, invoked, returned, value=value, expected=expected, observed=observed, has_applied=False
            )
            self.history[key].append(operation)
        self._conflicts.clear()

    def gap_s(self, *, of_writes: bool) -> float:
        """The longest time without a call that succeeded, from the first one that did; so far or until the load was stopped."""
        ended = self.ended or time.monotonic()
        instants = sorted(self.writes_at if of_writes else self.reads_at) or [self.began]
        instants = [*(each for each in instants if each <= ended), ended]
        return max(after - before for before, after in itertools.pairwise(instants))


@contextlib.asynccontextmanager
async def running(address: str, *, seed: int, **settings):
    """A load that runs meanwhile; at the end it has finished, and has been checked."""
    load = await Workload(address, seed=seed, **settings).start()
    try:
        yield load
        await load.finish()
        problems = load.problems()
        assert not problems, "\n".join([*problems[:5], repr(load)])
    finally:
        await load.close()
