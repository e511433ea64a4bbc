"""A leaf's core without gRPC and search: driver and requests over an engine in memory."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence

from fakes.clock import ManualClock
from fakes.maps import FakeMaps, one_leaf_map

from kvshard.clustermap import Collection
from kvshard.model import ShardRead, ShardReadReply, ShardScan, ShardScanReply, ShardWrite, ShardWriteReply
from leaf.disk_guard import DiskGuard
from leaf.driver import Driver
from leaf.engine import Engine
from leaf.housekeeping import Housekeeper
from leaf.index_report import IndexReport
from leaf.memory_engine import MemoryEngine
from leaf.requests import Requests
from leaf.shard_store import ShardStore

DOCS = Collection("docs", 7, {"title": "text", "year": "integer"})
"""A collection with a schema."""


class FakeIndex:
    """Stands in for the indexer: notes what it is told. Everything is indexed through `through`."""

    def __init__(self) -> None:
        self.notified: list[tuple[int, int]] = []
        self.opened: list[int] = []
        self.closed: list[int] = []
        self.removed: list[int] = []
        self.collections: list[str] = []
        self.refreshed: list[tuple[int, int]] = []
        self.hurried: list[bool] = []
        self.splits: list[tuple[int, int, int, int, int]] = []
        self.required: list[tuple[int, int]] = []
        self.through = 10**9

    def open_shard(self, shard, collections) -> None:
        self.opened.append(shard)
        self.collections = [each.name for each in collections]

    def set_collections(self, shards, collections) -> None:
        self.collections = [each.name for each in collections]

    def close_shard(self, shard: int) -> None:
        self.closed.append(shard)

    def require(self, shard: int, seqno: int) -> None:
        self.required.append((shard, seqno))

    def split(self, shard: int, child: int, first_slot: int, last_slot: int, seqno: int) -> None:
        self.splits.append((shard, child, first_slot, last_slot, seqno))

    def remove_shard(self, shard: int) -> None:
        self.removed.append(shard)

    def notify(self, shard: int, applied_seqno: int, operations=()) -> None:
        self.notified.append((shard, applied_seqno))

    def indexed_through(self, shard: int, collection_id: int) -> int:
        return self.through

    def report(self, shard: int, collection_id: int) -> IndexReport:
        return IndexReport(self.through)

    async def refresh(self, shard: int, seqno: int, *, is_hurried: bool = True) -> None:
        self.refreshed.append((shard, seqno))
        self.hurried.append(is_hurried)


class HostedLeaf:
    """One leaf's core. `free` is what the disk guard sees."""

    def __init__(self, engine: Engine | None = None, maps: FakeMaps | None = None, clock: ManualClock | None = None) -> None:
        self.engine = engine if engine is not None else MemoryEngine()
        self.maps = maps or FakeMaps(one_leaf_map(collections=[DOCS]))
        self.clock = clock or ManualClock()
        self.index = FakeIndex()
        self.free = 10**12
        self.groups: list[int] = []
        incarnations = (f"incarnation-{n}" for n in itertools.count(1))
        self.store = ShardStore(self.engine)
        self.driver = Driver(
            "leaf-1",
            self.store,
            self.maps,
            self.index,
            DiskGuard(lambda: self.free),
            self.clock,
            lambda: next(incarnations),
            lambda entries, _: self.groups.append(entries),
            open_retry_s=0.0,
        )
        self.requests = Requests(self.driver, self.index)  # type: ignore[arg-type]
        self.housekeeper = Housekeeper(self.driver)

    def epoch(self, shard: int = 0) -> int:
        return self.driver.replicas[shard].epoch

    async def write(
        self, items: dict[bytes, bytes | None], shard: int = 0, collection_id: int = 1, **columns
    ) -> ShardWriteReply:
        request = ShardWrite(shard, self.epoch(shard), collection_id, list(items), list(items.values()), **columns)
        return await self.requests.write(request, self.clock.monotonic() + 10)

    def read_all(self, keys: Sequence[bytes], shard: int = 0, collection_id: int = 1) -> ShardReadReply:
        reply = self.requests.read(ShardRead(shard, self.epoch(shard), collection_id, list(keys)))
        assert reply is not None, "the read must wait"
        return reply

    async def read_later(self, key: bytes, shard: int = 0, collection_id: int = 1) -> bytes | None:
        """Read when the key's writes in flight are committed."""
        request = ShardRead(shard, self.epoch(shard), collection_id, [key])
        return (await self.requests.read_later(request, self.clock.monotonic() + 10)).values[0]

    def read(self, key: bytes, shard: int = 0, collection_id: int = 1) -> bytes | None:
        return self.read_all([key], shard, collection_id).values[0]

    def scan(self, start: bytes = b"", end: bytes | None = None, limit: int = 1_000, **fields) -> ShardScanReply:
        reply = self.requests.scan(ShardScan(0, self.epoch(), 1, start, end, limit, **fields))
        assert reply is not None, "the scan must wait"
        return reply

    async def settle(self) -> None:
        """Wait until every replica has its place."""
        while not self.driver.is_settled():
            await asyncio.sleep(0)

    def check(self) -> None:
        for replica in self.driver.replicas.values():
            if replica.machine is not None:
                replica.machine.check_invariants()


@contextlib.asynccontextmanager
async def hosted_leaf(
    engine: Engine | None = None, maps: FakeMaps | None = None, clock: ManualClock | None = None
) -> AsyncIterator[HostedLeaf]:
    """A leaf's core that is open; closed at the end."""
    leaf = HostedLeaf(engine, maps, clock)
    leaf.driver.start()
    try:
        await leaf.driver.wait_open()
        await leaf.settle()
        yield leaf
        leaf.check()
    finally:
        await leaf.driver.close()
